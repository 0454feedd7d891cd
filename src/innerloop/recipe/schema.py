"""The keys and values of a recipe, read off the signatures of the functions that it names."""

from __future__ import annotations

import collections.abc
import difflib
import inspect
import math
import types
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from ..common.streams import brief, shown
from ..data.tasks import TASKS, TaskBuilder
from ..episode import Loss
from ..losses import LOSSES
from ..metrics import Metric
from ..optimizers import RULES
from ..rules import Chain, UpdateRule
from ..schedules import SCHEDULES
from ..train.metrics import METRICS
from . import imports

REQUIRED = inspect.Parameter.empty
MISMATCH = object()
LOWEST = -(2**63)
"""The lowest 64-bit integer, which TOML and torch use."""

WITHOUT = ("root", "device", "download")
"""Arguments of builders of tasks that depend on the machine, and are not part of a recipe."""

PLAIN = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}

Value = TypeVar("Value")


class Option(NamedTuple):
    """An argument that a recipe can set: its type, and its default or `REQUIRED`."""

    hint: Any
    default: Any


def options(function: Callable[..., Any], without: Collection[str] = ()) -> dict[str, Option]:
    """Return the arguments of a function that plain values can express.

    ``*args`` becomes a list under its name. ``**kwargs`` of a ``TypedDict`` have the defaults of the class that the
    function returns, except those that the function sets itself (``function.own``).
    """
    hints = _hints(function)
    every: dict[str, Option] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD and not get_args(hints[name]):
            continue  # a function of somebody else's, which does not say what it takes
        if parameter.kind is parameter.VAR_KEYWORD:
            behind = inspect.signature(hints["return"]).parameters
            passed = get_type_hints((get_args(hints[name]) or (hints[name],))[0])
            own = getattr(function, "own", ())
            default = {key: behind[key].default for key in passed}  # without a default, the function builds a part
            every |= {
                key: Option(hint, None if default[key] is REQUIRED else default[key])
                for key, hint in passed.items()
                if key not in own
            }
        elif parameter.kind is parameter.VAR_POSITIONAL:
            every[name] = Option(types.GenericAlias(tuple, (hints[name], ...)), REQUIRED)
        else:
            every[name] = Option(hints[name], parameter.default)
    return {name: option for name, option in every.items() if name not in without and _describe(option.hint)}


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The types of a function's arguments; without an annotation, that of the default, or `Any`."""
    annotated = function.__init__ if isinstance(function, type) else function  # type: ignore[misc]
    try:
        hints = get_type_hints(annotated)
    except (NameError, TypeError):  # of names that only type checkers import
        hints = {}
    for name, parameter in inspect.signature(function).parameters.items():
        kind = type(parameter.default)
        hints.setdefault(name, kind if kind in PLAIN else Any)
    return hints


def call(function: Callable[..., Value], arguments: Mapping[str, Any], *first: Any) -> Value:
    """Call a function with positional arguments, then the arguments that `options` describes."""
    given = dict(arguments)
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            first = (*first, *given.pop(parameter.name, ()))
    return function(*first, **given)


def lookup(what: str, name: Any, table: Mapping[str, Value], where: str = "") -> Value:
    """Return the entry of this name, given at some place of a recipe.

    Raises:
        ValueError: there is none; the message has the nearest name, and all names.
    """
    if isinstance(name, str) and name in table:
        return table[name]
    place, known = f"{where}: " if where else "", ", ".join(sorted(table)) or "none"
    raise ValueError(f"{place}unknown {what} {brief(name)}{nearest(name, table)} Known: {known}")


def named(what: str, name: Any, table: Mapping[str, Any], where: str) -> Any:
    """The entry of that name, or what a name such as ``"my_package.nets:ResNet"`` imports; see `lookup`.

    Raises:
        ValueError: there is none, or it cannot be called.
    """
    if not imports.is_reference(name):
        return lookup(what, name, table, "" if what == where else where)
    found = imports.imported(name, where)
    if not callable(found):
        raise ValueError(f"{where} = {shown(name)} is a {type(found).__name__}, not a function or a class")
    return found


