"""What code may ask of tensors while tasks run at once: values, where all tasks have the same, and gradients."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .stacks import functorch, place, under
from .task import tensors_of

_TORCH, _FUNCTIONAL = str(Path(torch.__file__).parent), torch.autograd.functional.__file__
_FUNC = str(Path(_TORCH, "_functorch"))
READS: tuple[Callable[..., Any], ...] = (
    torch.Tensor.__bool__, torch.Tensor.__int__, torch.Tensor.__float__, torch.Tensor.__index__, torch.Tensor.item
)  # fmt: skip


class TasksDifferError(RuntimeError):
    """A value that says which code runs is not the same for all tasks that run at once."""


def where_tasks_agree(read: Callable[..., Any]) -> Callable[..., Any]:
    """The value of one element, as ``bool(tensor)`` and ``tensor.item()`` give it, which ``vmap`` cannot: that of all
    tasks if they have the same."""

    def call(tensor: Tensor) -> Any:
        values = _of_all_tasks(tensor).flatten()
        if tensor.numel() != 1 or not len(values):
            return read(tensor)
        if len(values) > 1 and not bool((values == values[0]).all()):
            raise TasksDifferError("tasks differ in a value that says which code runs (bool(tensor), tensor.item())")
        return read(values[0])

    return call


def _of_all_tasks(tensor: Tensor) -> Tensor:
    """What is inside of the wrappers of function transforms."""
    while functorch.is_functorch_wrapped_tensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    return tensor


def contains(tensor: Tensor, element: Any) -> Any:
    return where_tasks_agree(bool)((tensor == element).any())


_NO_GRADIENTS = "gradients by torch.autograd in the model or the loss come out as zeros where tasks run at once"


def gradient(outputs: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
    """``torch.autograd.grad``, which does not know what tasks at once are computed of, and may say zero; but for
    torch.func, which does."""
    frame = sys._getframe()
    while frame.f_back and frame.f_code is not torch.autograd.grad.__code__:
        frame = frame.f_back
    asking = frame.f_back.f_code.co_filename if frame.f_back else ""
    wrapped = any(functorch.is_functorch_wrapped_tensor(t) for t in tensors_of((outputs, inputs)))
    if wrapped and not asking.startswith(_FUNC):
        raise NotImplementedError(_NO_GRADIENTS)
    return torch.autograd.grad(outputs, inputs, *args, **kwargs)


def reads_requires_grad(tensor: Tensor) -> bool:
    """What the stack of all tasks says; functorch's wrappers say no, which torch's own bookkeeping goes by."""
    asking = sys._getframe(2).f_code.co_filename
    if asking == _FUNCTIONAL and functorch.is_functorch_wrapped_tensor(tensor):
        raise NotImplementedError(_NO_GRADIENTS)
    return bool((tensor if asking.startswith(_TORCH) else _of_all_tasks(tensor)).requires_grad)


def set_requires_grad(tensor: Tensor, requires_grad: bool = True) -> Tensor:
    if place() != "vmap":  # other transforms record gradients themselves, by this very call
        return tensor.requires_grad_(requires_grad)
    with under([]):
        _of_all_tasks(tensor).requires_grad_(requires_grad)
    return tensor


def refuse(name: str, error: type[Exception], why: str) -> Callable[..., Any]:
    def call(*_: Any, **__: Any) -> Any:
        raise error(f"{name} {why}")

    return call


def loop(name: str, why: str) -> Callable[..., Any]:
    """Not where tasks run at once: the engine then loops."""
    return refuse(name, NotImplementedError, why)
