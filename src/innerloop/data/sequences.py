"""Tasks with sequences instead of points as examples.

The output at each step depends on all inputs up to that step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..task import Batch, Task
from .functions import Range, _check, _uniform


@dataclass(frozen=True)
class Oscillator:
    """System identification: predict the course of a damped oscillator from the random pushes on it.

    A task is one oscillator, ``x'' = push - frequency^2 x - 2 damping frequency x'``, initially at rest. An example is
    a sequence of pushes, N(0, 1), with its position after each push, in units of ``UNIT``, about their typical size. A
    step takes the time ``STEP``.

    Args:
        shots: number of support sequences of a task.
        queries: number of query sequences; by default ``shots``.
        horizon: the number H of steps of a sequence.
        frequency, damping: the ranges ``(low, high)`` of the uniform distributions over tasks.

    Raises:
        ValueError: there is no sequence or step, or a range is empty, not finite or out of range.

    >>> tasks = Oscillator(shots=3, horizon=20).sample(4, torch.Generator().manual_seed(0))
    >>> tasks.support.x.shape, tasks.support.y.shape
    (torch.Size([4, 3, 20, 1]), torch.Size([4, 3, 20, 1]))
    """

    shots: int = 5
    queries: int | None = None
    horizon: int = 30
    frequency: Range = (0.8, 2.5)
    damping: Range = (0.1, 0.5)

    STEP, UNIT = 0.2, 0.25

    def __post_init__(self) -> None:
        _check(self.shots, self.queries, frequency=self.frequency, damping=self.damping)
        if self.horizon < 1 or self.frequency[0] < 0 or self.damping[0] < 0 or self.frequency[1] * self.STEP >= 1:
            raise ValueError(
                f"horizon must be at least 1, damping at least 0 and frequency from 0 to {1 / self.STEP:g}, got "
                f"{self.horizon}, {self.damping} and {self.frequency}"
            )

    def sample(self, n: int, generator: torch.Generator) -> Task:
        """Draw ``n`` tasks; x and y are float32 ``[n, shots, horizon, 1]`` and ``[n, queries, horizon, 1]``."""
        frequency, damping = (_uniform(bounds, (n, 1), generator) for bounds in (self.frequency, self.damping))
        parts = []
        for number in (self.shots, self.shots if self.queries is None else self.queries):
            pushes = torch.randn(n, number, self.horizon, generator=generator)
            parts.append(Batch(pushes[..., None], self._courses(pushes, frequency, damping)[..., None]))
        return Task(*parts)

    def _courses(self, pushes: Tensor, frequency: Tensor, damping: Tensor) -> Tensor:
        """Return the positions after pushes, ``[n, S, H]``."""
        place = speed = torch.zeros_like(pushes[..., 0])
        places = []
        for push in pushes.unbind(-1):  # semi-implicit Euler, which is stable
            speed = speed + self.STEP * (push - frequency**2 * place - 2 * damping * frequency * speed)
            place = place + self.STEP * speed
            places.append(place)
        return torch.stack(places, -1) / self.UNIT
