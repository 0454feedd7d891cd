"""What interactive figures are made of: curves of runs, bands, and frames for sliders."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .series import COLOURS, finite_mean, smooth, usual_window

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Trace = dict[str, Any]
"""Of plotly, as it is in JSON."""
POINTS = 1_000
"""At most, of a curve; of more, each is the mean of a stretch."""
LOGARITHMIC = 100
FEW = 20
"""Points, at most, that are marked: a single one would not be seen."""
DASHES = ("solid", "dash", "dot", "dashdot")
SHADES = COLOURS[:-1]
"""Black would not be seen on a dark page."""
LIGHT = ("#0072b2", "#c24a00", "#00805d", "#b0558a", "#946200", "#2a7fb0")
"""The same for a light page, dark enough to have a contrast of 3 with it."""


@dataclass(frozen=True)
class Interactive:
    """A figure of the page.

    Attributes:
        figure: of plotly, with a frame for each place of its slider, if it has one.
        title: what it shows.
        about: how to read it, in a sentence or two: units, smoothing, what bands are.
        slider: what its slider moves over; empty if there is none.
        start: the place where the slider begins.
        started: what is said of the place where it begins.
        own_legend: whether its curves are something else than runs, which the page has one legend for.
    """

    figure: Figure
    title: str
    about: str
    slider: str = ""
    start: int = 0
    started: str = ""
    own_legend: bool = False


def new_figure(traces: Sequence[Trace] = (), x: str = "outer iteration", y: str = "", **layout: Any) -> Figure:
    """A figure with titles of its axes, and no colours of its own: the page has them.

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
    """A curve of a run, in the run's colour; a click on its name hides everything of that run."""
    style = {
        "line": {"color": shade(index), "dash": dash(index), "width": width},
        "name": name,
        "legendgroup": str(index),
    }
    mode = "lines+markers" if len(x) < FEW else "lines"
    return {"type": "scatter", "mode": mode, "x": list(x), "y": [short(v) for v in y], **style, **more}


def raw(x: Sequence[int], y: Sequence[float], name: str, index: int) -> Trace:
    """What a smoothed curve was made of."""
    return curve(x, y, name, index, 1, mode="lines", opacity=0.3, hoverinfo="skip", showlegend=False)


def raw_and_smooth(x: Sequence[int], y: Sequence[float], name: str, index: int) -> tuple[list[Trace], int]:
    """Both, and the window of the smoothing."""
    window = usual_window(len(y))
    under = [raw(x, y, name, index)] if window > 1 else []
    return [*under, curve(x, smooth(y, window), name, index, 2.5)], window


def band(
    x: Sequence[int], y: Sequence[float], low: Sequence[float], high: Sequence[float], name: str, index: int, at: str
) -> list[Trace]:
    """A curve in its band; ``at`` says what x is."""
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
    """A curve in a band of so much to either side."""
    low, high = ([value + sign * width for value, width in zip(y, half, strict=True)] for sign in (-1, 1))
    return band(x, y, low, high, name, index, at)


def with_frames(figure: Figure, frames: Sequence[tuple[str, Sequence[Trace]]]) -> Figure:
    """The figure with a frame for each place of its slider: a name, and all traces as they are there."""
    import plotly.graph_objects as go

    kept = ("type", "x", "y", "text")  # what changes alone, so that the page stays small
    figure.frames = [
        go.Frame(name=name, data=[{key: trace[key] for key in kept if key in trace} for trace in traces])
        for name, traces in frames
    ]
    return figure


def shade(index: int) -> str:
    """The colour of a run."""
    return SHADES[index % len(SHADES)]


def dash(index: int) -> str:
    """How the curves of a run are dashed, so that no two runs of few are told apart by colour alone."""
    return DASHES[index // 3 % len(DASHES)]


def thinned(x: Sequence[int], y: Sequence[float], most: int = POINTS) -> tuple[list[int], list[float], int]:
    """A series of at most so many points, each the mean of a stretch at its end, and the length of stretches."""
    each = max(1, -(-len(y) // most))
    stretches = [slice(i, i + each) for i in range(0, len(y), each)]
    return [x[stretch][-1] for stretch in stretches], [finite_mean(y[stretch]) for stretch in stretches], each


def axis_of(traces: Iterable[Trace]) -> dict[str, Any]:
    """An axis whose range covers all values, so that positions of a slider can be compared.

    The axis is logarithmic where the values are positive and of very different sizes.
    """
    values = [value for trace in traces for value in trace["y"] if value is not None]
    low, high = min(values, default=0.0), max(values, default=1.0)
    if low > 0 and high > LOGARITHMIC * low:
        return {"type": "log", "range": [math.log10(low) - 0.1, math.log10(high) + 0.1], "dtick": 1}
    margin = 0.05 * (high - low) or 0.1
    return {"range": [low - margin, high + margin]}


def short(value: float | None) -> float | None:
    """Five digits, which no screen tells from more; nothing for what is not finite."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.5g}")
