"""Tensors that took long to make, kept in memory-mapped files of the cache."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..disk import replacing
from .files import cache_folder

Parts = tuple[Any, ...]
"""Tensors, and what else torch loads without executing code."""


def kept(name: str, build: Callable[[], Parts], whole: Callable[[Parts], bool], what: str) -> Parts:
    """``build()``, or what it returned before under this name; a damaged file is built anew.

    The file is memory-mapped, so it is read as it is used. Where the cache cannot be written, a warning says so and the
    result is returned all the same.

    Args:
        name: of the file, with the version of its form and of how it is made.
        build: makes a tuple.
        whole: whether a tuple is such a one.
        what: it is, for the warning.
    """
    path = cache_folder() / f"{name}.pt"
    if (parts := _load(path, whole)) is None:
        parts = tuple(build())
        try:
            _save(path, parts)
        except (OSError, RuntimeError) as error:
            warnings.warn(
                f"cannot keep the {what} in {path} ({error}): they are made again next time; "
                "set XDG_CACHE_HOME to a writable folder",
                stacklevel=4,
            )
    return parts


def _load(path: Path, whole: Callable[[Parts], bool]) -> Parts | None:
    try:
        parts = tuple(torch.load(path, weights_only=True, mmap=True))
        return parts if whole(parts) else None
    except Exception:  # torch.load raises nearly anything on a damaged file
        return None


def _save(path: Path, parts: Parts) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        torch.save(parts, temporary)
