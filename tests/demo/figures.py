"""Figures drawn as by hand: each time of another place, size and slant, and with an unsteady hand."""

from __future__ import annotations

import math
import random
from itertools import pairwise

Figure = list[list[tuple[float, float]]]


def _arc(
    x: float, y: float, rx: float, ry: float, start: float, turn: float, radius: float = 1.0
) -> list[tuple[float, float]]:
    """From one angle (in turns) on, by so many turns, ending at ``radius`` times the first."""
    steps = 40
    parts = [i / steps for i in range(steps + 1)]
    return [
        (
            x + rx * (1 + (radius - 1) * p) * math.cos(2 * math.pi * (start + turn * p)),
            y + ry * (1 + (radius - 1) * p) * math.sin(2 * math.pi * (start + turn * p)),
        )
        for p in parts
    ]


FIGURES: dict[str, Figure] = {
    "circle": [_arc(0, 0, 0.9, 0.9, 0.75, 1)],
    "cross": [[(-0.8, -0.8), (0.8, 0.8)], [(0.8, -0.8), (-0.8, 0.8)]],
    "plus": [[(0, -0.9), (0, 0.9)], [(-0.9, 0), (0.9, 0)]],
    "triangle": [[(0, -0.9), (0.9, 0.8), (-0.9, 0.8), (0, -0.9)]],
    "square": [[(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8), (-0.8, -0.8)]],
    "zigzag": [[(-0.9, 0.5), (-0.45, -0.5), (0, 0.5), (0.45, -0.5), (0.9, 0.5)]],
    "spiral": [_arc(0, 0, 0.12, 0.12, 0, 2.5, 7.5)],
    "wave": [[(-0.9 + 1.8 * p / 40, 0.4 * math.sin(4 * math.pi * p / 40)) for p in range(41)]],
    "A": [[(-0.7, 0.9), (0, -0.9), (0.7, 0.9)], [(-0.4, 0.25), (0.4, 0.25)]],
    "E": [[(0.6, -0.9), (-0.6, -0.9), (-0.6, 0.9), (0.6, 0.9)], [(-0.6, 0), (0.4, 0)]],
    "H": [[(-0.6, -0.9), (-0.6, 0.9)], [(0.6, -0.9), (0.6, 0.9)], [(-0.6, 0), (0.6, 0)]],
    "L": [[(-0.5, -0.9), (-0.5, 0.9), (0.6, 0.9)]],
    "S": [_arc(0, -0.45, 0.55, 0.45, 0.95, -0.7) + _arc(0, 0.45, 0.55, 0.45, 0.75, 0.7)],
    "T": [[(-0.8, -0.9), (0.8, -0.9)], [(0, -0.9), (0, 0.9)]],
    "V": [[(-0.7, -0.9), (0, 0.9), (0.7, -0.9)]],
}

CASES: list[tuple[list[str], str]] = [
    (["circle", "cross", "triangle"], "cross"),
    (["circle", "zigzag", "spiral"], "spiral"),
    (["square", "plus", "wave"], "plus"),
    (["A", "E", "S"], "S"),
    (["H", "T", "L", "circle"], "H"),
    (["cross", "zigzag", "triangle", "V"], "triangle"),
    (["spiral", "square", "S", "plus"], "square"),
    (["A", "E", "L", "S", "T"], "L"),
    (["circle", "cross", "triangle", "zigzag", "spiral"], "circle"),
    (["V", "H", "wave", "square", "E"], "wave"),
]
"""Characters that are drawn once each, and which of them is drawn again."""


def drawn(name: str, rng: random.Random) -> Figure:
    """A figure as somebody may draw it, points in [0, 1]."""
    size, slant, turn = rng.uniform(0.2, 0.38), rng.gauss(0, 0.12), rng.gauss(0, 0.1)
    wide = math.exp(rng.gauss(0, 0.1))
    x0, y0 = (rng.uniform(size + 0.08, 0.92 - size) for _ in range(2))
    shaky = [(rng.gauss(0, 0.04), rng.gauss(0, 0.04), rng.uniform(1, 3), rng.uniform(0, 6)) for _ in range(2)]

    def placed(x: float, y: float) -> tuple[float, float]:
        x, y = (v + dv for v, dv in zip((x, y), _wobble(x, y, shaky), strict=True))
        x, y = wide * (x + slant * y), y / wide
        x, y = x * math.cos(turn) - y * math.sin(turn), x * math.sin(turn) + y * math.cos(turn)
        return min(max(x0 + size * x, 0), 1), min(max(y0 + size * y, 0), 1)

    return [[placed(*point) for point in _finely(stroke)] for stroke in FIGURES[name]]


def _wobble(x: float, y: float, shaky: list[tuple[float, float, float, float]]) -> tuple[float, float]:
    a, b = (math.sin(f * (x if i else y) + phase) for i, (_, _, f, phase) in enumerate(shaky))
    return shaky[0][0] * a + shaky[1][0] * b, shaky[0][1] * a + shaky[1][1] * b


def _finely(stroke: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Straight legs as a pointer reports them, point after point."""
    points = [stroke[0]]
    for (x, y), (u, v) in pairwise(stroke):
        number = max(1, math.ceil(math.dist((x, y), (u, v)) / 0.2))
        points += [(x + (u - x) * i / number, y + (v - y) * i / number) for i in range(1, number + 1)]
    return points
