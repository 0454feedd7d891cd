"""A cache of expensive tensors in memory-mapped files."""

from __future__ import annotations

import ctypes
import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common.disk import cache_folder, replacing
from ..common.errors import user_level

Parts = tuple[Any, ...]
"""Tensors, and other values that torch loads without executing code."""


def kept(name: str, build: Callable[[], Parts], whole: Callable[[Parts], bool], what: str) -> Parts:
    """Return ``build()``, or its earlier result under this name from the cache; a damaged file is built again.

    The file is memory-mapped. It holds a digest of its name and of every byte of the tensors, which is checked when it
    is opened. If the cache cannot be written, there is a warning, and the result is returned anyway.

    Args:
        name: the name of the file, with the version of its format and of its computation.
        build: makes the tuple.
        whole: returns whether a tuple is valid.
        what: a description of the content, for the warning.
    """
    path = cache_folder() / f"{name}.pt"
    if (parts := _load(path, name, whole)) is None:
        parts = tuple(build())
        try:
            _save(path, name, parts)
        except (OSError, RuntimeError) as error:
            warnings.warn(
                f"cannot save the {what} in {path} ({error}), so they will be made again next time: set "
                "XDG_CACHE_HOME to a writable folder",
                stacklevel=user_level(),
            )
    return parts


def _load(path: Path, name: str, whole: Callable[[Parts], bool]) -> Parts | None:
    try:
        *parts, digest = torch.load(path, weights_only=True, mmap=True)
        return tuple(parts) if digest == _digest(name, tuple(parts)) and whole(tuple(parts)) else None
    except Exception:  # torch.load raises nearly anything on a damaged file
        return None


def _save(path: Path, name: str, parts: Parts) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        torch.save((*parts, _digest(name, parts)), temporary)


def _digest(name: str, parts: Parts) -> str:
    digest = hashlib.sha256(repr(name).encode())
    for part in parts:
        if not isinstance(part, Tensor):
            digest.update(repr(part).encode())
            continue
        digest.update(repr((part.dtype, part.shape)).encode())
        whole = part.detach().contiguous()
        if size := whole.numel() * whole.element_size():
            digest.update((ctypes.c_char * size).from_address(whole.data_ptr()))
    return digest.hexdigest()
