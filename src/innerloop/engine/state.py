"""Snapshots of the Python state that code can read; they can be compared in microseconds, and restored.

In recorded code, values that Python read are constants: a temperature, a counter, an entry of a dictionary, a global
variable. `State` finds these by a walk from some objects and from the functions that ran, and keeps the content of
every container. It compares by identity first, in C, and by value if that fails.
"""

from __future__ import annotations

import dis
import functools
import io
import logging
import sys
import threading
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import chain
from operator import attrgetter, is_, itemgetter, methodcaller
from typing import Any

from torch import Tensor, nn

from ..common import private
from ..functional.places import ABSENT, PLAIN, Content, Place, by_value, content, equal, slots

MOST_ENTRIES = 20_000
"""With more entries, comparing would take longer than compiling saves."""

INERT = (
    types.BuiltinFunctionType, types.WrapperDescriptorType, types.MethodDescriptorType, types.ClassMethodDescriptorType,
    types.GetSetDescriptorType, types.MemberDescriptorType, types.MethodWrapperType, types.CodeType, types.ModuleType,
    types.GenericAlias, types.FunctionType, property, logging.Logger, logging.Handler, weakref.ref,
    type(threading.Lock()), type(threading.RLock()),
)  # fmt: skip
"""Types that are compared only by identity. `State` follows functions that ran, and modules that these use."""
LIBRARIES = frozenset(("torch", "innerloop", "numpy", "functorch", "sympy"))
"""Packages with classes that are assumed not to change."""
_STANDARD = frozenset(sys.stdlib_module_names)
_CONTAINERS = ("_modules", "_parameters", "_buffers")
_NO_MATTER = ("_state_dict_", "_load_state_dict_", "_non_persistent_")
"""Prefixes of module attributes that do not affect computations."""
_ENDS = (*PLAIN, *INERT, Tensor)
_ENDS_OF_MODULES = (type, types.FunctionType, types.ModuleType, types.BuiltinFunctionType)
_GLOBALS = ("LOAD_GLOBAL", "LOAD_NAME")
_contents, _values = attrgetter("cell_contents"), methodcaller("values")


class UnwatchableError(Exception):
    """Some state cannot be watched for changes; the message names it."""


