"""Figures of how a run went, from its record. Functions with one panel draw on matplotlib axes and return them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from ..metrics import Scale
from .figures import AFTER, WRONG, in_figure, new_figure
from .runs import Run
from .series import (
    COLORS,
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

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RAW = "#b0b0b0"
WIDTH = 800 / 130
"""The width in inches of a figure of 800 pixels."""
GRID = (5, 4)
"""The largest number of rows and columns in a figure of many tasks."""


# -- one task, and many -----------------------------------------------------------------------------------------------


def inner_loss(axes: Axes, run: Run, iteration: int | None = None, task: int = 0, window: int | None = None) -> Axes:
    """Plot the support loss of one task along its inner steps, with the inner epochs marked.

    The loss is that of the whole support set, or of mini-batches, each before its step.

    Args:
        axes: matplotlib axes.
        run: from `read_run`.
        iteration: the recorded iteration nearest to this is drawn; default: the last.
        task: the index of the task among the recorded ones.
        window: the window of the running mean, in steps; default: a twentieth of all steps.
    """
    line = nearest(recorded(run, "steps"), iteration)
    if not 0 <= task < len(line["steps"]):
        number, at = len(line["steps"]), line["iteration"]
        raise ValueError(f"{run.path} has {number} tasks recorded at iteration {at}, so there is no task {task}")
    steps, losses, what = inner_curve(line, task)
    _raw_and_smooth(axes, steps, losses, window, "points")
    epochs = [len(epoch) for epoch in line["steps"][task]]
    if max(epochs, default=0) > 1:
        for index in range(1, len(epochs)):
            axes.axvline(sum(epochs[:index]) - 0.5, color=RAW, linewidth=0.5, zorder=0)
    axes.set(xlabel="inner step", ylabel=what)
    axes.xaxis.set_major_locator(_whole_numbers())
    axes.set_title(f"{in_figure(run.name)}: task {task} of iteration {line['iteration']:,}", fontsize="medium")
    return axes


def task_grid(
    figure: Figure, run: Run, what: Literal["support", "query"] = "support", window: int | None = None
) -> Figure:
    """Draw loss curves of many tasks: rows are outer iterations, columns are tasks, and all share one scale.

    Args:
        figure: an empty figure.
        run: from `read_run`.
        what: the support loss, as `inner_loss` draws it, or the query loss after some numbers of steps.
        window: the window of the running mean, in points.
    """
    records = recorded(run, "steps" if what == "support" else "query_loss")
    lines = [records[i] for i in spread(len(records), GRID[0])]
    columns = min(GRID[1], *(len(line["steps"]) for line in lines))
    panels = figure.subplots(len(lines), columns, sharex=True, sharey=True, squeeze=False)
    for row, line in zip(panels, lines, strict=True):
        for task, axes in enumerate(row):
            if what == "support":
                points, losses, about = inner_curve(line, task)
            else:
                points, losses, about = line["after"], line["query_loss"][task], "query loss"
            _raw_and_smooth(axes, points, losses, window, "points", legend=False)
            axes.xaxis.set_major_locator(_whole_numbers())
            axes.tick_params(labelsize="x-small")
        row[0].set_ylabel(f"{line['iteration']:,}", fontsize="small")
    for task, axes in enumerate(panels[0]):
        axes.set_title(f"task {task}", fontsize="small")
    handles, labels = panels[0][0].get_legend_handles_labels()
    smoothing = f" (gray: raw; blue: {labels[1]})" if len(handles) > 1 else ""
    figure.suptitle(f"{in_figure(run.name)}: {about}{smoothing}", fontsize="medium")
    figure.supylabel("outer iteration", fontsize="small")
    figure.supxlabel("inner step", fontsize="small")
    return figure


# -- over meta-training -----------------------------------------------------------------------------------------------


def final_support_loss(axes: Axes, run: Run, window: int | None = None) -> Axes:
    """Plot the support loss after the last inner step, averaged over the recorded tasks, over meta-training."""
    lines = recorded(run, "support_loss")
    losses = [fmean(or_nan(task[-1]) for task in line["support_loss"]) for line in lines]
    _raw_and_smooth(axes, [line["iteration"] for line in lines], losses, window, "points")
    axes.set(xlabel="outer iteration", ylabel=f"support loss after {lines[-1]['after'][-1]} steps")
    axes.set_title(f"{in_figure(run.name)}: mean of {len(lines[-1]['steps'])} tasks", fontsize="medium")
    return axes


def meta_loss(axes: Axes, run: Run, window: int | None = None) -> Axes:
    """Plot the meta-train loss: on query sets after the last inner step, averaged over the meta-batch."""
    iterations, losses = run.column("train", "loss")
    if not losses:
        raise NothingToDrawError(f"{run.path} has no training losses yet")
    _raw_and_smooth(axes, iterations, losses, window, "points")
    axes.set(xlabel="outer iteration", ylabel="meta-train loss")
    axes.set_title(in_figure(run.name), fontsize="medium")
    return axes


def validation(axes: Axes, run: Run) -> Axes:
    """Plot every meta-validation with its 95 % interval over tasks, and mark the best."""
    iterations, means = run.column("validation", "mean")
    best = run.best
    if best is None:
        raise NothingToDrawError(f"{run.path} has no validations yet")
    half = [or_nan(value) for value in run.column("validation", "ci95")[1]]
    axes.plot(iterations, means, color=AFTER, marker="." if len(means) < 50 else None)
    low, high = ([m + sign * h for m, h in zip(means, half, strict=True)] for sign in (-1, 1))
    axes.fill_between(iterations, low, high, color=AFTER, alpha=0.2, linewidth=0)
    label = f"best: {best['mean']:.4g} at {best['iteration']:,}"
    axes.plot([best["iteration"]], [best["mean"]], "o", color=WRONG, label=label)
    axes.legend(fontsize="small")
    mode = "transductive" if best["transductive"] else "inductive"
    axes.set(xlabel="outer iteration", ylabel=f"meta-validation {in_figure(Scale.read(best).label)}")
    axes.set_title(f"{in_figure(run.name)}: {best['num_tasks']} tasks, 95 % interval, {mode}", fontsize="medium")
    return axes


def learned_rates(axes: Axes, run: Run, iteration: int | None = None) -> Axes:
    """Plot the learned inner rates of each parameter over the inner steps.

    The rates are from the record nearest to an iteration, by default that of the best validation.
    """
    lines = run.lines.get("rates", [])
    if not lines:
        raise NothingToDrawError(f"{run.path} has no learned rates: its inner rates are fixed, or trace_every is 0")
    line = nearest(lines, iteration if iteration is not None or run.best is None else run.best["iteration"])
    axes.set_title(f"{in_figure(run.name)}: iteration {line['iteration']:,}", fontsize="medium")
    if all(len(rates) == 1 for rates in line["rates"].values()):
        names = [in_figure(name or "all parameters") for name in line["rates"]]
        axes.barh(names, [rates[0] for rates in line["rates"].values()], color=COLORS[0])
        axes.invert_yaxis()
        axes.set(xlabel="learned rate, shared by all steps")
        return axes
    for index, (name, rates) in enumerate(line["rates"].items()):
        axes.plot(
            range(1, len(rates) + 1), rates, marker="o", label=in_figure(name or "all parameters"), **_style(index)
        )
    axes.axhline(0, color=RAW, linewidth=0.5)
    axes.xaxis.set_major_locator(_whole_numbers())
    axes.set(xlabel="inner step", ylabel="learned rate")
    axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))
    return axes


def compare(axes: Axes, runs: Sequence[Run]) -> Axes:
    """Plot the meta-validation of several runs.

    Runs that differ only in their seed become one line, their mean, with a band from the worst to the best.
    """
    scale = one_scale(Scale.read(run.best) for run in runs if run.best)
    groups = by_recipe(runs)
    for index, (name, members) in enumerate(groups.items()):
        shared, values = seed_curves(members)
        if not shared:
            raise NothingToDrawError(f"{name} has no validations, or none at the same iteration of all seeds")
        style = _style(index)
        seeds = f" ({len(members)} seeds)" if len(members) > 1 else ""
        axes.plot(shared, [fmean(some) for some in values], label=in_figure(f"{name}{seeds}"), **style)
        axes.fill_between(shared, [min(v) for v in values], [max(v) for v in values], color=style["color"], alpha=0.2)
    axes.set(xlabel="outer iteration", ylabel=f"meta-validation {in_figure(scale.label)}")
    axes.set_title("means over seeds; bands from the worst to the best", fontsize="medium")
    if len(groups) <= 5:
        axes.legend(fontsize="small")
    else:
        axes.legend(fontsize="x-small", loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)
    return axes


# -- parts ------------------------------------------------------------------------------------------------------------


def _style(index: int) -> dict[str, Any]:
    """Vary colors first, then line styles."""
    return {"color": COLORS[index % len(COLORS)], "linestyle": ("-", "--", ":")[index // len(COLORS) % 3]}


def _whole_numbers() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator("auto", integer=True)


def _raw_and_smooth(
    axes: Axes, x: Sequence[int], y: Sequence[float | None], window: int | None, unit: str, legend: bool = True
) -> None:
    values = [or_nan(value) for value in y]
    window = usual_window(len(values)) if window is None else window
    style: Mapping[str, Any] = {"color": AFTER, "linewidth": 1.5}
    if window > 1:
        axes.plot(x, values, color=RAW, linewidth=0.8, label="raw")
        axes.plot(x, smooth(values, window), label=f"mean of {window} {unit}", **style)
    else:
        axes.plot(x, values, label="raw", marker="." if len(values) < 30 else None, **style)
    if legend:
        axes.legend(fontsize="small")


def panel(draw: Any, *arguments: Any, **options: Any) -> Figure:
    """Draw a figure with one panel, 800 pixels wide."""
    figure = new_figure(WIDTH, 4)
    draw(figure.subplots(), *arguments, **options)
    return figure
