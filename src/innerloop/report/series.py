"""The data series behind the figures of a run, for any plotting library."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

from ..metrics import Scale
from .record import Line
from .runs import Run

# Okabe and Ito (2008): colorblind-safe, in an order that makes neighbors distinct.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


class NothingToDrawError(ValueError):
    """The record of a run lacks the requested data. The message is one line, and names the run."""


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Return the mean of the ``window`` values around each one, or of fewer at the ends. NaN values are left out.

    >>> smooth([1.0, 2.0, 6.0, 8.0], 3)
    [1.5, 3.0, 5.333333333333333, 7.0]
    """
    if window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    if window == 1:
        return list(values)
    finite = [math.isfinite(value) for value in values]
    sums = [0.0, *accumulate(value if known else 0.0 for value, known in zip(values, finite, strict=True))]
    counts = [0, *accumulate(finite)]
    means = []
    for index in range(len(values)):
        first, end = max(index - (window - 1) // 2, 0), min(index + window // 2 + 1, len(values))
        number = counts[end] - counts[first]
        means.append((sums[end] - sums[first]) / number if number else math.nan)
    return means


def finite_mean(values: Sequence[float]) -> float:
    """Return the mean of the finite values; NaN if there are none."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(value / len(finite) for value in finite) if finite else math.nan  # their plain sum may overflow


def usual_window(number: int) -> int:
    """Return the default window: a twentieth of the values, and odd."""
    return max(number // 20, 1) | 1


def by_recipe(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Group runs that differ only in their seed, under the name of the first without its ``-seedN``."""
    groups: list[tuple[Any, list[Run]]] = []
    for run in runs:
        recipe = {key: value for key, value in run.config.items() if key != "seed"} if run.config else run.path
        for known, members in groups:
            if known == recipe:
                members.append(run)
                break
        else:
            groups.append((recipe, [run]))
    named: dict[str, list[Run]] = {}
    for _, members in groups:
        name = members[0].name.rpartition("-seed")[0] or members[0].name
        named[name if name not in named else str(members[0].path)] = members
    return named


def seed_curves(runs: Sequence[Run]) -> tuple[list[int], list[list[float]]]:
    """Return the iterations at which all runs were validated, and the means of the runs at each."""
    curves = [dict(zip(*run.column("validation", "mean"), strict=True)) for run in runs]
    shared = sorted(set.intersection(*(set(curve) for curve in curves)))
    return shared, [[curve[iteration] for curve in curves] for iteration in shared]


def labelled(runs: Sequence[Run]) -> dict[str, Run]:
    """Label runs by the names of their directories.

    If several directories have the same name, the label includes the parent's. A run that occurs twice is kept once.
    """
    once = {run.path.resolve(): run for run in runs}
    names = [run.name for run in once.values()]
    short = {path: run.name if names.count(run.name) == 1 else "-".join(path.parts[-2:]) for path, run in once.items()}
    unique = len(set(short.values())) == len(once)
    return {short[path] if unique else str(path): run for path, run in once.items()}


def recorded(run: Run, name: str) -> list[Line]:
    """Return the records of tasks that have a field.

    Raises:
        NothingToDrawError: there are none.
    """
    lines = [line for line in run.lines.get("tasks", []) if line.get(name) and line["steps"]]
    if not lines:
        raise NothingToDrawError(
            f"{run.path} has no record of tasks: it has just started, trace_every is 0, or an older version wrote it"
        )
    return lines


def nearest(lines: Sequence[Line], iteration: int | None) -> Line:
    """Return the record nearest to an iteration; the last if none is given."""
    if iteration is None:
        return lines[-1]
    return min(lines, key=lambda line: abs(int(line["iteration"]) - iteration))


def inner_curve(line: Line, task: int) -> tuple[list[int], list[float | None], str]:
    """Return the numbers of steps, the losses, and a label for the losses."""
    epochs = line["steps"][task]
    if all(len(epoch) == 1 for epoch in epochs):
        return line["after"], line["support_loss"][task], "support loss"
    losses = [loss for epoch in epochs for loss in epoch]
    return list(range(len(losses))), losses, "mini-batch loss before the step"


def spread(number: int, most: int) -> list[int]:
    """Return at most ``most`` indices, evenly spaced from the first to the last."""
    if number <= most:
        return list(range(number))
    return [round(i * (number - 1) / (most - 1)) for i in range(most)]


def or_nan(value: float | None) -> float:
    """Turn null, which the record has for numbers that are not finite, into NaN."""
    return math.nan if value is None else value


def one_scale(scales: Iterable[Scale]) -> Scale:
    """Return the scale that all share.

    Raises:
        NothingToDrawError: there is none, or there are several.
    """
    every = set(scales)
    if not every:
        raise NothingToDrawError("no run has been evaluated yet, or scores were not recorded")
    if len(every) > 1:
        raise NothingToDrawError(f"the runs have different metrics: {different(every)}")
    return every.pop()


def different(scales: Iterable[Scale]) -> str:
    """Describe several scales: their names, and how scales of the same name differ."""
    every = list(scales)
    names = [scale.name for scale in every]
    ways = {True: "higher is better", False: "lower is better"}
    return ", ".join(
        sorted(s.name if names.count(s.name) == 1 else f"{s.label}, {ways[s.higher_is_better]}" for s in every)
    )
