"""Draw shapes into batches of images.

Lengths are in half widths of the image, with x to the right and y down. Edges are one pixel wide.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SHAPES = 5
"""The number of shapes: a disc, a square, a diamond, a ring, a cross."""


def grid(size: int) -> Tensor:
    """Return the centers of the pixels of an image, ``[size, size, 2]``."""
    middle = (torch.arange(size) + 0.5) * 2 / size - 1
    return torch.stack(torch.meshgrid(middle, middle, indexing="xy"), -1)


def colour(hue: Tensor, saturation: float = 0.9, value: float = 0.95) -> Tensor:
    """Return red, green and blue of hues, ``[..., 3]``."""
    offset = torch.tensor([0.0, 2 / 3, 1 / 3])
    wave = (torch.frac(hue[..., None] + offset) * 6 - 3).abs() - 1
    return value * (1 - saturation + saturation * wave.clamp(0, 1))


def paint(picture: Tensor, outside: Tensor, colour: Tensor) -> Tensor:
    """Paint a color ``[T, F, 3]`` into images ``[T, F, 3, size, size]`` inside a shape.

    Inside the shape, the distance ``[T, F, size, size]`` from its edge is negative.
    """
    covered = torch.sigmoid(-outside * picture.shape[-1])[:, :, None]
    return picture * (1 - covered) + colour[..., None, None] * covered


def to_bytes(picture: Tensor) -> Tensor:
    """Convert values in [0, 1] to uint8."""
    return (picture.clamp(0, 1) * 255).round().to(torch.uint8)


def clouds(n: int, size: int, generator: torch.Generator) -> Tensor:
    """Draw smooth random images in [0, 1], ``[n, 3, size, size]``."""
    coarse = torch.rand(n, 3, 4, 4, generator=generator)
    return F.interpolate(coarse, size, mode="bilinear", align_corners=True)


def from_segment(points: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return distances ``[T, F, size, size]`` of points ``[T, F, size, size, 2]`` from segments ab, ``[T, F, 2]``."""
    a, way = a[:, :, None, None], (b - a)[:, :, None, None]
    part = ((points - a) * way).sum(-1, keepdim=True) / way.square().sum(-1, keepdim=True)
    distance: Tensor = (points - a - part.clamp(0, 1) * way).norm(dim=-1)
    return distance


def from_shape(points: Tensor, shape: Tensor, radius: float) -> Tensor:
    """Return distances ``[T, F, size, size]``, negative inside, from the edges of shapes ``[T]`` around the origin."""
    x, y = points.abs().unbind(-1)
    middle = points.norm(dim=-1)
    bars = (torch.maximum(x - radius, y - radius / 3), torch.maximum(x - radius / 3, y - radius))
    kinds = torch.stack(
        [
            middle - radius,
            torch.maximum(x, y) - 0.85 * radius,
            x + y - 1.2 * radius,
            (middle - 0.7 * radius).abs() - 0.3 * radius,
            torch.minimum(*bars),
        ]
    )
    return kinds.gather(0, shape.view(1, -1, 1, 1, 1).expand(1, *middle.shape))[0]
