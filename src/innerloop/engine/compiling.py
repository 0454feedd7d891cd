"""Compiled meta-gradients: the whole step of a meta-batch is recorded as it runs, and compiled by TorchInductor.

Compiling pays off if a step consists of many small operations, as in multi-layer perceptrons, because it removes the
overhead of starting them. The recorded step includes the derivative, so that compiled code is never differentiated.
Compiled steps are kept for each set of shapes, and TorchInductor caches its kernels on disk.

A compiled step runs no Python: values that Python read while recording are constants in it. ``engine/recording.py``
makes sure that results stay correct.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Hashable, Sequence
from types import FunctionType
from typing import Any, Literal

import torch
from torch import Tensor

from ..common.errors import user_level
from ..common.interrupts import raise_interrupt_behind
from ..common.private import TorchDispatchMode
from ..task import Task
from .recording import Step, Trial, UnsuitableError

Compile = Literal["auto"] | bool

SECONDS_PER_OPERATION = 0.04
"""Observed compile time for each operation, an estimate for the decision."""
CONVOLUTIONS, OTHERS = 0.3, 0.1
"""The fraction of a step that starting operations must take. Compiled convolutions are torch's own, which are slower
for stacks of tasks."""
MOST_OPERATIONS = 10_000
"""Larger steps are not compiled, because that takes too long."""
START = 1e-5
"""Approximate seconds for starting an operation eagerly; compiling saves these, and little of the arithmetic."""
PAYS = 3.0
"""The remaining steps must take this many times as long as compiling."""
BRIEF = 0.5
"""Seconds of timing uncompiled steps."""
WASTED = 3
"""Compiling is given up after a step was compiled this often and what its code reads changed too soon."""
SOON = 10
"""The number of steps after which a change is not too soon, with ``compile=True``."""


class Compiled:
    """A compiled step, valid as long as nothing changes that its code reads.

    Args:
        run: a function of the tensors that the step depends on.
        change: returns the name of something that has changed, or ``None``.
        enough: the number of runs that make up for compiling.
    """

    def __init__(self, run: Callable[[Sequence[Tensor]], Any], change: Callable[[], str | None], enough: float) -> None:
        self._run, self.change, self.enough, self.runs = run, change, enough, 0

    def __call__(self, tensors: Sequence[Tensor], eager: Callable[[], Any]) -> Any:
        """Run the compiled step; if it fails, raise the eager step's clearer error, e.g. for a target out of range."""
        self.runs += 1
        try:
            return self._run(tensors)
        except RuntimeError as error:
            raise_interrupt_behind(error)
            try:
                eager()
            except Exception as plain:
                raise_interrupt_behind(plain)
                raise plain from None
            raise


