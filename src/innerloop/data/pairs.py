"""Binary problems: tell two classes of one group apart, such as two characters of one alphabet."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..task import Batch, Task
from .images import ClassImages


@dataclass(frozen=True)
class Pairs:
    """Two-way problems within groups; every pair of classes of a group is one problem, and all are equally likely.

    Support and query sets are ordered as in `FewShot`: an image of the first class, one of the second, and so on, so
    that every mini-batch of an even number of examples is balanced. Targets are 0 and 1 in floating point, for the
    binary cross-entropy of one logit.

    Args:
        dataset: the images; it must have ``groups``.
        shots: number of support images of each class.
        queries: number of query images of each class, which are not in the support set.

    Raises:
        ValueError: a number is out of range, there are no groups or rotations, too few images, or no group with two
            classes.
    """

    dataset: ClassImages
    shots: int
    queries: int

    def __post_init__(self) -> None:
        data, needed = self.dataset, self.shots + self.queries
        if self.shots < 1 or self.queries < 1:
            raise ValueError(f"shots={self.shots} and queries={self.queries} must be at least 1")
        if data.groups is None or data.rotations:
            raise ValueError(f"pairs need a data set with groups and without rotations; {data.name} is not one")
        if (fewest := data.images_per_class[0]) < needed:
            raise ValueError(
                f"shots={self.shots} and queries={self.queries} need {needed} images per class, but {data.name} has "
                f"only {fewest} of some: lower shots or queries"
            )
        if not self.num_problems:
            raise ValueError(f"{data.name} has no group with two classes")

    @property
    def num_problems(self) -> int:
        """The number of pairs."""
        return len(self._pairs)

    def sample(self, n: int, generator: torch.Generator) -> Task:
        """Draw ``n`` tasks: x float32 in [0, 1], ``[n, 2 * shots, C, H, W]``; y float32, 0 and 1."""
        pairs = self._pairs
        classes = pairs[torch.randint(len(pairs), (n,), generator=generator)]
        swapped = torch.rand(n, generator=generator) < 0.5
        classes = torch.where(swapped[:, None], classes.flip(-1), classes)
        counts = self.dataset.counts[classes]
        keys = torch.rand(n, 2, int(counts.max()), generator=generator)
        keys.masked_fill_(torch.arange(keys.shape[-1]) >= counts[..., None], -1.0)
        members = keys.topk(self.shots + self.queries).indices.mT
        x = self.dataset.gather(classes[:, None].expand_as(members), members)
        y = torch.arange(2.0, device=x.device).expand(*members.shape)
        sets = [slice(None, self.shots), slice(self.shots, None)]
        support, query = (Batch(x[:, s].flatten(1, 2), y[:, s].flatten(1, 2)) for s in sets)
        return Task(support, query)

    @cached_property
    def _pairs(self) -> Tensor:
        """All pairs of different classes of the same group, ``[P, 2]``."""
        assert self.dataset.groups is not None
        first, second = torch.combinations(torch.arange(len(self.dataset.names))).unbind(-1)
        same = self.dataset.groups[first] == self.dataset.groups[second]
        return torch.stack([first[same], second[same]], dim=-1)
