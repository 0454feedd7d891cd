"""Regression on random one-dimensional functions: a task is a function, and its examples are points on it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..task import Batch, Task

Range = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Sinusoids:
    """n functions ``y = amplitude * sin(x - phase)``; both parameters are ``[n, 1, 1]``.

    Called on ``x`` of shape ``[n, K, 1]``, or on one grid ``[K, 1]`` for all functions, it returns ``[n, K, 1]``.
    """

    amplitude: Tensor
    phase: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Return the values ``[n, K, 1]`` at inputs ``[n, K, 1]``, or ``[K, 1]`` for all functions."""
        return self.amplitude * torch.sin(x - self.phase)


@dataclass(frozen=True, eq=False)
class Lines:
    """n functions ``y = slope * x + intercept``; shapes are as in `Sinusoids`."""

    slope: Tensor
    intercept: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Return the values ``[n, K, 1]`` at inputs ``[n, K, 1]``, or ``[K, 1]`` for all functions."""
        return self.slope * x + self.intercept


@dataclass(frozen=True)
class Sinusoid:
    """Sinusoid regression (Finn et al. 2017, section 5.1).

    A task is ``y = amplitude * sin(x - phase)``; amplitude, phase and inputs are uniform on the given ranges.

    Args:
        shots: number of support points of a task.
        queries: number of query points of a task; by default ``shots``.
        amplitude, phase, x: the ranges ``(low, high)``.
        phases: draw the phase from these equally likely values instead of from the range ``phase``.

    Raises:
        ValueError: a set has no point, or a range is empty or not finite.

    >>> tasks = Sinusoid(shots=10).sample(25, torch.Generator().manual_seed(0))
    >>> tasks.support.x.shape
    torch.Size([25, 10, 1])
    """

    shots: int = 10
    queries: int | None = None
    amplitude: Range = (0.1, 5.0)
    phase: Range = (0.0, math.pi)
    x: Range = (-5.0, 5.0)
    phases: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        _check(self.shots, self.queries, amplitude=self.amplitude, phase=self.phase, x=self.x)
        if self.phases is not None and not (self.phases and all(map(math.isfinite, self.phases))):
            raise ValueError(f"phases={self.phases} must be one or more finite numbers, or None")

    @classmethod
    def two_phase(cls, shots: int = 4, queries: int | None = None) -> Sinusoid:
        """Return tasks ``sin(x)`` or ``-sin(x)``, equally likely, with x uniform on [-2 pi, 2 pi].

        The mean of the two functions is zero, so a model that does not adapt cannot do better than predict 0 (mean
        squared error 1/2), while the sign of one point is enough to tell them apart.
        """
        x = (-2 * math.pi, 2 * math.pi)
        return cls(shots, queries, amplitude=(1.0, 1.0), x=x, phases=(0.0, math.pi))

    def functions(self, n: int, generator: torch.Generator) -> Sinusoids:
        """Draw the functions of n tasks; with the same generator state, `sample` draws points of the same functions."""
        amplitude = _uniform(self.amplitude, (n, 1, 1), generator)
        if self.phases is None:
            return Sinusoids(amplitude, _uniform(self.phase, (n, 1, 1), generator))
        choice = torch.randint(len(self.phases), (n, 1, 1), generator=generator)
        return Sinusoids(amplitude, torch.tensor(self.phases)[choice])

    def sample(self, n: int, generator: torch.Generator) -> Task:
        """Draw ``n`` tasks; x and y are float32 ``[n, shots, 1]`` (support) and ``[n, queries, 1]`` (query)."""
        return _points(self.functions(n, generator), n, self.shots, self.queries, self.x, generator)


@dataclass(frozen=True)
class Linear:
    """Regression on straight lines ``y = slope * x + intercept``, a problem with a closed-form solution.

    Arguments and errors are as in `Sinusoid`; slope, intercept and inputs are uniform on the given ranges.
    """

    shots: int = 10
    queries: int | None = None
    slope: Range = (-3.0, 3.0)
    intercept: Range = (-3.0, 3.0)
    x: Range = (-5.0, 5.0)

    def __post_init__(self) -> None:
        _check(self.shots, self.queries, slope=self.slope, intercept=self.intercept, x=self.x)

    def functions(self, n: int, generator: torch.Generator) -> Lines:
        """Draw the functions of n tasks; with the same generator state, `sample` draws points of the same functions."""
        slope = _uniform(self.slope, (n, 1, 1), generator)
        return Lines(slope, _uniform(self.intercept, (n, 1, 1), generator))

    def sample(self, n: int, generator: torch.Generator) -> Task:
        """Draw ``n`` tasks; x and y are float32 ``[n, shots, 1]`` (support) and ``[n, queries, 1]`` (query)."""
        return _points(self.functions(n, generator), n, self.shots, self.queries, self.x, generator)


def _points(
    functions: Callable[[Tensor], Tensor],
    n: int,
    shots: int,
    queries: int | None,
    x: Range,
    generator: torch.Generator,
) -> Task:
    support = _uniform(x, (n, shots, 1), generator)
    query = _uniform(x, (n, shots if queries is None else queries, 1), generator)
    return Task(Batch(support, functions(support)), Batch(query, functions(query)))


def _uniform(bounds: Range, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    low, high = bounds
    return low + (high - low) * torch.rand(shape, generator=generator)


def _check(shots: int, queries: int | None, **ranges: Range) -> None:
    if shots < 1 or (queries is not None and queries < 1):
        raise ValueError(f"shots={shots}, queries={queries}: a task needs at least one point in each set")
    for name, bounds in ranges.items():
        if len(bounds) != 2 or not all(map(math.isfinite, bounds)) or bounds[0] > bounds[1]:
            raise ValueError(f"{name}={bounds} must be finite (low, high) with low <= high")
