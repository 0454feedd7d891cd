"""Explain what could not be vectorized over tasks, why, and how to fix it.

Torch's errors name an operation, but users change a layer, a loss or a rule. This module finds these in the traceback,
by the modules and functions that were running.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import Any, NamedTuple

from torch import nn

from ..common.errors import HERE, is_library
from .randomness import DrawsError
from .values import GradientsError, TasksDifferError

Parts = Mapping[str, Any]
"""The parts of a learner other than its model, by kind: ``"update rule"``, ``"loss"``, ``"inner loss"`` if it differs
from the loss, ``"objective"``, ``"initialization"``."""

_OWN = {"normalization.py": "norm", "kernels.py": "layer"}
"""Files with replacements of torch's operations, and what they replace."""
_CALLS = {
    ("episode.py", "inner"): "inner loss",
    ("episode.py", "compared"): "inner loss",
    ("episode.py", "query"): "loss",
    ("stacks.py", "gradient"): "inner loss",
}
"""The functions that call a loss or its gradient, by file: the loss itself may have no Python code in a traceback."""


class HooksError(NotImplementedError):
    """A module has backward hooks."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__("backward hooks of modules do not run while tasks run at once")
        self.module = module


class Cause(NamedTuple):
    """Why something cannot be vectorized, and the fix, in words."""

    why: str
    fix: str


_READS = "it reads a value that differs from task to task (`if tensor:`, `.item()`, `float(tensor)`)"
_WRITES = "it writes in place into a tensor that all tasks share"
_OUT_OF_PLACE = "compute out of place (`x = x + y` for `x += y`)"

_CAUSES: tuple[tuple[str, Cause], ...] = (
    (
        r"inplace randomness",
        Cause(
            "it fills a tensor that all tasks share with random numbers, in place",
            "draw them out of place, by torch.randn or torch.rand_like",
        ),
    ),
    (
        r"is not possible because there exists a Tensor|doesn't match the broadcast shape",
        Cause(
            _WRITES,
            "make that tensor by `x.new_zeros(...)` from a tensor `x` of the task, or write out of place (torch.stack, "
            "torch.where, `x = x + y`)",
        ),
    ),
    (
        r"being modified in-?place|modified by an in-?place",
        Cause("it changes a tensor in place that the backward pass still needs", _OUT_OF_PLACE),
    ),
    (r"\.item\(\)|data-dependent control flow", Cause(_READS, "use torch.where instead of `if`")),
    (
        r"one_hot",
        Cause("F.one_hot reads the number of classes from the labels", "give it num_classes"),
    ),
    (
        r"dynamic shape|masked_select|stack expects each tensor to be equal size",
        Cause(
            "the shape of a result depends on values (boolean indexing, nonzero, unique), which differ from task to "
            "task",
            "keep shapes fixed: torch.where, or weights of 0 and 1 instead of a boolean index",
        ),
    ),
    (
        r"data pointer|storage",
        Cause("it reads values outside of torch (`.numpy()`, `.tolist()`, a copy)", "use torch's own operations"),
    ),
    (r"accessing `data`", Cause("it reads `.data`", "use `.detach()`")),
    (
        r"setup_context|vmap support|generate_vmap_rule",
        Cause(
            "it uses an autograd.Function that does not support torch.func",
            "give the Function setup_context and generate_vmap_rule = True (see torch's notes, extending.func)",
        ),
    ),
    (
        r"[Bb]atching rule|isn't supported yet|not yet support",
        Cause("torch has no batching rule for an operation in it", "replace the operation by others"),
    ),
    (
        r"derivative .*not implemented|not differentiable|double backward",
        Cause("a native kernel in it has no second derivative", "replace the operation by elementary ones"),
    ),
    (
        r"scalar type|[Dd]type",
        Cause(
            "it gets another dtype than when tasks run one by one, from an innerloop replacement of an earlier layer",
            "please report it with the model",
        ),
    ),
)
_RECURRENT = Cause(
    "torch's recurrent layers have no batching rule",
    "write the recurrence with nn.Linear, as il.models.recurrent does",
)
_UNKNOWN = Cause("torch cannot run it for many tasks at once", "compute it with other operations")


def explain(error: BaseException, model: nn.Module, parts: Parts, remedy: str) -> str:
    """Return a message that says what could not be vectorized, why, and how to fix it.

    Args:
        error: an error that is raised under ``vmap`` and not when tasks run one by one.
        model: the learner's model.
        parts: the learner's other parts, by kind.
        remedy: the consequence, for the message.
    """
    where, owner = _culprit(error, model, parts)
    cause = _cause(error, owner)
    differ = isinstance(error, TasksDifferError | DrawsError)
    verb = "cannot run these tasks at once" if differ else "cannot be vectorized over tasks"
    line = _user_line(error)
    original = "" if differ or cause.why == first_line(error) else f" The error was: {first_line(error)}"
    return (
        f"{where} {verb}, {remedy}: {cause.why}{f' ({line})' if line else ''}. To fix it, {cause.fix}, or "
        f"give vectorize=False to run tasks one by one.{original}"
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _frames(error: BaseException) -> Iterator[FrameType]:
    """Yield the frames from the outermost to the one that raised the error."""
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next


def _culprit(error: BaseException, model: nn.Module, parts: Parts) -> tuple[str, Any]:
    """Return the innermost part in the traceback: its description and the object."""
    frames, names = list(_frames(error)), _names(model, parts)
    if isinstance(error, HooksError):
        return names[id(error.module)], error.module
    if isinstance(error, DrawsError) and not frames:
        return f"{type(model).__name__}, with its loss and rule,", None
    codes = {code: kind for kind, part in parts.items() if (code := _code(part)) is not None}
    culprit: tuple[str, Any] = (f"The backward pass of {type(model).__name__}", None)
    for frame in frames:
        owner = frame.f_locals.get("self")
        if id(owner) in names:
            culprit = names[id(owner)], owner
        elif frame.f_code in codes:
            kind = codes[frame.f_code]
            culprit = f"The {kind} {_called(parts[kind])}", parts[kind]
        elif callable(getattr(owner, "constants", None)):  # an objective that was passed for this call alone
            culprit = f"The objective {_called(owner)}", owner
        elif kind := _CALLS.get((Path(frame.f_code.co_filename).name, frame.f_code.co_name), ""):
            loss = kind if kind in parts else "loss"
            culprit = f"The {loss} {_called(parts.get(loss))}", parts.get(loss)
    last = Path(frames[-1].f_code.co_filename) if frames else Path()
    if last.parent == Path(HERE, "operations") and last.name in _OWN and not isinstance(error, NotImplementedError):
        return f"The {_OWN[last.name]} replacement of innerloop ({frames[-1].f_code.co_name}) in {culprit[0]}", None
    return culprit


def _names(model: nn.Module, parts: Parts) -> dict[int, str]:
    """Return a description of each object that a method may belong to, by its id."""
    names: dict[int, str] = {}
    for kind, part in parts.items():
        names.setdefault(id(part), f"The {kind} {_called(part)}")
        for name, module in part.named_modules() if isinstance(part, nn.Module) else ():
            names.setdefault(id(module), f"The {kind} {_called(part)}, in its {type(module).__name__} ({name}),")
    for name, module in model.named_modules():  # a layer that a loss also uses belongs to the model
        names[id(module)] = f"{type(module).__name__} ({name or 'the model itself'})"
    return names


def _called(part: Any) -> str:
    """Return a part's class or, for a function, its name and location."""
    while isinstance(part, partial):
        part = part.func
    if (code := getattr(part, "__code__", None)) is not None and not is_library(code):
        return f"{part.__qualname__.rpartition('<locals>.')[2]} ({Path(code.co_filename).name}:{code.co_firstlineno})"
    return str(getattr(part, "__name__", type(part).__name__))


