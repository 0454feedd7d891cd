"""Reaching in the plane: a robot has to reach the object that a demonstrator reached, rendered in torch.

All tasks run at once. Lengths are in half widths of the image, whose corners are (-1, -1) and (1, 1).
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
"""The radius of an object."""
CLOSE = 0.2
"""The robot succeeds if at the end it is within this distance of the object's center, and nearer than to any other."""
STRIDE = 0.3
"""The largest distance that the robot moves in a step."""
PUSHED = 0.05
"""The standard deviation of the noise on the expert's positions."""


class Arms(NamedTuple):
    """The arms of T demonstrators.

    Attributes:
        shoulder: the position of the shoulder, ``[T, 2]``.
        length: the length of both links together, ``[T]``.
        side: the side to which the elbow bends, ``[T]``.
        width: half the width, ``[T]``.
        colour: the color, ``[T, 3]``.
    """

    shoulder: Tensor
    length: Tensor
    side: Tensor
    width: Tensor
    colour: Tensor


@dataclass
class Reach:
    """A demonstrator's arm reaches for an object among others, and the robot has to reach for the same object.

    The robot sees the object in another place and with another camera.

    The arm has two links. Each demonstrator has an arm of another color, width and proportions; camera, light and
    ground differ between demonstrations. The robot is a ring that moves by at most ``STRIDE`` (0.3) per step; its state
    is its position. Objects differ in shape and hue.

    Args:
        objects: number of objects.
        frames: number of frames of a video.
        horizon: number of steps of the robot.
        moments: number of moments in a demonstration by the robot.
        size: height and width of an image.

    Raises:
        ValueError: a number is out of range.
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
            raise ValueError(f"objects must be at most {MOST}, got {self.objects}")

    def tasks(self, n: int, split: Split, generator: torch.Generator) -> Scenes:
        """Draw the objects and demonstrators of ``n`` tasks from a split."""
        return scenes(n, self.objects, split, generator)

    def _places(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw places of objects at some distance from each other, ``[n, N, 2]``."""
        places = 1.5 * torch.rand(n, self.objects, 2, generator=generator) - 0.75
        for number in range(1, self.objects):
            while (again := _near(places, number)).any():
                places[again, number] = 1.5 * torch.rand(int(again.sum()), 2, generator=generator) - 0.75
        return places

    # -- the demonstrator ---------------------------------------------------------------------------------------------

    def video(self, tasks: Scenes, generator: torch.Generator) -> Tensor:
        """Return videos of an arm that reaches for the object, uint8 ``[T, 1, frames, 3, size, size]``."""
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
        """Draw a camera, turned, zoomed out and shifted; return the points of its pixels, ``[n, 1, size, size, 2]``."""
        angle = 0.35 * (2 * torch.rand(n, generator=generator) - 1)
        zoom = 1 + 0.25 * torch.rand(n, generator=generator)
        cos, sin = zoom * angle.cos(), zoom * angle.sin()
        turn = torch.stack([torch.stack([cos, sin], -1), torch.stack([-sin, cos], -1)], -2)
        shift = 0.1 * torch.randn(n, 1, 1, 2, generator=generator)
        return (grid(self.size) @ turn[:, None] + shift)[:, None]

    # -- the robot ----------------------------------------------------------------------------------------------------

    def demonstration(self, tasks: Scenes, number: int, generator: torch.Generator) -> Demonstration:
        """Return observations and actions of an expert who controls the robot, ``[T, number, moments, ...]``.

        There is noise on the expert's positions.
        """
        every = Scenes(*(part.repeat_interleave(number, 0) for part in tasks))
        parts = self._demonstrated(every, generator)
        return Demonstration(*(part.view(-1, number, *part.shape[1:]) for part in parts))

    def _demonstrated(self, tasks: Scenes, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return images, states and actions of one demonstration per task, ``[T, moments, ...]``."""
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
        """Start episodes of every task, and return the first observations."""
        n = len(tasks.objects)
        self._lying = self._places(n * episodes, generator).view(n, episodes, self.objects, 2)
        self._robot = self._start(n, episodes, generator)
        self._before = self._table(tasks, self._lying, generator)
        return self._seen()

    def step(self, actions: Tensor) -> Observation:
        """Take a step with actions ``[T, E, 2]`` in strides; longer ones are shortened to 1."""
        strides = actions / actions.norm(dim=-1, keepdim=True).clamp_min(1)
        self._robot = (self._robot + STRIDE * strides).clamp(-1, 1)
        return self._seen()

    def success(self) -> Tensor:
        """Return whether the robot is at the object, ``[T, E]``."""
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
        """Render the scene without the robot, ``[T, E, 3, size, size]``, with objects at ``[T, E, N, 2]``."""
        grey = 0.25 + 0.1 * torch.rand(*places.shape[:2], 1, 1, 1, generator=generator)
        ground = grey.expand(-1, -1, 3, self.size, self.size)
        return self._put(ground, grid(self.size)[None, None], tasks.objects, places)

    def _with_robot(self, table: Tensor, robot: Tensor) -> Tensor:
        """Render images ``[T, E, 3, size, size]`` with the robot at ``[T, E, 2]``."""
        distance = (grid(self.size) - robot[:, :, None, None]).norm(dim=-1)
        return to_bytes(paint(table, (distance - 0.1).abs() - 0.05, torch.ones(*robot.shape[:2], 3)))

    @staticmethod
    def _put(picture: Tensor, points: Tensor, objects: Tensor, places: Tensor) -> Tensor:
        """Paint objects ``[T, N]`` at places ``[T, F, N, 2]`` into images."""
        colours, shapes = colour(hues(objects)), objects % SHAPES
        for number in range(objects.shape[1]):
            at = points - places[:, :, number, None, None]
            picture = paint(picture, from_shape(at, shapes[:, number], RADIUS), colours[:, None, number])
        return picture


def _near(places: Tensor, number: int) -> Tensor:
    """Return whether an object of a scene ``[n, N, 2]`` is too close to an earlier one."""
    near: Tensor = ((places[:, :number] - places[:, number, None]).norm(dim=-1) < 2.5 * RADIUS).any(1)
    return near


def arms(identities: Tensor) -> Arms:
    """Return the arms of demonstrators ``[T]``."""
    angle = 2 * math.pi * number_of(identities, 1)
    return Arms(
        1.3 * torch.stack([angle.cos(), angle.sin()], -1),
        1.1 + 0.5 * number_of(identities, 2),
        torch.where(number_of(identities, 3) < 0.5, -1.0, 1.0),
        0.05 + 0.05 * number_of(identities, 4),
        colour(number_of(identities, 5), 0.35, 0.5) + 0.35 * number_of(identities, 6)[:, None],
    )


def _elbow(shoulder: Tensor, hand: Tensor, arm: Arms) -> Tensor:
    """Return the position of the elbow between two links of equal length, which stretch if the hand is too far."""
    way = hand - shoulder
    length = way.norm(dim=-1, keepdim=True)
    height = ((arm.length[:, None, None] / 2) ** 2 - (length / 2) ** 2).clamp_min(0).sqrt()
    across = torch.stack([-way[..., 1], way[..., 0]], -1) / length
    elbow: Tensor = shoulder + way / 2 + arm.side[:, None, None] * height * across
    return elbow
