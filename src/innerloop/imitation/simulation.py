"""Simulation of a table in MuJoCo: objects that slide, an arm with a finger, and a camera."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..rl.simulator import mujoco_for, renderer
from .drawing import colour
from .environments import hues, number_of

CONTROL, PHYSICS = 10, 0.01
"""The number of physics steps in a step of the robot, and their length in seconds."""
STRIDE = 0.08
"""The largest distance that a fingertip moves in a step."""
FINGER = 0.025
"""Half the width of the finger."""
SHAPES = 4
"""The number of shapes of an object, of which some are visible: a cylinder, a box, two bars."""
PARTS = ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 1))
"""The visible shapes, which the finger also touches, of each kind of object: a cylinder, a box, a cross."""
HALF = 0.085
"""Half the width of an object."""
HEIGHT = 0.25
"""The height of the links above the table."""
TILES = 5
"""The number of tiles along each side of the table."""
SMOOTH = 2
"""The number of rendered pixels along each side of an image pixel."""
ROBOT, OTHER = ((0.0, -1.0), (0.85, 0.85)), ((0.85, -0.9), (0.65, 0.65, 0.6))
"""The base of the robot's arm and of the demonstrator's, and the lengths of the links."""


def _shapes() -> str:
    """Return the XML of all shapes that an object can have."""
    third = HALF / 2.5
    return (
        f'<geom type="cylinder" size="{HALF} 0.05"/><geom type="box" size="{0.9 * HALF} {0.9 * HALF} 0.05"/>'
        f'<geom type="box" size="{HALF} {third} 0.05"/><geom type="box" size="{third} {HALF} 0.05"/>'
    )


def _arm(base: tuple[float, float], links: tuple[float, ...]) -> str:
    """Return the XML of links that turn about vertical axes, with a finger that points down from the last."""
    inner = f'<geom class="finger" fromto="0 0 0 0 0 {0.03 - HEIGHT}"/><site name="tip" pos="0 0 {0.03 - HEIGHT}"/>'
    for number, length in reversed(list(enumerate(links))):
        at = f"{base[0]} {base[1]} {HEIGHT}" if number == 0 else f"{links[number - 1]} 0 0"
        end = f'<body pos="{length} 0 0">{inner}</body>' if number == len(links) - 1 else inner
        inner = (
            f'<body name="link{number}" pos="{at}"><joint name="turn{number}" class="turn"/>'
            f'<geom class="link" fromto="0 0 0 {length} 0 0"/>{end}</body>'
        )
    return inner


def _xml(number: int, base: tuple[float, float], links: tuple[float, ...]) -> str:
    """Return the XML of a table: tiles, then objects, then an arm."""
    side = 1.3 / TILES
    tiles = "".join(
        f'<geom class="tile" pos="{side * (i - (TILES - 1) / 2)} {side * (j - (TILES - 1) / 2)} -0.01" '
        f'size="{side / 2} {side / 2} 0.01"/>'
        for i in range(TILES)
        for j in range(TILES)
    )
    objects = "".join(
        f'<body name="object{k}" pos="0 0 0.055"><joint class="slide" axis="1 0 0"/><joint class="slide" axis="0 1 0"/>'
        f"{_shapes()}</body>"
        for k in range(number)
    )
    turns = "".join(f'<velocity joint="turn{k}" kv="200"/>' for k in range(len(links)))
    return f"""<mujoco>
<option timestep="{PHYSICS}" integrator="implicitfast" gravity="0 0 0"/>
<visual>
  <headlight ambient="0.45 0.45 0.45" diffuse="0.35 0.35 0.35" specular="0 0 0"/>
  <quality offsamples="0"/>
</visual>
<default>
  <default class="tile"><geom type="box" contype="0" conaffinity="0"/></default>
  <default class="turn"><joint type="hinge" axis="0 0 1" armature="0.1" damping="0.1"/></default>
  <default class="slide"><joint type="slide" damping="3" frictionloss="0.3"/></default>
  <default class="link"><geom type="capsule" size="0.03" contype="0" conaffinity="0"/></default>
  <default class="finger"><geom type="capsule" size="{FINGER}"/></default>
