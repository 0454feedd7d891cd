"""Values that change over meta-training: a constant, or a function of the iteration.

>>> value(0.1, 7), value(linear(1.0, 0.0, 10), 5), value(switch(1, 2, at=100), 99)
(0.1, 0.5, 1)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias, TypeVar

T = TypeVar("T")

Schedule: TypeAlias = T | Callable[[int], T]
"""A constant, or a function from the outer iteration (from 0) to the value at it."""


def value(schedule: Schedule[T], iteration: int) -> T:
    """The schedule's value at an iteration."""
    return schedule(iteration) if callable(schedule) else schedule


def constant(at: float) -> Callable[[int], float]:
    """The same value for ever."""
    return lambda _: at


def linear(start: float, end: float, iterations: int) -> Callable[[int], float]:
    """A straight line from ``start`` at iteration 0 to ``end`` at ``iterations``, then flat."""
    return lambda iteration: start + (end - start) * min(iteration / iterations, 1.0)


def cosine(start: float, end: float, iterations: int) -> Callable[[int], float]:
    """Half a cosine from ``start`` to ``end`` (Loshchilov and Hutter 2017, without restarts), then flat."""
    return lambda iteration: end + (start - end) * (1 + math.cos(math.pi * min(iteration / iterations, 1.0))) / 2


def switch(before: T, after: T, at: int) -> Callable[[int], T]:
    """``before`` up to iteration ``at`` (exclusive), ``after`` from there on."""
    return lambda iteration: before if iteration < at else after


SCHEDULES: dict[str, Callable[..., Callable[[int], float]]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "switch": switch,
}
"""The schedules that a recipe can name."""
