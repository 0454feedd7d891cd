"""A table with a robot arm in MuJoCo, on which the robot imitates a demonstrator with another arm.

The demonstrator pushes an object, or reaches for it; the robot has to do the same with the same object in another
place.

Lengths are in meters, with x to the right, y away from the robot, and the origin in the middle of the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..common.ranges import require_at_least
from ..data.cache import kept
from ..data.progress import progress
from .environments import Demonstration, Observation, Split, scenes
from .simulation import HALF, STRIDE, Simulation, robots, somebodys, stage

Goal = Literal["push", "reach"]

VERSION = 1
"""The version of demonstrations in the cache; raise it when demonstrations or their rendering change."""
BEHIND = -0.36
"""The y at which fingertips start, in front of all objects."""
FAR = 0.25
"""Pushing succeeds if the object moves this far away from the robot, and no other object moves half as far."""
FEWEST = 300
"""The smallest number of demonstrated cases of val and of test."""
EPISODES, PICTURES = 2, 10
"""The number of demonstrations by the robot in the cache for each case, and their number of evenly spaced steps."""
TRIES = 20
"""The number of attempts of an expert before it is an error."""
CLOSE = 0.1
"""Reaching succeeds if the fingertip ends within this distance of the object's center, and nearer than to others."""


class Cases(NamedTuple):
    """C demonstrated cases of a split.

    Attributes:
        objects, demonstrators: see `Scenes`, ``[C, N]`` and ``[C]``.
        videos: the videos of demonstrators, uint8 ``[C, frames, 3, size, size]``.
        images, state, actions: demonstrations of an expert who controls the robot, ``[C, EPISODES, PICTURES, ...]``,
            in order of time.
    """

    objects: Tensor
    demonstrators: Tensor
    videos: Tensor
    images: Tensor
    state: Tensor
    actions: Tensor


