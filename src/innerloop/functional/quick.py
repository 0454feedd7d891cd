"""Fast versions of what a learner does in every call or inner step."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from operator import is_
from typing import Any

from torch import Tensor, nn

from ..common import private

_PLAIN = (Tensor, nn.Parameter)
_OURS = (f"{__name__.partition('.')[0]}.", private.DEVICE_MODES)
"""Modules of modes that need not see the library's operations; the mode of `torch.device` only changes new tensors."""


def hidden_from_modes(tensors: Iterable[Any]) -> AbstractContextManager[Any]:
    """Hide the library's own operations on plain tensors from its function modes.

    These modes cost over a microsecond per operation and per attribute. Nothing is hidden for a subclass of tensors,
    which may define its own operations, nor if a mode of other code is active.

    Args:
        tensors: the tensors of the operations.
    """
    stack = range(private.number_of_function_modes())
    own = all(type(private.function_mode_at(level)).__module__.startswith(_OURS) for level in stack)
    plain = own and all(type(tensor) in _PLAIN for tensor in tensors)
    return private.without_function_modes() if plain else nullcontext()


def modules_of(*parts: Any) -> list[nn.Module]:
    """Return the modules among some parts and all their submodules, each once, in the order of ``modules()``."""
    modules: dict[nn.Module, None] = {}
    waiting: list[nn.Module | None] = [part for part in reversed(parts) if isinstance(part, nn.Module)]
    while waiting:
        module = waiting.pop()
        if module is not None and module not in modules:
            modules[module] = None
            if children := module._modules:
                waiting.extend(reversed(children.values()))
    return list(modules)


def members_of(modules: Iterable[nn.Module]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the modules' parameters and buffers, each once, in the order of ``parameters()`` and ``buffers()``."""
    parameters: dict[int, Tensor] = {}
    buffers: dict[int, Tensor] = {}
    for module in modules:
        for members, own in ((parameters, module._parameters), (buffers, module._buffers)):
            for tensor in own.values():
                if tensor is not None:
                    members.setdefault(id(tensor), tensor)
    return list(parameters.values()), list(buffers.values())


def identical(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether two dictionaries hold the same objects under the same names."""
    return len(one) == len(other) and all(map(is_, one.values(), other.values())) and one.keys() == other.keys()
