"""A module as a pure function of parameters, buffers and inputs, and the modes that it runs in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from ..common import private
from ..task import Params
from .attention import by_mathematics
from .checkpointing import running, with_function_modes
from .contracts import without_kept_tensors
from .quick import modules_of
from .stacks import place
from .stand_ins import mine

Statistics = Literal["batch", "running", "shared"]
"""What batch norm normalizes with: the statistics of the current examples, or the stored running ones. If these are
per-step, ``"shared"`` uses one set for all steps."""

Precision = Literal["float32", "bfloat16"]
"""The precision of matrix products and convolutions. Parameters, norms, losses and updates keep their types."""


BATCH_NORMS = nn.modules.batchnorm._BatchNorm
INSTANCE_NORMS = nn.modules.instancenorm._InstanceNorm
NORMS = (BATCH_NORMS, INSTANCE_NORMS)
DROPOUTS = (nn.modules.dropout._DropoutNd,)


def arguments(x: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return a module's arguments: a tuple is positional ones, a dict keyword ones, anything else a single argument.

    Tensors that need no gradient become new tensors of the same memory. Otherwise a module that differentiates by its
    inputs (``x.requires_grad_()``) would get the tensor of earlier steps, and its gradient would include these.
    """
    x = _fresh(x) if isinstance(x, Tensor) else pytree.tree_map_only(Tensor, _fresh, x)
    return (x, {}) if isinstance(x, tuple) else ((), x) if isinstance(x, dict) else ((x,), {})


def _fresh(tensor: Tensor) -> Tensor:
    return tensor if tensor.requires_grad else tensor.detach()


def part(output: Any, name: str) -> Any:
    """Return the named part of a module's output: a key of a mapping, or an attribute.

    Raises:
        ValueError: there is no such part.
    """
    if isinstance(output, Tensor):
        raise ValueError(f"output={name!r} names a part of the model's output, which is a tensor: leave output= out")
    value = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
    if value is None:
        there = list(output) if isinstance(output, Mapping) else list(getattr(output, "_fields", ()))
        raise ValueError(f"the model's {type(output).__name__} has no {name!r}, which output= names; it has {there}")
    return value


def _slots(model: nn.Module) -> dict[str, str]:
    """Return, for each slot of a parameter or buffer, the first name of the tensor in it."""
    first = {id(t): n for n, t in (*model.named_parameters(), *model.named_buffers())}
    return {
        f"{prefix}.{leaf}" if prefix else leaf: first[id(tensor)]
        for prefix, module in model.named_modules()
        for leaf, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None
    }


