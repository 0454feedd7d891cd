"""Values that change over meta-training: a constant, or a function of the iteration.

>>> value(0.1, 7), value(linear(1.0, 0.0, 10), 5), value(switch(1, 2, at=100), 99)
(0.1, 0.5, 1)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial  # partials of module functions can be pickled, closures cannot
from typing import TypeAlias, TypeVar

T = TypeVar("T")

Schedule: TypeAlias = T | Callable[[int], T]
"""A constant, or a function from the outer iteration (from 0) to the value."""


def value(schedule: Schedule[T], iteration: int) -> T:
    """Return the schedule's value at an iteration."""
    return schedule(iteration) if callable(schedule) else schedule


def constant(at: float) -> Callable[[int], float]:
    """Keep the same value in all iterations."""
    return partial(_constant, at)


def linear(start: float, end: float, iterations: int) -> Callable[[int], float]:
    """Go in a straight line from ``start`` at iteration 0 to ``end`` at ``iterations``, and stay there."""
    return partial(_linear, start, end, iterations)


def cosine(start: float, end: float, iterations: int) -> Callable[[int], float]:
    """Go along half a cosine from ``start`` to ``end`` (Loshchilov and Hutter 2017, without restarts), and stay."""
    return partial(_cosine, start, end, iterations)


def switch(before: T, after: T, at: int) -> Callable[[int], T]:
    """Use ``before`` up to iteration ``at`` (exclusive) and ``after`` from then on."""
    return partial(_switch, before, after, at)


def multi_step(steps: int, iterations: int, stages: int = 10) -> Callable[[int], tuple[float, ...]]:
    """Return a schedule of the weights of a multi-step loss (Antoniou et al. 2019, section 4).

    The weights sum to 1. They are equal at iteration 0; from ``iterations`` on, only the last step counts.

    Args:
        steps: the number K of weights.
        iterations: the iteration from which all weight is on the last step.
        stages: the number of times that the weights change; the authors' code changes them every epoch. A compiled
            training step is compiled again for each stage.

    Raises:
        ValueError: ``steps`` or ``stages`` is below 1, or ``iterations`` below 0.

    >>> weights = multi_step(steps=2, iterations=100, stages=2)
    >>> weights(0), weights(50), weights(100)
    ((0.5, 0.5), (0.25, 0.75), (0.0, 1.0))
    """
    if steps < 1 or iterations < 0 or stages < 1:
        raise ValueError(
            f"steps and stages must be at least 1 and iterations at least 0, got {steps}, {stages} and {iterations}"
        )
    return partial(_multi_step, steps, iterations, stages)


def _constant(at: float, iteration: int) -> float:
    return at


def _linear(start: float, end: float, iterations: int, iteration: int) -> float:
    return start + (end - start) * min(iteration / iterations, 1.0)


def _cosine(start: float, end: float, iterations: int, iteration: int) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(iteration / iterations, 1.0))) / 2


def _switch(before: T, after: T, at: int, iteration: int) -> T:
    return before if iteration < at else after


def _multi_step(steps: int, iterations: int, stages: int, iteration: int) -> tuple[float, ...]:
    done = 1.0 if iteration >= iterations else iteration * stages // iterations / stages
    others = (1 - done) / steps
    return (*[others] * (steps - 1), 1 - others * (steps - 1))


SCHEDULES: dict[str, Callable[..., Callable[[int], float]]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "switch": switch,
}
"""The schedules that a recipe can name."""
