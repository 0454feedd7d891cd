"""Record one step of a learner as a graph of operations, without changing the modules that it runs.

A step becomes a function of the tensors that it depends on: parameters and buffers, under any name, its inputs, and
other tensors that its code holds. Everything else that the code reads is constant in the graph, so a step that changes
such state is refused, and `State` detects later changes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import chain
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.modules import module as nn_module
from torch.utils import _pytree as pytree

from ..common import private
from ..common.interrupts import raise_interrupt_behind
from ..functional.quick import members_of, modules_of
from .observing import Observer, RandomState, Reads
from .snapshots import Snapshot
from .state import State, UnwatchableError


class UnsuitableError(Exception):
    """A step cannot be compiled; the message says why."""


def signature(module: nn.Module, inputs: Any, values: Sequence[Tensor]) -> Hashable:
    """Return the key of a compiled step: everything that it depends on except the Python state that its code reads.

    Args:
        module: the module; its modes and learned parameters count.
        inputs: the inputs of the step.
        values: the `tensors` of both.
    """
    modules = modules_of(module)
    return (
        _structure(inputs),
        tuple((value.shape, value.dtype, value.device) for value in values),
        tuple(parameter.requires_grad for parameter in members_of(modules)[0]),
        tuple(getattr(part, "training", None) for part in modules),
        surroundings(),
    )


def surroundings() -> Hashable:
    """Return the settings of torch that affect operations."""
    functions = private.function_modes() if private.number_of_function_modes() else ()
    return (
        torch.get_default_dtype(),
        tuple(torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None for kind in ("cpu", "cuda")),
        torch.are_deterministic_algorithms_enabled(),
        tuple((type(mode).__name__, str(getattr(mode, "device", ""))) for mode in functions),
    )


def tensors(module: nn.Module, inputs: Any) -> list[Tensor]:
    """Return the tensors of a module and of the inputs of its step, in the order of `Step`."""
    leaves = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
    return [t.detach() for t in chain(*members_of(modules_of(module)))] + leaves


def _structure(inputs: Any) -> Hashable:
    """Return how tensors are nested, with all other values, such as None for missing targets."""
    if isinstance(inputs, Tensor):
        return None
    if isinstance(inputs, (tuple, list)):
        return (type(inputs).__name__, *map(_structure, inputs))
    leaves, structure = pytree.tree_flatten(inputs)
    return str(structure), tuple(repr(leaf) for leaf in leaves if not isinstance(leaf, Tensor))


class Step:
    """A module's step, which can be run, or recorded as a function of `tensors` alone.

    Args:
        module: the module with the parameters and buffers that the step reads.
        run: the step, a function of inputs.
        inputs: example inputs.
        context: entered around the step while it is recorded.
        apart: parts of the module that do not affect the results.
    """

    def __init__(
        self,
        module: nn.Module,
        run: Callable[[Any], Any],
        inputs: Any,
        context: Callable[[], AbstractContextManager[None]],
        apart: Collection[Any] = (),
    ) -> None:
        self.module, self.run, self.inputs, self.context, self.apart = module, run, inputs, context, apart
        self.own: dict[str, Tensor] = dict((*module.named_parameters(), *module.named_buffers()))
        self._leaves, self._structure = pytree.tree_flatten(inputs)

    def state(self, functions: Iterable[FunctionType] = ()) -> State:
        """Return a snapshot of the state that the step's code can read.

        Args:
            functions: functions that are known to run.

        Raises:
            UnsuitableError: some state cannot be watched.
        """
        hooks = {name: value for name, value in vars(nn_module).items() if name.startswith("_global_")}
        try:
            return State({"": self.module, "torch.nn.modules.module": hooks}, functions, self.apart)
        except UnwatchableError as error:
            raise UnsuitableError(str(error)) from error

    def rehearsed(self, functions: Iterable[FunctionType]) -> str | None:
        """Run the step once, undo its changes, and return the name of something that it changed, or ``None``.

        Raises:
            UnsuitableError: its code can reach state that cannot be watched.
        """
        return Snapshot(self.state(functions), self.own).undone(partial(self.run, self.inputs))

    def of_tensors(self, state: State) -> Callable[..., Any]:
        """Return the step as a function of `tensors` that restores all state.

        Args:
            state: the state to restore, which also knows the places of parameters and buffers.
        """

        def function(*values: Tensor) -> Any:
            stand_ins = {
                id(tensor): value.detach().requires_grad_(tensor.requires_grad and isinstance(tensor, nn.Parameter))
                for tensor, value in reversed(list(zip(self.own.values(), values, strict=False)))
            }
            rest = iter(values[len(self.own) :])
            leaves = [next(rest) if isinstance(leaf, Tensor) else leaf for leaf in self._leaves]
            inputs = pytree.tree_unflatten(leaves, self._structure)
            originals = {id(stand_ins[id(tensor)]): tensor for tensor in self.own.values()}
            with unchanged(state, originals):
                state.substitute(stand_ins)
                with self.context():
                    return self.run(inputs)

        return function


@contextmanager
def unchanged(state: State, originals: dict[int, Tensor]) -> Iterator[None]:
    """Restore all state on exit, also after an error.

    Args:
        state: the state to restore.
        originals: the tensors that are substituted meanwhile, by the id of the substitute.

    Raises:
        UnsuitableError: some state was changed.
    """
    kept = [(t, t.requires_grad, t.grad) for t in (*state.tensors.values(), *originals.values()) if t.is_leaf]
    numbers, dtype, grad = RandomState(), torch.get_default_dtype(), torch.is_grad_enabled()
    misses = [cache.cache_info().misses for cache in state.caches]
    try:
        yield
        if (change := state.change(originals)) is not None:
            raise UnsuitableError(_changes(change))
    finally:
        state.restore()
        for tensor, requires_grad, gradient in kept:
            if tensor.requires_grad != requires_grad:
                tensor.requires_grad_(requires_grad)
            if tensor.grad is not gradient:
                tensor.grad = gradient
        for cache, before in zip(state.caches, misses, strict=True):
            if cache.cache_info().misses != before:  # it now holds substitutes of tensors
                cache.cache_clear()
        numbers.restore()
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)


class Trial:
    """One eager run of a step, to find out whether it can be compiled.

    Attributes:
        result: the result of the run; ``None`` before it.
    """

    def __init__(self, step: Step) -> None:
        self.step, self.result, self._observer = step, None, Observer()
        self._before = Snapshot(step.state(), step.own)

    def run(self, context: AbstractContextManager[Any]) -> None:
        """Run the step.

        Args:
            context: the context to run it in.

        Raises:
            UnsuitableError: it fails in this context, and its changes are undone; or another run could give another
                result.
        """
        try:
            with context, self._observer:
                self.result = self.step.run(self.step.inputs)
        except Exception as error:
            self.restore()
            raise_interrupt_behind(error)
            raise UnsuitableError(f"it cannot be recorded: {first_line(error)}") from error
        self._require_repeatable()

    def record(self, tensors: Sequence[Tensor]) -> tuple[Recorded, Callable[[], str | None]]:
        """Record the step; return the recording, and a function that names a change of what its code reads, if any.

        Raises:
            UnsuitableError: it cannot be recorded, or another run could give another result.
        """
        state = self.step.state(self._observer.functions())
        recorded = Recorded(self.step.of_tensors(state), tensors, tuple(self.step.own), state.tensors)
        return recorded, lambda: state.change() or recorded.change()

    def _require_repeatable(self) -> None:
        """Refuse a step that changed state, or that reads sources which may change unnoticed."""
        if (change := self._before.change()) is not None:
            raise UnsuitableError(_changes(change))
        if (source := self._before.random.drawn()) is not None:
            raise UnsuitableError(f"it draws numbers from {source}, which compiled code would not draw again")
        if self._observer.sources:
            raise UnsuitableError(f"{self._observer.sources[0]}, which compiled code would not read again")

    def require_repetition(self) -> None:
        """Run once more and refuse changes, since the state of functions is only known after they ran once.

        Raises:
            UnsuitableError: the step changed state.
        """
        if (change := self.step.rehearsed(self._observer.functions())) is not None:
            raise UnsuitableError(_changes(change))

    def require_agreement(self, compiled: Any) -> None:
        """Refuse compiled code with a result that differs from that of the run by more than rounding.

        Args:
            compiled: the result of the compiled code.

        Raises:
            UnsuitableError: the results differ.
        """
        for a, b in zip(pytree.tree_leaves(compiled), pytree.tree_leaves(self.result), strict=True):
            if a.shape != b.shape or not _close(a.double(), b.double(), b.dtype == torch.float64):
                raise UnsuitableError("compiled code gives other numbers than the eager step")

    def restore(self) -> None:
        """Undo the run's changes."""
        self._before.restore()


