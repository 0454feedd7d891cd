"""Tasks whose examples are sequences instead of points.

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
    """System identification: a damped oscillator that is pushed at random; from the pushes its course is to be told.

    A task is one oscillator, ``x'' = push - frequency^2 x - 2 damping frequency x'``, at rest at first; an example is
    a sequence of pushes, N(0, 1), and its places after each of them, in units of ``UNIT``, which is about their size.
    Steps are of ``STEP`` in time.

    Args:
        shots: support sequences of a task.
        queries: query sequences; as many as ``shots`` unless given.
        horizon: steps of a sequence, H.
        frequency, damping: the ranges ``(low, high)`` that a task's are uniform on.

    Raises:
        ValueError: fewer than one sequence or step, or a range that is empty or not finite.

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
                f"horizon is at least 1, damping at least 0 and frequency within 0 and {1 / self.STEP:g}, got "
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
        """Places ``[n, S, H]``."""
        place = speed = torch.zeros_like(pushes[..., 0])
        places = []
        for push in pushes.unbind(-1):  # semi-implicit, so that it stays stable
            speed = speed + self.STEP * (push - frequency**2 * place - 2 * damping * frequency * speed)
            place = place + self.STEP * speed
            places.append(place)
        return torch.stack(places, -1) / self.UNIT