def _code(part: Any) -> CodeType | None:
    """Return the code of a function, method or callable object; ``None`` for builtins, and for modules."""
    while isinstance(part, partial):
        part = part.func
    methods: Mapping[str, Any] = {} if isinstance(part, nn.Module) else vars(type(part))
    code = getattr(part, "__code__", getattr(methods.get("__call__"), "__code__", None))
    return code if isinstance(code, CodeType) else None


def _cause(error: BaseException, owner: Any) -> Cause:
    message = str(error)
    if isinstance(error, TasksDifferError):
        return Cause(_READS, "use torch.where instead of `if`")
    if isinstance(error, DrawsError):
        return Cause(str(error), "draw them from torch's global generator, as torch.rand does, and set no seed")
    if isinstance(error, GradientsError):
        return Cause(first_line(error), "use torch.func.grad, torch.func.jvp or torch.func.jacrev")
    if isinstance(owner, nn.RNNBase | nn.RNNCellBase):
        return _RECURRENT
    for pattern, cause in _CAUSES:
        if re.search(pattern, message):
            inplace = cause.why == _WRITES or cause.fix == _OUT_OF_PLACE
            return cause._replace(fix="make the layer with inplace=False") if inplace and _in_place(owner) else cause
    if isinstance(error, NotImplementedError):  # this library's own errors say why
        return Cause(first_line(error), "remove the hook" if "hook" in message else _UNKNOWN.fix)
    return _UNKNOWN


def _in_place(owner: Any) -> bool:
    return bool(getattr(owner, "inplace", False))


def _user_line(error: BaseException) -> str:
    """Return the innermost line of user code in the traceback, after the call of a part."""
    inside, line = False, ""
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        inside = inside or code.co_filename.startswith(HERE)
        if inside and not is_library(code):
            line = f"{Path(code.co_filename).name}, line {trace.tb_lineno}"
        trace = trace.tb_next
    return line
