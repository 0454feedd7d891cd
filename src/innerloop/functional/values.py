"""What code may ask of tensors while tasks run at once: values, where all tasks have the same, and gradients."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common import private
from ..task import tensors_of
from .stacks import of_all_tasks, place, under

_TORCH, _FUNCTIONAL = str(Path(torch.__file__).parent), torch.autograd.functional.__file__
_HERE = str(Path(__file__).parents[1])
_FUNC = str(Path(_TORCH, "_functorch"))
READS: tuple[Callable[..., Any], ...] = (
    torch.Tensor.__bool__, torch.Tensor.__int__, torch.Tensor.__float__, torch.Tensor.__index__, torch.Tensor.item
)  # fmt: skip


class TasksDifferError(RuntimeError):
    """A value that says which code runs is not the same for all tasks that run at once."""


def where_tasks_agree(read: Callable[..., Any]) -> Callable[..., Any]:
    """Make a read of one element, such as ``bool`` or ``torch.Tensor.item``, work under ``vmap``.

    The value is that of all tasks. Where they have different values, the read raises `TasksDifferError`.
    """

    def call(tensor: Tensor) -> Any:
        values = of_all_tasks(tensor).flatten()
        if tensor.numel() != 1 or not len(values):
            return read(tensor)
        if len(values) > 1 and not bool((values == values[0]).all()):
            raise TasksDifferError("tasks differ in a value that says which code runs (bool(tensor), tensor.item())")
        return read(values[0])

    return call


def contains(tensor: Tensor, element: Any) -> Any:
    """Whether an element of a tensor equals ``element``; replaces ``in`` while tasks run at once."""
    return where_tasks_agree(bool)((tensor == element).any())


class GradientsError(NotImplementedError):
    """Code takes gradients in a way that does not see through ``vmap``."""

    def __init__(self) -> None:
        super().__init__(
            "gradients by torch.autograd inside the model or the loss would be zeros while tasks run at once"
        )


def gradient(outputs: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
    """``torch.autograd.grad``, refused where tasks run at once.

    It does not see through ``vmap`` and may return zeros there. Calls from within ``torch.func``, which does, pass.

    Raises:
        GradientsError: tasks run at once.
    """
    frame = sys._getframe()
    while frame.f_back and frame.f_code is not torch.autograd.grad.__code__:
        frame = frame.f_back
    asking = frame.f_back.f_code.co_filename if frame.f_back else ""
    wrapped = any(private.is_wrapped(t) for t in tensors_of((outputs, inputs)))
    if wrapped and not asking.startswith(_FUNC):
        raise GradientsError
    return recorded_gradient(outputs, inputs, *args, **kwargs)


def recorded_gradient(outputs: Any, *args: Any, **kwargs: Any) -> Any:
    """``torch.autograd.grad``, with a hint where nothing is recorded.

    Raises:
        ValueError: gradients are not recorded, as in predictions.
    """
    if not torch.is_grad_enabled() and not any(t.requires_grad for t in tensors_of((outputs,))):
        raise ValueError(
            "the model or the loss takes gradients by torch.autograd.grad, but where a learner predicts or adapts, "
            "none are recorded: put what is differentiated under `with torch.enable_grad():`, or use torch.func.grad"
        )
    return torch.autograd.grad(outputs, *args, **kwargs)


def reads_requires_grad(tensor: Tensor) -> bool:
    """What the stack of all tasks says; functorch's wrappers say no, which torch's own bookkeeping goes by."""
    asking = sys._getframe(2).f_code.co_filename
    if asking == _FUNCTIONAL and private.is_wrapped(tensor):
        raise GradientsError
    return bool((tensor if asking.startswith(_TORCH) else of_all_tasks(tensor)).requires_grad)


def hidden_graph(name: str) -> Callable[[Tensor], Any]:
    """What of the graph code may not ask for where tasks run at once, since functorch's wrappers do not know it.

    Args:
        name: of an attribute of tensors.

    Returns:
        A function that reads it, but for code that is neither torch's nor this package's raises.
    """

    def read(tensor: Tensor) -> Any:
        asking = sys._getframe(2).f_code.co_filename
        if private.is_wrapped(tensor) and not asking.startswith((_TORCH, _HERE)):
            raise NotImplementedError(f"code that looks at a tensor's {name} would not see the graph")
        return getattr(tensor, name)

    return read


def set_requires_grad(tensor: Tensor, requires_grad: bool = True) -> Tensor:
    """``tensor.requires_grad_``, which under ``vmap`` applies to the tensor of all tasks."""
    if place() != "vmap":  # other transforms record gradients themselves, by this very call
        return tensor.requires_grad_(requires_grad)
    with under([]):
        of_all_tasks(tensor).requires_grad_(requires_grad)
    return tensor
