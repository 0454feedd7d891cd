"""How a per-task function runs over a meta-batch: vectorized, in parts, in several threads, or one task at a time.

All give the same numbers to rounding. The fastest plan is measured once and remembered.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from types import FunctionType
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.utils import _pytree as pytree

from ..common import private
from ..common.errors import is_out_of_memory, user_level
from ..common.interrupts import raise_interrupt_behind
from ..functional.contracts import without_kept_tensors
from ..functional.diagnosis import HooksError, explain, first_line
from ..functional.held import state
from ..functional.quick import modules_of
from ..functional.randomness import Draws, refused_draws
from ..functional.stand_ins import mine
from ..functional.values import TasksDifferError
from ..operations.replacements import TaskOperations
from ..task import Params, Task, count, select, stack
from .allocator import give_back_freed_memory, keep_freed_memory
from .batches import concatenated, copies, parts_of, shapes_of
from .plans import Plans, measure
from .search import AT_ONCE, ONE_BY_ONE, Plan, Search
from .snapshots import Snapshot
from .state import State, UnwatchableError
from .threads import available, side_by_side

Vectorize = Literal["auto"] | bool | int | tuple[int, int]

PerTask = Callable[[Task, Params, Params], Any]
"""``(one task, its own parameters, its own buffers) -> pytree of tensors``."""

Result = TypeVar("Result")

_recording: ContextVar[Any] = ContextVar("the engine whose operations are recorded", default=None)

UNMEASURED = 4
"""The number of groups of tasks of different sizes where nothing is measured."""

PARTS = ("update rule", "loss", "inner loss", "objective", "initialization")
"""What a learner consists of, beside its model."""


class _ChangingError(Exception):
    """A part is no longer what it was after it was called, so that it must not be called more often than is asked."""


class Engine:
    """Maps a per-task function over tasks, in the way that is quickest.

    Args:
        model: the module.
        vectorize: ``True`` runs all tasks at once under ``torch.vmap``, ``False`` one by one, a number that many at a
            time, a pair ``(number, threads)`` that many at a time in each of some threads. ``"auto"`` tries these on
            a part of the first meta-batch, throws the results away, and stays with the quickest, as do later learners
            like this one (``innerloop.engine.plans``); what cannot be vectorized runs one by one, with one warning that
            names the part, the cause and the fix. Under ``torch.use_deterministic_algorithms(True)`` nothing is
            measured, and 8 run at once.
        lean: whether memory counts more than time: then neither one by one is tried, where torch's own operations keep
            several times what the kernels do, nor threads, each of which keeps memory of its own.
        parts: the others that the function calls, in the order of `PARTS`.
        options: what else the speed of the function depends on.

    Attributes:
        random: whether random numbers are drawn.
        changing: whether a part changes in Python when it is called, as a counter does.
        separable: whether copies of the model can run in threads of their own.
        parts: by what they are, for messages.
        plans: what was decided.
    """

    def __init__(
        self,
        model: nn.Module,
        vectorize: Vectorize = "auto",
        lean: bool = False,
        parts: Sequence[Any] = (),
        options: Sequence[Any] = (),
    ) -> None:
        self.model, self.vectorize, self.lean = model, vectorize, lean
        self.parts = {kind: part for kind, part in zip(PARTS, parts, strict=False) if part is not None}
        self.random, self.changing, self.separable = False, False, True
        self.plans = Plans(model, list(self.parts.values()), (lean, *options))
        self.given = _given(vectorize)
        self._here: dict[str, Plan] = {}
        self._grown: set[str] = set()
        self._watched: set[str] = set()
        self._notes: list[str] = []
        self._fallback = self._may_draw = False

    def note(self, random: bool, changing: bool, separable: bool, draws: Draws) -> None:
        """Record what ``checks.examine`` reports for tasks of new shapes.

        Args:
            random: see the attributes, as for the next two.
            changing: likewise.
            separable: likewise.
            draws: how random numbers are drawn.
        """
        self.random |= random or draws.error is not None
        self._may_draw |= draws.possible
        self.changing |= changing
        self.separable &= separable
        if draws.error is not None and self.vectorized:
            self._run_one_by_one(draws.error)

    @property
    def _everything(self) -> dict[str, Any]:
        """The parts and the model, as this thread has them."""
        return {kind: mine(part) for kind, part in (*self.parts.items(), ("model", self.model))}

    @property
    def functions(self) -> list[FunctionType]:
        """The parts that are plain functions."""
        return [part for part in self.parts.values() if isinstance(part, FunctionType)]

    @property
    def _depends_on_plan(self) -> bool:
        """Whether results depend on how many tasks run at once, so that timings must not choose that number."""
        return self.random or self.changing

    @property
    def vectorized(self) -> bool:
        """Whether tasks run at once, as far as is known."""
        return self.vectorize is not False and not self._fallback

    @property
    def reasons(self) -> list[str]:
        """What was measured and decided, in words."""
        found = ((name, decision.get("why")) for name, decision in self.plans.made.items() if "size" in decision)
        return [*(f"{' '.join(dict.fromkeys(name.split()))}: {why}" for name, why in found if why), *self._notes]

    @contextmanager
    def recording(self) -> Iterator[None]:
        """All at once and by torch's own operations, for code that records them."""
        token = _recording.set(self)
        try:
            yield
        finally:
            _recording.reset(token)

    @property
    def _is_recorded(self) -> bool:
        return _recording.get() is self

    def isolated(self, function: Callable[..., Any], **options: Any) -> PerTask:
        """A function of one task, after which no module has kept tensors of it."""

        def isolated(task: Task, params: Params, buffers: Params) -> Any:
            with without_kept_tensors(*map(mine, (self.model, *self.parts.values()))):
                return function(task, params, buffers, **options)

        return isolated

    def map(self, function: PerTask, tasks: Task, params: Params, buffers: Params, purpose: str, kind: str = "") -> Any:
        """The function's results for every task, stacked along a leading task axis."""
        return concatenated(list(self.chunks(function, tasks, params, buffers, purpose, lambda result: result, kind)))

    def chunks(
        self,
        function: PerTask,
        tasks: Task,
        params: Params,
        buffers: Params,
        purpose: str,
        finish: Callable[[Any], Result],
        kind: str = "",
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
            kind: what plans are for instead of the shapes of the tasks, where these hardly come twice. It is measured
                on the first `AT_ONCE` tasks of this kind or more.
        """
        job, done = _Job(self, function, tasks, params, buffers, f"{purpose} {kind or shapes_of(tasks)}", finish), 0
        number, name = count(tasks), job.name
        keep_freed_memory(grow=name not in self._grown)
        plan = self._plan(name, number, params)
        plan = plan or (Plan(number) if kind and number < AT_ONCE else self._found(job, number, purpose))
        while plan.size and done < number:
            parts = parts_of(tasks, plan.size, done)
            random_state = torch.get_rng_state()
            try:
                for part, result in zip(parts, self._run(job.part, parts, plan, purpose), strict=False):
                    yield result
                    done += count(part)
                    random_state = torch.get_rng_state()
                plan = self._in_one_thread(name, plan) if plan.threads > 1 and not self.separable else plan
            except Exception as error:
                raise_interrupt_behind(error)
                if self._is_recorded:  # which says nothing of how tasks run
                    raise
                torch.set_rng_state(random_state)
                plan = self._retreat(job, plan, error)
        for index in range(done, number):
            yield job.one(index)
        if self.lean:  # what is kept from step to step takes bits of what was freed, so that memory would grow for ever
            self._grown.add(name)

    def groups(self, kind: str, tasks: int, run: Callable[[int], Any]) -> int:
        """The number of groups of tasks of different sizes, the tasks of one group being filled up and run at once.

        Few groups start fewer operations, and many fill up less. 1, 2, 4, ... are measured as long as that helps.

        Args:
            kind: of the tasks.
            tasks: how many there are.
            run: runs them in so many groups, without a trace.
        """
        if torch.are_deterministic_algorithms_enabled():
            return UNMEASURED
        name = f"groups {kind}"
        if (decision := self.plans.get(name)) is None:
            times: dict[int, float] = {}
            random_state, number = torch.get_rng_state(), 1
            while number <= tasks and (number == 1 or times[number // 2] == min(times.values())):
                run(number)
                times[number] = min(_timed(partial(run, number)) for _ in range(2))
                number *= 2
            torch.set_rng_state(random_state)
            best = min(times, key=lambda number: times[number])
            decision = self.plans.put(name, size=best, threads=1, why=f"{best} of {', '.join(map(str, times))} tried")
        return int(decision["size"])

    def _seconds(self, job: _Job, plan: Plan, purpose: str) -> float:
        """What all tasks take by a plan, measured on as many as show it."""
        parts = parts_of(job.tasks, plan.size, 0, most=plan.threads) if plan.size else []
        if plan.threads > 1 and purpose not in self._watched:
            next(self._run(job.part, parts, plan, purpose))
        start = time.perf_counter()
        if not plan.size:
            job.one(0)
        for _ in self._run(job.part, parts, plan, purpose):
            pass
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return (time.perf_counter() - start) * count(job.tasks) / (sum(map(count, parts)) or 1)

    def _run(self, work: Callable[[Task], Result], parts: Sequence[Task], plan: Plan, purpose: str) -> Iterator[Result]:
        """Yield the results of all parts, or of the first part alone where threads are used for the first time."""
        if plan.threads == 1 or len(parts) == 1:
            yield from map(work, parts)
        elif purpose in self._watched:
            yield from side_by_side(work, parts, plan.threads, self.model)
        else:  # look for changes of Python state in one thread: several threads would make them at the same time
            before, result, after = state(self._everything), work(parts[0]), state(self._everything)
            self._watched.add(purpose)
            if changed := [key for key in after if after[key] != before.get(key)]:
                self.separable = False
                self._notes.append(f"no threads, for {changed[0][0]} changes its {changed[0][1]!r} when it is called")
            yield result

    def _vectorized(self, function: PerTask, tasks: Task, params: Params, buffers: Params) -> Any:
        number = count(tasks)
        everywhere = any(private.GLOBAL_BACKWARD_HOOKS)
        for module in modules_of(self.model):
            if module._backward_hooks or module._backward_pre_hooks or everywhere:
                raise HooksError(module)
        axes = pytree.tree_map(lambda leaf: 0 if isinstance(leaf, Tensor) else None, tuple(tasks))

        def one(task: Task, params: Params, buffers: Params) -> Any:
            with TaskOperations(vectorized=True, kernels=not self._is_recorded), refused_draws(self._may_draw):
                return function(task, params, buffers)

        return vmap(one, (Task(*axes), 0, 0), randomness="different")(
            tasks, copies(params, number), copies(buffers, number)
        )

    # -- choosing -----------------------------------------------------------------------------------------------------

    def _plan(self, name: str, number: int, params: Params) -> Plan | None:
        """The plan, if it is known."""
        if self._is_recorded or (self.vectorize == "auto" and self._depends_on_plan and not self._fallback):
            return Plan(number)
        if not self.vectorized:
            return Plan(ONE_BY_ONE)
        if self.given is not None:
            return Plan(min(self.given.size or number, number), self._threads(params, self.given.threads))
        if torch.are_deterministic_algorithms_enabled():
            return Plan(min(AT_ONCE, number))
        plan = self._here.get(name)
        if plan is None and (decision := self.plans.get(name)) is not None:
            plan = Plan(min(decision["size"], number), decision["threads"])
        return plan and plan._replace(threads=self._threads(params, plan.threads))

    def _found(self, job: _Job, number: int, purpose: str) -> Plan:
        """Measure what is quickest, without a trace; the plan for this meta-batch."""
        name = job.name
        search = Search(number, 1 if self.lean else self._threads(job.params), not self.lean)
        try:
            before = Snapshot(State(self._everything, self.functions), {})
        except UnwatchableError as error:
            return self._keep(name, Plan(min(AT_ONCE, number)), f"not measured, since {error}")

        def checked(plan: Plan) -> float:
            took = self._seconds(job, plan, purpose)
            if not search.times and (change := before.change()) is not None:
                raise _ChangingError(f"not measured, for {change} changes when it is called")
            return took

        try:
            measure(search, checked, lambda plan: plan.threads == 1 or self.separable)
        except _ChangingError as error:
            before.restore()
            self.changing = True
            self._notes.append(f"{name}: {error}")
            return Plan(number)
        except TasksDifferError as error:  # other tasks may agree
            self._keep(name, Plan(min(AT_ONCE, number)), "not measured, since tasks differ")
            return self._retreat(job, search.plan, error)
        except Exception as error:
            raise_interrupt_behind(error)
            return self._retreat(job, search.plan, error)
        finally:
            before.random.restore()
        give_back_freed_memory()
        self._grown.discard(name)
        return self._keep(name, search.plan, str(search))

    def _keep(self, name: str, plan: Plan, why: str) -> Plan:
        """Decide on a plan, unless another process has meanwhile decided on another one."""
        decision = self.plans.put(name, size=plan.size, threads=plan.threads, why=why)
        return Plan(decision["size"], decision["threads"])

    def _threads(self, params: Params, most: int | None = None) -> int:
        """How many threads may work side by side, up to a number."""
        if self.random or not self.separable or most == 1 or any(p.device.type != "cpu" for p in params.values()):
            return 1
        return available() if most is None else min(most, available())

    def _retreat(self, job: _Job, plan: Plan, error: Exception) -> Plan:
        """The plan to go on by after an error; one that no other plan would help against is raised."""
        name = job.name
        if isinstance(error, TasksDifferError) and self.vectorize == "auto":  # other tasks may agree
            return self._one_by_one_this_time(f"{name}: some meta-batches one by one, for {first_line(error)}", error)
        if not is_out_of_memory(error):
            try:
                job.alone()
            except Exception as plain:  # a mistake of the caller's, in its own words
                raise_interrupt_behind(plain)
                raise plain from None
        if plan.threads > 1:
            self.separable = False
            self._notes.append(f"{name}: no threads, for in them: {first_line(error)}")
            return self._in_one_thread(name, plan)
        if is_out_of_memory(error):
            if plan.size == 1 or self.vectorize != "auto":
                raise error
            self._here[name] = Plan(plan.size // 2)
            self._notes.append(f"{name}: {self._here[name]}, for there was no memory for {plan}")
            return self._here[name]
        self._run_one_by_one(error)
        return Plan(ONE_BY_ONE)

    def _run_one_by_one(self, error: Exception) -> None:
        """From now on, with a warning that says why; refused where it is forbidden."""
        if self.vectorize != "auto":
            remedy = f"and vectorize={self.vectorize} forbids running tasks one by one"
            raise ValueError(explain(error, self.model, self.parts, remedy)) from error
        self._fallback = True
        warnings.warn(explain(error, self.model, self.parts, "so tasks run one by one"), stacklevel=user_level())

    def _in_one_thread(self, name: str, plan: Plan) -> Plan:
        """The plan without threads, by which such meta-batches run from now on."""
        self._here[name] = plan._replace(threads=1)
        return self._here[name]

    def _one_by_one_this_time(self, note: str, error: Exception) -> Plan:
        if note not in self._notes:
            self._notes.append(note)
            warnings.warn(explain(error, self.model, self.parts, "so these run one by one"), stacklevel=user_level())
        return Plan(ONE_BY_ONE)


class _Job(NamedTuple):
    """What is asked for; see `Engine.chunks`."""

    engine: Engine
    function: PerTask
    tasks: Task
    params: Params
    buffers: Params
    name: str
    finish: Callable[[Any], Any]

    def part(self, tasks: Task) -> Any:
        """The result of some tasks, at once."""
        return self.finish(self.engine._vectorized(self.function, tasks, self.params, self.buffers))

    def one(self, index: int) -> Any:
        """The result of one task by itself."""
        with TaskOperations(vectorized=False):
            found = stack([self.function(select(self.tasks, index), self.params, self.buffers)])
        return self.finish(found)

    def alone(self) -> None:
        """Every task by itself."""
        with torch.random.fork_rng([]):
            for index in range(count(self.tasks)):
                self.one(index)


def _timed(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


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