class State:
    """A snapshot of what objects and functions hold, as far as it can be reached.

    Args:
        roots: objects by name.
        functions: functions that ran; their globals, closures and defaults count.
        apart: objects that do not count.

    Attributes:
        tensors: the reached tensors, by name; they are compared by identity, not by value.
        caches: functions with ``functools.lru_cache``.

    Raises:
        UnwatchableError: something cannot be compared.
    """

    def __init__(
        self, roots: Mapping[str, Any], functions: Iterable[types.FunctionType] = (), apart: Collection[Any] = ()
    ) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.caches: list[Any] = []
        self._places: list[Place] = []
        self._contents: list[Content] = []
        self._alive: list[Any] = list(apart)  # so that no other object gets an identity that was seen
        self._seen, self._size = {id(item) for item in apart}, 0
        self._todo: deque[tuple[Any, str]] = deque((root, name) for name, root in roots.items())
        variables: dict[int, tuple[dict[str, Any], set[str]]] = {}
        for function in functions:
            self._function(function)
            for holder, names in _variables(function):
                variables.setdefault(id(holder), (holder, set()))[1].update(names)
        for holder, names in variables.values():
            self._place(str(holder.get("__name__", "")), "global {key}", holder, tuple(sorted(names)))
        self._walk()
        self._settle()

    # -- comparing ----------------------------------------------------------------------------------------------------

    def same(self) -> bool:
        """Return whether everything is identical; false may also mean that equal values replaced others."""
        try:
            return (
                not any(self._empty)
                and sum(map(len, self._whole)) == len(self._keys)
                and all(map(is_, chain.from_iterable(self._whole), self._keys))
                and all(map(is_, chain.from_iterable(map(_values, self._mappings)), self._held))
                and all(map(is_, map(_contents, self._cells), self._in_cells))
                and all(all(map(is_, get(holder), held)) for get, holder, held in self._parts)
                and all(equal(content.was, content.read()) for content in self._contents)
            )
        except (AttributeError, KeyError, ValueError, RuntimeError):  # something was removed
            return False

    def change(self, stand_ins: Mapping[int, Any] | None = None) -> str | None:
        """Return the name of something that has changed, or ``None``.

        Args:
            stand_ins: the originals of substituted objects, by the id of the substitute.
        """
        if not stand_ins and self.same():
            return None
        for place in self._places:
            now = place.now()
            for key in {**place.entries, **now}:
                value = now.get(key, ABSENT)
                if not equal(place.entries.get(key, ABSENT), (stand_ins or {}).get(id(value), value)):
                    return place.name_of(key)
        for inner in self._contents:
            if not equal(inner.was, inner.read()):
                return inner.name
        if not stand_ins:  # equal values replaced others: make the next comparison by identity again
            for place in self._places:
                place.entries = place.now()
            self._settle()
        return None

    def substitute(self, stand_ins: Mapping[int, Any]) -> None:
        """Substitute objects until `restore`.

        Args:
            stand_ins: the substitutes, by the id of the original.
        """
        for place in self._places:
            if any(id(value) in stand_ins for value in place.entries.values()):
                place.put({key: stand_ins.get(id(value), value) for key, value in place.entries.items()})

    def restore(self) -> None:
        """Restore everything."""
        for place in self._places:
            now = place.now()
            if list(now) != list(place.entries) or not all(map(is_, now.values(), place.entries.values())):
                place.put(place.entries)
        for inner in self._contents:
            if not equal(inner.was, inner.read()):
                inner.write(inner.was)

    def _settle(self) -> None:
        """Prepare a few long lists for the comparison by identity."""
        self._empty: list[Any] = []
        self._whole, self._mappings, self._cells, self._parts = [], [], [], []
        self._keys: list[Any] = []
        self._held: list[Any] = []
        self._in_cells: list[Any] = []
        for place in self._places:
            holder = place.holder
            if place.keys is None:
                mapping = vars(holder) if isinstance(holder, type) else holder
                if not mapping:
                    self._empty.append(mapping)
                    continue
                self._whole.append(mapping)
                self._keys += list(mapping)
                if not isinstance(holder, (list, deque)):
                    self._mappings.append(mapping)
                    self._held += list(mapping.values())
                continue
            present = [key for key, value in place.entries.items() if value is not ABSENT]
            if isinstance(holder, types.CellType) and present:
                self._cells.append(holder)
                self._in_cells.append(place.entries["cell_contents"])
            elif present:
                keys = (*present, present[0])  # two at least, for which getters give a tuple
                get = (itemgetter if isinstance(holder, dict) else attrgetter)(*keys)
                self._parts.append((get, holder, tuple(place.entries[key] for key in keys)))

    # -- walking ------------------------------------------------------------------------------------------------------

    def _walk(self) -> None:
        while self._todo:
            item, name = self._todo.popleft()
            if isinstance(item, Tensor):
                self.tensors.setdefault(name, item)
            if not isinstance(item, _ENDS) and id(item) not in self._seen:
                self._seen.add(id(item))
                self._alive.append(item)
                self._visit(item, name)

    def _visit(self, item: Any, name: str) -> None:
        if isinstance(item, type):
            self._class(item)
        elif isinstance(item, (types.MethodType, staticmethod, classmethod)):
            self._todo.append((getattr(item, "__self__", None), name))
        elif isinstance(item, functools.partial):
            self._todo.extend(((item.func, name), (item.args, f"{name}.args"), (item.keywords, f"{name}.keywords")))
        elif isinstance(item, functools._lru_cache_wrapper):
            self.caches.append(item)
        elif (inner := content(item, name)) is not None:
            self._contents.append(inner)
            self._todo.extend((part, name) for part in (item if isinstance(item, set) else ()))
        elif isinstance(item, (io.IOBase, Iterator)) and (isinstance(item, io.IOBase) or not hasattr(item, "__dict__")):
            raise UnwatchableError(f"{name} is a {type(item).__name__}, whose position cannot be watched")
        elif type(item).__module__ not in ("typing", private.OPERATORS):
            self._instance(item, name)

    def _instance(self, item: Any, name: str) -> None:
        parts = tuple(key for cls in type(item).__mro__ for key in slots(cls) if not from_library(cls))
        if isinstance(item, (dict, list, deque)):
            self._place(name, "{name}[{key!r}]", item)
        elif isinstance(item, (tuple, frozenset)):
            self._todo.extend((part, f"{name}[{index}]") for index, part in enumerate(item))
        elif not parts and not hasattr(item, "__dict__") and not _stays(item):
            raise UnwatchableError(f"{name} is a {_kind(item)}, whose state cannot be watched")
        if hasattr(item, "__dict__") and type(item) is not OrderedDict:
            self._place(name, "{name}.{key}", vars(item))
        if parts:
            self._place(name, "{name}.{key}", item, parts)
        self._todo.append((type(item), type(item).__qualname__))

    def _class(self, cls: type) -> None:
        if not from_library(cls):
            self._place(cls.__qualname__, "{name}.{key}", cls)
        elif issubclass(cls, nn.Module) and cls is not nn.Module:
            self._place(cls.__qualname__, "{name}.{key}", cls, ("forward",))
        self._todo.extend((base, base.__qualname__) for base in cls.__bases__)

    def _function(self, function: types.FunctionType) -> None:
        name = function.__qualname__
        self._place(name, "{name}.{key}", function, ("__code__", "__defaults__", "__kwdefaults__"))
        self._place(name, "{name}.{key}", vars(function))
        for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            self._place(name, f"{variable} in {{name}}", cell, ("cell_contents",))

    def _place(self, name: str, form: str, holder: Any, keys: tuple[Any, ...] | None = None) -> None:
        place = Place(name, form, holder, keys)
        self._places.append(place)
        self._size += len(place.entries)
        if self._size > MOST_ENTRIES:
            raise UnwatchableError(f"its code may read too many values to watch (the last in {name})")
        for key, value in place.entries.items():
            if (
                isinstance(key, str) and key in _CONTAINERS and type(value) is dict and id(value) not in self._seen
            ):  # of a module
                self._seen.add(id(value))
                self._place(name, "{name}.{key}", value)
            elif not (isinstance(key, str) and key.startswith(_NO_MATTER)):
                self._todo.append((value, place.name_of(key)))


