"""The recorder, which decides what a training writes to its record and when."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..common.ranges import require_at_least
from ..learner import MetaLearner
from ..objectives import Outcome
from ..task import Params, Tasks, select, to
from .evaluate import Evaluation
from .record import SCHEMA, Metrics, environment, peak_memory
from .trace import trace


class Phases:
    """Seconds spent in each phase of a training."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add the seconds spent inside this context to a phase."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    @property
    def training(self) -> float:
        """Seconds spent in iterations, without records, validations and checkpoints."""
        return sum(self.seconds.get(name, 0.0) for name in ("tasks", "gradient", "update"))


class Recorder:
    """Writes the lines of ``metrics.jsonl``, which docs/record.md describes.

    Args:
        metrics: the file to write to.
        learner: the learner that is trained.
        iterations: the number of the last iteration, which is always recorded.
        log_every: the number of iterations between training lines.
        trace_every: the number of iterations between lines of tasks and learned rates; 0 for never.
        trace_tasks: the number of tasks to trace.
        trace_steps: the number of inner steps between evaluations of traced tasks.
    """

    def __init__(
        self,
        metrics: Metrics,
        learner: MetaLearner,
        iterations: int,
        log_every: int,
        trace_every: int,
        trace_tasks: int,
        trace_steps: int,
    ) -> None:
        require_at_least(0, trace_every=trace_every)
        require_at_least(1, log_every=log_every, trace_tasks=trace_tasks, trace_steps=trace_steps)
        self.metrics, self.learner, self.iterations = metrics, learner, iterations
        self.log_every, self.trace_every = log_every, trace_every if metrics.path else 0
        self.trace_tasks, self.trace_steps = trace_tasks, trace_steps

    def begin(self, iteration: int, tasks: int, device: torch.device) -> None:
        """Open the record after an iteration; a new record begins with a line about the run."""
        self.metrics.open(iteration)
        if self.metrics.empty:
            about = {"schema": SCHEMA, "tasks": tasks, "steps": self.learner.steps}
            self.metrics.append("run", 0, **about, environment=environment(device))
            self._rates(0)

    def tasks(self, iteration: int, tasks: Tasks, grads: Params, outcome: Outcome) -> None:
        """Record the inner loops of some tasks before the update of this iteration, if that is due."""
        if not self.trace_every or not due(iteration, self.trace_every, self.iterations):
            return
        some = slice(self.trace_tasks)
        traced = select(tasks, some)
        values = trace(self.learner, to(traced, outcome.loss.device), outcome.steps[some], self.trace_steps)
        grad_norms = {name: grad.norm().item() for name, grad in grads.items()}
        self.metrics.append("tasks", iteration, **values, grad_norms=grad_norms)

    def train(
        self,
        iteration: int,
        outcome: Outcome,
        norm: Tensor,
        lr: float,
        rate: float,
        phases: Phases,
        report: Mapping[str, Any],
    ) -> None:
        """Record the results of an update, the rates after it, and the report of the source, if that is due."""
        if self.trace_every and due(iteration, self.trace_every, self.iterations):
            self._rates(iteration)
        if not due(iteration, self.log_every, self.iterations):
            return
        self.metrics.append(
            "train",
            iteration,
            objective=outcome.objective.mean().item(),
            loss=outcome.loss.mean().item(),
            steps=outcome.steps.mean(0).tolist(),
            grad_norm=norm.item(),
            lr=lr,
            tasks_per_second=rate,
            seconds=phases.training,
            phases=phases.seconds,
            memory_mib=peak_memory(norm.device),
            **report,
        )

    def validation(self, iteration: int, result: Evaluation, phases: Phases) -> None:
        """Record a validation, with the score of every task after the last step."""
        scores = [round(score, 4) for score in result.scores[:, -1].tolist()]
        self.metrics.append("validation", iteration, **result.as_dict(), scores=scores, seconds=phases.training)

    def _rates(self, iteration: int) -> None:
        if self.trace_every and (rates := self.learner.rule.rates()):
            plain = {name: rate.detach().flatten().tolist() for name, rate in rates.items()}
            self.metrics.append("rates", iteration, rates=plain)


def due(iteration: int, every: int, last: int) -> bool:
    """Return whether something that is due ``every`` iterations, and at the last, is due now."""
    return iteration % every == 0 or iteration == last
