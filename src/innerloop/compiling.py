"""Compiled meta-gradients: one task batch's whole step, recorded as it runs and given to TorchInductor.

Worth it where a step is many small operations (multi-layer perceptrons), since what is left of them is their
arithmetic. The derivative is taken inside of what is recorded, so nothing has to be differentiated through compiled
code. Compiled steps are kept for each set of shapes, and TorchInductor keeps its kernels on disk.

A compiled step has no Python in it: what Python read while recording stays as it was. `innerloop.recording` says how
that is kept from being wrong.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .interrupts import raise_interrupt_behind
from .recording import Step, Trial, UnsuitableError
from .task import Task

Compile = Literal["auto"] | bool

SECONDS_PER_OPERATION = 0.04
"""What compiling was seen to take, for each operation; a guess to decide by before paying."""
CONVOLUTIONS, OTHERS = 0.3, 0.1
"""Part of a step that starting has to take. Compiled convolutions are torch's own: for stacks of tasks, slower ones."""
MOST_OPERATIONS = 10_000
"""More are not compiled: it would take longer than anyone expects."""
START = 1e-5
"""Seconds that starting an operation takes eagerly, about: compiling saves these, and little of the arithmetic."""
WASTED = 3
"""How often a step is compiled in vain, because what its code reads changes too soon, before that is given up."""
SOON = 10
"""Steps after which a change is not too soon, where compiling was asked for."""


