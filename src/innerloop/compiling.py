"""Compiled meta-gradients: one task batch's whole step, recorded as it runs and given to TorchInductor.

Worth it where a step is many small operations (multi-layer perceptrons), since what is left of them is their
arithmetic. The derivative is taken inside of what is recorded, so nothing has to be differentiated through compiled
code. Compiled steps are kept for each set of shapes, and TorchInductor keeps its kernels on disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

Compile = Literal["auto"] | bool

SECONDS_PER_OPERATION = 0.04
"""What compiling was seen to take, for each operation; a guess to decide by before paying."""
CONVOLUTIONS, OTHERS = 0.3, 0.1
"""Part of a step that starting has to take. Compiled convolutions are torch's own: for stacks of tasks, slower ones."""
MOST_OPERATIONS = 10_000
"""More are not compiled: it would take longer than anyone expects."""
START = 1e-5
"""Seconds that starting an operation takes eagerly, about: compiling saves these, and little of the arithmetic."""


def signature(module: nn.Module, inputs: Any, values: Sequence[Tensor]) -> Hashable:
    """What a compiled step is good for, as far as it can be seen: not what else a module's code depends on, such as
    attributes.

    Args:
        module: whose modes, and parameters that are learned, matter.
        inputs: of the step.
        values: `tensors` of both.
    """
    return (
        str(pytree.tree_structure(inputs)),
        tuple((value.shape, value.dtype, value.device) for value in values),
        tuple(parameter.requires_grad for parameter in module.parameters()),
        tuple(part.training for part in module.modules()),
    )


def tensors(module: nn.Module, inputs: Any) -> list[Tensor]:
    """Everything that a step of a module depends on, in the order of `of_tensors`."""
    return [t.detach() for t in (*module.parameters(), *module.buffers())] + list(pytree.tree_leaves(inputs))


def of_tensors(
    module: nn.Module, step: Callable[[Any], Any], inputs: Any, context: Callable[[], AbstractContextManager[None]]
) -> Callable[..., Any]:
    """A module's step as a function of `tensors` alone.

    Args:
        module: whose parameters and buffers the step reads.
        step: of inputs.
        inputs: an example.
        context: entered around the step.
    """

    class Step(nn.Module):
        """What ``functional_call`` can hand other parameters to."""

        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, inputs: Any) -> Any:
            with context():
                return step(inputs)

    whole, structure = Step(), pytree.tree_structure(inputs)
    names = [name for name, _ in (*whole.named_parameters(), *whole.named_buffers())]
    learned = {name for name, p in whole.named_parameters() if p.requires_grad}

    def function(*values: Tensor) -> Any:
        own = {n: t.detach().requires_grad_(n in learned) for n, t in zip(names, values, strict=False)}
        return functional_call(whole, own, (pytree.tree_unflatten(values[len(names) :], structure),))

    return function


class UnsuitableError(Exception):
    """Why a step stays eager."""


class Recorded:
    """A function of tensors, recorded on an example.

    Args:
        function: ``(*tensors) -> pytree of tensors``, free of side effects.
        example: tensors of the shapes that it will be called with.
    """

    def __init__(self, function: Callable[..., Any], example: Sequence[Tensor]) -> None:
        self.example: list[Any] = list(example)
        self._spec: Any = None

        def flat(*tensors: Tensor) -> list[Tensor]:
            leaves, self._spec = pytree.tree_flatten(function(*tensors))
            return leaves

        try:
            self.graph = make_fx(flat, tracing_mode="fake", _allow_non_fake_inputs=True)(*self.example)
        except Exception as error:
            raise UnsuitableError(f"it cannot be recorded: {str(error).splitlines()[0]}") from error
        for node in self.graph.graph.nodes:
            if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
                raise UnsuitableError(f"{node.target} draws random numbers, which compiled code would draw otherwise")

    def compile(self) -> Callable[[Sequence[Tensor]], Any]:
        """The same function, of a list of tensors, compiled."""
        import torch._inductor

        options: dict[str, Any] = {"triton.cudagraphs": True} if self.example[0].device.type == "cuda" else {}
        try:
            with torch.no_grad():
                compiled = torch._inductor.compile(self.graph, self.example, options)
                compiled(*self.example)
        except Exception as error:
            raise UnsuitableError(f"TorchInductor failed: {str(error).strip().splitlines()[0]}") from error
        spec = self._spec

        def run(tensors: Sequence[Tensor]) -> Any:
            with torch.no_grad():
                return pytree.tree_unflatten(compiled(*tensors), spec)

        return run


class Compiler:
    """Decides for each set of shapes whether to compile, and keeps what it compiled.

    Args:
        setting: ``True`` compiles at once and raises where that fails; ``"auto"`` only where starting operations is a
            good part of a step, and the steps to come are expected to take longer than compiling by far; and it keeps
            the result only if it is faster; under ``torch.use_deterministic_algorithms(True)``, which measurements
            would spoil, it does not. ``False`` never compiles.

    Attributes:
        steps_to_come: how many more steps will be asked for, as far as is known; ``None`` if nobody said.
        reasons: for each set of shapes, what was decided and why, in words.
        wanted: sets of shapes that are compiled without measuring, as a run that goes on did before.
    """

    def __init__(self, setting: Compile = "auto") -> None:
        if setting != "auto" and not isinstance(setting, bool):
            raise ValueError(f'compile is "auto", True or False, got {setting!r}')
        self.setting = setting
        self.steps_to_come: int | None = None
        self.reasons: dict[Hashable, str] = {}
        self.wanted: set[str] = set()
        self._compiled: dict[Hashable, Callable[[Sequence[Tensor]], Any] | None] = {}
        self._eager: dict[Hashable, list[float]] = {}

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

    def get(self, key: Hashable) -> Callable[[Sequence[Tensor]], Any] | None:
        """The compiled step for these shapes, if there is one."""
        return self._compiled.get(key)

    def decide(
        self, key: Hashable, step: Callable[[], Any], function: Callable[..., Any], tensors: Sequence[Tensor]
    ) -> None:
        """Compile a step, or note why not.

        Args:
            key: what tells its shapes from others.
            step: runs it eagerly.
            function: the same step, of tensors.
            tensors: an example of them.
        """
        self._compiled[key] = None
        eager = min(self._eager.pop(key, [0.0]))
        choose = self.setting == "auto" and repr(key) not in self.wanted
        try:
            if choose:
                self._require_worth(step, eager)
            recorded = Recorded(function, tensors)
            start = time.perf_counter()
            compiled = recorded.compile()
            paid = time.perf_counter() - start
            fast = _seconds(lambda: compiled(tensors))
            if choose and fast > eager:
                raise UnsuitableError(f"compiled it takes {1e3 * fast:.2f} ms, eagerly {1e3 * eager:.2f} ms")
        except UnsuitableError as why:
            if self.setting is True:
                raise ValueError(f"compile=True, but the step cannot be compiled: {why}") from why
            self.reasons[key] = f"eager, since {why}"
            return
        self._compiled[key] = compiled
        self.wanted.add(repr(key))
        self.reasons[key] = f"compiled in {paid:.0f} s: {1e3 * eager:.2f} ms a step became {1e3 * fast:.2f} ms"

    def _require_worth(self, step: Callable[[], Any], eager: float) -> None:
        """Raise if compiling is not expected to pay."""
        to_come = eager * (self.steps_to_come or 0)
        if to_come < 1:
            raise UnsuitableError(f"the steps to come take {to_come:.1f} s")
        with _Count() as count:
            step()
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
