"""Containers of Python values, to read, compare and restore them one at a time; see `innerloop.engine.state`."""

from __future__ import annotations

import array
import contextvars
import enum
import pickle
import random
import sys
import types
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

MOST_BYTES = 1 << 16
"""The largest array whose content is compared before every step."""

PLAIN = (
    int, float, complex, str, bytes, type(None), type(...), type(NotImplemented), slice, range, enum.Enum, torch.dtype,
    torch.device, torch.layout, torch.memory_format,
)  # fmt: skip
"""Types of values that never change themselves."""

ABSENT: Any = type("absent", (), {"__repr__": lambda self: "nothing"})()
"""Stands for the value of a missing entry."""


class Place:
    """Something that holds values under keys.

    Args:
        name: the name of the holder, for messages.
        form: the format of an entry's name, with the fields ``name`` and ``key``.
        holder: a dict, list, deque or class; or, with ``keys``, any object.
        keys: which entries of the holder count; ``None`` for all.

    Attributes:
        entries: the entries when this object was made.
    """

    def __init__(self, name: str, form: str, holder: Any, keys: tuple[Any, ...] | None = None) -> None:
        self.name, self.form, self.holder, self.keys = name, form, holder, keys
        self.entries = self.now()

    def now(self) -> dict[Any, Any]:
        """Return the present entries."""
        holder = self.holder
        if self.keys is not None:
            if isinstance(holder, dict):
                return {key: dict.get(holder, key, ABSENT) for key in self.keys}
            return {key: _get(holder, key) for key in self.keys}
        if isinstance(holder, (list, deque)):
            return dict(enumerate(holder))
        return {k: v for k, v in vars(holder).items() if _counts(k, v)} if isinstance(holder, type) else dict(holder)

    def put(self, entries: dict[Any, Any]) -> None:
        """Make the holder hold these entries."""
        holder, now = self.holder, self.now()
        if isinstance(holder, deque):
            holder.clear()
            holder.extend(entries.values())
        elif isinstance(holder, list):
            holder[:] = entries.values()
        elif isinstance(holder, dict) and self.keys is None:
            dict.clear(holder)
            dict.update(holder, entries)
        else:
            for key in {**now, **entries}:
                if (new := entries.get(key, ABSENT)) is not now.get(key, ABSENT):
                    _set(holder, key, new)

    def name_of(self, key: Any) -> str:
        """Return an entry's name."""
        return self.form.format(name=self.name, key=key).lstrip(".")


class Content:
    """A value with hidden content: a set, an array, a generator of random numbers.

    Args:
        name: the name of the value, for messages.
        read: returns the content in a form that can be compared.
        write: restores the content.
    """

    def __init__(self, name: str, read: Callable[[], Any], write: Callable[[Any], Any]) -> None:
        self.name, self.read, self.write = name, read, write
        self.was = read()


def content(item: Any, name: str) -> Content | None:
    """Return the content of such a value; ``None`` for other values."""
    numpy = sys.modules.get("numpy")
    if isinstance(item, set):
        return Content(name, lambda: frozenset(item), lambda was: _refill(item, was))
    if isinstance(item, random.Random) and not isinstance(item, random.SystemRandom):
        return Content(name, item.getstate, item.setstate)
    if isinstance(item, torch.Generator):
        return Content(name, lambda: bytes(item.get_state().tolist()), lambda was: item.set_state(_bytes(was)))
    if isinstance(item, contextvars.ContextVar):
        return Content(name, lambda: item.get(None), item.set)
    if isinstance(item, bytearray):
        return Content(name, lambda: bytes(item), lambda was: item.__setitem__(slice(None), was))
    if isinstance(item, array.array):
        return Content(name, item.tobytes, lambda was: item.__setitem__(slice(None), array.array(item.typecode, was)))
    if numpy is None:
        return None
    if isinstance(item, numpy.random.Generator):
        bits = item.bit_generator
        return Content(name, lambda: pickle.dumps(bits.state), lambda was: setattr(bits, "state", pickle.loads(was)))
    if isinstance(item, numpy.random.RandomState):
        return Content(name, lambda: pickle.dumps(item.get_state()), lambda was: item.set_state(pickle.loads(was)))
    if isinstance(item, numpy.ndarray) and not item.dtype.hasobject and item.nbytes <= MOST_BYTES:

        def write(was: tuple[Any, str, bytes]) -> None:
            item[...] = numpy.frombuffer(was[2], item.dtype).reshape(item.shape)

        return Content(name, lambda: (item.shape, str(item.dtype), item.tobytes()), write)
    return None


def equal(was: Any, now: Any) -> bool:
    """Return whether code cannot tell the two values apart."""
    if was is now:
        return True
    if type(was) is not type(now) or isinstance(was, Tensor):
        return False
    if isinstance(was, (float, complex)):  # repr distinguishes signed zeros, and treats all NaN as equal
        return repr(was) == repr(now)
    if isinstance(was, tuple):
        return len(was) == len(now) and all(map(equal, was, now))
    if isinstance(was, types.MethodType):
        return was.__func__ is now.__func__ and was.__self__ is now.__self__
    return (isinstance(was, PLAIN) or by_value(was)) and bool(was == now)


def by_value(item: Any) -> bool:
    """Return whether a value is compared by equality and holds nothing that may change."""
    hashed: Any = type(item).__hash__
    return hashed not in (object.__hash__, None) and not hasattr(item, "__dict__")


def slots(cls: type) -> tuple[str, ...]:
    """Return the attributes that a class keeps outside of a dictionary."""
    given = vars(cls).get("__slots__", ())
    names = (given,) if isinstance(given, str) else tuple(given)
    private = f"_{cls.__name__.lstrip('_')}"
    names = tuple(f"{private}{n}" if n.startswith("__") and not n.endswith("__") else n for n in names)
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))


def _counts(key: str, value: Any) -> bool:
    """Return whether an entry of a class affects its code; false for entries that Python keeps for itself."""
    return not (key.startswith("_abc_") or (key.startswith("__") and not isinstance(value, types.FunctionType)))


def _get(holder: Any, key: str) -> Any:
    try:
        return getattr(holder, key)
    except (AttributeError, ValueError):  # an empty cell
        return ABSENT


def _set(holder: Any, key: str, value: Any) -> None:
    if isinstance(holder, dict):
        if value is ABSENT:
            dict.pop(holder, key, None)
        else:
            dict.__setitem__(holder, key, value)
    elif value is ABSENT:
        delattr(holder, key)
    elif isinstance(holder, type):
        type.__setattr__(holder, key, value)
    else:
        object.__setattr__(holder, key, value)


def _refill(into: set[Any], items: Iterable[Any]) -> None:
    into.clear()
    into.update(items)


def _bytes(state: bytes) -> Tensor:
    return torch.tensor(list(state), dtype=torch.uint8)
