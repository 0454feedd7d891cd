"""What environments of imitation share: a task is an object that somebody reaches for, and a robot that saw it."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
OBJECTS, DEMONSTRATORS = 160, 80
"""How many there are, over all splits."""
ARCS = ("val", "train", "test", "train", "train", "val", "train", "test", "train", "train", "val", "train", "test",
        "train", "train")  # fmt: skip
"""Which split the objects of each arc of the circle of hues are of."""


def objects_of(split: Split) -> Tensor:
    """The objects of a split, which no other has: neither them nor their range of hues."""
    every = torch.arange(OBJECTS)
    arcs = (hues(every) * len(ARCS)).long().clamp_max(len(ARCS) - 1)
    return every[torch.tensor([own == split for own in ARCS])[arcs]]


def demonstrators_of(split: Split) -> Tensor:
    """The demonstrators of a split, which no other has."""
    order = torch.randperm(DEMONSTRATORS, generator=torch.Generator().manual_seed(0))
    ends = {"train": (0.0, 0.7), "val": (0.7, 0.85), "test": (0.85, 1.0)}[split]
    low, high = (round(end * DEMONSTRATORS) for end in ends)
    return order[low:high].sort().values


class Scenes(NamedTuple):
    """What T tasks are of.

    Attributes:
        objects: ``[T, N]``; the first is the one that is meant.
        demonstrators: ``[T]``.
    """

    objects: Tensor
    demonstrators: Tensor


ALIKE = 0.12
"""Objects of one scene differ by at least this part of the circle of hues."""
MOST = 3
"""Objects of a scene: of more, none of a split might be left that differs from the others."""


def scenes(n: int, objects: int, split: Split, generator: torch.Generator) -> Scenes:
    """Which objects, of different hues, and which demonstrators, of a split's."""
    known, people = objects_of(split), demonstrators_of(split)
    chosen = torch.randint(len(known), (n, objects), generator=generator)
    for number in range(1, objects):
        while (again := _alike(hues(known[chosen]), number)).any():
            chosen[again, number] = torch.randint(len(known), (int(again.sum()),), generator=generator)
    return Scenes(known[chosen], people[torch.randint(len(people), (n,), generator=generator)])


def number_of(identities: Tensor, which: int) -> Tensor:
    """A number in [0, 1) of each identity, of which it has several."""
    return torch.frac(identities.double() * (0.6180339887498949 + 0.1379 * which) + 0.37 * which).float()


def hues(objects: Tensor) -> Tensor:
    """Of objects, in [0, 1)."""
    return number_of(objects, 0)


def _alike(hues: Tensor, number: int) -> Tensor:
    """Whether an object of a scene ``[n, N]`` has nearly the hue of one before it."""
    difference = (hues[:, :number] - hues[:, number, None]).abs()
    alike: Tensor = (torch.minimum(difference, 1 - difference) < ALIKE).any(1)
    return alike


class Observation(NamedTuple):
    """What a robot knows of E episodes of T tasks: pictures, uint8 ``[T, E, 3, h, w]``, and its state ``[T, E, S]``."""

    images: Tensor
    state: Tensor


class Demonstration(NamedTuple):
    """Experts at the robot, D times: what they saw, ``[T, D, H, ...]``, and did, ``[T, D, H, A]``, in order of time."""

    images: Tensor
    state: Tensor
    actions: Tensor


class Environment(Protocol):
    """Where somebody demonstrates and a robot imitates.

    Attributes:
        horizon: steps of the robot.
        frames: pictures of a demonstration.
        size: their height and width.
        state: numbers that a state has.
        actions: numbers that an action has.
    """

    horizon: int
    frames: int
    size: int
    state: int
    actions: int

    def tasks(self, n: int, split: Split, generator: torch.Generator) -> Any:
        """Draw ``n`` tasks of a split."""
        ...

    def video(self, tasks: Any, generator: torch.Generator) -> Tensor:
        """Somebody demonstrates each task, uint8 ``[T, 1, frames, 3, size, size]``."""
        ...

    def demonstration(self, tasks: Any, number: int, generator: torch.Generator) -> Demonstration:
        """An expert does each task at the robot so many times, and each time the objects lie somewhere else."""
        ...

    def reset(self, tasks: Any, episodes: int, generator: torch.Generator) -> Observation:
        """The beginning of episodes of every task, of which `step` and `success` then speak."""
        ...

    def step(self, actions: Tensor) -> Observation:
        """Actions ``[T, E, A]``."""
        ...

    def success(self) -> Tensor:
        """Whether it has been done, ``[T, E]``."""
        ...
