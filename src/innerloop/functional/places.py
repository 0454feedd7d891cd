"""Where Python keeps values: one container at a time, to read, to compare and to put back; see `innerloop.state`."""

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
"""Of an array whose content is compared before every step."""

PLAIN = (
    int, float, complex, str, bytes, type(None), type(...), type(NotImplemented), slice, range, enum.Enum, torch.dtype,
    torch.device, torch.layout, torch.memory_format,
)  # fmt: skip
"""Types of values that never change themselves."""

ABSENT: Any = type("absent", (), {"__repr__": lambda self: "nothing"})()
"""What an entry that is not there holds."""


class Place:
    """Something that holds values under keys.

    Args:
        name: of what holds them, in the words of an error message.
        form: of an entry's name, from that name and the key.
        holder: a dict, list, deque or class; or, with ``keys``, any object.
        keys: which entries of the holder count; ``None`` for all.

    Attributes:
        entries: what it held when this was made.
    """

    def __init__(self, name: str, form: str, holder: Any, keys: tuple[Any, ...] | None = None) -> None:
        self.name, self.form, self.holder, self.keys = name, form, holder, keys
        self.entries = self.now()

    def now(self) -> dict[Any, Any]:
        """The entries at present."""
        holder = self.holder
        if self.keys is not None:
            if isinstance(holder, dict):
                return {key: dict.get(holder, key, ABSENT) for key in self.keys}
            return {key: _get(holder, key) for key in self.keys}
        if isinstance(holder, (list, deque)):
            return dict(enumerate(holder))
        return {k: v for k, v in vars(holder).items() if _counts(k, v)} if isinstance(holder, type) else dict(holder)

    def put(self, entries: dict[Any, Any]) -> None:
        """Make the holder hold these."""
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
        """An entry's name."""
        return self.form.format(name=self.name, key=key).lstrip(".")


class Content:
    """A value that Python does not show as containers: a set, an array, a generator of random numbers.

    Args:
        name: in the words of an error message.
        read: gives what can be compared.
        write: puts it back.
    """

    def __init__(self, name: str, read: Callable[[], Any], write: Callable[[Any], Any]) -> None:
        self.name, self.read, self.write = name, read, write
        self.was = read()


def content(item: Any, name: str) -> Content | None:
    """What such a value holds, if it is one."""
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
    """Whether code that reads the one does what it does with the other."""
    if was is now:
        return True
    if type(was) is not type(now) or isinstance(was, Tensor):
        return False
    if isinstance(was, (float, complex)):  # which tells zeros, and takes one "not a number" for another
        return repr(was) == repr(now)
    if isinstance(was, tuple):
        return len(was) == len(now) and all(map(equal, was, now))
    if isinstance(was, types.MethodType):
        return was.__func__ is now.__func__ and was.__self__ is now.__self__
    return (isinstance(was, PLAIN) or by_value(was)) and bool(was == now)


def by_value(item: Any) -> bool:
    """Whether a value is told by what it is equal to, and holds nothing that may change."""
    hashed: Any = type(item).__hash__
    return hashed not in (object.__hash__, None) and not hasattr(item, "__dict__")


def slots(cls: type) -> tuple[str, ...]:
    """The attributes that a class keeps outside of a dictionary."""
    given = vars(cls).get("__slots__", ())
    names = (given,) if isinstance(given, str) else tuple(given)
    private = f"_{cls.__name__.lstrip('_')}"
    names = tuple(f"{private}{n}" if n.startswith("__") and not n.endswith("__") else n for n in names)
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))


def _counts(key: str, value: Any) -> bool:
    """Whether an entry of a class says what its code does: not what Python keeps there for itself."""
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
