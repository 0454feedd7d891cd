"""The engine, which runs a per-task function over a meta-batch: vectorized, in chunks, in threads or one by one.

All of these plans give the same results up to rounding. The fastest plan is measured once and stored.
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
"""The parts of a learner other than its model."""


class _ChangingError(Exception):
    """A part changes when it is called, so measuring must not call it."""


class Engine:
    """Maps a per-task function over tasks with the fastest plan.

    Args:
        model: the module.
        vectorize: ``True`` runs all tasks at once under ``torch.vmap``, ``False`` one by one, a number that many at a
            time, and a pair ``(number, threads)`` that many at a time in each of several threads. ``"auto"`` tries
            these on a part of the first meta-batch, discards the results, and uses the fastest from then on, as do
            later learners of the same kind (``innerloop.engine.plans``). What cannot be vectorized runs one by one,
            with one warning that names the part, the cause and the fix. Under
            ``torch.use_deterministic_algorithms(True)`` nothing is measured, and 8 tasks run at once.
        lean: whether memory counts more than time. Then the engine tries neither one by one, because torch's own
            operations keep several times the memory of the kernels, nor threads, because each keeps its own memory.
        parts: the other parts that the function calls, in the order of `PARTS`.
        options: other settings that the speed of the function depends on.

    Attributes:
        random: whether random numbers are drawn.
        changing: whether a part changes Python state, such as a counter, when it is called.
        separable: whether copies of the model can run in separate threads.
        parts: the parts by kind, for messages.
        plans: the decisions so far.

    Raises:
        ValueError: ``vectorize`` is none of these.
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
            random: see the attributes.
            changing: see the attributes.
            separable: see the attributes.
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
        """The parts and the model of this thread."""
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
        """Whether tasks run at once, as far as it is known."""
        return self.vectorize is not False and not self._fallback

    @property
    def reasons(self) -> list[str]:
        """The decisions and their reasons, in words."""
        decisions = ((name, decision.get("why")) for name, decision in self.plans.made.items() if "size" in decision)
        return [*(f"{' '.join(dict.fromkeys(name.split()))}: {why}" for name, why in decisions if why), *self._notes]

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Run all tasks at once and with torch's own operations while entered, to record them."""
        token = _recording.set(self)
        try:
            yield
        finally:
            _recording.reset(token)

    @property
    def _is_recorded(self) -> bool:
        return _recording.get() is self

    def isolated(self, function: Callable[..., Any], **options: Any) -> PerTask:
        """Wrap a function of one task so that no module keeps tensors of the task."""

        def isolated(task: Task, params: Params, buffers: Params) -> Any:
            with without_kept_tensors(*map(mine, (self.model, *self.parts.values()))):
                return function(task, params, buffers, **options)

        return isolated

    def map(self, function: PerTask, tasks: Task, params: Params, buffers: Params, purpose: str, kind: str = "") -> Any:
        """Return the function's results for all tasks, stacked along a leading task axis."""
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
        """Yield the finished results of chunks of tasks, in order.

        Args:
            function: a function of one task.
            tasks: a meta-batch.
            params: the parameters, of which each task gets its own copies.
            buffers: the buffers, of which each task gets its own copies.
            purpose: a word for what the results are for; plans are chosen for each purpose and shape of tasks.
            finish: a function of the stacked results of a chunk, which runs before the next chunk starts, so that the
                graph of only one chunk per thread is held at a time.
            kind: what plans are for instead of the shapes of the tasks, if these hardly come twice. A plan is measured
                on the first ``AT_ONCE`` tasks of this kind or more.
        """
        job, done = _Job(self, function, tasks, params, buffers, f"{purpose} {kind or shapes_of(tasks)}", finish), 0
        number, name = count(tasks), job.name
        keep_freed_memory(grow=name not in self._grown)
        plan = self._plan(name, number, params)
        plan = plan or (Plan(number) if kind and number < AT_ONCE else self._measured(job, number, purpose))
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
                if self._is_recorded:  # the error says nothing about how tasks run
                    raise
                torch.set_rng_state(random_state)
                plan = self._retreat(job, plan, error)
        for index in range(done, number):
            yield job.one(index)
        if self.lean:  # tensors that live from step to step fragment the freed memory, so memory would keep growing
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
            decision = self.plans.put(name, size=best, threads=1, why=f"{best} (tried {', '.join(map(str, times))})")
        return int(decision["size"])

    def _seconds(self, job: _Job, plan: Plan, purpose: str) -> float:
        """Return the seconds that all tasks take with a plan, measured on the first of them."""
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
        """Yield the results of all parts, or of the first part alone if threads are used for the first time."""
        if plan.threads == 1 or len(parts) == 1:
            yield from map(work, parts)
        elif purpose in self._watched:
            yield from side_by_side(work, parts, plan.threads, self.model)
        else:  # check for changes of Python state in one thread, since several threads would make them concurrently
            before, result, after = state(self._everything), work(parts[0]), state(self._everything)
            self._watched.add(purpose)
            if changed := [key for key in after if after[key] != before.get(key)]:
                self.separable = False
                self._notes.append(f"no threads, since {changed[0][0]} changes its {changed[0][1]!r} when it is called")
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
        """Return the plan if it is known."""
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

    def _measured(self, job: _Job, number: int, purpose: str) -> Plan:
        """Measure plans without side effects, and return the plan for this meta-batch."""
        name = job.name
        search = Search(number, 1 if self.lean else self._threads(job.params), not self.lean)
        try:
            before = Snapshot(State(self._everything, self.functions), {})
        except UnwatchableError as error:
            return self._keep(name, Plan(min(AT_ONCE, number)), f"not measured, since {error}")

        def checked(plan: Plan) -> float:
            took = self._seconds(job, plan, purpose)
            if not search.times and (change := before.change()) is not None:
                raise _ChangingError(f"not measured, since {change} changes when it is called")
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
        """Decide on a plan, unless another process has decided on another one meanwhile."""
        decision = self.plans.put(name, size=plan.size, threads=plan.threads, why=why)
        return Plan(decision["size"], decision["threads"])

    def _threads(self, params: Params, most: int | None = None) -> int:
        """Return the number of threads that may run side by side, at most ``most``."""
        if self.random or not self.separable or most == 1 or any(p.device.type != "cpu" for p in params.values()):
            return 1
        return available() if most is None else min(most, available())

    def _retreat(self, job: _Job, plan: Plan, error: Exception) -> Plan:
        """Return the plan to continue with after an error; raise the error if no other plan helps."""
        name = job.name
        if isinstance(error, TasksDifferError) and self.vectorize == "auto":  # other tasks may agree
            return self._one_by_one_this_time(f"{name}: some meta-batches one by one, since {first_line(error)}", error)
        if not is_out_of_memory(error):
            try:
                job.alone()
            except Exception as plain:  # a mistake of the caller, with its own error
                raise_interrupt_behind(plain)
                raise plain from None
        if plan.threads > 1:
            self.separable = False
            self._notes.append(f"{name}: no threads, since in threads: {first_line(error)}")
            return self._in_one_thread(name, plan)
        if is_out_of_memory(error):
            if plan.size == 1 or self.vectorize != "auto":
                raise error
            self._here[name] = Plan(plan.size // 2)
            self._notes.append(f"{name}: {self._here[name]}, since {plan} ran out of memory")
            return self._here[name]
        self._run_one_by_one(error)
        return Plan(ONE_BY_ONE)

    def _run_one_by_one(self, error: Exception) -> None:
        """Run tasks one by one from now on, with a warning that says why; raise if that is not allowed."""
        if self.vectorize != "auto":
            remedy = f"and vectorize={self.vectorize} does not allow running tasks one by one"
            raise ValueError(explain(error, self.model, self.parts, remedy)) from error
        self._fallback = True
        warnings.warn(explain(error, self.model, self.parts, "so tasks run one by one"), stacklevel=user_level())

    def _in_one_thread(self, name: str, plan: Plan) -> Plan:
        """Return the plan without threads, which such meta-batches use from now on."""
        self._here[name] = plan._replace(threads=1)
        return self._here[name]

    def _one_by_one_this_time(self, note: str, error: Exception) -> Plan:
        if note not in self._notes:
            self._notes.append(note)
            warnings.warn(explain(error, self.model, self.parts, "so these run one by one"), stacklevel=user_level())
        return Plan(ONE_BY_ONE)


class _Job(NamedTuple):
    """The arguments of `Engine.chunks`."""

    engine: Engine
    function: PerTask
    tasks: Task
    params: Params
    buffers: Params
    name: str
    finish: Callable[[Any], Any]

    def part(self, tasks: Task) -> Any:
        """Return the result of some tasks at once."""
        return self.finish(self.engine._vectorized(self.function, tasks, self.params, self.buffers))

    def one(self, index: int) -> Any:
        """Return the result of one task by itself."""
        with TaskOperations(vectorized=False):
            result = stack([self.function(select(self.tasks, index), self.params, self.buffers)])
        return self.finish(result)

    def alone(self) -> None:
        """Run every task by itself."""
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
    """Return the plan of an option; size 0 means all tasks. ``None`` means that it is measured, or a loop."""
    if vectorize == "auto" or vectorize is False:
        return None
    pair = vectorize if isinstance(vectorize, tuple) else (vectorize, 1)
    if vectorize is not True and not (len(pair) == 2 and all(type(n) is int and n >= 1 for n in pair)):
        raise ValueError(
            'vectorize must be "auto", True, False, a number of tasks from 1, or a pair of that and a number of '
            f"threads, got {vectorize!r}"
        )
    return Plan(0 if vectorize is True else int(pair[0]), pair[1])