@dataclass
class Table:
    """Pushing or reaching on a table; scripted experts make the demonstrations, which are cached.

    The robot's arm has two links, and the demonstrator's has three and stands elsewhere. Each demonstrator has an arm
    of another color and width; camera, light and tiles differ between videos. An action is the velocity of the robot's
    fingertip, in strides. The state holds both joint angles and the place of the fingertip.

    Args:
        goal: ``"push"`` the object away from the robot, or ``"reach"`` the object with the fingertip.
        objects: number of objects.
        cases: number of demonstrated cases of the training split; val and test have a tenth each, at least ``FEWEST``
            (300).
        frames: number of frames of a video.
        horizon: number of steps of the robot.
        moments: number of moments of a robot's demonstration in a task.
        size: height and width of an image.

    Raises:
        ValueError: a number is out of range, or the goal is unknown.
    """

    goal: Goal = "push"
    objects: int = 2
    cases: int = 1000
    frames: int = 8
    horizon: int = 22
    moments: int = 4
    size: int = 48

    state, actions = 4, 2

    def __post_init__(self) -> None:
        if self.goal not in ("push", "reach"):
            raise ValueError(f'goal must be "push" or "reach", got {self.goal!r}')
        require_at_least(2, objects=self.objects, frames=self.frames)
        require_at_least(1, cases=self.cases, horizon=self.horizon, moments=self.moments)
        require_at_least(16, size=self.size)
        if self.objects > 3:
            raise ValueError(f"objects must be at most 3, to fit side by side, got {self.objects}")
        if self.moments > PICTURES:
            raise ValueError(f"moments must be at most {PICTURES}, the images of a demonstration, got {self.moments}")
        self._made: dict[Split, Cases] = {}
        self._episodes: list[Simulation] = []

    def demonstrated(self, split: Split) -> Cases:
        """Return all cases of a split, which are made in the first call and then cached."""
        if split not in self._made:
            number = self.cases if split == "train" else max(FEWEST, self.cases // 10)
            name = (
                f"table-{self.goal}-{self.objects}-{number}-{self.frames}-{self.horizon}-{self.size}-{split}-v{VERSION}"
            )
            parts = kept(name, lambda: self._demonstrate(number, split), _whole, "demonstrations")
            self._made[split] = Cases(*parts)
        return self._made[split]

    def _demonstrate(self, number: int, split: Split) -> Cases:
        seed = {"train": 0, "val": 1, "test": 2}[split]
        generator = torch.Generator().manual_seed(seed)
        cast = scenes(number, self.objects, split, generator)
        videos, demonstrations = [], []
        with progress(f"demonstrating, {split}", number) as advance:
            for objects, who in zip(cast.objects, cast.demonstrators.tolist(), strict=True):
                videos.append(self._watch(objects, who, generator))
                each = [self._show(objects, generator) for _ in range(EPISODES)]
                demonstrations.append([torch.stack(parts) for parts in zip(*each, strict=True)])
                advance(1)
        parts = [torch.stack(part) for part in zip(*demonstrations, strict=True)]
        return Cases(cast.objects, cast.demonstrators, torch.stack(videos), *parts)

    def _watch(self, objects: Tensor, demonstrator: int, generator: torch.Generator) -> Tensor:
        """Return a video of a demonstrator, ``[frames, 3, size, size]``."""
        at = _spread(self.horizon, self.frames)
        for _ in range(TRIES):
            body, pictures = self._body(objects, generator, demonstrator), []
            for step in range(self.horizon + 1):
                if step in at:
                    pictures += [body.picture(self.size)] * at.count(step)
                body.move(self._plan(body))
            if self._done(body):
                return torch.stack(pictures)
        raise RuntimeError(f"the demonstrator did not {self.goal} the object within {TRIES} tries")

    def _show(self, objects: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return images, states and actions of an expert who controls the robot with noise, ``[PICTURES, ...]``."""
        at = _spread(self.horizon - 1, PICTURES)
        for _ in range(TRIES):
            body, moments = self._body(objects, generator), []
            for step in range(self.horizon):
                action = self._plan(body)
                if step in at:
                    moments += [(body.picture(self.size), body.state, action)] * at.count(step)
                body.move(action + 0.2 * torch.randn(2, generator=generator))
            if self._done(body):
                images, states, actions = zip(*moments, strict=True)
                return torch.stack(images), torch.stack(states), torch.stack(actions)
        raise RuntimeError(f"the expert did not {self.goal} the object within {TRIES} tries")

    def _body(self, objects: Tensor, generator: torch.Generator, demonstrator: int | None = None) -> Simulation:
        """Return a table with these objects and the robot's arm, or the arm of a demonstrator."""
        places, tip = _places(len(objects), generator), _start(generator)
        looks = robots() if demonstrator is None else somebodys(demonstrator, generator)
        kind = stage(len(objects), demonstrator is not None)
        return Simulation(kind, objects, places, tip, looks, solid=self.goal == "push")

    def _plan(self, body: Simulation) -> Tensor:
        """Return an expert's action in strides: go behind the object and push it, or go straight to it."""
        way = body.places[0] - body.tip
        if self.goal == "push":
            if body.places[0, 1] - body.begun[0, 1] > FAR + 0.05:
                return torch.zeros(2)
            beside = way[0].abs() > 0.02 and way[1] > HALF + 0.05
            way = (
                torch.stack([way[0], BEHIND - body.tip[1]]) if beside else torch.stack([way[0], torch.full((), STRIDE)])
            )
        action: Tensor = way / way.norm().clamp_min(STRIDE)
        return action

    # -- the world ----------------------------------------------------------------------------------------------------

    def tasks(self, n: int, split: Split, generator: torch.Generator) -> tuple[Split, Tensor]:
        """Draw cases of a split, by their numbers."""
        return split, torch.randint(len(self.demonstrated(split).objects), (n,), generator=generator)

    def video(self, tasks: tuple[Split, Tensor], generator: torch.Generator) -> Tensor:
        """Return the videos of demonstrators, uint8 ``[T, 1, frames, 3, size, size]``."""
        split, cases = tasks
        return self.demonstrated(split).videos[cases][:, None]

    def demonstration(self, tasks: tuple[Split, Tensor], number: int, generator: torch.Generator) -> Demonstration:
        """Return moments of demonstrations of experts who control the robot, ``[T, number, moments, ...]``.

        Raises:
            ValueError: ``number`` is larger than the number of demonstrations in the cache.
        """
        if number > EPISODES:
            raise ValueError(f"number must be at most {EPISODES}, the demonstrations of each case, got {number}")
        split, cases = tasks
        every = self.demonstrated(split)
        which = torch.rand(len(cases), EPISODES, generator=generator).argsort(1)[:, :number]
        moments = torch.rand(len(cases), number, PICTURES, generator=generator).argsort(2)[..., : self.moments]
        index = cases[:, None, None], which[..., None], moments.sort(2).values
        return Demonstration(*(part[index] for part in (every.images, every.state, every.actions)))

    def reset(self, tasks: tuple[Split, Tensor], episodes: int, generator: torch.Generator) -> Observation:
        """Start episodes of every task, and return the first observations."""
        split, cases = tasks
        objects = self.demonstrated(split).objects[cases]
        self._shape = (len(cases), episodes)
        self._episodes = [self._body(own, generator) for own in objects for _ in range(episodes)]
        return self._seen()

    def step(self, actions: Tensor) -> Observation:
        """Take a step with actions ``[T, E, 2]`` in strides; longer ones are shortened to 1."""
        for body, action in zip(self._episodes, actions.flatten(0, 1), strict=True):
            body.move(action)
        return self._seen()

    def success(self) -> Tensor:
        """Return whether the tasks are solved, ``[T, E]``."""
        return torch.tensor([self._done(body) for body in self._episodes]).view(self._shape)

    def _done(self, body: Simulation) -> bool:
        if self.goal == "reach":
            distances = (body.places - body.tip).norm(dim=-1)
            return bool(distances[0] < CLOSE and distances.argmin() == 0)
        pushed = body.places[:, 1] - body.begun[:, 1]
        return bool(pushed[0] > FAR and (pushed[1:].abs() < FAR / 2).all())

    def _seen(self) -> Observation:
        pictures = torch.stack([body.picture(self.size) for body in self._episodes])
        states = torch.stack([body.state for body in self._episodes])
        return Observation(pictures.view(*self._shape, *pictures.shape[1:]), states.view(*self._shape, -1))


def _whole(parts: tuple[Any, ...]) -> bool:
    cases = Cases(*parts)
    return cases.videos.dtype == torch.uint8 and all(len(part) == len(cases.objects) for part in cases)


def _places(number: int, generator: torch.Generator) -> Tensor:
    """Draw places of objects side by side, in any order, ``[N, 2]``."""
    width = 0.9 / number
    x = -0.45 + width * (torch.arange(number) + 0.25 + 0.5 * torch.rand(number, generator=generator))
    y = -0.1 + 0.2 * torch.rand(number, generator=generator)
    return torch.stack([x[torch.randperm(number, generator=generator)], y], -1)


def _start(generator: torch.Generator) -> Tensor:
    """Draw the initial place of the fingertip, ``[2]``."""
    x, y = torch.rand(2, generator=generator)
    return torch.stack([0.8 * x - 0.4, BEHIND - 0.1 * y])


def _spread(last: int, number: int) -> list[int]:
    """Return ``number`` evenly spaced steps from 0 to ``last``, with repetitions if there are not enough."""
    steps: list[int] = torch.linspace(0, last, number).round().long().tolist()
    return steps
