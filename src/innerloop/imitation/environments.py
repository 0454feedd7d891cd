"""The parts that environments of imitation share: objects, demonstrators, and their splits."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
OBJECTS, DEMONSTRATORS = 160, 80
"""Their numbers over all splits."""
ARCS = ("val", "train", "test", "train", "train", "val", "train", "test", "train", "train", "val", "train", "test",
        "train", "train")  # fmt: skip
"""The split of the objects in each arc of the hue circle."""


def objects_of(split: Split) -> Tensor:
    """Return the objects of a split; splits share neither objects nor ranges of hues."""
    every = torch.arange(OBJECTS)
    arcs = (hues(every) * len(ARCS)).long().clamp_max(len(ARCS) - 1)
    return every[torch.tensor([own == split for own in ARCS])[arcs]]


def demonstrators_of(split: Split) -> Tensor:
    """Return the demonstrators of a split; splits do not share any."""
    order = torch.randperm(DEMONSTRATORS, generator=torch.Generator().manual_seed(0))
    ends = {"train": (0.0, 0.7), "val": (0.7, 0.85), "test": (0.85, 1.0)}[split]
    low, high = (round(end * DEMONSTRATORS) for end in ends)
    return order[low:high].sort().values


class Scenes(NamedTuple):
    """The objects and demonstrators of T tasks.

    Attributes:
        objects: the objects, ``[T, N]``; the first is the target.
        demonstrators: the demonstrators, ``[T]``.
    """

    objects: Tensor
    demonstrators: Tensor


ALIKE = 0.12
"""Objects of a scene differ in hue by at least this fraction of the hue circle."""
MOST = 3
"""The largest number of objects of a scene; with more, a split might have none left with a different hue."""


def scenes(n: int, objects: int, split: Split, generator: torch.Generator) -> Scenes:
    """Draw objects of different hues and demonstrators from a split."""
    known, people = objects_of(split), demonstrators_of(split)
    chosen = torch.randint(len(known), (n, objects), generator=generator)
    for number in range(1, objects):
        while (again := _alike(hues(known[chosen]), number)).any():
            chosen[again, number] = torch.randint(len(known), (int(again.sum()),), generator=generator)
    return Scenes(known[chosen], people[torch.randint(len(people), (n,), generator=generator)])


def number_of(identities: Tensor, which: int) -> Tensor:
    """Return the property with index ``which`` of each identity, a number in [0, 1)."""
    return torch.frac(identities.double() * (0.6180339887498949 + 0.1379 * which) + 0.37 * which).float()


def hues(objects: Tensor) -> Tensor:
    """Return the hues of objects, in [0, 1)."""
    return number_of(objects, 0)


def _alike(hues: Tensor, number: int) -> Tensor:
    """Return whether an object of a scene ``[n, N]`` has nearly the hue of an earlier one."""
    difference = (hues[:, :number] - hues[:, number, None]).abs()
    alike: Tensor = (torch.minimum(difference, 1 - difference) < ALIKE).any(1)
    return alike


class Observation(NamedTuple):
    """A robot's observations in E episodes of T tasks.

    Attributes:
        images: what its camera sees, uint8 ``[T, E, 3, h, w]``.
        state: its state, ``[T, E, S]``.
    """

    images: Tensor
    state: Tensor


class Demonstration(NamedTuple):
    """D demonstrations of experts who control the robot, in order of time.

    Attributes:
        images: what the robot's camera sees, ``[T, D, H, ...]``.
        state: the robot's state, ``[T, D, H, ...]``.
        actions: the expert's actions, ``[T, D, H, A]``.
    """

    images: Tensor
    state: Tensor
    actions: Tensor


class Environment(Protocol):
    """A world in which demonstrators show tasks and a robot imitates them.

    Attributes:
        horizon: number of steps of the robot.
        frames: number of frames of a video.
        size: height and width of images.
        state: number of elements of a state.
        actions: number of elements of an action.
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
        """Return a video of a demonstrator for each task, uint8 ``[T, 1, frames, 3, size, size]``."""
        ...

    def demonstration(self, tasks: Any, number: int, generator: torch.Generator) -> Demonstration:
        """Return ``number`` demonstrations of an expert who controls the robot, with objects in different places."""
        ...

    def reset(self, tasks: Any, episodes: int, generator: torch.Generator) -> Observation:
        """Start episodes of every task, to which `step` and `success` then refer; return the first observations."""
        ...

    def step(self, actions: Tensor) -> Observation:
        """Take a step with actions ``[T, E, A]``."""
        ...

    def success(self) -> Tensor:
        """Return whether the tasks are solved, ``[T, E]``."""
        ...
