"""Few-shot classification tasks drawn from a data set of classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..task import Batch, Task, Tasks, joined, singles
from .images import ClassImages


@dataclass(frozen=True)
class FewShot:
    """``ways``-way ``shots``-shot episodes (Vinyals et al. 2016, section 4.1).

    A task has ``ways`` different classes with ``shots`` support and ``queries`` query images each, all different. Both
    sets are ordered shot by shot: first one image of every class, in the order of the labels, then the next. So
    mini-batches of ``ways`` consecutive examples are class-balanced.

    Args:
        dataset: the images; tasks are on its device.
        ways: number of classes of a task.
        shots: number of support images of each class.
        queries: number of query images of each class.
        within_groups: take all classes of a task from one group, e.g. one alphabet; all groups with enough classes are
            equally likely.

    Raises:
        ValueError: a number is out of range, or there are too few classes, images or groups.
    """

    dataset: ClassImages
    ways: int
    shots: int
    queries: int = 1
    within_groups: bool = False

    def __post_init__(self) -> None:
        for field, least in (("ways", 2), ("shots", 1), ("queries", 1)):
            if getattr(self, field) < least:
                raise ValueError(f"{field}={getattr(self, field)} must be at least {least}")
        data = self.dataset
        if data.num_classes < self.ways:
            raise ValueError(f"ways={self.ways}, but {data.name} has {data.num_classes} classes: lower ways")
        needed = self.shots + self.queries
        if (fewest := int(data.counts.min())) < needed:
            name = data.names[int(data.counts.argmin())]
            raise ValueError(
                f"shots={self.shots} and queries={self.queries} need {needed} images per class, but class {name!r} "
                f"of {data.name} has {fewest}: lower shots or queries, or leave the class out"
            )
        if self.within_groups and not len(self._groups()):
            raise ValueError(
                f"within_groups needs a group of at least ways={self.ways} classes, but {data.name} has "
                + ("no groups" if data.groups is None else f"at most {int(self._class_counts().max())} in one")
            )

    def sample(self, n: int, generator: torch.Generator) -> Task:
        """Draw ``n`` tasks: x float32 in [0, 1], ``[n, ways * shots, C, H, W]``; y int64 in range(ways).

        The query set is ``[n, ways * queries, ...]``. ``generator`` is always on the CPU.
        """
        classes = self._classes(n, generator)
        drawn = self.shots + self.queries
        counts = self.dataset.counts[classes % len(self.dataset.names)]
        largest = int(self.dataset.counts.max())
        keys = torch.rand(n, self.ways, largest, generator=generator)
        keys.masked_fill_(torch.arange(largest) >= counts[..., None], -1.0)
        members = keys.topk(drawn).indices.mT
        x = self.dataset.gather(classes[:, None].expand_as(members), members)
        y = torch.arange(self.ways, device=x.device).expand(n, drawn, self.ways)
        sets = [slice(None, self.shots), slice(self.shots, None)]
        support, query = (Batch(x[:, s].flatten(1, 2), y[:, s].flatten(1, 2)) for s in sets)
        return Task(support, query)

    def _classes(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw different classes for each task in random order, ``[n, ways]``."""
        keys = torch.rand(n, self.dataset.num_classes, generator=generator)
        if self.within_groups:
            assert self.dataset.groups is not None
            groups = self._groups()
            chosen = groups[torch.randint(len(groups), (n, 1), generator=generator)]
            member = self.dataset.groups.repeat(self.dataset.num_classes // len(self.dataset.names)) == chosen
            keys.masked_fill_(~member, -1.0)
        return keys.topk(self.ways).indices

    def _groups(self) -> Tensor:
        """Return the groups that have at least ``ways`` classes."""
        return (self._class_counts() >= self.ways).nonzero().flatten()

    def _class_counts(self) -> Tensor:
        """Return the number of classes of each group, including rotations."""
        if self.dataset.groups is None:
            return torch.zeros(0, dtype=torch.int64)
        return self.dataset.groups.bincount() * (self.dataset.num_classes // len(self.dataset.names))


@dataclass(frozen=True)
class VaryingFewShot:
    """Episodes of varying ways and shots: each task draws them first, and is then a task of `FewShot`.

    A model for these tasks has as many outputs as the most ways; a task uses the first of them.

    Args:
        dataset: the images.
        ways: number of classes of a task, or the fewest and the most; all numbers between are equally likely.
        shots: the same for the number of support images of each class.
        queries: number of query images of each class.
        within_groups: see `FewShot`.

    Raises:
        ValueError: the fewest are more than the most; and what `FewShot` raises for the fewest and the most.
    """

    dataset: ClassImages
    ways: int | tuple[int, int]
    shots: int | tuple[int, int]
    queries: int = 1
    within_groups: bool = False

    def __post_init__(self) -> None:
        (fewest, most), (few, many) = _span("ways", self.ways), _span("shots", self.shots)
        for ways, shots in ((fewest, few), (most, many)):
            self._episodes(ways, shots)

    def sample(self, n: int, generator: torch.Generator) -> Tasks:
        """Draw ``n`` tasks, a list if their sizes differ; see `FewShot.sample`."""
        return joined([task for _ in range(n) for task in singles(self._one(generator))])

    def _one(self, generator: torch.Generator) -> Task:
        ways, shots = (
            int(torch.randint(low, high + 1, (1,), generator=generator))
            for low, high in (_span("ways", self.ways), _span("shots", self.shots))
        )
        return self._episodes(ways, shots).sample(1, generator)

    def _episodes(self, ways: int, shots: int) -> FewShot:
        return FewShot(self.dataset, ways, shots, self.queries, self.within_groups)


def _span(name: str, number: int | tuple[int, int]) -> tuple[int, int]:
    """Return the fewest and the most of a number that may vary."""
    fewest, most = (number, number) if isinstance(number, int) else number
    if fewest > most:
        raise ValueError(f"{name}={number}: the fewest are more than the most")
    return fewest, most
