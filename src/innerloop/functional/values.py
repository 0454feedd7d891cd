"""Reads of tensors while tasks run at once: values, if all tasks have the same, and gradients."""

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
    """A value that decides which code runs differs among tasks that run at once."""


def where_tasks_agree(read: Callable[..., Any]) -> Callable[..., Any]:
    """Make a read of one element, such as ``bool`` or ``torch.Tensor.item``, work under ``vmap``.

    If all tasks have the same value, the read returns it. Otherwise it raises `TasksDifferError`.
    """

    def call(tensor: Tensor) -> Any:
        values = of_all_tasks(tensor).flatten()
        if tensor.numel() != 1 or not len(values):
            return read(tensor)
        if len(values) > 1 and not bool((values == values[0]).all()):
            raise TasksDifferError("tasks differ in a value that decides which code runs (bool(tensor), tensor.item())")
        return read(values[0])

    return call


def contains(tensor: Tensor, element: Any) -> Any:
    """Return whether an element of a tensor equals ``element``; replaces ``in`` while tasks run at once."""
    return where_tasks_agree(bool)((tensor == element).any())


class GradientsError(NotImplementedError):
    """Code computes gradients in a way that does not work under ``vmap``."""

    def __init__(self) -> None:
        super().__init__(
            "gradients from torch.autograd inside the model or the loss would be zeros while tasks run at once"
        )


def gradient(outputs: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
    """``torch.autograd.grad``, which is refused while tasks run at once.

    It does not support ``vmap`` and may return zeros there. Calls from within ``torch.func``, which does, are allowed.

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
    """``torch.autograd.grad``, with a helpful error if gradients are not recorded.

    Raises:
        ValueError: gradients are not recorded, as in predictions.
    """
    if not torch.is_grad_enabled() and not any(t.requires_grad for t in tensors_of((outputs,))):
        raise ValueError(
            "the model or the loss computes gradients with torch.autograd.grad, but a learner records none when it "
            "predicts or adapts: put that code under `with torch.enable_grad():`, or use torch.func.grad"
        )
    return torch.autograd.grad(outputs, *args, **kwargs)


def reads_requires_grad(tensor: Tensor) -> bool:
    """Return ``requires_grad`` of the stack of all tasks; functorch's wrappers say no, which torch itself relies on."""
    asking = sys._getframe(2).f_code.co_filename
    if asking == _FUNCTIONAL and private.is_wrapped(tensor):
        raise GradientsError
    return bool((tensor if asking.startswith(_TORCH) else of_all_tasks(tensor)).requires_grad)


def hidden_graph(name: str) -> Callable[[Tensor], Any]:
    """Make a reader of an attribute of the graph that user code must not read while tasks run at once.

    Functorch's wrappers do not know the graph.

    Args:
        name: the name of an attribute of tensors.

    Returns:
        A function that reads the attribute, and raises ``NotImplementedError`` for user code under ``vmap``.
    """

    def read(tensor: Tensor) -> Any:
        asking = sys._getframe(2).f_code.co_filename
        if private.is_wrapped(tensor) and not asking.startswith((_TORCH, _HERE)):
            raise NotImplementedError(f"code that reads a tensor's {name} would not see the graph")
        return getattr(tensor, name)

    return read


def set_requires_grad(tensor: Tensor, requires_grad: bool = True) -> Tensor:
    """``tensor.requires_grad_``, which under ``vmap`` applies to the tensor of all tasks."""
    if place() != "vmap":  # other transforms record gradients themselves, with this call
        return tensor.requires_grad_(requires_grad)
    with under([]):
        of_all_tasks(tensor).requires_grad_(requires_grad)
    return tensor