class Compiler:
    """Decides for each set of shapes whether to compile, and keeps compiled steps.

    Args:
        setting: ``True`` compiles at once, and raises an error if that fails. ``False`` never compiles. ``"auto"``
            compiles only if starting operations takes a good part of a step and the remaining steps are expected to
            take much longer than compiling, and keeps the result only if it is faster. It measures this before the
            first step of each set of shapes and stores the decision (``innerloop.engine.plans``). Under
            ``torch.use_deterministic_algorithms(True)`` it neither measures nor compiles.
        lean: whether memory counts more than time; then nothing is compiled.

    Attributes:
        steps_to_come: the number of remaining steps, including the next one; ``None`` if it is unknown.
        reasons: for each set of shapes, the decision and its reason in words.

    Raises:
        ValueError: ``setting`` is none of these, or is ``True`` with ``lean``.
    """

    def __init__(self, setting: Compile = "auto", lean: bool = False) -> None:
        if setting != "auto" and not isinstance(setting, bool):
            raise ValueError(f'compile must be "auto", True or False, got {setting!r}')
        if lean and setting is True:
            raise ValueError(
                'compile=True needs the memory that memory="constant" saves: leave compile="auto", or give False'
            )
        self.setting: Compile = not lean and setting
        self.steps_to_come: int | None = None
        self.reasons: dict[Hashable, str] = {}
        self._compiled: dict[Hashable, Compiled | None] = {}
        self._changes: dict[Hashable, list[str]] = {}

    def run(
        self,
        learner: Any,
        key: Hashable,
        step: Callable[[Task], Any],
        tasks: Task,
        values: Sequence[Tensor],
        lasting: Callable[[], bool],
    ) -> Any:
        """Run a step that has no compiled version yet, and compile it if that pays off.

        Args:
            learner: the learner that the step belongs to.
            key: identifies the shapes; its last entry is what is constant within an iteration.
            step: a function of a meta-batch.
            tasks: the meta-batch.
            values: the tensors that the step depends on.
            lasting: returns whether the next steps have the same key, as far as the learner knows.
        """
        engine = learner.engine
        if self.setting and key not in self._compiled:
            if not engine.vectorized or engine.random:
                self.refuse("it draws random numbers" if engine.vectorized else "tasks run one by one")
            else:
                apart = engine, self, learner.outer, learner._stateless
                recordable = Step(learner, step, tasks, engine.recording, apart)
                if (result := self._decided(key, recordable, values, engine, lasting)) is not None:
                    return result
        return step(tasks)

    def _decided(
        self, key: Hashable, step: Step, values: Sequence[Tensor], engine: Any, lasting: Callable[[], bool]
    ) -> Any:
        """Return the result if the step was compiled or was run for the decision; else ``None``."""
        name = f"step {hashlib.sha256(repr(key).encode()).hexdigest()[:16]}"
        but = f"{self.steps_to_come} to come"
        if self.setting is True:
            return self.decide(key, step, values)[0]
        if (decision := engine.plans.get(name, but)) is None:
            if torch.are_deterministic_algorithms_enabled() or not self.steps_to_come or not lasting():
                return None
            if self.steps_to_come < fewest_steps():
                self._compiled[key] = None
                self._say(key, f"eager, since {self.steps_to_come} steps to come do not make up for compiling")
                return None
            if engine.changing:  # measuring would change it more often
                self._compiled[key] = None
                self._say(key, "eager, since a part changes Python state when it is called")
                return None
            result, decision = self.decide(key, step, values, engine.functions)
            kept = engine.plans.put(name, but, **decision)
            if kept["compiled"] == decision["compiled"]:
                return result
            self._compiled.pop(key)  # meanwhile another process has decided differently
            decision = kept
        if decision["compiled"]:
            return self.decide(key, step, values, enough=decision["enough"])[0]
        self._compiled[key] = None
        self._say(key, str(decision.get("why", "")))
        return None

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without compiled steps, which use the parameters of the original learner."""
        return {**self.__dict__, "_compiled": {}}

    def refuse(self, why: str) -> None:
        """Raise an error for a step that cannot be compiled, if compiling was requested.

        Raises:
            ValueError: the setting is ``True``.
        """
        if self.setting is True:
            raise ValueError(f"compile=True, but the step cannot be compiled: {why}; give compile=False")

    def get(self, key: Hashable) -> Compiled | None:
        """Return the compiled step for these shapes if there is one and it is still valid."""
        if (compiled := self._compiled.get(key)) is None:
            return None
        if (change := compiled.change()) is None:
            return compiled
        del self._compiled[key]
        in_vain = self._changes.setdefault(key, [])
        if compiled.runs < compiled.enough:
            in_vain.append(change)
        if self.setting == "auto" and len(in_vain) == WASTED:
            self._compiled[key] = None
            self._say(key, f"eager, since {_again(change)}")
            warnings.warn(f"steps are no longer compiled: {_again(change)}", stacklevel=user_level())
        return None

    def _say(self, key: Hashable, reason: str) -> None:
        changes = len(self._changes.get(key, ()))
        self.reasons[(key, changes) if changes else key] = reason

    def decide(
        self,
        key: Hashable,
        step: Step,
        tensors: Sequence[Tensor],
        functions: Sequence[FunctionType] | None = None,
        enough: float = SOON,
    ) -> tuple[Any, dict[str, Any]]:
        """Compile a step and run it, or record why it stays eager.

        Args:
            key: identifies the shapes; its last entry is what is constant within an iteration.
            step: the step.
            tensors: the tensors to run it with.
            functions: functions that are known to run; if given, the step is compiled only if measuring shows that it
                pays off.
            enough: the number of runs that make up for compiling, if that was measured before.

        Returns:
            The result of the step, ``None`` if it has not run, and the decision.

        Raises:
            ValueError: the setting is ``True``, and the step cannot be compiled.
        """
        trial, eager, measure = None, 0.0, functions is not None
        try:
            self._require_lasting(key)
            if functions is not None:
                step.rehearsed(functions)  # this decides how tasks run
            trial = Trial(step)
            if measure:
                eager = self._worth(trial)
            else:
                trial.run(step.context())
            recorded, change = trial.record(tensors)
            start = time.perf_counter()
            compiled = recorded.compile()
            paid = time.perf_counter() - start
            fast = _seconds(lambda: compiled(tensors))
            if measure and fast > eager:
                raise UnsuitableError(f"compiled it takes {1e3 * fast:.2f} ms, eagerly {1e3 * eager:.2f} ms")
            trial.require_agreement(result := compiled(tensors))
        except UnsuitableError as error:
            return self._stays(key, error, trial)
        enough = min(paid / max(eager - fast, 1e-9), 1e9) if measure else enough
        self._compiled[key] = Compiled(compiled, change, enough)
        before = f"{1e3 * eager:.2f} ms a step became" if eager else "a step takes"
        self._say(key, why := f"compiled in {paid:.0f} s: {before} {1e3 * fast:.2f} ms")
        return result, {"compiled": True, "enough": enough, "why": why}

    def _stays(self, key: Hashable, why: Exception, trial: Trial | None) -> tuple[Any, dict[str, Any]]:
        """Record that a step stays eager; return its result if it has run, and the decision."""
        if self.setting is True and trial is not None:
            trial.restore()
        self.refuse(str(why))
        self._compiled[key] = None
        self._say(key, reason := f"eager, since {why}")
        return None if trial is None else trial.result, {"compiled": False, "enough": 0, "why": reason}

    def _worth(self, trial: Trial) -> float:
        """Run a step and return the seconds that it takes uncompiled; raise if compiling is not expected to pay off."""
        trial.run(count := _Count())
        trial.require_repetition()
        self._require_worth(count, eager := _eagerly(trial.step))
        return eager

    def _require_lasting(self, key: Hashable) -> None:
        """Raise if steps that were compiled before did not stay valid."""
        in_vain: list[str] = self._changes.get(key, [])
        if len(in_vain) >= WASTED:
            raise UnsuitableError(_again(in_vain[-1]))
        every: Any = self._compiled
        this: Any = key
        alike = [compiled for other, compiled in every.items() if compiled and other[:-1] == this[:-1]]
        if len(alike) >= WASTED and not any(compiled.runs for compiled in alike[-WASTED:]):
            raise UnsuitableError(
                "the objective changes in every iteration: let its constants(iteration) return only what it depends on"
            )

    def _require_worth(self, count: _Count, eager: float) -> None:
        """Raise if compiling is not expected to pay off."""
        to_come = eager * (self.steps_to_come or 0)
        cost, starting = SECONDS_PER_OPERATION * count.operations, START * count.operations
        if to_come < 1:
            raise UnsuitableError(f"the steps to come take {to_come:.1f} s")
        if count.operations > MOST_OPERATIONS:
            raise UnsuitableError(f"it has {count.operations} operations, more than {MOST_OPERATIONS}")
        if starting < (CONVOLUTIONS if count.convolutions else OTHERS) * eager:
            raise UnsuitableError(
                f"starting its {count.operations} operations takes about {1e3 * starting:.0f} of {1e3 * eager:.0f} ms"
            )
        if to_come < PAYS * cost:
            raise UnsuitableError(
                f"the steps to come take about {to_come:.0f} s, less than {PAYS:.0f} times as long as compiling "
                f"({cost:.0f} s)"
            )


def fewest_steps() -> float:
    """Return the number of remaining steps below which compiling never pays off.

    A step is only compiled if it takes at most ``START / OTHERS`` for each operation; otherwise starting operations is
    too small a part of it. Compiling takes ``SECONDS_PER_OPERATION`` for each, and all steps must take ``PAYS`` times
    as long.
    """
    return PAYS * SECONDS_PER_OPERATION * OTHERS / START


class _Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations that run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = self.convolutions = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        self.convolutions += func is torch.ops.aten.convolution.default
        return func(*args, **(kwargs or {}))


def _again(change: str) -> str:
    return (
        f"{change} changes again and again, but compiled code keeps the value from when it was compiled: make it a "
        "buffer (register_buffer), whose value may change, or do not change it"
    )


def _eagerly(step: Step) -> float:
    """Return the seconds that a step takes uncompiled; its results are discarded."""
    start, times = time.perf_counter(), list[float]()
    while len(times) < 10 and (not times or time.perf_counter() - start < BRIEF):
        before = time.perf_counter()
        step.run(step.inputs)
        times.append(time.perf_counter() - before)
    return min(times)


def _seconds(call: Callable[[], Any], repeats: int = 5) -> float:
    """Return the shortest time of a few calls."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)
