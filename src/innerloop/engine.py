"""How a per-task function runs over a meta-batch: vectorised, some tasks at a time, or one by one. All give the same
numbers to rounding; which is quickest is measured."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn
from torch.func import vmap
from torch.utils import _pytree as pytree

from .inner import stack
from .memory import keep_freed_memory
from .operations import TaskOperations
from .task import Params, Task, count, select

Vectorize = Literal["auto"] | bool | int

PerTask = Callable[[Task, Params, Params], Any]
"""``(one task, its own parameters, its own buffers) -> pytree of tensors``."""

QUICK = 0.05
"""Seconds. A meta-batch that takes less runs all at once, unmeasured: so small runs repeat to the bit."""
ONE_BY_ONE = 0


class Engine:
    """Maps a per-task function over tasks, and learns how that is quickest.

    Args:
        model: the module, for its name in messages.
        vectorize: ``True`` runs all tasks at once under ``torch.vmap``, ``False`` one by one, a number that many at a
            time. ``"auto"`` tries these on successive meta-batches and stays with the quickest; a module that cannot
            be vectorised runs one by one, which is said once.
    """

    def __init__(self, model: nn.Module, vectorize: Vectorize = "auto") -> None:
        number = isinstance(vectorize, int) and not isinstance(vectorize, bool)
        if (number and vectorize < 1) or not (number or vectorize in ("auto", True, False)):  # type: ignore[operator]
            raise ValueError(f'vectorize is "auto", True, False or a number of tasks from 1, got {vectorize!r}')
        self.model, self.vectorize = model, vectorize
        self.random = False
        self.chosen: dict[str, int] = {}
        self._searches: dict[str, Search] = {}
        self._fallback = self._recording = False

    @property
    def vectorised(self) -> bool:
        """Whether tasks run at once, as far as is known."""
        return self.vectorize is not False and not self._fallback

    @property
    def reasons(self) -> list[str]:
        """What was measured and chosen, in words."""
        return [f"{name}: {search}" for name, search in self._searches.items() if search.found]

    @contextmanager
    def recording(self) -> Iterator[None]:
        """All at once and by torch's own operations, for code that records them."""
        self._recording = True
        try:
            yield
        finally:
            self._recording = False

    def map(self, function: PerTask, tasks: Task, params: Params, buffers: Params, purpose: str) -> Any:
        """The function's results for every task, stacked along a leading task axis."""
        return _concatenate([result for result, _ in self.chunks(function, tasks, params, buffers, purpose)])

    def chunks(
        self, function: PerTask, tasks: Task, params: Params, buffers: Params, purpose: str
    ) -> Iterator[tuple[Any, int]]:
        """Stacked results for some tasks at a time, with the number of tasks; so that whoever differentiates each
        chunk needs the memory of one. What is done between chunks counts as time of the meta-batch.

        Args:
            function: of one task.
            tasks: a meta-batch.
            params: the parameters that each task gets its own copies of.
            buffers: likewise.
            purpose: what the results are for, in a word: choices are made for each purpose and shape of tasks.
        """
        number, done = count(tasks), 0
        name = f"{purpose} {_describe(tasks)}"
        size, start = self._size(name, number), time.perf_counter()
        while done < number and size != ONE_BY_ONE and self.vectorised:
            part = select(tasks, slice(done, done + size)) if size < number else tasks
            random_state = torch.get_rng_state()
            try:
                result = self._vectorised(function, part, params, buffers)
            except torch.OutOfMemoryError:
                if size == 1 or self.vectorize != "auto":
                    raise
                size = self.chosen[name] = size // 2
                continue
            except Exception as error:
                if self.vectorize != "auto":
                    raise ValueError(
                        _explain(error, self.model, f"and vectorize={self.vectorize} forbids to run tasks one by one")
                    ) from error
                torch.set_rng_state(random_state)
                self._fall_back(function, tasks, params, buffers, error)
                torch.set_rng_state(random_state)
            else:
                yield result, count(part)
                done += count(part)
        for index in range(done, number):
            with TaskOperations(vectorised=False):
                result = function(select(tasks, index), params, buffers)
            yield stack([result]), 1
        self._note(name, size, start)

    def _vectorised(self, function: PerTask, tasks: Task, params: Params, buffers: Params) -> Any:
        number = count(tasks)
        with TaskOperations(vectorised=True, kernels=not self._recording):
            return vmap(function, randomness="different")(tasks, copies(params, number), copies(buffers, number))

    # -- choosing -----------------------------------------------------------------------------------------------------

    def _size(self, name: str, number: int) -> int:
        """How many tasks to run at once, or `ONE_BY_ONE`."""
        keep_freed_memory()
        if self._recording or self.vectorize is True or (self.vectorize == "auto" and self.random):
            return number
        if not self.vectorised:
            return ONE_BY_ONE
        if self.vectorize != "auto":
            return min(int(self.vectorize), number)
        if name in self.chosen:
            return self.chosen[name]
        if name not in self._searches:
            self._searches[name] = Search(number)
        return self._searches[name].size

    def _note(self, name: str, size: int, start: float) -> None:
        """Tell the search what a meta-batch took, if there is one for such batches."""
        search = self._searches.get(name)
        if search is None or name in self.chosen or not self.vectorised or size != search.size:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        search.took(time.perf_counter() - start)
        if search.found:
            self.chosen[name] = search.size

    def _fall_back(self, function: PerTask, tasks: Task, params: Params, buffers: Params, error: Exception) -> None:
        """Loop from now on, if every task runs alone; a mistake of the caller's raises here, in its own words."""
        self._fallback = True
        try:
            with torch.no_grad():
                for index in range(count(tasks)):
                    function(select(tasks, index), params, buffers)
        except Exception as plain:
            self._fallback = False
            raise plain from None
        warnings.warn(_explain(error, self.model, "so tasks run one by one"), stacklevel=5)


