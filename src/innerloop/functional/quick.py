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
"""Where the modes are from that need not see the library's operations; that of `torch.device` changes new tensors."""


def hidden_from_modes(tensors: Iterable[Any]) -> AbstractContextManager[Any]:
    """Hide the library's own operations on plain tensors from its function modes.

    These modes cost over a microsecond per operation and per attribute.

    Args:
        tensors: what is worked on. A subclass may define operations of its own, so nothing is hidden then, nor from
            modes that are not the library's.
    """
    stack = range(private.number_of_function_modes())
    own = all(type(private.function_mode_at(level)).__module__.startswith(_OURS) for level in stack)
    plain = own and all(type(tensor) in _PLAIN for tensor in tensors)
    return private.without_function_modes() if plain else nullcontext()


def modules_of(*parts: Any) -> list[nn.Module]:
    """The modules among some parts and all their submodules, each once, in the order of ``nn.Module.modules()``."""
    found: dict[nn.Module, None] = {}
    waiting: list[nn.Module | None] = [part for part in reversed(parts) if isinstance(part, nn.Module)]
    while waiting:
        module = waiting.pop()
        if module is not None and module not in found:
            found[module] = None
            if children := module._modules:
                waiting.extend(reversed(children.values()))
    return list(found)


def members_of(modules: Iterable[nn.Module]) -> tuple[list[Tensor], list[Tensor]]:
    """The modules' own parameters and buffers, each once, in the order of ``parameters()`` and ``buffers()``."""
    parameters: dict[int, Tensor] = {}
    buffers: dict[int, Tensor] = {}
    for module in modules:
        for found, held in ((parameters, module._parameters), (buffers, module._buffers)):
            for tensor in held.values():
                if tensor is not None:
                    found.setdefault(id(tensor), tensor)
    return list(parameters.values()), list(buffers.values())


def identical(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two dictionaries hold the same objects under the same names."""
    return len(one) == len(other) and all(map(is_, one.values(), other.values())) and one.keys() == other.keys()
