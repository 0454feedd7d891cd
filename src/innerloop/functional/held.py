"""What modules, functions and other objects hold: attributes, closures, and the variables that their code uses."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from .contracts import MOST_ENTRIES, attribute

_LIBRARIES = frozenset(("torch", "innerloop", "numpy", *sys.stdlib_module_names))


def state(parts: Mapping[str, Any]) -> dict[tuple[str, str, int], Any]:
    """Capture the attributes of modules and other objects and the closures of functions, to compare them later.

    What one call changes, calls in several threads would change at the same time.

    Args:
        parts: the objects, each under a word for what it is.

    Returns:
        What stands for each value: a plain value itself, the identity of any other, and for a tensor also how often it
        was written to in place.
    """
    return {
        (f"the {kind} {owner}", name, index): [_fingerprint(leaf) for leaf in pytree.tree_leaves(value)]
        for kind, part in parts.items()
        for index, (owner, attributes) in enumerate(held_by(part))
        for name, value in attributes.items()
    }


def plain_state(parts: Mapping[str, Any]) -> dict[tuple[str, str, int], Any]:
    """Return `state` without its tensors, which do not outlive a task."""
    return {key: [one for one in found if len(one) == 1] for key, found in state(parts).items()}


def held_by(part: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Of every object in a part, its class, and what it, its class and its code hold, by name."""
    owner = part.__self__ if isinstance(part, MethodType) else part
    for one in owner.modules() if isinstance(owner, nn.Module) else (owner,):
        code = getattr(type(one), "forward" if isinstance(one, nn.Module) else "__call__", None)
        held = {**variables_of(one), **variables_of(code), **vars(type(one)), **attribute(one, "__dict__", {})}
        buffers = held.pop("_buffers", None) or {}
        for tensors in ("_parameters", "_modules"):  # a task's take their places for a while
            held.pop(tensors, None)
        yield getattr(one, "__name__", type(one).__name__), {**held, **buffers}


def variables_of(function: Any) -> dict[str, Any]:
    """The variables outside of a function that its code uses."""
    if not isinstance(function, FunctionType):
        return {}
    used, variables = function.__code__.co_names, function.__globals__
    found = {name: variables[name] for name in used if name in variables}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # an empty one
            found[name] = cell.cell_contents
    return found


def reached(value: Any, seen: set[int], depth: int = 4) -> Iterator[Any]:
    """Yield a value and everything that it holds.

    It holds the variables that a function uses, the object that a method belongs to, and the attributes of an object or
    of a Python module that belongs to no library.

    Args:
        value: a pytree of anything.
        seen: the ids of what was looked at already.
        depth: how far to follow.
    """
    if id(value) in seen or not depth or (isinstance(value, (list, dict, tuple)) and len(value) > MOST_ENTRIES):
        return
    seen.add(id(value))
    for leaf in pytree.tree_leaves(value):
        yield leaf
        for inner in _inside(leaf):
            yield from reached(inner, seen, depth - 1)


def _inside(leaf: Any) -> Iterable[Any]:
    if isinstance(leaf, FunctionType):
        return variables_of(leaf).values()
    if isinstance(leaf, MethodType):
        return leaf.__self__, leaf.__func__
    if isinstance(leaf, partial):
        return leaf.func, leaf.args, leaf.keywords
    if isinstance(leaf, weakref.ref):
        return (leaf(),)
    library = isinstance(leaf, ModuleType) and str(attribute(leaf, "__name__")).partition(".")[0] in _LIBRARIES
    closed = isinstance(leaf, (type, torch.Tensor, nn.Module)) or library
    return () if closed else list(attribute(leaf, "__dict__", {}).values())


def _fingerprint(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return id(value), None if value.is_inference() else value._version
    return (value,) if isinstance(value, int | float | complex | str | bytes | None) else (id(value),)
