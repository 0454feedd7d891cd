"""Add the section and the file to error messages of recipes, on one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..common.errors import is_out_of_memory
from ..common.streams import shown
from ..train import NonFiniteError, OutOfMemoryError


class UnfitError(ValueError):
    """Weights do not fit a model."""


@contextmanager
def speaking_of(section: str, refused: bool = True) -> Iterator[None]:
    """Attribute errors inside the context to this section of a recipe: its values are rejected, or cannot be built."""
    try:
        yield
    except ValueError as error:
        if not refused:
            raise
        raise ValueError(f"[{section}] {error}") from error
    except (RuntimeError, ArithmeticError, MemoryError, TypeError) as error:
        lacking = "does not fit into memory" if is_out_of_memory(error) else "cannot be built"
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"[{section}] {lacking}: {reason}") from error


@contextmanager
def blaming(source: object, *places: object) -> Iterator[None]:
    """Prefix errors inside the context with the recipe or run, unless they name it or one of these places."""
    try:
        yield
    except (ValueError, NonFiniteError, OutOfMemoryError) as error:
        named = any(shown(place) in shown(error) for place in (source, *places))
        if named or not str(source) or isinstance(error, UnfitError):
            raise
        kind = next(kind for kind in (NonFiniteError, OutOfMemoryError, ValueError) if isinstance(error, kind))
        raise kind(f"{shown(source)}: {error}") from error