class Compiled:
    """A compiled step, good for as long as nothing changes that its code reads.

    Args:
        run: of the tensors that it depends on.
        change: names what has changed, if anything has.
        enough: how many runs make up for compiling.
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
    """Decides for each set of shapes whether to compile, and keeps what it compiled.

    Args:
        setting: ``True`` compiles at once and raises where that fails; ``"auto"`` only where starting operations is a
            good part of a step, and the steps to come are expected to take longer than compiling by far; and it keeps
            the result only if it is faster; under ``torch.use_deterministic_algorithms(True)``, which measurements
            would spoil, it does not. ``False`` never compiles.
        lean: whether memory counts more than time: then nothing is compiled.

    Attributes:
        steps_to_come: how many more steps will be asked for, as far as is known; ``None`` if nobody said.
        reasons: for each set of shapes, what was decided and why, in words.
        wanted: sets of shapes that are compiled without measuring, as a run that goes on did before.
    """

    def __init__(self, setting: Compile = "auto", lean: bool = False) -> None:
        if setting != "auto" and not isinstance(setting, bool):
            raise ValueError(f'compile is "auto", True or False, got {setting!r}')
        if lean and setting is True:
            raise ValueError('compile=True keeps what memory="constant" gives up: leave compile="auto", or give False')
        self.setting: Compile = not lean and setting
        self.steps_to_come: int | None = None
        self.reasons: dict[Hashable, str] = {}
        self.wanted: set[str] = set()
        self._compiled: dict[Hashable, Compiled | None] = {}
        self._eager: dict[Hashable, list[float]] = {}
        self._changes: dict[Hashable, list[str]] = {}

    def run(
        self, learner: Any, key: Hashable, step: Callable[[Task], Any], tasks: Task, values: Sequence[Tensor]
    ) -> Any:
        """Run a step that has no compiled version yet, and compile it if that pays off.

        Args:
            learner: the learner that the step belongs to.
            key: identifies the shapes; its last entry is what is constant within an iteration.
            step: a function of a meta-batch.
            tasks: the meta-batch.
            values: the tensors that the step depends on.
        """
        engine = learner.engine
        if self.undecided(key, engine.settled(tasks, "meta-gradient")):
            if engine.vectorised and not engine.random:
                apart = engine, self, learner.outer, learner._stateless
                result = self.decide(key, Step(learner, step, tasks, engine.recording, apart), values)
                if result is not None:
                    return result
            else:
                self.refuse("it draws random numbers" if engine.vectorised else "tasks run one by one")
        start = time.perf_counter()
        result = step(tasks)
        self.ran(key, time.perf_counter() - start)
        return result

    def ran(self, key: Hashable, seconds: float) -> None:
        """Note what a step of these shapes took eagerly."""
        if self.undecided(key, steps=0):
            self._eager.setdefault(key, []).append(seconds)
            self.steps_to_come = max(0, (self.steps_to_come or 0) - 1)

    def __getstate__(self) -> dict[str, Any]:
        """For copies of a learner: a compiled step is of the original's parameters."""
        return {**self.__dict__, "_compiled": {}}

    def undecided(self, key: Hashable, settled: bool = True, steps: int = 10) -> bool:
        """Whether there is something to decide for these shapes: by measurement, once some steps have run and it is
        settled how they do."""
        if key in self._compiled or not self.setting:
            return False
        if self.setting is True or repr(key) in self.wanted:
            return True
        measured = settled and self.steps_to_come and len(self._eager.get(key, ())) >= steps
        return bool(measured and not torch.are_deterministic_algorithms_enabled())

    def refuse(self, why: str) -> None:
        """Say that a step cannot be compiled, if it has to be.

        Raises:
            ValueError: the setting is ``True``.
        """
        if self.setting is True:
            raise ValueError(f"compile=True, but the step cannot be compiled: {why}; give compile=False")

    def get(self, key: Hashable) -> Compiled | None:
        """The compiled step for these shapes, if there is one that is still good."""
        if (compiled := self._compiled.get(key)) is None:
            return None
        if (change := compiled.change()) is None:
            return compiled
        del self._compiled[key]
        self.wanted.discard(repr(key))
        in_vain = self._changes.setdefault(key, [])
        if compiled.runs < compiled.enough:
            in_vain.append(change)
        if self.setting == "auto" and len(in_vain) == WASTED:
            self._compiled[key] = None
            self._say(key, f"eager, since {_again(change)}")
            warnings.warn(f"steps are no longer compiled: {_again(change)}", stacklevel=6)
        return None

    def _say(self, key: Hashable, reason: str) -> None:
        changes = len(self._changes.get(key, ()))
        self.reasons[(key, changes) if changes else key] = reason

    def decide(self, key: Hashable, step: Step, tensors: Sequence[Tensor]) -> Any:
        """Compile a step and run it, or note why not.

        Args:
            key: what tells its shapes from others; last, what is fixed of an iteration.
            step: the step.
            tensors: those that it is to be run with.

        Returns:
            What the step gives; ``None`` where it has not run.

        Raises:
            ValueError: the setting is ``True``, and the step cannot be compiled.
        """
        eager, trial = min(self._eager.pop(key, [0.0])), None
        choose = self.setting == "auto" and repr(key) not in self.wanted
        try:
            self._require_lasting(key)
            if choose and (to_come := eager * (self.steps_to_come or 0)) < 1:
                raise UnsuitableError(f"the steps to come take {to_come:.1f} s")
            trial = Trial(step)
            if choose:
                trial.run(count := _Count())
                self._require_worth(count, eager)
            else:
                trial.run(step.context())
            trial.require_repeatable()
            recorded, change = trial.record(tensors)
            start = time.perf_counter()
            compiled = recorded.compile()
            paid = time.perf_counter() - start
            fast = _seconds(lambda: compiled(tensors))
            if choose and fast > eager:
                raise UnsuitableError(f"compiled it takes {1e3 * fast:.2f} ms, eagerly {1e3 * eager:.2f} ms")
            trial.require_agreement(result := compiled(tensors))
        except UnsuitableError as why:
            if self.setting is True and trial is not None:
                trial.restore()
            self.refuse(str(why))
            self._compiled[key] = None
            self._say(key, f"eager, since {why}")
            return None if trial is None else trial.result
        self._compiled[key] = Compiled(compiled, change, paid / max(eager - fast, 1e-9) if choose else SOON)
        self.wanted.add(repr(key))
        before = f"{1e3 * eager:.2f} ms a step became" if eager else "a step takes"
        self._say(key, f"compiled in {paid:.0f} s: {before} {1e3 * fast:.2f} ms")
        return result

    def _require_lasting(self, key: Hashable) -> None:
        """Raise if what was compiled before did not last."""
        in_vain: list[str] = self._changes.get(key, [])
        if len(in_vain) >= WASTED:
            raise UnsuitableError(_again(in_vain[-1]))
        every: Any = self._compiled
        this: Any = key
        alike = [compiled for other, compiled in every.items() if compiled and other[:-1] == this[:-1]]
        if len(alike) >= WASTED and not any(compiled.runs for compiled in alike[-WASTED:]):
            raise UnsuitableError(
                "the objective is another one every iteration: let its constants(iteration) return what of an "
                "iteration it depends on"
            )

    def _require_worth(self, count: _Count, eager: float) -> None:
        """Raise if compiling is not expected to pay."""
        to_come = eager * (self.steps_to_come or 0)
        cost, starting = SECONDS_PER_OPERATION * count.operations, START * count.operations
        if count.operations > MOST_OPERATIONS:
            raise UnsuitableError(f"it has {count.operations} operations, more than {MOST_OPERATIONS}")
        if starting < (CONVOLUTIONS if count.convolutions else OTHERS) * eager:
            raise UnsuitableError(
                f"starting its {count.operations} operations takes about {1e3 * starting:.0f} of {1e3 * eager:.0f} ms"
            )
        if to_come < 3 * cost:
            raise UnsuitableError(
                f"the steps to come take about {to_come:.0f} s, less than three times what compiling would ({cost:.0f})"
            )


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
        f"{change} changes again and again, while compiled code keeps what it was when compiled: make it a buffer "
        "(register_buffer), whose value may change, or leave it as it is"
    )


def _seconds(call: Callable[[], Any], repeats: int = 5) -> float:
    """The shortest of a few."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)
