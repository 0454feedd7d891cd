"""The parts of interactive figures: curves of runs, bands, and frames for sliders."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .series import COLORS, finite_mean, smooth, usual_window

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Trace = dict[str, Any]
"""A plotly trace as plain JSON values."""
POINTS = 1_000
"""The largest number of points of a curve; longer series are averaged over stretches."""
LOGARITHMIC = 100
FEW = 20
"""Curves with fewer points have markers, because a single point would not be visible."""
DASHES = ("solid", "dash", "dot", "dashdot")
SHADES = COLORS[:-1]
"""The colors of runs, without black, which would not be visible on a dark page."""
LIGHT = ("#0072b2", "#c24a00", "#00805d", "#b0558a", "#946200", "#2a7fb0")
"""The same colors for a light page, dark enough for a contrast of 3."""


@dataclass(frozen=True)
class Interactive:
    """A figure of the page.

    Attributes:
        figure: a plotly figure, with a frame for each position of its slider, if it has one.
        title: the title.
        about: how to read the figure, in a sentence or two: units, smoothing, the meaning of bands.
        slider: the label of the slider; empty if there is none.
        start: the initial position of the slider.
        started: the description of the initial position.
        own_legend: whether it needs its own legend, because its curves are not runs; the page has a legend of runs.
    """

    figure: Figure
    title: str
    about: str
    slider: str = ""
    start: int = 0
    started: str = ""
    own_legend: bool = False


def new_figure(traces: Sequence[Trace] = (), x: str = "outer iteration", y: str = "", **layout: Any) -> Figure:
    """Create a figure with titles of its axes, but without colors, which the page sets.

    Raises:
        ImportError: plotly is missing; the message names the extra.
    """
    try:
        import plotly.graph_objects as go
    except ImportError as error:
        raise ImportError("a report needs plotly: pip install 'innerloop[report]'") from error
    plain = {
        "template": None,
        "margin": {"l": 60, "r": 10, "t": 10, "b": 50},
        "height": 380,
        "hovermode": "closest",
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0, "xanchor": "left"},
        "xaxis": {"title": {"text": x}, "automargin": True, "zeroline": False},
        "yaxis": {"title": {"text": y}, "automargin": True, "zeroline": False},
    }
    return go.Figure(list(traces), plain).update_layout(**layout)


def curve(x: Sequence[Any], y: Sequence[Any], name: str, index: int, width: float = 2, **more: Any) -> Trace:
    """Return a curve in its run's color; a click on its name hides all curves of that run."""
    style = {
        "line": {"color": shade(index), "dash": dash(index), "width": width},
        "name": name,
        "legendgroup": str(index),
    }
    mode = "lines+markers" if len(x) < FEW else "lines"
    return {"type": "scatter", "mode": mode, "x": list(x), "y": [short(v) for v in y], **style, **more}


def raw(x: Sequence[int], y: Sequence[float], name: str, index: int) -> Trace:
    """Return the raw curve behind a smoothed one."""
    return curve(x, y, name, index, 1, mode="lines", opacity=0.3, hoverinfo="skip", showlegend=False)


def raw_and_smooth(x: Sequence[int], y: Sequence[float], name: str, index: int) -> tuple[list[Trace], int]:
    """Return both curves, and the smoothing window."""
    window = usual_window(len(y))
    under = [raw(x, y, name, index)] if window > 1 else []
    return [*under, curve(x, smooth(y, window), name, index, 2.5)], window


def band(
    x: Sequence[int], y: Sequence[float], low: Sequence[float], high: Sequence[float], name: str, index: int, at: str
) -> list[Trace]:
    """Return a curve with a band; ``at`` is the label of x."""
    red, green, blue = (int(shade(index)[i : i + 2], 16) for i in (1, 3, 5))
    area = {
        "mode": "lines",
        "fill": "toself",
        "fillcolor": f"rgba({red},{green},{blue},0.18)",
        "hoverinfo": "skip",
        "showlegend": False,
    }
    return [
        curve([*x, *reversed(x)], [*low, *reversed(high)], name, index, 0, **area),
        curve(x, y, name, index, hovertemplate=f"{at} %{{x:,}}: %{{y:.4g}}"),
    ]


def interval(
    x: Sequence[int], y: Sequence[float], half: Sequence[float], name: str, index: int, at: str
) -> list[Trace]:
    """Return a curve with a band of half-width ``half``."""
    low, high = ([value + sign * width for value, width in zip(y, half, strict=True)] for sign in (-1, 1))
    return band(x, y, low, high, name, index, at)


def with_frames(figure: Figure, frames: Sequence[tuple[str, Sequence[Trace]]]) -> Figure:
    """Add a frame for each position of the slider: its name, and all traces at that position."""
    import plotly.graph_objects as go

    kept = ("type", "x", "y", "text")  # only what changes, to keep the page small
    figure.frames = [
        go.Frame(name=name, data=[{key: trace[key] for key in kept if key in trace} for trace in traces])
        for name, traces in frames
    ]
    return figure


def shade(index: int) -> str:
    """Return the color of a run."""
    return SHADES[index % len(SHADES)]


def dash(index: int) -> str:
    """Return the line style of a run, so that a few runs differ in more than their color."""
    return DASHES[index // 3 % len(DASHES)]


def thinned(x: Sequence[int], y: Sequence[float], most: int = POINTS) -> tuple[list[int], list[float], int]:
    """Thin a series to at most ``most`` points, each the mean of a stretch at its end; also return its length."""
    each = max(1, -(-len(y) // most))
    stretches = [slice(i, i + each) for i in range(0, len(y), each)]
    return [x[stretch][-1] for stretch in stretches], [finite_mean(y[stretch]) for stretch in stretches], each


def axis_of(traces: Iterable[Trace]) -> dict[str, Any]:
    """Return an axis whose range covers all values, so that slider positions can be compared.

    The axis is logarithmic if the values are positive and of very different sizes.
    """
    values = [value for trace in traces for value in trace["y"] if value is not None]
    low, high = min(values, default=0.0), max(values, default=1.0)
    if low > 0 and high > LOGARITHMIC * low:
        return {"type": "log", "range": [math.log10(low) - 0.1, math.log10(high) + 0.1], "dtick": 1}
    margin = 0.05 * (high - low) or 0.1
    return {"range": [low - margin, high + margin]}


def short(value: float | None) -> float | None:
    """Round to five digits, more than a screen can show; return None for values that are not finite."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.5g}")