</default>
<worldbody>
  <light name="lamp" pos="0 0 2" dir="0 0 -1" castshadow="false"/>
  {tiles}{objects}{_arm(base, links)}
</worldbody>
<actuator>{turns}</actuator>
</mujoco>"""


class Looks(NamedTuple):
    """The appearance of a table.

    Attributes:
        tiles: the colors of the tiles, ``[TILES ** 2, 3]``.
        arm: the color of the arm, ``[3]``.
        width: the width of its links.
        lamp: the brightness of the lamp, in [0, 1].
        azimuth, elevation, distance: the camera's position around ``middle``, in degrees and meters.
        middle: the point that the camera looks at.
    """

    tiles: Tensor
    arm: Tensor
    width: float = 0.03
    lamp: float = 0.5
    azimuth: float = 90.0
    elevation: float = -60.0
    distance: float = 1.4
    middle: tuple[float, float] = (0.0, 0.05)


def robots() -> Looks:
    """Return the appearance that a robot sees: a gray table and its own arm."""
    return Looks(torch.full((TILES**2, 3), 0.35), torch.tensor([0.75, 0.75, 0.8]))


def somebodys(demonstrator: int, generator: torch.Generator) -> Looks:
    """Return the appearance of a demonstration: the demonstrator's arm, and a random table, light and camera."""
    who = torch.tensor([demonstrator])
    arm = colour(number_of(who, 5), 0.4, 0.6) + 0.3 * number_of(who, 6)[:, None]
    lamp, azimuth, elevation, distance, *middle = torch.rand(6, generator=generator).tolist()
    return Looks(
        0.15 + 0.35 * torch.rand(TILES**2, 3, generator=generator), arm[0], 0.02 + 0.03 * float(number_of(who, 4)),
        0.3 + 0.5 * lamp, 70 + 40 * azimuth, -65 + 20 * elevation, 1.4 + 0.3 * distance,
        (0.1 * middle[0] - 0.05, 0.1 * middle[1]),
    )  # fmt: skip


class Stage:
    """A MuJoCo model of a table with N objects and the robot's or the demonstrator's arm, with its renderers.

    Args:
        objects: the number N of objects.
        other: whether the arm is the demonstrator's.

    Raises:
        ImportError: MuJoCo is not installed.
    """

    def __init__(self, objects: int, other: bool) -> None:
        self.mujoco, self.objects = mujoco_for("the table"), objects
        self.model = self.mujoco.MjModel.from_xml_string(_xml(objects, *(OTHER if other else ROBOT)))
        self._renderers: dict[int, Any] = {}

    def picture(self, body: Simulation, size: int) -> Tensor:
        """Render the present state of a table, uint8 ``[3, size, size]``.

        Raises:
            RuntimeError: this machine cannot render; the message says what may help.
        """
        self._paint(body)
        camera, looks = self.mujoco.MjvCamera(), body.looks
        camera.azimuth, camera.elevation, camera.distance = looks.azimuth, looks.elevation, looks.distance
        camera.lookat[:] = (*looks.middle, 0.0)
        if size not in self._renderers:
            self._renderers[size] = renderer(self.model, SMOOTH * size, SMOOTH * size)
        self._renderers[size].update_scene(body.data, camera)
        fine = torch.from_numpy(self._renderers[size].render().copy()).movedim(-1, 0).float()
        return F.avg_pool2d(fine, SMOOTH).round().to(torch.uint8)

    def _paint(self, body: Simulation) -> None:
        """Give the model, which all tables share, the appearance of one table."""
        colours, width, last = self.model.geom_rgba, self.model.geom_size, TILES**2
        colours[:last, :3] = body.looks.tiles.numpy()
        for number in range(self.objects):
            own = slice(last + SHAPES * number, last + SHAPES * (number + 1))
            colours[own, :3] = body.colours[number].numpy()
            colours[own, 3] = body.present[number].numpy()
        arm = slice(last + SHAPES * self.objects, None)
        colours[arm, :3] = body.looks.arm.numpy()
        width[arm, 0] = body.looks.width
        colours[-1, :3] = 0.5 * colours[-1, :3]  # the finger
        width[-1, 0] = FINGER
        self.model.light_diffuse[0] = body.looks.lamp

    def touch(self, body: Simulation) -> None:
        """Enable contacts of the shapes that this table's objects show, and no others."""
        last = TILES**2
        flat = (body.present * body.solid).flatten().numpy()
        for field in (self.model.geom_contype, self.model.geom_conaffinity):
            field[last : last + len(flat)] = flat