def nearest(name: Any, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"``, or ``"."`` if no known name is similar."""
    plain = {word.lower().replace("-", "_"): word for word in known}
    near = difflib.get_close_matches(brief(name).strip("'\"").lower().replace("-", "_"), plain, 1, 0.6)
    return f"; did you mean {plain[near[0]]!r}?" if near else "."


def convert_all(where: str, given: Mapping[str, Any], known: Mapping[str, Option]) -> dict[str, Any]:
    """Convert plain values to the types of the options.

    Raises:
        ValueError: a key is not known or is missing, or a value has the wrong type.
    """
    for key in given:
        if key not in known:
            valid = ", ".join(sorted(known)) or "none"
            raise ValueError(f"unknown key {where}.{shown(key)}{nearest(key, known)} Keys of [{where}]: {valid}")
    if missing := [key for key, option in known.items() if option.default is REQUIRED and key not in given]:
        raise ValueError(f"[{where}] needs the key{'s' if len(missing) > 1 else ''} {', '.join(missing)}")
    return {key: convert(value, known[key].hint, f"{where}.{key}") for key, value in given.items()}


def convert(value: Any, hint: Any, where: str) -> Any:
    """Convert a plain value to the type of a hint.

    An integer becomes a number, a list a tuple, a name a loss or a metric, a table such as ``{schedule = "linear",
    start = 1.0, end = 0.0, iterations = 100}`` a schedule, ``{name = "adam", lr = 0.01}`` an update rule, a list of
    those a chain, and ``"none"`` None.

    Raises:
        ValueError: it has none of the types; the message has the place, the value and the expected type.
    """
    if type(value) is int and not LOWEST <= value < -LOWEST:
        raise ValueError(f"{where} = {brief(value, 20)} is an integer of more than 64 bits")
    if Metric in (members := _members(hint)) and isinstance(value, str):
        if value == "none" and type(None) in members:
            return None
        metric = named("metric", value, METRICS, where)
        return metric() if isinstance(metric, type) else metric
    for kind in members:
        converted = _convert(value, kind, where)
        if converted is not MISMATCH:
            return converted
    raise ValueError(f"{where} = {brief(value)} is {_describe_value(value)}; expected {_describe(hint)}")


def _convert(value: Any, kind: Any, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if kind is type(None):
        return None if value == "none" else MISMATCH
    if kind is float or isinstance(kind, TypeVar):
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return float(value) if number else MISMATCH
    if kind in (bool, int, str):
        return value if type(value) is kind else MISMATCH
    if origin is Literal:
        return value if any(value == a and type(value) is type(a) for a in arguments) else MISMATCH
    if origin is tuple:
        return _convert_list(value, arguments, where)
    if kind == Loss and isinstance(value, str):
        loss = named("loss", value, LOSSES, where)
        return loss() if isinstance(loss, type) else loss
    if _is_schedule(kind) and isinstance(value, dict):
        return _convert_schedule(value, where)
    if origin is collections.abc.Mapping and isinstance(value, dict):
        return {key: convert(one, arguments[1], f"{where}.{key}") for key, one in value.items()}
    if kind is UpdateRule and isinstance(value, dict | list):
        return _convert_rule(value, where)
    if kind == TaskBuilder and isinstance(value, dict):
        builder, given, known = problem(value, where)
        return partial(builder, **convert_all(where, given, known))
    return MISMATCH


def _convert_list(value: Any, kinds: tuple[Any, ...], where: str) -> Any:
    if not isinstance(value, list):
        return MISMATCH
    each = [kinds[0]] * len(value) if kinds[-1] is Ellipsis else kinds
    if len(each) != len(value):
        return MISMATCH
    return tuple(convert(item, kind, f"{where}[{i}]") for i, (item, kind) in enumerate(zip(value, each, strict=True)))


def _convert_schedule(table: Mapping[str, Any], where: str) -> Callable[[int], float]:
    schedule = lookup(f"{where}.schedule", table.get("schedule"), SCHEDULES)
    given = {key: value for key, value in table.items() if key != "schedule"}
    return call(schedule, convert_all(where, given, options(schedule)))


def _convert_rule(value: Any, where: str) -> UpdateRule:
    """Convert a table such as ``{name = "adam", lr = 0.01}``, or a list of such tables, which is a chain."""
    if isinstance(value, list):
        parts = [convert(each, UpdateRule, f"{where}[{i}]") for i, each in enumerate(value)]
        try:
            return Chain(*parts)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    rule = named(f"{where}.name", value.get("name"), RULES, f"{where}.name")
    given = {key: one for key, one in value.items() if key != "name"}
    made: UpdateRule = call(rule, convert_all(where, given, options(rule)))
    return made


def problem(table: Mapping[str, Any], where: str) -> tuple[TaskBuilder, dict[str, Any], dict[str, Option]]:
    """Return the builder that a table such as ``{name = "strokes", ways = 5}`` names, what it gives, and may give."""
    builder = named(f"{where}.name", table.get("name"), TASKS, f"{where}.name")
    return builder, {key: value for key, value in table.items() if key != "name"}, options(builder, WITHOUT)


def encode(value: Any) -> Any:
    """Return a default value as a recipe would give it; `MISMATCH` if it cannot."""
    if isinstance(value, tuple | list):
        items = [encode(item) for item in value]
        return MISMATCH if MISMATCH in items else items
    if type(value) in PLAIN:
        return value
    return next((name for name, loss in LOSSES.items() if value is loss), MISMATCH)


def _members(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _is_schedule(kind: Any) -> bool:
    return get_origin(kind) is collections.abc.Callable and get_args(kind)[0] == [int]


def _describe(hint: Any) -> str:
    """Describe a type in the words of a recipe; return an empty string if no plain value can express it."""
    members = _members(hint)
    words = [text for kind in members if kind is not type(None) and (text := _describe_kind(kind))]
    words = [f"one of {', '.join(METRICS)}"] if Metric in members else words
    optional = words and type(None) in members
    return " or ".join([*words, '"none"'] if optional else words)


def _describe_kind(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return "a value"
    if isinstance(kind, type) and kind in PLAIN:
        return PLAIN[kind]
    if isinstance(kind, TypeVar):
        return PLAIN[float]
    if origin is Literal:
        return " or ".join(f'"{a}"' for a in arguments)
    if origin is tuple:
        length = "" if arguments[-1] is Ellipsis else f" of {len(arguments)}"
        item = _describe(arguments[0])
        return f"a list{length}, each {item}" if item else ""
    if kind == Loss:
        return f"one of {', '.join(LOSSES)}"
    if kind is UpdateRule:
        return 'a table {name = "sgd", ...}'
    if kind == TaskBuilder:
        return 'a table {name = "strokes", ...}'
    if origin is collections.abc.Mapping:
        return f"a table whose values are each {item}" if (item := _describe(arguments[1])) else ""
    return 'a table {schedule = "linear", ...}' if _is_schedule(kind) else ""


def _describe_value(value: Any) -> str:
    names = {bool: "a boolean", int: "an integer", float: "a number", str: "a string", list: "a list", dict: "a table"}
    return names.get(type(value), f"a {type(value).__name__}")
