"""The figures of the report: one function for each, which takes runs by their labels. Every run has one color.

A slider moves over the frames of a plotly figure; the figure itself shows the slider's initial position.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from statistics import fmean
from typing import Any, Literal

from ..metrics import Scale
from .answers import sets_of
from .differences import judged
from .record import Line
from .runs import Run
from .series import (
    NothingToDrawError,
    by_recipe,
    inner_curve,
    nearest,
    one_scale,
    or_nan,
    recorded,
    seed_curves,
    smooth,
    spread,
    usual_window,
)
from .traces import (
    POINTS,
    Interactive,
    Trace,
    axis_of,
    band,
    curve,
    interval,
    new_figure,
    raw,
    raw_and_smooth,
    shade,
    short,
    thinned,
    with_frames,
)

Runs = Mapping[str, Run]
PLACES = 100
"""The largest number of positions of a slider."""

# -- is the inner loop learning? --------------------------------------------------------------------------------------


def adaptation(runs: Runs) -> Interactive:
    """Plot the metric on unseen tasks after each inner step."""
    scale = _scale(test for run in runs.values() if (test := judged(run, "test")))
    traces = []
    for index, (name, run) in enumerate(runs.items()):
        if (test := judged(run, "test")) and len(test["steps"]) > 1:
            traces += interval(range(len(test["steps"])), test["steps"], test["steps_ci95"], name, index, "steps:")
    if not traces:
        raise NothingToDrawError("no run has been tested after inner steps yet")
    about = "Means over unseen tasks before adaptation and after each step; bands: 95 % intervals over tasks."
    if trained := sorted({line["steps"] for run in runs.values() for line in run.lines.get("run", ())}):
        about += f" Trained with {_listed(trained)} step{'s' * (trained != [1])}."
    return Interactive(new_figure(traces, "inner steps", scale.label), "Unseen tasks, step by step", about)


def inner_losses(runs: Runs, what: Literal["support", "query"] = "support") -> Interactive:
    """Plot loss curves of single tasks along the inner loop, with a slider over meta-training."""
    field = "steps" if what == "support" else "query_loss"
    having = {name: lines for name, run in runs.items() if (lines := _tasks(run, field))}
    frames, tasks, axis = [], 0, ""
    for place in _places(chain(*having.values())):
        traces: list[Trace] = []
        at = {name: nearest(lines, place) for name, lines in having.items()}
        for index, name in enumerate(runs):
            for task, (x, y, label) in enumerate(_curves(at[name], what) if name in at else ()):
                tasks, axis = max(tasks, task + 1), label
                traces.append(curve(x, y, name, index, 1.5, showlegend=not task))
        frames.append((_position(place, at), traces))
    figure = new_figure(frames[-1][1], "inner steps", axis, yaxis=axis_of(chain(*(traces for _, traces in frames))))
    about = f"Each curve is one task, of up to {tasks} tasks of a meta-batch: {axis}, not smoothed."
    title = f"The {what} loss of single tasks"
    return Interactive(with_frames(figure, frames), title, about, "outer iteration", len(frames) - 1, frames[-1][0])


def final_support(runs: Runs) -> Interactive:
    """Plot the support loss after the last inner step, over meta-training."""
    traces, windows = [], set()
    for index, (name, run) in enumerate(runs.items()):
        if lines := _tasks(run, "support_loss"):
            losses = [fmean(or_nan(task[-1]) for task in line["support_loss"]) for line in lines]
            curves, window = raw_and_smooth([line["iteration"] for line in lines], losses, name, index)
            traces += curves
            windows.add(window)
    if not traces:
        raise NothingToDrawError("no run has a record of tasks")
    about = f"Mean over the recorded tasks; {_smoothing(windows)}."
    return Interactive(new_figure(traces, y="support loss after the last step"), "Where the inner loop ends", about)


# -- is the outer loop learning? --------------------------------------------------------------------------------------


def meta_loss(runs: Runs) -> Interactive:
    """Plot the meta-train loss, raw and smoothed, with a slider over the window."""
    series = _columns(runs, "loss")
    most, each = max(len(x) for _, _, x, _, _ in series), max(each for *_, each in series)
    windows = sorted({1, usual_window(most), *(max(1, most // share) | 1 for share in (200, 100, 50, 10, 5, 3))})
    frames = [
        (
            f"mean of {window} points" if window > 1 else "not smoothed",
            [curve(x, smooth(y, window), name, index, 2.5) for index, name, x, y, _ in series],
        )
        for window in windows
    ]
    start = windows.index(usual_window(most))
    under = [raw(x, y, name, index) for index, name, x, y, _ in series] if most > 1 else []
    figure = with_frames(new_figure([*frames[start][1], *under], y="meta-train loss"), frames)
    about = "The loss on query sets after the last inner step, averaged over the meta-batch; raw (faint) and smoothed."
    about += f" Each point is the mean of up to {each} records." if each > 1 else ""
    return Interactive(figure, "Meta-train loss", about, "smoothing window", start, frames[start][0])


def validation(runs: Runs) -> Interactive:
    """Plot every meta-validation with its interval, and mark the best."""
    scale = _scale(run.best for run in runs.values() if run.best)
    traces = []
    for index, (name, run) in enumerate(runs.items()):
        if not (best := run.best):
            continue
        lines = run.lines["validation"]
        lines = [lines[i] for i in spread(len(lines), POINTS)]
        means, half = ([or_nan(line[field]) for line in lines] for field in ("mean", "ci95"))
        traces += interval([line["iteration"] for line in lines], means, half, name, index, "iteration")
        star: dict[str, Any] = {
            "mode": "markers",
            "marker": {"symbol": "star", "size": 12, "color": shade(index)},
            "showlegend": False,
        }
        traces.append(curve([best["iteration"]], [best["mean"]], name, index, **star))
    about = "Each point is the mean over the same tasks; bands: 95 % intervals over tasks; stars: the best."
    return Interactive(new_figure(traces, y=f"meta-validation {scale.label}"), "Meta-validation", about)


def gradient_norms(runs: Runs) -> Interactive:
    """Plot the norm of the meta-gradient before clipping."""
    traces, windows = [], set()
    for index, name, x, y, _ in _columns(runs, "grad_norm"):
        curves, window = raw_and_smooth(x, y, name, index)
        traces += curves
        windows.add(window)
    about = f"The norm before clipping; {_smoothing(windows)}."
    figure = new_figure(traces, y="norm of the meta-gradient", yaxis=axis_of(traces))
    return Interactive(figure, "Meta-gradients", about)


# -- what did it learn? -----------------------------------------------------------------------------------------------


def rates(runs: Runs) -> Interactive:
    """Plot the learned inner rates, unrolled by layer and step, with a slider over meta-training.

    The slider starts at each run's best validation.
    """
    having = [(index, name, run) for index, (name, run) in enumerate(runs.items()) if run.lines.get("rates")]
    first = _unrolled(line["rates"] for _, _, run in having for line in reversed(run.lines["rates"]))
    if not first:
        raise NothingToDrawError(
            "no learned rates are recorded: they are fixed, trace_every is 0, or an older version wrote the record"
        )
    best = {name: nearest(run.lines["rates"], run.best["iteration"] if run.best else None) for _, name, run in having}
    iterations = "; ".join(f"{name}: iteration {line['iteration']:,}" for name, line in best.items())
    frames = [
        (f"best validations ({iterations})", [_rates(best[name], first, name, index) for index, name, _ in having])
    ]
    for place in _places(chain(*(run.lines["rates"] for _, _, run in having))):
        at = {name: nearest(run.lines["rates"], place) for _, name, run in having}
        frames.append((_position(place, at), [_rates(at[name], first, name, index) for index, name, _ in having]))
    names, middles = [name or "all" for name in first], [(begin + end - 1) / 2 for begin, end in first.values()]
    figure = new_figure(
        frames[0][1],
        "parameter, step by step",
        "learned inner rate",
        yaxis=axis_of(chain(*(traces for _, traces in frames))),
        xaxis={"tickvals": middles, "ticktext": names, "tickangle": -60, "showgrid": False},
        height=460,
    )
    for begin, _ in list(first.values())[1:]:
        figure.add_vline(begin - 1, line={"width": 0.5, "color": "#888888"})
    about = (
        "The rates of each parameter, with its steps from left to right, and one color per run. The slider starts at "
        "each run's best validation; its other positions show all runs at one iteration."
    )
    title = "Learned inner rates"
    return Interactive(with_frames(figure, frames), title, about, "outer iteration", 0, frames[0][0])


def _unrolled(every: Iterable[Mapping[str, Sequence[float]]]) -> dict[str, tuple[int, int]]:
    """Return where the steps of each parameter begin and end on one axis, with a gap after each parameter."""
    sizes: dict[str, int] = {}
    for rates in every:
        for name, values in rates.items():
            sizes[name] = max(sizes.get(name, 0), len(values))
    places, at = {}, 0
    for name, size in sizes.items():
        places[name] = (at, at + size)
        at += size + 1
    return places


def _rates(line: Line, places: Mapping[str, tuple[int, int]], name: str, index: int) -> Trace:
    x: list[int | None] = []
    y: list[float | None] = []
    text: list[str] = []
    for parameter, values in line["rates"].items():
        x += [*range(places[parameter][0], places[parameter][0] + len(values)), None]
        y += [*values, None]
        text += [*(f"{parameter or 'all'}, step {step}" for step in range(1, len(values) + 1)), ""]
    return curve(x, y, name, index, mode="lines+markers", text=text, hovertemplate="%{text}: %{y:.4g}")


def distribution(runs: Runs) -> Interactive:
    """Plot the distribution of scores over tasks."""
    candidates = [(index, name, _scored(run)) for index, (name, run) in enumerate(runs.items())]
    every = [(index, name, *scored) for index, name, scored in candidates if scored]
    scale = _scale(line for *_, line in every)
    most = scale.higher_is_better
    traces, sources = [], []
    for index, name, what, line in every:
        scores = sorted(or_nan(score) for score in line["scores"])
        values = sorted(set(scores))
        shares = [sum(s >= v if most else s <= v for s in scores) for v in values]
        hover = f"%{{y:.3g}} % of tasks: {'at least' if most else 'at most'} %{{x:.4g}}"
        trace = curve(values, [100 * share / len(scores) for share in shares], name, index, hovertemplate=hover)
        trace["line"]["shape"] = "vh" if most else "hv"
        traces.append(trace)
        sources.append(f"{name}: {what}, {len(scores):,} tasks")
    figure = new_figure(traces, scale.label, "share of tasks (%)")
    what = f"{scale.label} of x or {'more' if most else 'less'}"
    about = f"The height of a curve is the share of tasks with {what}, after the last step. {'; '.join(sources)}."
    return Interactive(figure, "Task by task", about)


def sets(runs: Runs) -> Interactive:
    """Plot the score on each set of a mixture of tasks."""
    found = [(index, name, sets_of(run)) for index, (name, run) in enumerate(runs.items())]
    every = [(index, name, *one) for index, name, one in found if one]
    scale = one_scale(scale for *_, scale in every)
    traces, sources = [], []
    for index, name, what, parts, _ in every:
        bars = {"type": "data", "array": [part["ci95"] or 0.0 for part in parts.values()]}
        means = [or_nan(part["mean"]) for part in parts.values()]
        traces.append(curve(list(parts), means, name, index, mode="markers", error_y=bars, marker={"size": 9}))
        sources.append(f"{name}: {what}, {' and '.join(str(part['num_tasks']) for part in parts.values())} tasks")
    figure = new_figure(traces, "set", scale.label, xaxis_type="category", scattermode="group")
    return Interactive(figure, "Set by set", f"Bars are 95 % intervals over tasks. {'; '.join(sources)}.")


# -- which run is better, and what did it cost? -----------------------------------------------------------------------


def compare(runs: Runs) -> Interactive:
    """Plot the meta-validation of each recipe, over its seeds."""
    scale = _scale(run.best for run in runs.values() if run.best)
    groups = by_recipe([run for run in runs.values() if run.best])
    if len(groups) < 2:
        raise NothingToDrawError("there are no two recipes to compare")
    traces: list[Trace] = []
    for index, (name, members) in enumerate(groups.items()):
        at, values = seed_curves(members)
        seeds = f" ({len(members)} seeds)" if len(members) > 1 else ""
        ends = [min(some) for some in values], [max(some) for some in values]
        traces += band(at, [fmean(some) for some in values], *ends, f"{name}{seeds}", index, "iteration")
    about = "Means over seeds; bands from the worst to the best seed."
    return Interactive(
        new_figure(traces, y=f"meta-validation {scale.label}"), "Comparison of recipes", about, own_legend=True
    )


def phases(runs: Runs) -> Interactive:
    """Plot the time of each phase."""
    last = {name: lines[-1] for name, run in runs.items() if (lines := run.lines.get("train"))}
    spent = {name: line["phases"] for name, line in last.items() if "phases" in line}
    if not spent:
        raise NothingToDrawError("no run has recorded the times of its phases")
    bars = [
        {
            "type": "bar",
            "x": [short(phases.get(phase, 0.0) / 60) for phases in spent.values()],
            "y": list(spent),
            "name": phase,
            "orientation": "h",
            "marker": {"color": shade(index), "pattern": {"shape": ("", "/", ".", "x", "-")[index % 5]}},
            "hovertemplate": f"{phase}: %{{x:.3g}} min",
        }
        for index, phase in enumerate(sorted({phase for phases in spent.values() for phase in phases}))
    ]
    shape: dict[str, Any] = {"height": 170 + 40 * len(spent), "yaxis_autorange": "reversed", "barmode": "stack"}
    about = "These times do not include writing the record and checkpoints."
    return Interactive(new_figure(bars, "minutes", **shape), "Time per phase", about, own_legend=True)


# -- parts ------------------------------------------------------------------------------------------------------------


def _columns(runs: Runs, field: str) -> list[tuple[int, str, list[int], list[float], int]]:
    """Return index, label and a thinned training series of each run that has one."""
    every = [(index, name, *thinned(*run.column("train", field))) for index, (name, run) in enumerate(runs.items())]
    series = [entry for entry in every if entry[2]]
    if not series:
        raise NothingToDrawError(f"no run has recorded the {field} of training yet")
    return series


def _tasks(run: Run, field: str) -> list[Line]:
    try:
        return recorded(run, field)
    except NothingToDrawError:
        return []


def _curves(line: Line, what: str) -> list[tuple[list[int], list[float | None], str]]:
    """Return a curve of every recorded task."""
    if what == "support":
        return [inner_curve(line, task) for task in range(len(line["steps"]))]
    return [(line["after"], losses, "loss on the query set") for losses in line["query_loss"]]


def _position(place: int, at: Mapping[str, Line]) -> str:
    """Name a position of a slider, with the runs whose nearest record is at another iteration."""
    others = [f"{name}: {line['iteration']:,}" for name, line in at.items() if line["iteration"] != place]
    return f"iteration {place:,}" + (f" ({', '.join(others)})" if others else "")


def _scale(lines: Iterable[Line]) -> Scale:
    """Return the metric that all lines share."""
    return one_scale(map(Scale.read, lines))


def _places(lines: Iterable[Line]) -> list[int]:
    every = sorted({line["iteration"] for line in lines})
    if not every:
        raise NothingToDrawError("no run has a record of tasks")
    return [every[i] for i in spread(len(every), PLACES)]


def _scored(run: Run) -> tuple[str, Line] | None:
    candidates = (("the test", judged(run, "test")), ("the best validation", judged(run, "validation")))
    return next(((what, line) for what, line in candidates if line and line.get("scores")), None)


def _smoothing(windows: set[int]) -> str:
    return "not smoothed" if windows == {1} else f"raw (faint) and smoothed: means of {_listed(windows)} points"


def _listed(numbers: Iterable[int]) -> str:
    return " or ".join(map(str, sorted(numbers)))
