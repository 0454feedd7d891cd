"""How well a learner adapts to unseen tasks: a mean over tasks, its interval, and the curve over inner steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from ..learner import MetaLearner
from ..task import InteractiveSource, Source, Task, TaskSource, select, to
from .ensemble import Ensemble
from .world import World

Metric = Callable[[Any, Any], Tensor]
"""``(output, y) -> scalar`` on the query set of one task, like a loss; lower is better unless it is `accuracy`."""


def accuracy(output: Tensor, y: Tensor) -> Tensor:
    """Per cent of examples classified rightly: logits ``[Q, C]`` against class indices ``[Q]``, or one logit an example
    against targets 0 and 1 in floating point."""
    right = (output > 0) == (y > 0.5) if y.is_floating_point() else output.argmax(-1) == y
    return 100 * right.sum() / right.numel()


def higher_is_better(metric: str) -> bool:
    """Whether a metric is accuracy, success or a return; errors and losses are better when lower."""
    return metric in ("accuracy", *ACTING)


ACTING = ("return", "success")
"""What a learner that acts is judged by."""
PER_CENT = ("accuracy", "success")
"""Metrics in per cent."""


METRICS: dict[str, Metric] = {"accuracy": accuracy, "mse": F.mse_loss}
"""The metrics that have a name; accuracy is in per cent."""


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation over N tasks found.

    Attributes:
        metric: ``"accuracy"`` (in per cent, higher is better), ``"mse"``, ``"return"`` (of episodes, higher is better),
            ``"success"`` (likewise, in per cent), or the name of one's own.
        mean: over tasks, after the last step.
        ci95: half the width of its 95 % interval, 1.96 standard errors over tasks.
        num_tasks: N.
        steps: the mean after 0, 1, ..., K inner steps.
        steps_ci95: the half width for each of them.
        transductive: whether a prediction depended on the other query examples: batch norm saw the whole query set
            (see `MetaLearner.predict`), and went by its statistics.
        scores: ``[N, K + 1]``; of every task after every number of steps, float64 on the CPU.
    """

    metric: str
    mean: float
    ci95: float
    num_tasks: int
    steps: tuple[float, ...]
    steps_ci95: tuple[float, ...]
    transductive: bool
    scores: Tensor = field(repr=False, compare=False)

    @classmethod
    def of(cls, scores: Tensor, metric: str, transductive: bool) -> Evaluation:
        """From the scores ``[N, K + 1]`` of N >= 2 tasks."""
        scores = scores.double().cpu()
        means, half = scores.mean(0), 1.96 * scores.std(0, correction=1) / math.sqrt(len(scores))
        return cls(
            metric=metric,
            mean=means[-1].item(),
            ci95=half[-1].item(),
            num_tasks=len(scores),
            steps=tuple(means.tolist()),
            steps_ci95=tuple(half.tolist()),
            transductive=transductive,
            scores=scores,
        )

    @property
    def higher_is_better(self) -> bool:
        """True for accuracy, success and returns; errors and losses are better when lower."""
        return higher_is_better(self.metric)

    @property
    def mode(self) -> str:
        """``"transductive"`` or ``"inductive"``; where nothing is predicted but something done, ``"acting"``."""
        return "acting" if self.metric in ACTING else "transductive" if self.transductive else "inductive"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: the attributes without ``scores``."""
        return {
            "metric": self.metric,
            "mean": self.mean,
            "ci95": self.ci95,
            "num_tasks": self.num_tasks,
            "steps": list(self.steps),
            "steps_ci95": list(self.steps_ci95),
            "transductive": self.transductive,
        }

    def __str__(self) -> str:
        number, unit = (".2f", " %") if self.metric in PER_CENT else (".4g", "")
        taken = len(self.steps) - 1
        return (
            f"{self.metric} {self.mean:{number}} +- {self.ci95:{number}}{unit} after {taken} "
            f"step{'' if taken == 1 else 's'} ({self.steps[0]:{number}} before) "
            f"[{self.num_tasks} tasks, 95 % interval, {self.mode}]"
        )


def evaluate(
    learner: MetaLearner | Ensemble,
    source: Source,
    num_tasks: int = 600,
    steps: int | None = None,
    transductive: bool = True,
    metric: str | Metric | None = None,
    seed: int = 0,
    batch: int = 25,
    world: World | None = None,
) -> Evaluation:
    """Adapt to each of ``num_tasks`` tasks and score the query set before, between and after the steps.

    The learner (without dropout meanwhile), torch's random state and everybody's generators are afterwards what they
    were before. Memory does not grow with the number of tasks.

    Args:
        learner: what to evaluate, or several together; tasks are moved to its device.
        source: where the tasks come from. In those of an `InteractiveSource` the learner acts, and what it comes to
            is the score; ``transductive`` and ``metric`` then say nothing.
        num_tasks: at least 2. The first tasks of a longer evaluation are those of a shorter one; of those that are
            acted in, the first whole batches.
        steps: inner steps, which may exceed the trained number; ``None`` takes as many as in training.
        transductive: whether batch norm sees a task's whole query set; see `MetaLearner.predict`.
        metric: ``"accuracy"``, ``"mse"`` or a function like a loss. If not given: accuracy where targets are class
            indices or the loss is binary cross-entropy, else the mean squared error.
        seed: of the tasks: the same seed gives the same ones, whatever ``batch``, unless they are acted in.
        batch: how many tasks are adapted at once.
        world: the processes that share the work, all of which make this call, and get the same result.

    Raises:
        ValueError: a number out of range, an unknown metric, or targets that need a metric to be named.
    """
    _check(num_tasks, batch, steps, metric)
    device, generator = next(learner.parameters()).device, torch.Generator().manual_seed(seed)
    world, scores = world or World(), list[Tensor]()
    if isinstance(source, InteractiveSource):
        return Evaluation.of(_lived(learner, source, num_tasks, steps, seed, batch, world), source.metric, False)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for start in range(0, num_tasks, batch):
            tasks = _draw(source, min(batch, num_tasks - start), generator)
            metric = metric or usual_metric(learner, tasks.query.y)
            if start // batch % world.size == world.rank:  # dealt out in turn
                tasks = to(tasks, device)
                measure = METRICS[metric] if isinstance(metric, str) else metric
                scores.append(score(measure, learner.predict(tasks, steps, transductive), tasks.query.y).cpu())
    assert metric is not None
    name = metric if isinstance(metric, str) else getattr(metric, "__name__", type(metric).__name__)
    return Evaluation.of(_gathered(world, scores), name, transductive and learner.depends_on_query_set)


def _lived(
    learner: MetaLearner | Ensemble,
    source: InteractiveSource,
    num_tasks: int,
    steps: int | None,
    seed: int,
    batch: int,
    world: World,
) -> Tensor:
    """What acting comes to, ``[N, K + 1]``. Each batch has a generator of its own: how much is drawn depends on what
    happens."""
    if isinstance(learner, Ensemble):
        raise ValueError("an ensemble does not act: evaluate one learner")
    source.require(learner)
    scores, seeds = list[Tensor](), torch.Generator().manual_seed(seed)
    for number, start in enumerate(range(0, num_tasks, batch)):
        own = int(torch.randint(2**31 - 1, (1,), generator=seeds))
        if number % world.size == world.rank:
            generator = torch.Generator().manual_seed(own)
            scores.append(source.returns(learner, min(batch, num_tasks - start), steps, generator))
    return _gathered(world, scores)


def _gathered(world: World, scores: list[Tensor]) -> Tensor:
    """Of all processes, whose batches were dealt out in turn."""
    turns = zip_longest(*world.everybody(scores))
    return torch.cat([part for turn in turns for part in turn if part is not None])


def _check(num_tasks: int, batch: int, steps: int | None, metric: str | Metric | None) -> None:
    if num_tasks < 2 or batch < 1 or (steps is not None and steps < 0):
        raise ValueError(
            f"an evaluation needs num_tasks >= 2 (for the interval), batch >= 1 and steps >= 0; "
            f"got num_tasks={num_tasks}, batch={batch}, steps={steps}"
        )
    if isinstance(metric, str) and metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}: it is one of {', '.join(METRICS)}, or a function")


def _draw(source: TaskSource, n: int, generator: torch.Generator) -> Task:
    # One at a time: what a source draws for n tasks at once would depend on n.
    tasks = [source.sample(1, generator) for _ in range(n)]
    joined: Task = pytree.tree_map(lambda *leaves: torch.cat(leaves), *tasks)
    return joined


@torch.no_grad()
def score(metric: Metric, output: Any, y: Any) -> Tensor:
    """``[T, A]``, after A numbers of steps, from outputs ``[T, A, Q, ...]`` and targets ``[T, Q, ...]``."""
    tasks, points = pytree.tree_leaves(output)[0].shape[:2]
    rows = [[metric(select(select(output, t), k), select(y, t)) for k in range(points)] for t in range(tasks)]
    return torch.stack([torch.stack(row) for row in rows])


def judged_by(learner: MetaLearner | Ensemble, source: Source) -> str:
    """The name of the metric that an evaluation on tasks of this source has unless another is given."""
    if isinstance(source, InteractiveSource):
        return source.metric
    return usual_metric(learner, source.sample(1, torch.Generator().manual_seed(0)).query.y)


def usual_metric(learner: MetaLearner | Ensemble, y: Any) -> str:
    """The name of the metric for such targets."""
    if not isinstance(y, Tensor):
        raise ValueError(
            f"targets of type {type(y).__name__} have no usual metric: pass metric=, a function like a loss"
        )
    binary = learner.loss is F.binary_cross_entropy_with_logits
    return "accuracy" if binary or not y.is_floating_point() else "mse"