class Search:
    """The quickest number of tasks at once, by trial on successive meta-batches; none is run for the trial alone.

    Every size is tried on three meta-batches, of which the first warms up. From 8 the number is doubled, or else
    halved, as long as that helps; one by one is tried last.

    Attributes:
        size: to use for the next meta-batch.
        found: whether that is settled.
    """

    def __init__(self, number: int) -> None:
        self.times: dict[int, float] = {}
        self.found = False
        self._trials: list[float] = []
        self._steps = self._search(number)
        self.size = next(self._steps)

    def took(self, seconds: float) -> None:
        """Note what a meta-batch took at the present size."""
        self._trials.append(seconds)
        if len(self._trials) < 3:
            return
        self.times[self.size], self._trials = min(self._trials[1:]), []
        try:
            self.size = next(self._steps)
        except StopIteration as stop:
            self.size, self.found = stop.value, True

    def _search(self, number: int) -> Generator[int, None, int]:
        start = best = min(8, number)
        yield start
        if self.times[start] < QUICK:
            return number
        for factor in (2.0, 0.5):
            while (size := int(min(best * factor, number))) >= 1 and size not in self.times:
                yield size
                if self.times[size] > 0.97 * self.times[best]:
                    break
                best = size
            if best != start:
                break
        yield ONE_BY_ONE
        return min(self.times, key=lambda size: self.times[size])

    def __str__(self) -> str:
        tried = ", ".join(f"{size or 'one'} at once {1e3 * t:.1f} ms" for size, t in self.times.items())
        choice = "one by one" if self.size == ONE_BY_ONE else f"{self.size} tasks at once"
        return f"{choice} ({tried})"


def copies(tensors: Params, number: int) -> Params:
    """Each tensor with a new first axis, one for every item: buffers are updated in place, and inner gradients are
    taken for each. Images and their filters are laid out with channels last, as the kernels want them."""
    last = {n: t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for n, t in tensors.items()}
    return {name: tensor.expand(number, *tensor.shape) for name, tensor in last.items()}


def _describe(tasks: Task) -> str:
    """The shapes of the tasks, in words."""
    return " ".join("x".join(map(str, leaf.shape)) for leaf in pytree.tree_leaves(tasks))


def _concatenate(chunks: list[Any]) -> Any:
    return pytree.tree_map(lambda *parts: parts[0] if len(parts) == 1 else torch.cat(parts), *chunks)


def _explain(error: Exception, model: nn.Module, remedy: str) -> str:
    """Torch's error, in terms of the module in whose ``forward`` it arose."""
    names = {id(module): name or "the model itself" for name, module in model.named_modules()}
    where, trace = type(model).__name__, error.__traceback__
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and id(owner) in names:
            where = f"{type(owner).__name__} ({names[id(owner)]})"
        trace = trace.tb_next
    return f"{where} cannot be vectorised over tasks, {remedy}. Torch said: {str(error).splitlines()[0]}"
