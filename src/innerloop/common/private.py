"""The private interfaces of torch that this package uses, in one place, because new versions of torch may change them.

If the installed torch lacks an interface, calling it raises an error that names it. `torch.utils._pytree` is used
everywhere and is not listed. `ATTRIBUTES` lists private attributes of modules and tensors.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode

MISSING: list[str] = []
"""The interfaces that the installed torch lacks."""


ATTRIBUTES: dict[type, tuple[str, ...]] = {
    torch.nn.Module: (
        *("_parameters", "_buffers", "_modules"),
        *("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"),
    ),
    torch.Tensor: ("_version", "_backward_hooks"),
    torch.Generator: ("_cdata",),
    torch.UntypedStorage: ("_cdata",),
}
"""Private attributes by class."""

OPERATORS, DEVICE_MODES = "torch._ops", "torch.utils._device"
"""The modules of torch's operators, and of the mode that ``with torch.device(...)`` enters."""


class MissingInterfaceError(RuntimeError):
    """The installed torch lacks something that this package needs."""


def _interface(path: str) -> Any:
    """Return the object with a dotted name in torch."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        MISSING.append(path)
        return _refused(path)


def _refused(path: str) -> Callable[..., Any]:
    def missing(*_: Any, **__: Any) -> Any:
        raise MissingInterfaceError(
            f"torch {torch.__version__} does not have {path}, which innerloop needs here: install a newer innerloop, "
            "or a version of torch that its changelog names"
        )

    return missing


# -- modes that see torch's functions ---------------------------------------------------------------------------------

function_modes: Callable[[], list[Any]] = _interface("torch.overrides._get_current_function_mode_stack")
"""The function modes that are active in this thread, the innermost last."""
function_mode: Callable[[], Any] = _interface("torch.overrides._get_current_function_mode")
"""The innermost function mode, or ``None``."""
number_of_function_modes: Callable[[], int] = _interface("torch._C._len_torch_function_stack")
function_mode_at: Callable[[int], Any] = _interface("torch._C._get_function_stack_at")
push_function_mode: Callable[[Any], None] = _interface("torch._C._push_on_torch_function_stack")
pop_function_mode: Callable[[], Any] = _interface("torch._C._pop_torch_function_stack")
without_function_modes: Callable[[], Any] = _interface("torch._C.DisableTorchFunction")
"""A context in which no mode sees torch's functions."""
function_state: Callable[[], Any] = _interface("torch._C._get_torch_function_state")
"""Whether modes see torch's functions."""
set_function_state: Callable[[Any], None] = _interface("torch._C._set_torch_function_state")
set_grad_enabled: Any = _interface("torch._C._set_grad_enabled")
"""The function that a function mode sees when gradients are switched on or off."""

# -- modes that see torch's operators ---------------------------------------------------------------------------------

dispatch: Any = importlib.import_module("torch.utils._python_dispatch")
"""The module with flags that are read and set."""
dispatch_modes: Callable[[], list[Any]] = _interface("torch.utils._python_dispatch._get_current_dispatch_mode_stack")
number_of_dispatch_modes: Callable[[], int] = _interface("torch._C._len_torch_dispatch_stack")
push_dispatch_mode: Callable[[Any], None] = _interface("torch.utils._python_dispatch._push_mode")
pop_dispatch_mode: Callable[[], Any] = _interface("torch.utils._python_dispatch._pop_mode")

# -- function transforms (vmap and the like) --------------------------------------------------------------------------

transform_depth: Callable[[], int] = _interface("torch._C._functorch.get_dynamic_layer_stack_depth")
transform_level: Callable[[], int | None] = _interface("torch._C._functorch.maybe_current_level")
innermost_transform: Callable[[], Any] = _interface("torch._C._functorch.peek_interpreter_stack")
push_transform: Callable[[Any], None] = _interface("torch._C._functorch.push_dynamic_layer_stack")
pop_transform: Callable[[], Any] = _interface("torch._C._functorch.pop_dynamic_layer_stack")
pop_transforms_to: Callable[[int], None] = _interface("torch._C._functorch.pop_dynamic_layer_stack_and_undo_to_depth")
interpreter: Callable[[], Any] = _interface("torch._functorch.pyfunctorch.retrieve_current_functorch_interpreter")
"""The interpreter of the innermost transform, with `level()`, `batch_size()` and `lower()`, a context outside of it."""
TransformType: Any = _interface("torch._C._functorch.TransformType")
is_wrapped: Callable[[Any], bool] = _interface("torch._C._functorch.is_functorch_wrapped_tensor")
unwrapped: Callable[[Any], Any] = _interface("torch._C._functorch.get_unwrapped")
unwrap_batched: Callable[[Any, int], tuple[Any, int | None]] = _interface("torch._C._functorch._unwrap_batched")
add_batch_dim: Callable[[Any, int, int], Any] = _interface("torch._C._functorch._add_batch_dim")

# -- modules ----------------------------------------------------------------------------------------------------------

GLOBAL_FORWARD_HOOKS: tuple[dict[Any, Any], ...] = (
    _interface("torch.nn.modules.module._global_forward_hooks"),
    _interface("torch.nn.modules.module._global_forward_pre_hooks"),
)
GLOBAL_BACKWARD_HOOKS: tuple[dict[Any, Any], ...] = (
    _interface("torch.nn.modules.module._global_backward_hooks"),
    _interface("torch.nn.modules.module._global_backward_pre_hooks"),
)
SpectralNorm: Any = _interface("torch.nn.utils.parametrizations._SpectralNorm")
"""The class of spectral norm parametrizations."""
Loss: Any = _interface("torch.nn.modules.loss._Loss")
"""The base class of torch's losses."""
weight_norm: Any = _interface("torch._weight_norm")

# -- compiling --------------------------------------------------------------------------------------------------------

without_autocast: Callable[[], Any] = _interface("torch._C._DisableAutocast")


def inductor() -> Any:
    """Return the compiler, which takes seconds to import."""
    return importlib.import_module("torch._inductor")
