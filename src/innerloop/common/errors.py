"""Helpers for errors and warnings."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from types import CodeType
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

HERE, TORCH = str(Path(__file__).parents[1]), str(Path(torch.__file__).parent)
"""The folders of this library and of torch."""


def user_level() -> int:
    """Return the ``stacklevel`` with which a warning of this function's caller shows the user's own line."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and is_library(frame.f_code):
        level, frame = level + 1, frame.f_back
    return level


def is_library(code: CodeType) -> bool:
    """Return whether code belongs to this library or to torch."""
    return code.co_filename.startswith((HERE, TORCH, "<frozen"))


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means out of memory, on a GPU or in the process."""
    lacking = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return lacking or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))


def warn_of_old_name(old: str, new: str) -> None:
    """Warn that something has a new name, and when the old name will be removed."""
    warnings.warn(
        f"innerloop.{old} is now innerloop.{new}, and version 0.4 will remove the old name",
        FutureWarning,
        stacklevel=user_level(),
    )


def takes_old_argument(old: str, new: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function be called by the old name of a keyword argument, with a `FutureWarning`.

    Args:
        old: the former name.
        new: the name in the function's signature.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if old in kwargs and new not in kwargs:
                warnings.warn(
                    f"the argument {old}= of {function.__qualname__.removesuffix('.__init__')} is now {new}=, and "
                    "version 0.4 will no longer know the old name",
                    FutureWarning,
                    stacklevel=user_level(),
                )
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call

    return decorate


def under_old_name(package: str, name: str, old: Mapping[str, Any]) -> Any:
    """Return an object of a package by its old name, with a warning, for the package's ``__getattr__``.

    Args:
        package: the ``__name__`` of the package.
        name: the requested name.
        old: the classes and functions by their old names.

    Raises:
        AttributeError: the package never had this name.
    """
    if name not in old:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    own = package.partition(".")[2]
    warn_of_old_name(f"{own}.{name}", f"{own}.{old[name].__name__}")
    return old[name]
