"""An unlimited few-shot image problem without a download: characters made of random strokes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ..task import Batch, Task

Split = Literal["train", "val", "test"]

MAX_STROKES = 4
CLASSES_PER_SPLIT = 2**28
_POINTS = 24  # per stroke: at most about one pen width apart, so that a stroke has no gaps


@dataclass(frozen=True)
class Strokes:
    """Few-shot classification of synthetic characters.

    A class is a random figure of one to four curved strokes (cubic Bezier curves). An image is one drawing of it: the
    control points are jittered, the figure is rotated, sheared, scaled and shifted a little, and the width of the pen
    varies. Each split has 2**28 classes, and no class is in two splits: a class is an integer, its remainder modulo 3
    is the split, and a hash of it gives the figure. Classes are drawn independently, so a task of w ways repeats a
    class with probability below w**2 / 2**29.

    Args:
        ways: number of classes of a task.
        shots, queries: number of support and query images of each class.
        size: height and width of an image.
        split: "train", "val" or "test".
        device: the device that renders images; random numbers are the same on every device.

    Raises:
        ValueError: a number is out of range, or the split is unknown.

    >>> tasks = Strokes(ways=5, shots=1).sample(2, torch.Generator().manual_seed(0))
    >>> tasks.support.x.shape
    torch.Size([2, 5, 1, 28, 28])
    """

    ways: int = 5
    shots: int = 1
    queries: int = 1
    size: int = 28
    split: Split = "train"
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, least in (("ways", 2), ("shots", 1), ("queries", 1), ("size", 8)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")
        if self.split not in get_args(Split):
            raise ValueError(f"split={self.split!r} must be one of {', '.join(get_args(Split))}")

    def identities(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw the classes of n tasks, int64 ``[n, ways]``; with the same generator state, those of `sample`."""
        index = torch.randint(CLASSES_PER_SPLIT, (n, self.ways), generator=generator)
        return 3 * index + get_args(Split).index(self.split)

    def sample(self, n: int, generator: torch.Generator) -> Task:
        """Draw ``n`` tasks: x float32 in [0, 1], ``[n, ways * shots, 1, size, size]``; y int64 in range(ways).

        Ink is 1. Examples are ordered shot by shot, as in `FewShot`.
        """
        control, present = figures(self.identities(n, generator))
        drawings = self.shots + self.queries
        control, width = _draw(control[:, None].expand(-1, drawings, -1, -1, -1, -1), generator)
        present = present[:, None].expand(-1, drawings, -1, -1)
        x = _render(control.to(self.device), present.to(self.device), width.to(self.device), self.size)
        y = torch.arange(self.ways, device=self.device).expand(n, drawings, self.ways)
        sets = [slice(None, self.shots), slice(self.shots, None)]
        support, query = (Batch(x[:, s].flatten(1, 2), y[:, s].flatten(1, 2)) for s in sets)
        return Task(support, query)


def figures(identities: Tensor) -> tuple[Tensor, Tensor]:
    """Return control points ``[..., 4 strokes, 4, 2]`` in [-1, 1] of classes, and which strokes exist, ``[..., 4]``."""
    uniform = _hash_uniform(identities, 2 + 7 * MAX_STROKES)
    size, amount = uniform[..., 0], uniform[..., 1]
    present = amount[..., None] >= torch.tensor([0.0, 0.1, 0.35, 0.7])  # 10 % have 1 stroke, 25 % 2, 35 % 3
    strokes: list[Tensor] = []
    for values in uniform[..., 2:].chunk(MAX_STROKES, -1):
        strokes.append(_stroke(values, strokes[-1] if strokes else None))
    control = torch.stack(strokes, -3)
    missing = ~present[..., None, None]
    low = control.masked_fill(missing, math.inf).amin((-3, -2), keepdim=True)
    high = control.masked_fill(missing, -math.inf).amax((-3, -2), keepdim=True)
    extent = (high - low).amax(-1, keepdim=True) / 2
    return (control - (low + high) / 2) / extent * (0.65 + 0.25 * size[..., None, None, None]), present


