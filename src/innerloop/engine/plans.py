"""Decisions about how a learner runs, made before the first run of a kind and remembered.

Plans differ in speed, and in how results are rounded. If they were measured while results are used, the same seed would
give other bits every time. So a plan is settled first, by runs whose results are thrown away, and kept: by the learner,
in the run directory, and in a folder of the user's. The same learner on the same machine then gets the same plan.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..common import plan_files
from ..common.errors import is_out_of_memory
from ..common.interrupts import raise_interrupt_behind
from ..common.machine import processor
from .search import Plan, Search, quick

PATIENCE = 3.0
"""Seconds that finding a plan may take, or little more."""
LONG = 1.0
"""Seconds of a trial that is not repeated."""
Decision = Mapping[str, Any]
"""``{"size", "threads"}``, how many tasks run at once and in how many threads, or ``{"compiled", "enough"}``, whether a
step is compiled, and after how many runs that has paid; both with a ``"why"`` in words."""


class Plans:
    """The plans of one learner.

    Args:
        model: the learner's.
        parts: its other parts.
        options: what else its speed depends on.

    Attributes:
        made: the decisions, by what they are for.
        fresh: whether to measure what this learner has not measured itself.
        tell: called with ``made`` after each decision.
    """

    def __init__(self, model: nn.Module, parts: Sequence[Any], options: Sequence[Any]) -> None:
        self.made: dict[str, Decision] = {}
        self.fresh = False
        self.tell: Callable[[dict[str, Decision]], None] | None = None
        self._model, self._parts, self._options = model, tuple(parts), tuple(options)

    def __getstate__(self) -> dict[str, Any]:
        """For copies of a learner, of which nobody has asked to be told."""
        return {**self.__dict__, "tell": None}

    def get(self, name: str, but: str = "") -> Decision | None:
        """The decision about something, if it was made by this learner or is in the user's folder.

        Args:
            name: what for.
            but: what it depends on as well, except for a run that goes on.
        """
        if name not in self.made and not self.fresh:
            found = plan_files.read(self._path(name, but))
            if found is not None:
                self._keep(name, found["decision"])
        return self.made.get(name)

    def put(self, name: str, but: str = "", **decision: Any) -> Decision:
        """Keep a decision. If another thread or process has made one meanwhile, that one counts.

        Args:
            name: what for.
            but: see `get`.
            decision: its values.

        Returns:
            The decision that counts.
        """
        if name in self.made:  # by another thread
            return self.made[name]
        about = {"model": type(self._model).__name__, "for": name, **machine(self._model)}
        entry = {"version": plan_files.VERSION, "made": time.strftime("%Y-%m-%d %H:%M"), **about, "decision": decision}
        return self._keep(name, plan_files.write(self._path(name, but), entry, replace=self.fresh)["decision"])

    def take(self, made: Any) -> None:
        """Take over decisions that were made before, as far as they are valid."""
        items = made.items() if isinstance(made, Mapping) else ()
        self.made.update(
            {name: dict(decision) for name, decision in items if isinstance(name, str) and plan_files.valid(decision)}
        )

    def _keep(self, name: str, decision: Decision) -> Decision:
        self.made[name] = decision
        if self.tell is not None:
            self.tell(self.made)
        return decision

    def _path(self, *names: str) -> Path:
        about = [
            plan_files.VERSION,
            machine(self._model),
            *map(_told, (self._model, self._parts, self._options)),
            *names,
        ]
        return plan_files.folder() / f"{hashlib.sha256(json.dumps(about).encode()).hexdigest()}.json"


def measure(search: Search, seconds: Callable[[Plan], float], possible: Callable[[Plan], bool]) -> None:
    """Give a search what it asks for, as long as patience lasts.

    Args:
        search: ends with the best plan that was tried.
        seconds: runs some tasks by a plan, and says what all of them would take.
        possible: whether a plan can be used, as far as is known when its turn comes.
    """
    start = time.perf_counter()
    while not search.found:
        if not possible(search.plan) or (search.times and time.perf_counter() - start > PATIENCE):
            search.stop()
            return
        times: list[float] = []
        try:
            for _ in range(3):  # the first warms up: code is loaded, and memory grows
                before = time.perf_counter()
                times.append(seconds(search.plan))
                short = quick(times[-1]) and not search.times
                long = time.perf_counter() - before > LONG and len(times) > 1
                if short or long or time.perf_counter() - start > PATIENCE:
                    break
        except Exception as error:
            raise_interrupt_behind(error)
            if not is_out_of_memory(error) or not search.times:
                raise
            times = [float("inf")] * 2
        if len(times) == 1 and search.times:  # patience is at its end, and by a first run it would look slow
            search.stop()
            return
        search.took(min(times[1:] or times))


# -- what a plan depends on -------------------------------------------------------------------------------------------


def machine(model: nn.Module) -> dict[str, Any]:
    """What of the machine and the software makes plans quick or slow."""
    from .. import __version__

    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    return {
        "innerloop": __version__,
        "torch": str(torch.__version__),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }


def _told(part: Any, depth: int = 3) -> str:
    """A part in words that are the same in every process: what it is, without its numbers."""
    deeper = functools.partial(_told, depth=depth - 1)
    if isinstance(part, torch.Tensor):
        told = f"{tuple(part.shape)} {part.dtype}"
    elif isinstance(part, nn.Module):
        tensors = [f"{n} {_told(t)}" for n, t in (*part.named_parameters(), *part.named_buffers())]
        told = f"{type(part).__module__}.{type(part).__qualname__} {part!r} {tensors}"
    elif hasattr(part, "__qualname__"):
        told = f"{part.__module__}.{part.__qualname__}"
    elif depth == 0:
        told = type(part).__qualname__
    elif isinstance(part, functools.partial):
        told = f"{deeper(part.func)} {deeper(part.args)} {deeper(part.keywords)}"
    elif isinstance(part, Mapping):
        told = str({str(key): deeper(value) for key, value in part.items()})
    elif isinstance(part, (tuple, list)):
        told = str(list(map(deeper, part)))
    elif hasattr(part, "__dict__"):
        told = f"{type(part).__module__}.{type(part).__qualname__} {deeper(vars(part))}"
    else:
        told = repr(part)
    return re.sub(r" at 0x[0-9a-fA-F]+", "", told)
