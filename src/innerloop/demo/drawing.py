"""Render hand drawings as images like those that a model was meta-trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..data.strokes import ink

Point = Sequence[float]
Drawing = Sequence[Sequence[Point]]
"""Strokes, each of points ``(x, y)`` in [0, 1], x to the right and y downwards."""

EXTENT = 0.75
"""Half the larger side of a figure, in an image that shows [-1.1, 1.1]: the median of the drawings of `Strokes`, whose
5th and 95th percentiles are 0.55 and 1.01. Omniglot's median is 0.70."""
WIDTH = 0.0475
"""The standard deviation of the pen: the middle of the range of `Strokes`."""
SMALLEST = 0.04
"""Half the larger side, in canvases, of the smallest figure that is magnified to `EXTENT`; smaller ones remain dots."""
_POINTS = 512  # the most per stroke: enough for five times across the image without a gap


def render(drawing: Drawing, size: int) -> Tensor:
    """Render a drawing as an image, float32 in [0, 1] (ink is 1), ``[1, size, size]``.

    The figure is centered and magnified, so its place and size in the drawing do not matter.

    Args:
        drawing: at least one stroke, each of at least one point.
        size: height and width of the image.
    """
    lines = [torch.tensor(stroke, dtype=torch.float32) for stroke in drawing]
    every = torch.cat(lines)
    low, high = every.amin(0), every.amax(0)
    scale = EXTENT / ((high - low).amax() / 2).clamp(min=SMALLEST)
    points, arc = zip(*(_evenly((line - (low + high) / 2) * scale) for line in lines), strict=True)
    return ink(torch.cat(points), torch.cat(arc), torch.tensor(WIDTH), size)


def _evenly(line: Tensor) -> tuple[Tensor, Tensor]:
    """Return points at even distances along a line ``[P, 2]``, and the length that each represents."""
    lengths = line.diff(dim=0).norm(dim=-1)
    ends = lengths.cumsum(0)
    total = float(ends[-1]) if len(ends) else 0.0
    # A stroke has at least the ink of one dot of the pen: a splat of height 1.
    inked = max(total, WIDTH * math.sqrt(2 * math.pi))
    if total == 0:
        return line[:1], torch.tensor([inked])
    number = min(math.ceil(total / (WIDTH / 2)), _POINTS)
    at = (torch.arange(number) + 0.5) * (total / number)
    leg = torch.searchsorted(ends, at).clamp(max=len(ends) - 1)
    part = ((at - ends[leg] + lengths[leg]) / lengths[leg].clamp(min=1e-9)).clamp(0, 1)
    return torch.lerp(line[leg], line[leg + 1], part[:, None]), torch.full((number,), inked / number)
