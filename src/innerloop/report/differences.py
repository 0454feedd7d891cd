"""The scores of runs, and whether one is better than another: means, differences, and their 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import Any, Literal

from .record import Line
from .runs import Run

What = Literal["test", "validation"]
LEVEL = 0.95
NEEDED = ("metric", "mean", "ci95", "num_tasks", "steps", "steps_ci95", "transductive")
"""The keys that an evaluation must have to be used."""


@dataclass(frozen=True)
class Interval:
    """A mean, or a difference of two, and its 95 % interval.

    Attributes:
        mean: the estimate.
        low, high: the ends of the interval.
        over: what the interval is over, tasks or seeds, and how many.
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
    """Return the test result of a run, or its best validation; None if it is missing or incomplete.

    The keys are ``metric``, ``mean``, ``ci95``, ``num_tasks``, ``steps``, ``transductive``, and ``scores`` of each task
    if they were kept.
    """
    line = run.results.get("test") if what == "test" else run.best
    complete = isinstance(line, dict) and all(line.get(name) is not None for name in NEEDED)
    return line if complete else None


def score(runs: Sequence[Run], what: What = "test") -> Interval | None:
    """Return the mean score of runs that differ in their seed, with an interval over seeds (Student's t).

    The interval of a single run is over its tasks.

    Raises:
        ImportError: SciPy is missing; the message names the extra.
    """
    lines = [line for run in runs if (line := judged(run, what))]
    if not lines:
        return None
    means = [float(line["mean"]) for line in lines]
    if len(means) == 1:
        half, number = float(lines[0]["ci95"]), lines[0]["num_tasks"]
        return Interval(means[0], means[0] - half, means[0] + half, f"{number:,} tasks")
    return _interval(fmean(means), "one", means, over=f"{len(means)} seeds")


def difference(first: Sequence[Run], second: Sequence[Run], what: What = "test") -> Interval | None:
    """Return the mean score of the second runs minus that of the first; the runs of each differ only in their seed.

    The interval is

    - for several seeds each: over seeds (Welch's t);
    - for several seeds against one: a prediction interval for a further seed of the several (Student's t);
    - for one seed each: over tasks, which says nothing about other seeds. Tasks are paired if both runs were evaluated
      on the same ones and the score of each is recorded, so that differences in their difficulty cancel.
    """
    sides = [[(run, line) for run in runs if (line := judged(run, what))] for runs in (first, second)]
    if not all(sides):
        return None
    before, after = ([float(line["mean"]) for _, line in side] for side in sides)
    away, fewest, most = fmean(after) - fmean(before), *sorted((before, after), key=len)
    if len(fewest) > 1:
        over = f"{len(after)} and {len(before)} seeds"
        return _interval(away, "two", after, before, over=over)
    if len(most) > 1:
        alone = _interval(0.0, "one", most, over="")
        half = (alone.high - alone.low) / 2 * math.sqrt(len(most) + 1)
        return Interval(away, away - half, away + half, f"{len(most)} seeds, against one")
    if (scores := _same_tasks(sides[0][0], sides[1][0], what)) is not None:
        return _interval(away, "pairs", scores[1], scores[0], over=f"{len(scores[0]):,} tasks, the same for both")
    half = math.hypot(*(float(side[0][1]["ci95"]) for side in sides))
    return Interval(away, away - half, away + half, "tasks of each")


def comparable(first: Run, second: Run, what: What = "test") -> bool:
    """Return whether two runs are evaluated on tasks of the same kind and in the same way.

    Their ``[tasks]`` sections must agree, except in the options that only training uses, and both must be transductive
    or neither.
    """
    kinds = []
    for run in (first, second):
        line, tasks = judged(run, what), run.config.get("tasks")
        if line is None or not tasks:
            return False
        kinds.append(({k: v for k, v in tasks.items() if k not in ("train_shots", "root")}, line["transductive"]))
    return kinds[0] == kinds[1]


def change(earlier: Line, later: Line) -> Interval:
    """Return the difference between a later and an earlier validation of a run."""
    away = later["mean"] - earlier["mean"]
    before, after = _scores(earlier), _scores(later)
    if len(before) == len(after) > 1:
        return _interval(away, "pairs", after, before, over=f"{len(after):,} tasks, the same for both")
    half = math.hypot(earlier["ci95"], later["ci95"])
    return Interval(away, away - half, away + half, "tasks of each")


def _scores(line: Line) -> list[float]:
    """Return the score of each task; empty if one is not finite, because such tasks cannot be paired."""
    scores = line.get("scores") or []
    return scores if all(score is not None and math.isfinite(score) for score in scores) else []


def _same_tasks(first: tuple[Run, Line], second: tuple[Run, Line], what: What) -> list[list[float]] | None:
    """Return the scores of each task, if both runs were evaluated on the same tasks."""
    (run, line), (other, another) = first, second
    if not comparable(run, other, what) or _seed(run, what) != _seed(other, what):
        return None
    scores = [_scores(one) for one in (line, another)]
    number = min(map(len, scores))  # the first tasks of a longer evaluation are those of a shorter one
    return [values[:number] for values in scores] if number > 1 else None


def _seed(run: Run, what: What) -> Any:
    """Return the seed of the tasks that a run is evaluated on."""
    section, key = ("evaluate", "seed") if what == "test" else ("train", "val_seed")
    return run.config.get(section, {}).get(key, 0)


def _interval(mean: float, test: str, *samples: Sequence[float], over: str) -> Interval:
    """Return the confidence interval of a t-test, around a mean that is already known.

    The test is for one sample, for pairs (Student), or for two independent samples with unequal variances (Welch 1947).
    """
    try:
        from scipy.special import stdtrit  # all of scipy.stats would take a second and 60 MiB
    except ImportError as error:
        raise ImportError("intervals need SciPy: pip install 'innerloop[report]'") from error
    if test == "pairs":
        samples = ([one - other for one, other in zip(*samples, strict=True)],)
    errors = [variance(sample) / len(sample) for sample in samples]
    squared = sum(errors)
    below = sum(error**2 / (len(sample) - 1) for error, sample in zip(errors, samples, strict=True))
    if not below:  # all values are equal, and t is not defined
        return Interval(mean, mean, mean, over)
    half = float(stdtrit(squared**2 / below, (1 + LEVEL) / 2)) * math.sqrt(squared)
    return Interval(mean, mean - half, mean + half, over)
