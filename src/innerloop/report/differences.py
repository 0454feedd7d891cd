"""What runs came to, and whether one is better than another: means, differences, and their 95 % intervals."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from .runs import Line, Run

What = Literal["test", "validation"]
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean, or a difference of two, and its 95 % interval.

    Attributes:
        mean: the estimate.
        low, high: ends of the interval.
        over: what varies in it: tasks or seeds, and how many.
    """

    mean: float
    low: float
    high: float
    over: str

    @property
    def holds_zero(self) -> bool:
        """Whether a difference may be noise."""
        return not (self.low > 0 or self.high < 0)


def judged(run: Run, what: What) -> Line | None:
    """The test of a run or its best validation, if there is one: ``metric``, ``mean``, ``ci95``, ``num_tasks``,
    ``steps``, ``transductive``, and ``scores`` of each task where they were kept."""
    found: Line | None = run.results.get("test") if what == "test" else run.best
    return found if found and found["mean"] is not None else None


def score(runs: Sequence[Run], what: What = "test") -> Interval | None:
    """What runs that differ in their seed came to: over seeds (Student's t), or, of one run, over its tasks.

    Raises:
        ImportError: SciPy is missing; the message names the extra.
    """
    found = [line for run in runs if (line := judged(run, what))]
    if not found:
        return None
    means = [float(line["mean"]) for line in found]
    if len(means) == 1:
        half, number = float(found[0]["ci95"]), found[0]["num_tasks"]
        return Interval(means[0], means[0] - half, means[0] + half, f"{number:,} tasks")
    return _interval(fmean(means), "ttest_1samp", means, over=f"{len(means)} seeds", popmean=0.0)


def difference(first: Sequence[Run], second: Sequence[Run], what: What = "test") -> Interval | None:
    """How much more the second runs came to than the first; the runs of each differ in their seed alone.

    Of several seeds each, over seeds (Welch's t). Else over tasks: the same ones, if both were judged by the same and
    the scores of each task are there, which takes out how hard the tasks are; otherwise those of each.
    """
    pairs = [[(run, line) for run in runs if (line := judged(run, what))] for runs in (first, second)]
    if not all(pairs):
        return None
    before, after = ([float(line["mean"]) for _, line in some] for some in pairs)
    away = fmean(after) - fmean(before)
    if min(len(before), len(after)) > 1:
        over = f"{len(after)} and {len(before)} seeds"
        return _interval(away, "ttest_ind", after, before, over=over, equal_var=False)
    if (scores := _same_tasks(pairs, what)) is not None:
        return _interval(away, "ttest_rel", scores[1], scores[0], over=f"{len(scores[0]):,} tasks, the same for both")
    half = math.hypot(*(fmean(float(line["ci95"]) for _, line in some) for some in pairs))
    return Interval(away, away - half, away + half, "tasks of each")


def change(earlier: Line, later: Line) -> Interval:
    """From one validation of a run to a later one."""
    away = later["mean"] - earlier["mean"]
    if earlier.get("scores") and len(earlier["scores"]) == len(later.get("scores", ())):
        over = f"{len(later['scores']):,} tasks, the same for both"
        return _interval(away, "ttest_rel", later["scores"], earlier["scores"], over=over)
    half = math.hypot(earlier["ci95"], later["ci95"])
    return Interval(away, away - half, away + half, "tasks of each")


def higher_is_better(metric: str) -> bool:
    """Whether it is accuracy; errors are better when lower."""
    return metric == "accuracy"


def _same_tasks(pairs: Sequence[Sequence[tuple[Run, Line]]], what: What) -> list[list[float]] | None:
    """Scores of each task, mean over the runs of each side, if all were judged by the same tasks."""
    every = [pair for side in pairs for pair in side]
    tasks = {repr(_tasks_of(run, what)) for run, _ in every}
    if len(tasks) > 1 or not all(run.config and line.get("scores") for run, line in every):
        return None
    number = min(len(line["scores"]) for _, line in every)  # the first tasks of a longer evaluation are a shorter one's
    columns = [[line["scores"][:number] for _, line in side] for side in pairs]
    return [[fmean(values) for values in zip(*column, strict=True)] for column in columns]


def _tasks_of(run: Run, what: What) -> Any:
    """What unseen tasks are drawn by."""
    seed = run.config.get("evaluate", {}).get("seed", 0) if what == "test" else run.config["train"].get("val_seed", 0)
    return run.config.get("tasks"), seed


def _interval(mean: float, test: str, *samples: Sequence[float], over: str, **options: Any) -> Interval:
    """By the interval that belongs to a t-test of SciPy's, around the mean found already."""
    try:
        from scipy import stats
    except ImportError as error:
        raise ImportError("intervals need SciPy: pip install 'innerloop[report]'") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of values that are all the same, for which there is no t
        ends = getattr(stats, test)(*samples, **options).confidence_interval(LEVEL)
    low, high = float(ends.low), float(ends.high)
    if math.isnan(low):
        low = high = mean
    return Interval(mean, low, high, over)