def _stroke(uniform: Tensor, previous: Tensor | None) -> Tensor:
    """Return a curve that starts anywhere, or more often on the previous stroke, and turns twice, ``[..., 4, 2]``."""
    start = 1.6 * uniform[..., :2] - 0.8
    if previous is not None:
        joint = (uniform[..., 2] * 7).long()
        on_previous = previous.gather(-2, (joint % 4)[..., None, None].expand(*joint.shape, 1, 2)).squeeze(-2)
        start = torch.where((joint < 4)[..., None], on_previous, start)
    # Cubing makes most turns slight and some sharp, which gives straight lines and hooks as well as arcs.
    turns = 4.0 * (2 * uniform[..., 3:5] - 1) ** 3
    heading = 2 * math.pi * uniform[..., 5:6]
    angle = torch.cat([heading, heading + turns.cumsum(-1)], -1)
    length = 0.25 + 0.45 * uniform[..., 6:7]
    legs = length[..., None] * torch.stack([angle.cos(), angle.sin()], -1)
    return torch.cat([start[..., None, :], start[..., None, :] + legs.cumsum(-2)], -2)


def _draw(control: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw each figure ``[..., 4, 4, 2]`` once; return control points and pen widths (standard deviations)."""
    control = control + 0.07 * torch.randn(control.shape, generator=generator)
    normal = torch.randn(*control.shape[:-3], 6, generator=generator).clamp(-2.5, 2.5)
    angle, shear, scale, shift = 0.2 * normal[..., 0], 0.15 * normal[..., 1], normal[..., 2:4], normal[..., 4:]
    cos, sin = angle.cos(), angle.sin()
    turn = torch.stack([torch.stack([cos, shear - sin], -1), torch.stack([sin, cos], -1)], -2)
    affine = turn * (0.12 * scale).exp()[..., None]
    control = control @ affine.mT[..., None, :, :] + 0.09 * shift[..., None, None, :]
    return control, 0.035 + 0.025 * torch.rand(control.shape[:-3], generator=generator)


def _render(control: Tensor, present: Tensor, width: Tensor, size: int) -> Tensor:
    """Render cubic Bezier strokes ``[..., strokes, 4, 2]`` that are present as ink, ``[..., 1, size, size]``."""
    t = (torch.arange(_POINTS, device=control.device)[:, None] + 0.5) / _POINTS
    ends = torch.tensor([0, 1, 2, 3], device=control.device)
    basis = torch.tensor([1.0, 3.0, 3.0, 1.0], device=control.device) * t**ends * (1 - t) ** (3 - ends)
    slope = torch.tensor([1.0, 2.0, 1.0], device=control.device) * t ** ends[:3] * (1 - t) ** (2 - ends[:3])
    points = (basis @ control).flatten(-3, -2)
    speed = (3 * slope @ control.diff(dim=-2)).norm(dim=-1)
    return ink(points, (speed * present[..., None]).flatten(-2) / _POINTS, width, size)


def ink(points: Tensor, arc: Tensor, width: Tensor, size: int) -> Tensor:
    """Render drawings ``[..., 1, size, size]``, in [0, 1], as sums of Gaussian splats along their lines.

    A splat is separable, so the sum over the points of a drawing is one matrix product of its rows and columns.

    Args:
        points: points on the lines, ``[..., P, 2]``, with x to the right and y down; the image shows [-1.1, 1.1].
        arc: the length of line around each point, ``[..., P]``; a long straight line has a Gaussian profile of height
            1 before the ink saturates.
        width: the width of the pen, a standard deviation, ``[...]``.
        size: height and width of the image.
    """
    weight = arc / (width[..., None] * math.sqrt(2 * math.pi))
    pixels = (torch.arange(size, device=points.device) + 0.5) * (2.2 / size) - 1.1
    splats = torch.exp(-0.5 * ((points[..., None] - pixels) / width[..., None, None, None]) ** 2)
    columns, rows = splats.unbind(-2)
    return 1 - torch.exp(-4 * (rows * weight[..., None]).mT @ columns)[..., None, :, :]


def _hash_uniform(identities: Tensor, count: int) -> Tensor:
    """Hash each integer to ``count`` numbers in [0, 1), ``[..., count]``, which define the figure of a class."""
    stream = torch.arange(1, count + 1) * 0x9E3779B9
    return (_mix(_mix(identities)[..., None] + stream) >> 8).float() / 2**24


def _mix(x: Tensor) -> Tensor:
    """Scatter 32-bit integers by a bijection (xorshift-multiply, two rounds)."""
    x = x & 0xFFFFFFFF
    for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF  # both factors are below 2**31: no overflow in int64
    return x ^ (x >> 15)
