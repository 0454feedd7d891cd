"""The values that modules, functions and other objects hold: attributes, closures and variables that code uses."""

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

    State that one call changes would be changed by several threads at the same time.

    Args:
        parts: the objects, by kind.

    Returns:
        A fingerprint of each value: plain values themselves, the identity of other objects, and for a tensor also the
        number of in-place writes.
    """
    return {
        (f"the {kind} {owner}", name, index): [_fingerprint(leaf) for leaf in pytree.tree_leaves(value)]
        for kind, part in parts.items()
        for index, (owner, attributes) in enumerate(held_by(part))
        for name, value in attributes.items()
    }


def plain_state(parts: Mapping[str, Any]) -> dict[tuple[str, str, int], Any]:
    """Return `state` without its tensors, which do not outlive a task."""
    return {key: [one for one in prints if len(one) == 1] for key, prints in state(parts).items()}


def held_by(part: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the class name of every object in a part, and what it, its class and its code hold, by name."""
    owner = part.__self__ if isinstance(part, MethodType) else part
    for one in owner.modules() if isinstance(owner, nn.Module) else (owner,):
        code = getattr(type(one), "forward" if isinstance(one, nn.Module) else "__call__", None)
        held = {**variables_of(one), **variables_of(code), **vars(type(one)), **attribute(one, "__dict__", {})}
        buffers = held.pop("_buffers", None) or {}
        for tensors in ("_parameters", "_modules"):  # those of a task replace them for a while
            held.pop(tensors, None)
        yield getattr(one, "__name__", type(one).__name__), {**held, **buffers}


def variables_of(function: Any) -> dict[str, Any]:
    """Return the global and enclosing variables that a function's code uses."""
    if not isinstance(function, FunctionType):
        return {}
    names, variables = function.__code__.co_names, function.__globals__
    used = {name: variables[name] for name in names if name in variables}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # an empty cell
            used[name] = cell.cell_contents
    return used


def reached(value: Any, seen: set[int], depth: int = 4) -> Iterator[Any]:
    """Yield a value and everything that it holds.

    A function holds the variables that it uses, a method its object, and an object its attributes, as does a Python
    module that does not belong to a library.

    Args:
        value: a pytree of anything.
        seen: the ids of the values that were visited already.
        depth: how many levels to follow.
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
