"""What a training tells its record, and when."""

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
        """Seconds of all that makes an iteration, which records, validations and checkpoints do not."""
        return sum(self.seconds.get(name, 0.0) for name in ("tasks", "gradient", "update"))


class Recorder:
    """Writes the lines of ``metrics.jsonl``; docs/record.md says what is in them.

    Args:
        metrics: where they go.
        learner: what is trained.
        iterations: the last one is always told of.
        log_every: in iterations, of the lines of training.
        trace_every: of those of tasks and learned rates; 0 for never.
        trace_tasks: of how many tasks.
        trace_steps: after every so many inner steps these are judged.
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
        """Go on after an iteration; a record that begins says of what it is."""
        self.metrics.open(iteration)
        if self.metrics.empty:
            about = {"schema": SCHEMA, "tasks": tasks, "steps": self.learner.steps}
            self.metrics.append("run", 0, **about, environment=environment(device))
            self._rates(0)

    def tasks(self, iteration: int, tasks: Tasks, grads: Params, outcome: Outcome) -> None:
        """What happens within some tasks, if it is time, before the update of that iteration."""
        if not self.trace_every or not due(iteration, self.trace_every, self.iterations):
            return
        some = slice(self.trace_tasks)
        told = trace(self.learner, to(select(tasks, some), outcome.loss.device), outcome.steps[some], self.trace_steps)
        self.metrics.append("tasks", iteration, **told, grad_norms={n: grad.norm().item() for n, grad in grads.items()})

    def train(
        self,
        iteration: int,
        outcome: Outcome,
        norm: Tensor,
        lr: float,
        rate: float,
        phases: Phases,
        told: Mapping[str, Any],
    ) -> None:
        """What an update came to, the rates after it, and what else there is to tell, if it is time."""
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
            **told,
        )

    def validation(self, iteration: int, found: Evaluation, phases: Phases) -> None:
        """A validation, with the score of every task after the last step."""
        scores = [round(score, 4) for score in found.scores[:, -1].tolist()]
        self.metrics.append("validation", iteration, **found.as_dict(), scores=scores, seconds=phases.training)

    def _rates(self, iteration: int) -> None:
        if self.trace_every and (rates := self.learner.rule.rates()):
            plain = {name: rate.detach().flatten().tolist() for name, rate in rates.items()}
            self.metrics.append("rates", iteration, rates=plain)


def due(iteration: int, every: int, last: int) -> bool:
    """Whether something that happens at every so many iterations, and at the last, happens now."""
    return iteration % every == 0 or iteration == last
