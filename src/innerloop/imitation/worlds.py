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
