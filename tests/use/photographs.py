"""Drawings, photographed as a phone would: large, askew, in uneven light, on paper that is not white."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Stroke = list[tuple[float, float]]

CIRCLE: list[Stroke] = [[(0.5 + 0.4 * math.cos(t / 10), 0.5 + 0.4 * math.sin(t / 10)) for t in range(64)]]
CROSS: list[Stroke] = [[(0.1, 0.1), (0.9, 0.9)], [(0.9, 0.1), (0.1, 0.9)]]
TRIANGLE: list[Stroke] = [[(0.5, 0.1), (0.9, 0.85), (0.1, 0.85), (0.5, 0.1)]]
ZIGZAG: list[Stroke] = [[(0.1, 0.15), (0.9, 0.15), (0.1, 0.85), (0.9, 0.85)]]
TEE: list[Stroke] = [[(0.1, 0.1), (0.9, 0.1)], [(0.5, 0.1), (0.5, 0.9)]]
DEE: list[Stroke] = [*CIRCLE, [(0.5, 0.1), (0.5, 0.9)]]
BAR: list[Stroke] = [[(0.1, 0.5), (0.9, 0.5)]]
FIGURES = {"circle": CIRCLE, "cross": CROSS, "triangle": TRIANGLE, "zigzag": ZIGZAG, "tee": TEE}
SEVEN = {**FIGURES, "dee": DEE, "bar": BAR}


def photograph(
    figure: list[Stroke], seed: int, size: tuple[int, int] = (1000, 750), pen: int = 10, askew: float = 1.0
) -> Any:
    """An RGB image of one drawing of a figure, whose points are in [0, 1]; at 0 it is not askew, and drawn exactly."""
    random, (width, height) = np.random.default_rng(seed), size
    page = Image.new("L", size, 255)
    draw = ImageDraw.Draw(page)
    side, angle = min(size) * random.uniform(0.35, 0.6), askew * random.uniform(-0.15, 0.15)
    middle = width * random.uniform(0.4, 0.6), height * random.uniform(0.4, 0.6)
    for stroke in figure:
        jittered = [(x + askew * random.normal(0, 0.01), y + askew * random.normal(0, 0.01)) for x, y in stroke]
        draw.line(
            [_placed(x - 0.5, y - 0.5, side, angle, middle) for x, y in jittered], fill=0, width=pen, joint="curve"
        )
    ink = np.asarray(page.filter(ImageFilter.GaussianBlur(2)), dtype=np.float32) / 255
    y, x = np.mgrid[0:height, 0:width] / max(size)
    light = 0.6 + random.uniform(0.05, 0.3) * x + random.uniform(0.05, 0.3) * y
    grey = (0.75 * ink + 0.2) * light + random.normal(0, 0.015, ink.shape)
    colours = np.stack([grey, 0.97 * grey, 0.9 * grey], -1).clip(0, 1)
    return Image.fromarray((255 * colours).astype(np.uint8))


def _placed(x: float, y: float, side: float, angle: float, middle: tuple[float, float]) -> tuple[float, float]:
    return (
        side * (x * math.cos(angle) - y * math.sin(angle)) + middle[0],
        side * (x * math.sin(angle) + y * math.cos(angle)) + middle[1],
    )


def encoded(image: Any, form: str = "JPEG", **options: Any) -> bytes:
    """As the content of a file."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def write(mine: str, new: str, figures: dict[str, list[Stroke]] = FIGURES) -> None:
    """Two photographs of each figure in a folder of its own, and one more of each in another folder."""
    for number, (name, figure) in enumerate(figures.items()):
        for seed, path in enumerate((f"{mine}/{name}/1.jpg", f"{mine}/{name}/2.jpg", f"{new}/{name}.jpg")):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_bytes(encoded(photograph(figure, 10 * number + seed)))