def from_library(cls: type) -> bool:
    """Return whether a class belongs to torch, this package or Python itself."""
    package = cls.__module__.partition(".")[0]
    return package in LIBRARIES or (package in _STANDARD and package != "__main__")


def _variables(function: types.FunctionType) -> list[tuple[dict[str, Any], set[str]]]:
    """Return the names of the variables that a function reads from its globals and from modules that it uses."""
    codes = [function.__code__]
    for code in codes:
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    used = {name for code in codes for name in code.co_names}
    instructions = [i for code in codes for i in dis.get_instructions(code)]
    read = {i.argval for i in instructions if i.opname in _GLOBALS}
    if blind := sorted(read & {"eval", "exec", "globals", "locals"}):
        raise UnwatchableError(f"{function.__qualname__} calls {blind[0]}(), so what it reads cannot be watched")
    imported: dict[str, Any] = {i.argval: sys.modules.get(i.argval) for i in instructions if i.opname == "IMPORT_NAME"}
    holders, seen = [(imported, set(imported)), (function.__globals__, read & function.__globals__.keys())], set()
    for holder, names in holders:
        for value in map(holder.get, names):
            if isinstance(value, types.ModuleType) and id(value) not in seen:
                seen.add(id(value))
                names = used | ({"environ"} if "getenv" in used and value.__name__ == "os" else set())
                if used & _BY_STRING and value.__name__.partition(".")[0] not in LIBRARIES | _STANDARD:
                    names = names | {key for key, held in vars(value).items() if not isinstance(held, _ENDS_OF_MODULES)}
                holders.append((vars(value), names & vars(value).keys()))
    return [(holder, names) for holder, names in holders[1:] if names]


_BY_STRING = {"getattr", "hasattr", "vars", "attrgetter", "__dict__", "modules", "import_module"}
"""Names with which code can read variables that it does not name."""


def _stays(item: Any) -> bool:
    """Return whether an object without attributes never changes, judging by its type."""
    torchs = type(item).__module__.partition(".")[0] == "torch" and "Script" not in type(item).__name__
    return type(item) is object or by_value(item) or torchs or "__slots__" in vars(type(item))


def _kind(item: Any) -> str:
    return f"{type(item).__module__}.{type(item).__qualname__}".removeprefix("builtins.")
