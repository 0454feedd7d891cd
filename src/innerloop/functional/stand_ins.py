"""Copies of shared modules for single threads, with the same parameters.

If a thread put a task's parameters into a shared module, all threads would see them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..common.interrupts import raise_interrupt_behind

Part = TypeVar("Part")

StandIns = Mapping[int, nn.Module]
"""Copies by the id of the module that they replace."""
_present: ContextVar[StandIns] = ContextVar("copies of modules", default=MappingProxyType({}))


def present() -> StandIns:
    """Return the copies that this thread uses."""
    return _present.get()


def replica(model: nn.Module) -> nn.Module:
    """Return a copy that shares parameters and buffers."""
    return copied(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


def copied(model: nn.Module, known: dict[int, Any] | None = None) -> nn.Module:
    """Return a deep copy, also of a module with non-leaf tensors in its attributes, which torch refuses to copy.

    Such tensors are detached. Those that are computed from parameters, as by the old ``torch.nn.utils.weight_norm``,
    are computed again when the copy runs.

    Args:
        model: the module.
        known: objects that the copy shares with the original instead of copying them, by id (``copy.deepcopy``'s memo).
    """
    kept = [value for module in model.modules() for value in vars(module).values() if isinstance(value, torch.Tensor)]
    cut = {id(tensor): tensor.detach().clone() for tensor in kept if tensor.grad_fn is not None}
    return copy.deepcopy(model, {**cut, **(known or {})})


@contextmanager
def standing_in(stand_ins: StandIns) -> Iterator[None]:
    """While entered, `mine` returns these copies in this thread, in addition to the present ones."""
    token = _present.set({**_present.get(), **stand_ins})
    try:
        yield
    finally:
        _present.reset(token)


def mine(part: Part) -> Part:
    """Return this thread's copy of a module, or the object itself if there is no copy."""
    return _present.get().get(id(part), part)  # type: ignore[return-value]


def independent(model: nn.Module, call: Callable[[], Any]) -> bool:
    """Return whether copies of a module do not use the original.

    A function in an attribute, or a hook, may refer to the original, which does not get a task's parameters.

    Args:
        model: the module.
        call: runs the module that `mine` returns, on other parameters than the module's.
    """
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers() if buffer.layout == torch.strided]
    try:
        with standing_in({id(model): replica(mine(model))}), torch.enable_grad():
            outputs = [t for t in pytree.tree_leaves(call()) if isinstance(t, torch.Tensor) and t.requires_grad]
        learned = [p for p in model.parameters() if p.requires_grad]
        reached = torch.autograd.grad([t.sum() for t in outputs], learned, allow_unused=True) if outputs else ()
    except Exception as error:  # it cannot be copied, or cannot run twice
        raise_interrupt_behind(error)
        return False
    finally:  # code that refers to the original may have moved its statistics
        with torch.no_grad():
            for buffer, before in buffers:
                if not torch.equal(buffer, before):  # batch norm writes without counting versions
                    buffer.copy_(before)
    return all(grad is None for grad in reached)
