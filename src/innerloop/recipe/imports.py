"""Parts of your own that a recipe names, as ``"my_package.nets:ResNet"``, and when they are imported.

Importing a module runs its code. A recipe that you give to a command or a function may name parts of your own. A run
directory or a saved model may come from somebody else, and may not, unless you say that you trust it.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from ..common.streams import shown

REFERENCE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")

_trusted: ContextVar[bool] = ContextVar("whether runs and saved models may name code to import", default=False)
_allowed: ContextVar[frozenset[str] | None] = ContextVar(
    "the names that may be imported now; None for all", default=None
)


@contextmanager
def trusting(trust: bool = True) -> Iterator[None]:
    """While entered, runs and saved models may name parts of your own, whose code is then run.

    Args:
        trust: false changes nothing.
    """
    token = _trusted.set(trust or _trusted.get())
    try:
        yield
    finally:
        _trusted.reset(token)


@contextmanager
def from_elsewhere(known: Collection[str] = ()) -> Iterator[None]:
    """While entered, a recipe is read from a run or a saved model: nothing is imported unless these are trusted.

    Args:
        known: names that may be imported all the same, since a recipe of the user's has them, too.
    """
    token = _allowed.set(None if _trusted.get() else frozenset(known))
    try:
        yield
    finally:
        _allowed.reset(token)


def references(config: Any) -> set[str]:
    """The names in a recipe that would be imported."""
    if isinstance(config, Mapping):
        config = list(config.values())
    if isinstance(config, list):
        return set().union(*map(references, config))
    return {config} if is_reference(config) else set()


def is_reference(name: Any) -> bool:
    """Whether a name in a recipe is that of a module and of something in it."""
    return isinstance(name, str) and REFERENCE.fullmatch(name) is not None


def imported(name: str, where: str) -> Any:
    """Import what a recipe names. Modules are also looked for in the current directory.

    Args:
        name: the module and what is in it, ``"my_package.nets:ResNet"``.
        where: the key, for messages.

    Raises:
        ValueError: it may not be imported, cannot be imported, or is not there.
    """
    module, _, inside = name.partition(":")
    if (allowed := _allowed.get()) is not None and name not in allowed:
        raise ValueError(
            f"{where} = {shown(name)} names code of {shown(module)}, which would be run: if you trust where this comes "
            "from, give --trust (in Python, trust=True)"
        )
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # the program itself may import more from there later
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:
        lost = error.name if isinstance(error, ModuleNotFoundError) else None
        reason = (str(error).splitlines() or [""])[0]
        why = f"importing {shown(module)} failed with {type(error).__name__}: {reason}"
        if lost in _parents(module):
            why = f"there is no module {shown(lost)} in {shown(here)} or among the installed packages"
        raise ValueError(f"{where} = {shown(name)}: {why}") from error
    for part in inside.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            known = ", ".join(sorted(own for own in vars(found) if not own.startswith("_"))[:20])
            raise ValueError(f"{where} = {shown(name)}: there is no {part} in it; it has {known}") from error
    return found


def _parents(module: str) -> set[str]:
    parts = module.split(".")
    return {".".join(parts[:number]) for number in range(1, len(parts) + 1)}