class Recorded:
    """A function of tensors, recorded on an example.

    Args:
        function: ``(*tensors) -> pytree of tensors``, free of side effects.
        example: tensors with the shapes that it will be called with.
        names: the names of the first tensors, for messages.
        held: tensors that the code holds, by name; they become inputs, too, since their values may change.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        example: Sequence[Tensor],
        names: Sequence[str] = (),
        held: dict[str, Tensor] | None = None,
    ) -> None:
        self.example: list[Any] = [tensor.contiguous() for tensor in example]
        self._spec: Any = None
        reads = Reads()

        def flat(*tensors: Tensor) -> list[Tensor]:
            with reads:
                leaves, self._spec = pytree.tree_flatten(function(*tensors))
            return leaves

        try:
            self.graph = make_fx(flat, tracing_mode="fake", _allow_non_fake_inputs=True)(*self.example)
        except UnsuitableError:
            raise
        except Exception as error:
            raise_interrupt_behind(error)
            if not reads.seen:
                raise UnsuitableError(f"it cannot be recorded: {first_line(error)}") from error
        if reads.seen:
            raise UnsuitableError(f"it cannot be recorded: it reads the value of a tensor ({reads.seen[0]})")
        for node in self.graph.graph.nodes:
            if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
                raise UnsuitableError(f"{node.target} draws random numbers, and compiled code would draw other numbers")
        self._held = self._lift(list(names), list(example), held or {})
        self._kinds = [_kind(tensor) for tensor in self._held]
        self._require_no_writes(list(names))

    def _lift(self, names: list[str], example: list[Tensor], held: dict[str, Tensor]) -> list[Tensor]:
        """Turn the tensors that the code holds into inputs, and return them."""
        places = [node for node in self.graph.graph.nodes if node.op == "placeholder"]
        own = {_storage(tensor): name for name, tensor in zip(names, example, strict=False) if tensor.numel()}
        by_memory = {_memory(tensor): tensor for tensor in held.values()}
        lifted: list[Tensor] = []
        for node in [node for node in self.graph.graph.nodes if node.op == "get_attr"]:
            constant = getattr(self.graph, node.target)
            fresh = all(str(user.target).startswith("aten.lift_fresh") for user in node.users)
            if not isinstance(constant, Tensor) or fresh:
                continue
            if (name := own.get(_storage(constant))) is not None:
                raise UnsuitableError(f"its code holds {name} in a place where it cannot be substituted")
            if constant.grad_fn is not None:
                raise UnsuitableError("its code holds a tensor that was computed from others before the step")
            lifted.append(by_memory.get(_memory(constant), constant))
            with self.graph.graph.inserting_after(places[-1]):
                places.append(self.graph.graph.placeholder(f"held_{len(lifted)}"))
            places[-1].meta.update(node.meta)
            node.replace_all_uses_with(places[-1])
            self.graph.graph.erase_node(node)
        self.graph.recompile()
        self.example += [tensor.detach().contiguous() for tensor in lifted]
        return lifted

    def _require_no_writes(self, names: list[str]) -> None:
        """Refuse a function that writes to its inputs."""
        inputs = [node for node in self.graph.graph.nodes if node.op == "placeholder"]
        base = dict(zip(inputs, names + ["a tensor"] * len(inputs), strict=False))
        for node in self.graph.graph.nodes:
            arguments = getattr(getattr(node.target, "_schema", None), "arguments", ())
            for given, argument in zip(node.args, arguments, strict=False):
                if argument.alias_info is None or not isinstance(given, fx.Node) or given not in base:
                    continue
                if argument.alias_info.is_write:
                    raise UnsuitableError(_changes(base[given]))
                base[node] = base[given]

    def compile(self) -> Callable[[Sequence[Tensor]], Any]:
        """Compile the function; the result takes a list of tensors."""
        options: dict[str, Any] = {"triton.cudagraphs": True} if self.example[0].device.type == "cuda" else {}
        try:
            with torch.no_grad():
                compiled = private.inductor().compile(self.graph, self.example, options)
                compiled(*self.example)
        except Exception as error:
            raise_interrupt_behind(error)
            raise UnsuitableError(f"TorchInductor failed: {first_line(error)}") from error
        spec, held = self._spec, self._held

        def run(tensors: Sequence[Tensor]) -> Any:
            with torch.no_grad(), private.without_autocast():
                values = (*tensors, *(tensor.detach() for tensor in held))
                return pytree.tree_unflatten(compiled(*(t.contiguous() for t in values)), spec)

        return run

    def change(self) -> str | None:
        """Name a tensor that the code holds if its shape, dtype or device has changed."""
        return None if [_kind(tensor) for tensor in self._held] == self._kinds else "a tensor that its code holds"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _changes(name: str) -> str:
    return f"{name} changes with every step, but compiled code would not change it"


def _close(a: Tensor, b: Tensor, double: bool) -> bool:
    """Return whether two results agree up to rounding, which a ReLU may magnify in single precision."""
    relative, absolute = (1e-6, 1e-9) if double else (5e-2, 1e-3)
    finite = torch.isfinite(b)
    if not torch.equal(finite, torch.isfinite(a)):
        return False
    difference, size = (torch.where(finite, t, 0.0).norm() for t in (a - b, b))
    return bool(difference <= relative * size + absolute * max(b.numel(), 1) ** 0.5)


def _storage(tensor: Tensor) -> Hashable:
    return tensor.untyped_storage()._cdata  # type: ignore[no-any-return]


def _memory(tensor: Tensor) -> Hashable:
    return _storage(tensor), tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype


def _kind(tensor: Tensor) -> Hashable:
    return tensor.shape, tensor.dtype, tensor.device
