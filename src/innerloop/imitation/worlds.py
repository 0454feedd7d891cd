"""What worlds of imitation have in common: a task is an object that somebody reaches for, and a robot that saw it."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

Split = Literal["train", "val", "test"]
SHARES = {"train": (0.0, 0.7), "val": (0.7, 0.85), "test": (0.85, 1.0)}


def members(number: int, split: Split) -> Tensor:
    """Which of the identities 0, 1, ..., are a split's: always the same, and no two splits share one."""
    order = torch.randperm(number, generator=torch.Generator().manual_seed(number))
    low, high = SHARES[split]
    return order[round(low * number) : round(high * number)].sort().values


class Scenes(NamedTuple):
    """What T tasks are of.

    Attributes:
        objects: ``[T, N]``; the first is the one that is meant.
        demonstrators: ``[T]``.
    """

    objects: Tensor
    demonstrators: Tensor


OBJECTS, DEMONSTRATORS = 160, 80
"""How many there are, over all splits."""
ALIKE = 0.12
"""Objects of one scene differ by at least this part of the circle of hues."""
MOST = 5
"""Objects that a scene has room for."""


def scenes(n: int, objects: int, split: Split, generator: torch.Generator) -> Scenes:
    """Which objects, of different hues, and which demonstrators, of a split's."""
    known, people = members(OBJECTS, split), members(DEMONSTRATORS, split)
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


class Seen(NamedTuple):
    """What a robot knows of E episodes of T tasks: pictures, uint8 ``[T, E, 3, h, w]``, and its state ``[T, E, S]``."""

    images: Tensor
    state: Tensor


class Demonstration(NamedTuple):
    """An expert at the robot: what it saw, ``[T, D, H, ...]``, and did, ``[T, D, H, A]``."""

    images: Tensor
    state: Tensor
    actions: Tensor


class World(Protocol):
    """Where somebody demonstrates and a robot imitates.

    Attributes:
        horizon: steps of the robot.
        frames: pictures of a demonstration.
        size: their height and width.
        state, actions: numbers that a state and an action have.
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

    def demonstration(self, tasks: Any, generator: torch.Generator) -> Demonstration:
        """An expert does each task at the robot."""
        ...

    def reset(self, tasks: Any, episodes: int, generator: torch.Generator) -> Seen:
        """The beginning of episodes of every task, of which `step` and `success` then speak."""
        ...

    def step(self, actions: Tensor) -> Seen:
        """Actions ``[T, E, A]``."""
        ...

    def success(self) -> Tensor:
        """Whether it has been done, ``[T, E]``."""
        ...
