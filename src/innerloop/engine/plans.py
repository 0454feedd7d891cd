"""Plans: decisions about how a learner runs, made before the first run of a kind and stored.

Plans differ in speed and in rounding. If they were measured on results that are used, the same seed would give other
low-order bits every time. So a plan is chosen first, by runs whose results are discarded, and stored in the learner, in
the run directory and in the user's cache folder. The same learner on the same machine then gets the same plan.
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
"""Seconds that measuring plans may take, approximately."""
LONG = 1.0
"""Seconds from which a trial is not repeated."""
Decision = Mapping[str, Any]
"""``{"size", "threads"}``, how many tasks run at once and in how many threads, or ``{"compiled", "enough"}``, whether a
step is compiled and after how many runs that pays off; both with the reason ``"why"`` in words."""


class Plans:
    """The plans of one learner.

    Args:
        model: the learner's model.
        parts: its other parts.
        options: other settings that its speed depends on.

    Attributes:
        made: the decisions, by the name of what they are for.
        fresh: whether to ignore stored decisions and measure again.
        tell: called with ``made`` after each decision.
    """

    def __init__(self, model: nn.Module, parts: Sequence[Any], options: Sequence[Any]) -> None:
        self.made: dict[str, Decision] = {}
        self.fresh = False
        self.tell: Callable[[dict[str, Decision]], None] | None = None
        self._model, self._parts, self._options = model, tuple(parts), tuple(options)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the callback ``tell``, which copies of a learner do not get."""
        return {**self.__dict__, "tell": None}

    def get(self, name: str, but: str = "") -> Decision | None:
        """Return a decision if this learner has made it or it is in the user's cache folder.

        Args:
            name: what the decision is for.
            but: another condition that stored decisions depend on; a resumed run keeps its decision anyway.
        """
        if name not in self.made and not self.fresh:
            entry = plan_files.read(self._path(name, but))
            if entry is not None:
                self._keep(name, entry["decision"])
        return self.made.get(name)

    def put(self, name: str, but: str = "", **decision: Any) -> Decision:
        """Store a decision. If another thread or process has made one meanwhile, that one counts.

        Args:
            name: what the decision is for.
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
        """Adopt earlier decisions that are valid."""
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
            *map(_description, (self._model, self._parts, self._options)),
            *names,
        ]
        return plan_files.folder() / f"{hashlib.sha256(json.dumps(about).encode()).hexdigest()}.json"


def measure(search: Search, seconds: Callable[[Plan], float], possible: Callable[[Plan], bool]) -> None:
    """Measure the plans of a search until it is done or `PATIENCE` is used up.

    Args:
        search: the search, which ends with the best plan that was tried.
        seconds: runs some tasks with a plan, and returns the time that all tasks would take.
        possible: returns whether a plan can be used.
    """
    start = time.perf_counter()
    while not search.done:
        if not possible(search.plan) or (search.times and time.perf_counter() - start > PATIENCE):
            search.stop()
            return
        times: list[float] = []
        try:
            for _ in range(3):  # the first run is a warm-up: code is loaded, and memory grows
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
        if len(times) == 1 and search.times:  # patience is used up, and a first run is too slow to compare
            search.stop()
            return
        search.took(min(times[1:] or times))


# -- the key of a plan ------------------------------------------------------------------------------------------------


def machine(model: nn.Module) -> dict[str, Any]:
    """Return the properties of machine and software that the speed of plans depends on."""
    from .. import __version__

    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    return {
        "innerloop": __version__,
        "torch": str(torch.__version__),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }


def _description(part: Any, depth: int = 3) -> str:
    """Describe a part by a string that is the same in every process and does not depend on its numbers."""
    deeper = functools.partial(_description, depth=depth - 1)
    if isinstance(part, torch.Tensor):
        text = f"{tuple(part.shape)} {part.dtype}"
    elif isinstance(part, nn.Module):
        tensors = [f"{n} {_description(t)}" for n, t in (*part.named_parameters(), *part.named_buffers())]
        text = f"{type(part).__module__}.{type(part).__qualname__} {part!r} {tensors}"
    elif hasattr(part, "__qualname__"):
        text = f"{part.__module__}.{part.__qualname__}"
    elif depth == 0:
        text = type(part).__qualname__
    elif isinstance(part, functools.partial):
        text = f"{deeper(part.func)} {deeper(part.args)} {deeper(part.keywords)}"
    elif isinstance(part, Mapping):
        text = str({str(key): deeper(value) for key, value in part.items()})
    elif isinstance(part, (tuple, list)):
        text = str(list(map(deeper, part)))
    elif hasattr(part, "__dict__"):
        text = f"{type(part).__module__}.{type(part).__qualname__} {deeper(vars(part))}"
    else:
        text = repr(part)
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)
