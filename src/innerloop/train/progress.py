"""Progress of a training on standard error: a live bar on a terminal if rich is installed, else lines of text."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any

from torch import Tensor

from ..common import streams
from .evaluate import Evaluation

REFRESH, LINE = 0.25, 30.0
"""Seconds between updates of the bar, and between lines of text."""
TIMED, WORTH = 10, 60.0
"""The number of iterations that an ETA is based on, and the remaining seconds from which it is printed."""

_LOSING = suppress(OSError, ValueError)  # a closed stream raises ValueError
"""Ignores errors in showing progress: a closed terminal does not end a training."""


class Progress:
    """Shows iterations, tasks per second, ETA, query loss and the latest validation.

    Args:
        iterations: the number of the last iteration.
        show: false shows nothing.
    """

    def __init__(self, iterations: int, show: bool = True) -> None:
        self.iterations, self.show = iterations, show
        self._bar = _bar(iterations) if show and streams.is_terminal(sys.stderr) else None
        self._shown = self._first = 0.0
        self._begun: int | None = None
        self._score = ""
        self._times: list[float] = []

    def __enter__(self) -> Progress:
        self._first = self._shown = time.monotonic()
        if self._bar is not None:
            with _LOSING:
                self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            with _LOSING:
                self._bar.stop()

    def advance(self, iteration: int, rate: float, loss: Tensor, report: Mapping[str, Any]) -> None:
        """Count one more iteration.

        The loss is read only when it is shown, since reading it from a GPU waits for the GPU. If the learner acts, the
        returns and environment steps in ``report`` are shown, too.
        """
        now = time.monotonic()
        if self._begun is None:
            self._begun = iteration - 1
        if not self.show or (
            now - self._shown < (LINE if self._bar is None else REFRESH) and iteration < self.iterations
        ):
            return
        self._shown = now
        mean = f"{loss.mean().item():.4g}{_returns(report)}"
        if self._bar is not None:
            task = self._bar.task_ids[0]
            with _LOSING:
                self._bar.update(task, completed=iteration, rate=f"{rate:,.0f}", loss=mean, score=self._score)
            return
        left = (now - self._first) / (iteration - self._begun) * (self.iterations - iteration)
        streams.err(f"iteration {iteration}/{self.iterations}  {rate:,.0f} tasks/s  {clock(left)} left  loss {mean}")

    def timed(self, iteration: int, seconds: float) -> None:
        """Record the time of an iteration; after the first few iterations, print an ETA."""
        if len(self._times) == TIMED:
            return
        self._times.append(seconds)
        each, left = statistics.median(self._times), self.iterations - iteration
        if len(self._times) == TIMED and left * each > WORTH:
            eta = clock(left * each)
            self.note(f"{each:.3g} s per iteration, ETA {eta} for {left:,} iterations, without validations")

    def validated(self, iteration: int, result: Evaluation) -> None:
        """Show the result of a validation."""
        self._score = streams.shown(f"val {result.metric} {result.mean:.4g}{result.scale.suffix} ({result.mode})")
        if self.show and self._bar is None:
            streams.err(f"iteration {iteration}/{self.iterations}  validation: {result}")
        if not math.isfinite(result.mean):
            self.note(
                f"iteration {iteration}: the validation score is not finite, so these weights are not among the best; "
                "adaptation diverges on some tasks: a smaller inner lr, or fewer val_steps, often helps"
            )

    def note(self, text: str) -> None:
        """Show a message about this run."""
        if self._bar is not None:
            with _LOSING:
                self._bar.console.print(streams.plain(text), markup=False, highlight=False)
        elif self.show:
            streams.err(text)


def _returns(report: Mapping[str, Any]) -> str:
    """Return the mean returns and the speed of acting as text, if there are any."""
    if "returns" not in report:
        return ""
    returns = " -> ".join(f"{mean:.4g}" for mean in report["returns"])
    return f"  return {returns}  {report['environment_steps_per_second']:,.0f} environment steps/s"


def clock(seconds: float) -> str:
    """Format seconds as hours, minutes and seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def _bar(iterations: int) -> Any:
    """Return a rich progress bar, or None without rich."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar
    except ImportError:
        return None
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]} tasks/s"),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]}"),
        TextColumn("{task.fields[score]}", markup=False),
    )
    bar = Bar(*columns, console=Console(stderr=True))
    bar.add_task("meta-training", total=iterations, rate="-", loss="-", score="")
    return bar
