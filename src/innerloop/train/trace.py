"""Traces of the inner loops of some tasks, as plain values: losses of inner steps and scores after them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..learner import MetaLearner
from ..task import Task, Tasks, select, size, stack
from .evaluate import score
from .metrics import Judge, default, tells_classes


def trace(learner: MetaLearner, tasks: Tasks, steps: Tensor, every: int = 1) -> dict[str, Any]:
    """Trace the inner loops of T tasks with K steps from the present parameters.

    Args:
        learner: the learner; its parameters, modes and statistics, and torch's random state, stay as they are.
        tasks: a meta-batch of T tasks.
        steps: the inner loss of each step on its own examples, before the step, ``[T, K]`` (as in `Outcome`).
        every: the number of steps between evaluations of the whole support and query sets; after 0 and K steps there
            is always one.

    Returns:
        ``steps``: for each task, a list for every inner epoch with the losses of its steps; ``after``: A numbers of
        steps; ``support_loss`` and ``query_loss``: ``[T][A]``, after these numbers of steps. If accuracy is the
        default metric (plain cross-entropy on class indices), also ``support_accuracy`` and ``query_accuracy``,
        ``[T][A]``, in percent.
    """
    if isinstance(tasks, list):
        each = [trace(learner, stack([task]), own[None], every) for task, own in zip(tasks, steps, strict=True)]
        joint = (set(each[0]) - {"after"}) if each else set[str]()
        return {key: [row for one in each for row in one[key]] if key in joint else each[0][key] for key in each[0]}
    after = sorted({*range(0, learner.steps, every), learner.steps})
    values: dict[str, Any] = {
        "steps": epochs(steps, size(select(tasks.support.x, 0)), learner.batch_size),
        "after": after,
    }
    device = next(learner.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        for name, part, loss in (("support", tasks.support, learner.inner_loss), ("query", tasks.query, learner.loss)):
            output = learner.predict(Task(tasks.support, part), at=after)
            values[f"{name}_loss"] = score(loss, output, part.y).tolist()
            if tells_classes(learner.loss, part.y):
                judge = Judge(default(learner.loss, part.y), learner.loss)
                values[f"{name}_accuracy"] = score(judge, output, part.y).tolist()
    return values


def epochs(steps: Tensor, examples: int, batch_size: int | None) -> list[list[list[float]]]:
    """Split the values of steps ``[T, K]`` of T tasks into a list for every pass through the support set.

    Without mini-batches each step is one pass.
    """
    each = min(batch_size or examples, examples)
    passes = torch.arange(steps.shape[1]) * each // examples
    sizes = passes.bincount().tolist()
    return [[part.tolist() for part in row.split(sizes)] if sizes else [] for row in steps.cpu()]
