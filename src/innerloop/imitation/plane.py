"""Reaching in the plane: a robot is to go to the object that somebody else went to, drawn in torch, all tasks at once.

Lengths are in half widths of the picture, whose corners are (-1, -1) and (1, 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..common.ranges import require_at_least
from .drawing import SHAPES, clouds, colour, from_segment, from_shape, grid, paint, to_bytes
from .environments import MOST, Demonstration, Observation, Scenes, Split, hues, number_of, scenes

RADIUS = 0.2
"""Of an object."""
CLOSE = 0.2
"""How near to the middle of the object the robot has to be at the end, and nearer than to any other."""
STRIDE = 0.3
"""How far it gets in a step."""
PUSHED = 0.05
"""How far the expert is pushed off its way, a standard deviation."""


class Arms(NamedTuple):
    """The arms of T demonstrators.

    The fields are the position of the shoulder ``[T, 2]``, the length of both links, the side to which the elbow bends,
    half the width ``[T]``, and the color ``[T, 3]``.
    """

    shoulder: Tensor
    length: Tensor
    side: Tensor
    width: Tensor
    colour: Tensor


@dataclass
class Reach:
    """A demonstrator's arm reaches for an object among others, and the robot has to reach for the same object.

    The object lies somewhere else before the robot, and another camera films it.

    The arm has two links; its colour, width and proportions are the demonstrator's, and camera, light and ground differ
    from demonstration to demonstration. The robot is a ring that moves by at most ``STRIDE`` (0.3) a step; its state is
    where it is. Objects differ in shape and hue.

    Args:
        objects: that lie there.
        frames: of a demonstration.
        horizon: steps of the robot.
        moments: of the robot's way that a demonstration at it has.
        size: height and width of a picture.
    """

    objects: int = 3
    frames: int = 8
    horizon: int = 8
    moments: int = 3
    size: int = 32

    state, actions = 2, 2

    def __post_init__(self) -> None:
        require_at_least(2, objects=self.objects, frames=self.frames)
        require_at_least(1, horizon=self.horizon, moments=self.moments)
        require_at_least(16, size=self.size)
        if self.objects > MOST:
            raise ValueError(f"there is room for {MOST} objects, got {self.objects}")

    def tasks(self, n: int, split: Split, generator: torch.Generator) -> Scenes:
        """Which objects and whose arm, of a split's."""
        return scenes(n, self.objects, split, generator)

    def _places(self, n: int, generator: torch.Generator) -> Tensor:
        """Of objects, apart from each other, ``[n, N, 2]``."""
        places = 1.5 * torch.rand(n, self.objects, 2, generator=generator) - 0.75
        for number in range(1, self.objects):
            while (again := _near(places, number)).any():
                places[again, number] = 1.5 * torch.rand(int(again.sum()), 2, generator=generator) - 0.75
        return places

    # -- the demonstrator ---------------------------------------------------------------------------------------------

    def video(self, tasks: Scenes, generator: torch.Generator) -> Tensor:
        """Pictures of an arm that reaches, uint8 ``[T, 1, frames, 3, size, size]``."""
        n = len(tasks.objects)
        places, points = self._places(n, generator)[:, None], self._camera(n, generator)
        ground = 0.25 * clouds(n, self.size, generator)[:, None] + 0.05
        ground = ground + 0.1 * torch.rand(n, 1, 1, 1, 1, generator=generator)
        picture = self._put(ground, points, tasks.objects, places)
        arm = arms(tasks.demonstrators)
        shoulder = (arm.shoulder + 0.15 * torch.randn(n, 2, generator=generator))[:, None]
        start = 0.55 * shoulder + 0.2 * torch.randn(n, 1, 2, generator=generator)
        passed = torch.linspace(0, 1, self.frames)[:, None]
        passed = passed**2 * (3 - 2 * passed)  # at rest at both ends
        hand = start + (places[:, :, 0] - start) * passed
        elbow, width = _elbow(shoulder, hand, arm), arm.width[:, None, None, None]
        for a, b, half in ((shoulder, elbow, width), (elbow, hand, 0.8 * width)):
            picture = paint(picture, from_segment(points, a, b) - half, arm.colour[:, None])
        distance = (points - hand[:, :, None, None]).norm(dim=-1)
        picture = paint(picture, distance - 1.2 * width, 0.6 * arm.colour[:, None])
        light = 0.75 + 0.4 * torch.rand(n, 1, 1, 1, 1, generator=generator)
        return to_bytes(picture * light)[:, None]

    def _camera(self, n: int, generator: torch.Generator) -> Tensor:
        """The points that pixels show, turned, further away and shifted, ``[n, 1, size, size, 2]``."""
        angle = 0.35 * (2 * torch.rand(n, generator=generator) - 1)
        zoom = 1 + 0.25 * torch.rand(n, generator=generator)
        cos, sin = zoom * angle.cos(), zoom * angle.sin()
        turn = torch.stack([torch.stack([cos, sin], -1), torch.stack([-sin, cos], -1)], -2)
        shift = 0.1 * torch.randn(n, 1, 1, 2, generator=generator)
        return (grid(self.size) @ turn[:, None] + shift)[:, None]

    # -- the robot ----------------------------------------------------------------------------------------------------

    def demonstration(self, tasks: Scenes, number: int, generator: torch.Generator) -> Demonstration:
        """The observations and actions of an expert at the robot at some moments, ``[T, number, moments, ...]``.

        The expert is pushed about a little on its way.
        """
        every = Scenes(*(part.repeat_interleave(number, 0) for part in tasks))
        found = self._demonstrated(every, generator)
        return Demonstration(*(part.view(-1, number, *part.shape[1:]) for part in found))

    def _demonstrated(self, tasks: Scenes, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures, states and actions of one demonstration a task, ``[T, moments, ...]``."""
        n = len(tasks.objects)
        places, start = self._places(n, generator)[:, None], self._start(n, 1, generator)
        way = places[:, :, 0] - start
        length = way.norm(dim=-1, keepdim=True)
        passed = (length + STRIDE) * torch.rand(n, self.moments, 1, generator=generator).sort(1).values
        robot = start + way / length * torch.minimum(passed, length)
        robot = (robot + PUSHED * torch.randn(robot.shape, generator=generator)).clamp(-1, 1)
        left = places[:, :, 0] - robot
        actions = left / left.norm(dim=-1, keepdim=True).clamp_min(STRIDE)
        return self._with_robot(self._table(tasks, places, generator), robot), robot, actions

    def reset(self, tasks: Scenes, episodes: int, generator: torch.Generator) -> Observation:
        """The beginning of episodes of every task."""
        n = len(tasks.objects)
        self._lying = self._places(n * episodes, generator).view(n, episodes, self.objects, 2)
        self._robot = self._start(n, episodes, generator)
        self._before = self._table(tasks, self._lying, generator)
        return self._seen()

    def step(self, actions: Tensor) -> Observation:
        """Actions ``[T, E, 2]`` in strides; longer ones are shortened."""
        strides = actions / actions.norm(dim=-1, keepdim=True).clamp_min(1)
        self._robot = (self._robot + STRIDE * strides).clamp(-1, 1)
        return self._seen()

    def success(self) -> Tensor:
        """Whether the robot is at the object, ``[T, E]``."""
        distances = (self._lying - self._robot[..., None, :]).norm(dim=-1)
        there: Tensor = (distances[..., 0] < CLOSE) & (distances.argmin(-1) == 0)
        return there

    @staticmethod
    def _start(n: int, episodes: int, generator: torch.Generator) -> Tensor:
        return 1.6 * torch.rand(n, episodes, 2, generator=generator) - 0.8

    def _seen(self) -> Observation:
        return Observation(self._with_robot(self._before, self._robot), self._robot.clone())

    # -- drawing ------------------------------------------------------------------------------------------------------

    def _table(self, tasks: Scenes, places: Tensor, generator: torch.Generator) -> Tensor:
        """What the robot sees without itself, ``[T, E, 3, size, size]``, of objects at ``[T, E, N, 2]``."""
        grey = 0.25 + 0.1 * torch.rand(*places.shape[:2], 1, 1, 1, generator=generator)
        ground = grey.expand(-1, -1, 3, self.size, self.size)
        return self._put(ground, grid(self.size)[None, None], tasks.objects, places)

    def _with_robot(self, table: Tensor, robot: Tensor) -> Tensor:
        """Pictures ``[T, E, 3, size, size]`` of a robot at ``[T, E, 2]``."""
        distance = (grid(self.size) - robot[:, :, None, None]).norm(dim=-1)
        return to_bytes(paint(table, (distance - 0.1).abs() - 0.05, torch.ones(*robot.shape[:2], 3)))

    @staticmethod
    def _put(picture: Tensor, points: Tensor, objects: Tensor, places: Tensor) -> Tensor:
        """Objects ``[T, N]`` at places ``[T, F, N, 2]`` into pictures."""
        colours, shapes = colour(hues(objects)), objects % SHAPES
        for number in range(objects.shape[1]):
            at = points - places[:, :, number, None, None]
            picture = paint(picture, from_shape(at, shapes[:, number], RADIUS), colours[:, None, number])
        return picture


def _near(places: Tensor, number: int) -> Tensor:
    """Whether an object of a scene ``[n, N, 2]`` lies too near to one before it."""
    near: Tensor = ((places[:, :number] - places[:, number, None]).norm(dim=-1) < 2.5 * RADIUS).any(1)
    return near


def arms(identities: Tensor) -> Arms:
    """The arms of demonstrators ``[T]``."""
    angle = 2 * math.pi * number_of(identities, 1)
    return Arms(
        1.3 * torch.stack([angle.cos(), angle.sin()], -1),
        1.1 + 0.5 * number_of(identities, 2),
        torch.where(number_of(identities, 3) < 0.5, -1.0, 1.0),
        0.05 + 0.05 * number_of(identities, 4),
        colour(number_of(identities, 5), 0.35, 0.5) + 0.35 * number_of(identities, 6)[:, None],
    )


def _elbow(shoulder: Tensor, hand: Tensor, arm: Arms) -> Tensor:
    """Where the two links meet, each half as long as both; they stretch if the hand is further."""
    way = hand - shoulder
    length = way.norm(dim=-1, keepdim=True)
    height = ((arm.length[:, None, None] / 2) ** 2 - (length / 2) ** 2).clamp_min(0).sqrt()
    across = torch.stack([-way[..., 1], way[..., 0]], -1) / length
    elbow: Tensor = shoulder + way / 2 + arm.side[:, None, None] * height * across
    return elbow