@lru_cache(maxsize=8)
def stage(objects: int, other: bool) -> Stage:
    """Return the stage of this kind, which is made once."""
    return Stage(objects, other)


class Simulation:
    """One table with its objects and an arm.

    Args:
        stage: the stage with its model.
        objects: the identities of the objects, ``[N]``.
        places: the places of the objects, ``[N, 2]``.
        tip: the initial place of the fingertip, ``[2]``.
        looks: the appearance of the table.
        solid: whether the finger moves objects; otherwise it passes over them.
    """

    def __init__(
        self, stage: Stage, objects: Tensor, places: Tensor, tip: Tensor, looks: Looks, solid: bool = True
    ) -> None:
        self.stage, self.looks, self.begun, self.solid = stage, looks, places, solid
        self.colours, self.present = colour(hues(objects)), torch.tensor(PARTS)[objects % len(PARTS)]
        self.data = stage.mujoco.MjData(stage.model)
        self._slides = 2 * len(objects)
        self.data.qpos[: self._slides] = places.flatten().numpy()
        self._place(tip.double())

    def _place(self, tip: Tensor) -> None:
        """Turn the joints until the fingertip is at a place."""
        joints, model = self.data.qpos[self._slides :], self.stage.model
        joints[:] = [math.pi / 2 + 0.8, *[-1.2] * (len(joints) - 1)]
        for _ in range(100):
            self.stage.mujoco.mj_forward(model, self.data)
            joints += self._turn(0.3 * (tip - self._tip))
        self.stage.mujoco.mj_forward(model, self.data)

    def _turn(self, way: Tensor) -> Any:
        """Return the smallest turns of the joints that move the fingertip by a vector."""
        import numpy

        jacobian = numpy.zeros((3, self.stage.model.nv))
        self.stage.mujoco.mj_jacSite(self.stage.model, self.data, jacobian, None, 0)
        wide = torch.from_numpy(jacobian[:2, self._slides :])
        return (wide.T @ torch.linalg.solve(wide @ wide.T + 1e-4 * torch.eye(2, dtype=torch.float64), way)).numpy()

    @property
    def _tip(self) -> Tensor:
        return torch.from_numpy(self.data.site_xpos[0, :2].copy())

    @property
    def tip(self) -> Tensor:
        """The place of the fingertip, ``[2]``."""
        return self._tip.float()

    @property
    def places(self) -> Tensor:
        """The places of the objects, ``[N, 2]``."""
        return torch.from_numpy(self.data.qpos[: self._slides].copy()).float().view(-1, 2)

    @property
    def state(self) -> Tensor:
        """The angles of the last two joints and the place of the fingertip, ``[4]``."""
        return torch.cat([torch.from_numpy(self.data.qpos[-2:].copy()).float(), self.tip])

    def move(self, action: Tensor) -> None:
        """Take a step with an action in strides; longer ones are shortened to 1."""
        stride = STRIDE * action.double() / max(1.0, float(action.norm()))
        self.stage.touch(self)
        for _ in range(CONTROL):
            self.data.ctrl[:] = self._turn(stride) / (CONTROL * PHYSICS)
            self.stage.mujoco.mj_step(self.stage.model, self.data)
        self.stage.mujoco.mj_forward(self.stage.model, self.data)  # a step leaves the places from its start

    def picture(self, size: int) -> Tensor:
        """Render the table; see `Stage.picture`."""
        return self.stage.picture(self, size)
