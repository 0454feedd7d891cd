"""The expected accuracy on new examples."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..task import Batch

Adapt = Callable[[Batch], Callable[[Tensor], Tensor]]
"""``support set -> (inputs -> logits)``."""


class Expectation(NamedTuple):
    """The expected accuracy on new examples, estimated on the support set by leave-one-out.

    Attributes:
        accuracy: on examples left out of the adaptation one at a time, in percent.
        low: the lower end of its 95 % interval (Wilson 1927).
        high: the upper end.
        examples: the number of examples left out in turn.
    """

    accuracy: float
    low: float
    high: float
    examples: int

    @classmethod
    def of(cls, right: int, examples: int) -> Expectation:
        """Estimate it from the number of examples that were classified correctly."""
        share, z = right / examples, 1.96
        center = (share + z**2 / (2 * examples)) / (1 + z**2 / examples)
        half = z / (1 + z**2 / examples) * math.sqrt(share * (1 - share) / examples + z**2 / (4 * examples**2))
        return cls(100 * share, 100 * max(0.0, center - half), 100 * min(1.0, center + half), examples)

    def __str__(self) -> str:
        return f"{self.accuracy:.0f} % ({self.low:.0f} to {self.high:.0f} %), {self.examples} examples left out in turn"


@torch.no_grad()
def left_out(adapt: Adapt, support: Batch, most: int) -> tuple[Tensor, Tensor]:
    """Return logits ``[N, C]`` of examples left out of the adaptation one at a time, and their classes ``[N]``.

    An example is left out only if its class has another one, and at most ``most`` examples are, evenly spaced.
    """
    counts = torch.bincount(support.y)
    candidates = [index for index, label in enumerate(support.y.tolist()) if counts[label] > 1]
    if len(candidates) > most:
        candidates = [candidates[i * len(candidates) // most] for i in range(most)]
    rows = []
    for index in candidates:
        kept = [i for i in range(len(support.y)) if i != index]
        rows.append(adapt(Batch(support.x[kept], support.y[kept]))(support.x[index : index + 1])[0])
    return torch.stack(rows) if rows else torch.empty(0), support.y[candidates]
