"""What one thread works with in place of a module that all threads share: a copy with the same parameters.

Putting a task's parameters into a module would be seen by every thread.
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
"""By the id of what they stand in for."""
_present: ContextVar[StandIns] = ContextVar("what stands in for modules", default=MappingProxyType({}))


def present() -> StandIns:
    """What stands in for modules in this thread."""
    return _present.get()


def replica(model: nn.Module) -> nn.Module:
    """A copy with the same parameters and buffers."""
    return copied(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


def copied(model: nn.Module, known: dict[int, Any] | None = None) -> nn.Module:
    """Return a deep copy, also of a module whose attributes hold non-leaf tensors, which torch refuses to copy.

    Such tensors are detached. Those computed from parameters, as by the old ``torch.nn.utils.weight_norm``, are
    computed again when the copy runs.

    Args:
        model: the module.
        known: objects that the copy shares with the original instead of copying them, by id (``copy.deepcopy``'s memo).
    """
    kept = [value for module in model.modules() for value in vars(module).values() if isinstance(value, torch.Tensor)]
    cut = {id(tensor): tensor.detach().clone() for tensor in kept if tensor.grad_fn is not None}
    return copy.deepcopy(model, {**cut, **(known or {})})


@contextmanager
def standing_in(stand_ins: StandIns) -> Iterator[None]:
    """In this thread, `mine` gives these, beside those that stand in already."""
    token = _present.set({**_present.get(), **stand_ins})
    try:
        yield
    finally:
        _present.reset(token)


def mine(part: Part) -> Part:
    """What this thread works with in place of a module, or of anything else, which is that itself."""
    return _present.get().get(id(part), part)  # type: ignore[return-value]


def independent(model: nn.Module, call: Callable[[], Any]) -> bool:
    """Whether copies of a module do without the original.

    A function that a module keeps, or a hook, may hold on to the original: that could not be given a task's parameters.

    Args:
        model: the module.
        call: computes something with what `mine` gives, on parameters other than the module's.
    """
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers() if buffer.layout == torch.strided]
    try:
        with standing_in({id(model): replica(mine(model))}), torch.enable_grad():
            outputs = [t for t in pytree.tree_leaves(call()) if isinstance(t, torch.Tensor) and t.requires_grad]
        learned = [p for p in model.parameters() if p.requires_grad]
        reached = torch.autograd.grad([t.sum() for t in outputs], learned, allow_unused=True) if outputs else ()
    except Exception as error:  # whatever it is that cannot be copied, or run twice
        raise_interrupt_behind(error)
        return False
    finally:  # what holds on to the original may have moved its statistics
        with torch.no_grad():
            for buffer, before in buffers:
                if not torch.equal(buffer, before):  # batch norm writes without counting versions
                    buffer.copy_(before)
    return all(grad is None for grad in reached)
