"""How a per-task function runs over a meta-batch: vectorised, some tasks at a time, in threads side by side, or one by
one. All give the same numbers to rounding; which is quickest is measured."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import nn
from torch.func import vmap
from torch.utils import _pytree as pytree

from .inner import stack
from .memory import give_back_freed_memory, is_out_of_memory, keep_freed_memory
from .operations import TaskOperations, TasksDifferError
from .search import AT_ONCE, ONE_BY_ONE, Plan, Search
from .task import Params, Task, count, select
from .threads import available, side_by_side

Vectorize = Literal["auto"] | bool | int | tuple[int, int]

PerTask = Callable[[Task, Params, Params], Any]
"""``(one task, its own parameters, its own buffers) -> pytree of tensors``."""

Result = TypeVar("Result")


class Engine:
    """Maps a per-task function over tasks, and learns how that is quickest.

    Args:
        model: the module, for its name in messages.
        vectorize: ``True`` runs all tasks at once under ``torch.vmap``, ``False`` one by one, a number that many at a
            time, a pair ``(number, threads)`` that many at a time in each of some threads. ``"auto"`` tries these on
            successive meta-batches and stays with the quickest; a module that cannot be vectorised runs one by one,
            which is said once. Under ``torch.use_deterministic_algorithms(True)`` nothing is measured, and 8 run at
            once, since another plan's numbers are the same to rounding only.
        lean: whether memory counts more than time: then neither one by one is tried, where torch's own operations keep
            several times what the kernels do, nor threads, each of which keeps memory of its own.

    Attributes:
        random: whether the model draws random numbers.
        separable: whether copies of the model can run in threads of their own.
        chosen: the plan for each purpose and shape of tasks, where that is settled.
    """

    def __init__(self, model: nn.Module, vectorize: Vectorize = "auto", lean: bool = False) -> None:
        self.model, self.vectorize, self.lean = model, vectorize, lean
        self.random, self.separable = False, True
        self.chosen: dict[str, Plan] = {}
        self.given = _given(vectorize)
        self._searches: dict[str, Search] = {}
        self._grown: set[str] = set()
        self._notes: list[str] = []
        self._fallback = self._recording = False

    def __getstate__(self) -> dict[str, Any]:
        """For copies of a learner, which measure anew what is not settled."""
        return {**self.__dict__, "_searches": {}}

    @property
    def vectorised(self) -> bool:
        """Whether tasks run at once, as far as is known."""
        return self.vectorize is not False and not self._fallback

    @property
    def reasons(self) -> list[str]:
        """What was measured and chosen, in words."""
        found = {name: search for name, search in self._searches.items() if search.found}
        return [*(f"{' '.join(dict.fromkeys(name.split()))}: {search}" for name, search in found.items()), *self._notes]

    def settled(self, tasks: Task, purpose: str) -> bool:
        """Whether the plan for such meta-batches stays as it is."""
        fixed = self.given is not None or not self.vectorised or self.random or _deterministic()
        return fixed or f"{purpose} {_describe(tasks)}" in self.chosen

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
        return _concatenate(list(self.chunks(function, tasks, params, buffers, purpose, lambda result: result)))

    def chunks(
        self,
        function: PerTask,
        tasks: Task,
        params: Params,
        buffers: Params,
        purpose: str,
        finish: Callable[[Any], Result],
    ) -> Iterator[Result]:
        """What becomes of the results of some tasks at a time, in order.

        Args:
            function: of one task.
            tasks: a meta-batch.
            params: the parameters that each task gets its own copies of.
            buffers: likewise.
            purpose: what the results are for, in a word: choices are made for each purpose and shape of tasks.
            finish: what is done with the stacked results of a chunk before the next one is begun; so what is needed
                to differentiate them is held for one chunk (a thread) at a time.
        """
        number, done, start = count(tasks), 0, time.perf_counter()
        name = f"{purpose} {_describe(tasks)}"
        keep_freed_memory(grow=name not in self._grown)
        plan = self._plan(name, number, params)

        def work(part: Task) -> Result:
            return finish(self._vectorised(function, part, params, buffers))

        while plan.size and done < number:
            parts = [select(tasks, slice(i, i + plan.size)) for i in range(done, number, plan.size)]
            random_state = torch.get_rng_state()
            try:
                side = plan.threads > 1 and len(parts) > 1
                results = side_by_side(work, parts, plan.threads, self.model) if side else map(work, parts)
                for part, result in zip(parts, results, strict=True):
                    yield result
                    done += count(part)
                    random_state = torch.get_rng_state()
            except Exception as error:
                if self._recording:  # which says nothing of how tasks run
                    raise
                torch.set_rng_state(random_state)
                plan = self._retreat(name, plan, error, partial(self._alone, function, tasks, params, buffers))
        for index in range(done, number):
            with TaskOperations(vectorised=False):
                result = stack([function(select(tasks, index), params, buffers)])
            yield finish(result)
        self._note(name, plan, time.perf_counter() - start)

    def _vectorised(self, function: PerTask, tasks: Task, params: Params, buffers: Params) -> Any:
        number = count(tasks)
        if any(module._backward_hooks or module._backward_pre_hooks for module in self.model.modules()):
            raise NotImplementedError("backward hooks of modules do not run where tasks run at once")
        with TaskOperations(vectorised=True, kernels=not self._recording):
            return vmap(function, randomness="different")(tasks, copies(params, number), copies(buffers, number))

    # -- choosing -----------------------------------------------------------------------------------------------------

    def _plan(self, name: str, number: int, params: Params) -> Plan:
        if self._recording or (self.vectorize == "auto" and self.random and not self._fallback):
            return Plan(number)
        if not self.vectorised:
            return Plan(ONE_BY_ONE)
        if self.given is not None:
            return Plan(min(self.given.size or number, number), self._threads(params, self.given.threads))
        if _deterministic():
            return Plan(min(AT_ONCE, number))
        if (plan := self.chosen.get(name)) is None:
            if name not in self._searches:
                self._searches[name] = Search(number, 1 if self.lean else self._threads(params), not self.lean)
            plan = self._searches[name].plan
        return plan._replace(threads=self._threads(params, plan.threads))

    def _threads(self, params: Params, most: int | None = None) -> int:
        """How many threads may work side by side, up to a number."""
        if self.random or not self.separable or most == 1 or any(p.device.type != "cpu" for p in params.values()):
            return 1
        return available() if most is None else min(most, available())

    def _note(self, name: str, plan: Plan, seconds: float) -> None:
        """Tell the search what a meta-batch took, if there is one for such batches."""
        if self.lean:  # what is kept from step to step takes bits of what was freed, so that memory would grow for ever
            self._grown.add(name)
        search = self._searches.get(name)
        if search is None or name in self.chosen or not self.vectorised or plan != search.plan:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        search.took(seconds)
        if search.plan != plan:
            give_back_freed_memory()
            self._grown.discard(name)
        if search.found:
            self.chosen[name] = search.plan

    def _retreat(self, name: str, plan: Plan, error: Exception, alone: Callable[[], None]) -> Plan:
        """The plan to go on by after an error; one that no other plan would help against is raised."""
        if isinstance(error, TasksDifferError) and self.vectorize == "auto":  # other tasks may agree
            return self._one_by_one_this_time(f"{name}: some meta-batches one by one, for {_first_line(error)}", error)
        if not is_out_of_memory(error):
            try:
                alone()
            except Exception as plain:  # a mistake of the caller's, in its own words
                raise plain from None
        if plan.threads > 1:
            self.separable = False
            self._notes.append(f"{name}: no threads, for in them: {_first_line(error)}")
            if name in self._searches:
                self._searches[name].stop()
            self.chosen[name] = plan._replace(threads=1)
            return self.chosen[name]
        if is_out_of_memory(error):
            if plan.size == 1 or self.vectorize != "auto":
                raise error
            self.chosen[name] = Plan(plan.size // 2)
            self._notes.append(f"{name}: {self.chosen[name]}, for there was no memory for {plan}")
            return self.chosen[name]
        if self.vectorize != "auto":
            remedy = f"and vectorize={self.vectorize} forbids to run tasks one by one"
            raise ValueError(_explain(error, self.model, remedy)) from error
        self._fallback = True
        warnings.warn(_explain(error, self.model, "so tasks run one by one"), stacklevel=5)
        return Plan(ONE_BY_ONE)

    def _one_by_one_this_time(self, note: str, error: Exception) -> Plan:
        if note not in self._notes:
            self._notes.append(note)
            warnings.warn(_explain(error, self.model, "so these run one by one"), stacklevel=6)
        return Plan(ONE_BY_ONE)

    def _alone(self, function: PerTask, tasks: Task, params: Params, buffers: Params) -> None:
        """Every task by itself."""
        with torch.random.fork_rng([]):
            for index in range(count(tasks)):
                function(select(tasks, index), params, buffers)


def _deterministic() -> bool:
    return torch.are_deterministic_algorithms_enabled()


def _given(vectorize: Vectorize) -> Plan | None:
    """The plan that an option demands; size 0 stands for all tasks. ``None`` leaves it to be found, or loops."""
    if vectorize == "auto" or vectorize is False:
        return None
    pair = vectorize if isinstance(vectorize, tuple) else (vectorize, 1)
    if vectorize is not True and not (len(pair) == 2 and all(type(n) is int and n >= 1 for n in pair)):
        raise ValueError(
            'vectorize is "auto", True, False, a number of tasks from 1, or a pair of that and a number of threads, '
            f"got {vectorize!r}"
        )
    return Plan(0 if vectorize is True else int(pair[0]), pair[1])


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
    if isinstance(error, TasksDifferError):
        return f"{where} cannot run these tasks at once, {remedy}: {_first_line(error)}"
    return f"{where} cannot be vectorised over tasks, {remedy}. Torch said: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
