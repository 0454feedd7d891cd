"""Python's profilers: whether one can go on once another one was at work, and how."""

from __future__ import annotations

import sys
from typing import Any


def can_go_on(profiler: Any) -> bool:
    """Whether a profiler can be given back to Python once another one was at work.

    Profilers written in C need not be functions, which `sys.setprofile` asks for. cProfile can be turned on again.
    """
    return profiler is None or callable(profiler) or hasattr(profiler, "enable")


def profile_by(profiler: Any) -> None:
    """Have Python go on with a profiler, or without one, if it can."""
    if profiler is None or callable(profiler):
        sys.setprofile(profiler)
    elif can_go_on(profiler):
        profiler.enable()
