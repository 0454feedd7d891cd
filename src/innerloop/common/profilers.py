"""Python's profilers: whether one can be resumed after another one ran, and how."""

from __future__ import annotations

import sys
from typing import Any


def can_go_on(profiler: Any) -> bool:
    """Return whether a profiler can be resumed after another one ran.

    `sys.setprofile` needs a function, which profilers written in C need not be. cProfile can be enabled again.
    """
    return profiler is None or callable(profiler) or hasattr(profiler, "enable")


def profile_by(profiler: Any) -> None:
    """Resume a profiler if possible, or run without one."""
    if profiler is None or callable(profiler):
        sys.setprofile(profiler)
    elif can_go_on(profiler):
        profiler.enable()
