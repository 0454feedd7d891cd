"""A figure of the examples of an adapted classifier, and of its predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..common.streams import shown
from ..report.figures import new_figure

if TYPE_CHECKING:
    from .adapting import Adaptation, Predictions

MOST, ACROSS = 40, 8
"""The largest number of examples, and of new pictures, that are drawn; and how many are in a row."""


def figure(adaptation: Adaptation | None, predictions: Predictions | None) -> Any:
    """Draw a matplotlib figure of the examples by class, and of new pictures with their most probable class.

    Raises:
        ImportError: matplotlib is not installed.
    """
    tiles: list[tuple[str, list[tuple[Tensor, str, str]]]] = []
    if adaptation is not None:
        examples = sorted(zip(adaptation.labels, adaptation.support.x, strict=True), key=lambda pair: pair[0])
        tiles.append(("adapted to", [(picture, shown(label), "black") for label, picture in examples]))
    if predictions is not None:
        tiles.append(("predicted", _predicted(predictions)))
    rows = [(_titled(title, every), part) for title, every in tiles for part in _rows(every[:MOST])]
    whole = new_figure(1.3 * ACROSS, 1.65 * len(rows))
    axes = whole.subplots(len(rows), ACROSS, squeeze=False)
    for line, (title, part) in zip(axes, rows, strict=True):
        for axis in line:
            axis.set_axis_off()
        for axis, (picture, text, color) in zip(line, part, strict=False):
            axis.imshow(picture.movedim(0, -1).squeeze(-1), cmap="gray", vmin=0, vmax=1)
            axis.set_title(text, fontsize=8, color=color, parse_math=False)
        line[0].text(-0.12, 0.5, title, rotation=90, va="center", ha="right", transform=line[0].transAxes, fontsize=8)
    return whole


def _titled(title: str, tiles: Sequence[Any]) -> str:
    return title if len(tiles) <= MOST else f"{title},\n{MOST} of {len(tiles)}"


def _predicted(predictions: Predictions) -> list[tuple[Tensor, str, str]]:
    pictures, truth = predictions.pictures, predictions.truth or predictions.predicted
    probabilities = predictions.probabilities.max(1).values.tolist()
    return [
        (
            picture,
            f"{shown(name)[-16:]}\n{shown(label)} {100 * probability:.0f} %",
            "black" if right == label else "firebrick",
        )
        for picture, name, label, probability, right in zip(
            pictures.x, pictures.names, predictions.predicted, probabilities, truth, strict=True
        )
    ]


def _rows(tiles: Sequence[Any]) -> list[Sequence[Any]]:
    return [tiles[start : start + ACROSS] for start in range(0, len(tiles), ACROSS)]
