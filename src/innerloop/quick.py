"""What a learner asks for in every call or step, in a small part of the time that torch's own ways take."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = (Tensor, nn.Parameter)


def unseen(tensors: Iterable[Any]) -> AbstractContextManager[Any]:
    """A context for the library's own operations on tensors, which function modes do not see there. A mode takes more
    than a microsecond for each operation, and for each attribute that is read.

    Args:
        tensors: what is worked on. If one is of a subclass, which may define operations of its own, modes stay.
    """
    return torch._C.DisableTorchFunction() if all(type(t) in _PLAIN for t in tensors) else nullcontext()


def modules_of(*roots: nn.Module) -> list[nn.Module]:
    """The modules and all their submodules, each once, in the order of ``nn.Module.modules()``."""
    found: dict[nn.Module, None] = {}
    waiting: list[nn.Module | None] = list(reversed(roots))
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
    """Whether two dictionaries hold the same objects under the same names, in the same order."""
    return len(one) == len(other) and all(map(is_, one.values(), other.values())) and one.keys() == other.keys()