class Stateless:
    """A module as a pure function ``(params, buffers, x) -> (output, new buffers)``.

    Attributes:
        parameters: the module's own parameters, by name.
        asks: whether the module's code reads ``requires_grad`` of its parameters. Adapted parameters then require a
            gradient as the module's own do, even if no graph is kept.

    Names are those of ``named_parameters()`` and ``named_buffers()``. Shared parameters, and one module under several
    names, are substituted once each: with its own search, ``torch.func.functional_call`` does not restore the
    parameters of a module with two names.
    """

    def __init__(self, model: nn.Module, precision: Precision = "float32", output: str | None = None) -> None:
        self.model, self.precision, self.output, self.asks = model, precision, output, False
        self._parameters = {name for name, _ in model.named_parameters()}
        self._slots = _slots(model)
        self.parameters: Params = dict(model.named_parameters())
        self._shares = any(slot != name for slot, name in self._slots.items())

    def own(self) -> tuple[Params, Params]:
        """Return the module's parameters and buffers, by name.

        Raises:
            ValueError: the module has other parameters or buffers than when this object was made.
        """
        model = mine(self.model)
        params: Params = dict(model.named_parameters())
        if self._shares:  # conversions give each place of a shared buffer a tensor of its own
            self._slots = _slots(model)
        if wrong := self._parameters ^ params.keys():
            name = sorted(wrong)[0]
            raise ValueError(
                f"the model has {'got' if name in params else 'lost'} the parameter {name!r} since the learner was "
                "made, but a learner's parameters are fixed when it is made: make a new learner from the changed model"
            )
        if any(self.parameters.get(name) is not parameter for name, parameter in params.items()):
            self.parameters = params
        buffers = dict(model.named_buffers())
        if not self._shares and (wrong := self._slots.keys() ^ {*params, *buffers}):
            name = sorted(wrong)[0]
            raise ValueError(
                f"the model has {'got' if name in buffers else 'lost'} the buffer {name!r} since the learner was made, "
                "but a learner's buffers are fixed when it is made: register it earlier, with a tensor, or make a new "
                "learner from the changed model"
            )
        return params, buffers

    def set_buffers(self, module: nn.Module, buffers: Params) -> None:
        """Give a copy of the module its own buffers with these values, which may have another type or shape."""
        copies = {name: buffer.clone() for name, buffer in buffers.items()}
        for slot, name in self._slots.items():
            if name in copies:
                owner, _, leaf = slot.rpartition(".")
                module.get_submodule(owner)._buffers[leaf] = copies[name]

    def __call__(self, params: Params, buffers: Params, x: Any) -> tuple[Any, Params]:
        """Call the module; a tuple ``x`` becomes positional arguments, a dict keyword arguments."""
        buffers = {name: buffer.clone() for name, buffer in buffers.items()}  # in-place updates stay in here
        params = self._as_asked(params) if self.asks and place() != "other" else params
        tensors = {slot: params[name] if name in params else buffers[name] for slot, name in self._slots.items()}
        args, kwargs = arguments(x)
        model = mine(self.model)
        with by_mathematics, self._autocast(tensors), running(model):
            output = functional_call(model, tensors, args, kwargs, tie_weights=False)
        # Torch puts the tensors that the module's slots hold after the call into the dictionary: some may be new.
        if assigned := [
            slot for slot, name in self._slots.items() if name in params and tensors[slot] is not params[name]
        ]:
            raise ValueError(
                f"{type(model).__name__} assigns a new tensor to its own parameter {assigned[0]!r} when it is called, "
                "which would be lost: compute with a new tensor in forward instead, or use torch.nn.utils.parametrize"
            )
        for slot, name in self._slots.items():
            if tensors[slot] is not tensors[name]:
                raise ValueError(
                    f"{type(model).__name__} assigns a new tensor to the buffer {name!r} or {slot!r}, which are one "
                    "shared buffer: assign to both, write to it in place, or register two buffers"
                )
        buffers.update({name: tensors[name] for name in buffers})
        output = output if self.output is None else part(output, self.output)
        if self.precision != "float32":
            low = getattr(torch, self.precision)
            output = pytree.tree_map_only(Tensor, lambda t: t.float() if t.dtype == low else t, output)
        return output, buffers

    def _as_asked(self, params: Params) -> Params:
        """Return the same parameters, which require gradients if the module's own do."""
        own = {name for name, p in mine(self.model).named_parameters() if p.requires_grad}
        missing = [name for name, p in params.items() if name in own and not p.requires_grad]
        return {**params, **{name: params[name].detach().requires_grad_() for name in missing}}

    def _autocast(self, tensors: Params) -> AbstractContextManager[Any]:
        if self.precision == "float32":
            return nullcontext()
        if double := [name for name, tensor in tensors.items() if tensor.dtype == torch.float64]:
            raise ValueError(f"precision={self.precision!r} needs a float32 model, but {double[0]} is float64")
        return torch.autocast(next(iter(tensors.values())).device.type, getattr(torch, self.precision))

    def as_now(self) -> Callable[[], AbstractContextManager[None]]:
        """Return a context with the present modes of the module and of torch's operations, including autocast."""
        modes = [getattr(module, "training", False) for module in modules_of(mine(self.model))]
        functions, autocast = private.function_modes(), _autocast_now()

        @contextmanager
        def context() -> Iterator[None]:
            modules = modules_of(mine(self.model))
            before = [getattr(module, "training", False) for module in modules]
            set_modes(modules, modes)
            try:
                with with_function_modes(functions), without_kept_tensors(mine(self.model)), ExitStack() as stack:
                    for device, dtype, enabled in autocast if autocast != _autocast_now() else ():
                        stack.enter_context(torch.autocast(device, dtype, enabled))
                    yield
            finally:
                set_modes(modules, before)

        return context


def _autocast_now() -> list[tuple[str, torch.dtype, bool]]:
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    return [(device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)) for device in devices]


def set_modes(modules: Iterable[nn.Module], modes: Iterable[bool]) -> None:
    """Set ``training`` of each module to its mode, if it differs."""
    for module, mode in zip(modules, modes, strict=True):
        if getattr(module, "training", mode) != mode:
            module.training = mode


@contextmanager
def in_mode(
    model: nn.Module, statistics: Statistics, training: bool = True, others: Iterable[Any] = ()
) -> Iterator[dict[nn.Module, bool]]:
    """Set the statistics that norm layers use, independently of ``train()`` and ``eval()``, and restore them on exit.

    It applies to batch norm, and to instance norm that keeps running statistics.

    Args:
        model: the module whose layers are set.
        statistics: what batch norm normalizes with.
        training: false turns off dropout and the like, as ``eval()`` does; true leaves them as they are.
        others: other parts, such as losses; in modules among them, false turns off dropout and the like, too.

    Yields:
        Whether each module was in training mode before.
    """
    own = modules_of(model)
    modules = modules_of(model, *others)
    modules = [module for module in modules if hasattr(module, "training")]  # frozen scripts have none
    before = [module.training for module in modules]
    for module in own:
        if isinstance(module, NORMS):
            module.training = statistics == "batch"
    for module in () if training else modules:
        # cuDNN differentiates recurrent networks only in training mode; without dropout the modes do not differ.
        if not isinstance(module, NORMS) and not (isinstance(module, nn.RNNBase) and not module.dropout):
            module.training = False
    try:
        yield dict(zip(modules, before, strict=True))
    finally:
        set_modes(modules, before)
