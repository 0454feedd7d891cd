"""What happens within some tasks, as plain values: the losses of inner steps, and what comes of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..learner import MetaLearner
from ..task import Task, Tasks, select, size, stack
from .evaluate import score
from .metrics import Judge, default, tells_classes


def trace(learner: MetaLearner, tasks: Tasks, steps: Tensor, every: int = 1) -> dict[str, Any]:
    """How T tasks are learned by K inner steps, from the parameters as they are.

    Args:
        learner: its parameters, modes and statistics stay what they are, and so does torch's random state.
        tasks: a meta-batch of T tasks.
        steps: ``[T, K]``: the inner loss of each step on its own examples, before it (as in `Outcome`).
        every: after every so many steps the whole support and query sets are judged; after 0 and K always.

    Returns:
        ``steps``: of each task, a list for every inner epoch of the losses of its steps; ``after``: A numbers of
        steps; ``support_loss`` and ``query_loss``: ``[T][A]``, after so many steps; where accuracy is the
        default metric (plain cross-entropy on class indices), ``support_accuracy`` and ``query_accuracy``, likewise,
        in per cent.
    """
    if isinstance(tasks, list):
        each = [trace(learner, stack([task]), own[None], every) for task, own in zip(tasks, steps, strict=True)]
        joint = (set(each[0]) - {"after"}) if each else set[str]()
        return {key: [row for one in each for row in one[key]] if key in joint else each[0][key] for key in each[0]}
    after = sorted({*range(0, learner.steps, every), learner.steps})
    told: dict[str, Any] = {
        "steps": epochs(steps, size(select(tasks.support.x, 0)), learner.batch_size),
        "after": after,
    }
    device = next(learner.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        for name, part, loss in (("support", tasks.support, learner.inner_loss), ("query", tasks.query, learner.loss)):
            output = learner.predict(Task(tasks.support, part), at=after)
            told[f"{name}_loss"] = score(loss, output, part.y).tolist()
            if tells_classes(learner.loss, part.y):
                judge = Judge(default(learner.loss, part.y), learner.loss)
                told[f"{name}_accuracy"] = score(judge, output, part.y).tolist()
    return told


def epochs(steps: Tensor, examples: int, batch_size: int | None) -> list[list[list[float]]]:
    """The values of steps ``[T, K]`` of T tasks, as a list with one entry for every pass through the support set.

    Without mini-batches each step is one pass.
    """
    each = min(batch_size or examples, examples)
    passes = torch.arange(steps.shape[1]) * each // examples
    sizes = passes.bincount().tolist()
    return [[part.tolist() for part in row.split(sizes)] if sizes else [] for row in steps.cpu()]
