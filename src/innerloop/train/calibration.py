"""Probabilities that mean what they say."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ..adapted import Adapted
from ..learner import MetaLearner
from ..task import Source, TaskSource, select, to
from .metrics import ignored, kind, tells_classes

SPREAD = 0.5
"""How far, in natural logarithms, the temperature of a task is thought to be from that of the tasks of validation: a
standard deviation. A few examples of one's own move it a little, many all the way."""


def temperature(logits: Tensor, y: Tensor, around: float | None = None) -> float:
    """The divisor of logits that calibrates their softmax, between 1/100 and 100.

    It maximizes the likelihood (Guo et al. 2017, section 4.2).

    Args:
        logits: ``[N, C]``, of examples that were not adapted on.
        y: their classes, ``[N]``.
        around: a temperature that is likely beforehand, with `SPREAD` about its logarithm; None for no such belief.
    """
    logits, candidates = logits.double(), torch.logspace(-2, 2, 401, dtype=torch.float64)
    # The likelihood is concave in 1 / temperature, so a grid of 2 % steps finds it, and cannot fail to converge.
    found = torch.stack([F.cross_entropy(logits / t, y, reduction="sum") for t in candidates])
    if around is not None:
        found = found + ((candidates.log() - math.log(around)) / SPREAD).square() / 2
    return float(candidates[found.argmin()])


@torch.no_grad()
def temperature_on(learner: MetaLearner, source: Source, num_tasks: int = 100, seed: int = 0) -> float | None:
    """The temperature that fits the query sets of some tasks, each query example judged alone.

    It is None where the learner does not classify, or where its outputs are not finite.

    Args:
        learner: its model and torch's random state are left as they are.
        source: of tasks that it was not trained on.
        num_tasks: how many.
        seed: of the tasks.
    """
    if not isinstance(source, TaskSource) or kind(learner.loss) != "classes":
        return None
    generator, device = torch.Generator().manual_seed(seed), next(learner.parameters()).device
    logits, targets = [], []
    for _ in range(num_tasks):
        support, query = to(select(source.sample(1, generator), 0), device)
        if not tells_classes(learner.loss, query.y):
            return None
        logits.append(plain(learner.adapt(support, transductive=False))(query.x).cpu())
        targets.append(query.y.cpu())
    scores, y = torch.cat(logits).movedim(1, -1).flatten(0, -2), torch.cat(targets).flatten()
    counted = y != ignored(learner.loss)
    return temperature(scores[counted], y[counted]) if bool(scores[counted].isfinite().all()) else None


def plain(adapted: Adapted) -> Callable[[Tensor], Tensor]:
    """An adapted model as a plain module where it can be one; else itself, which judges inputs by the support set."""
    return adapted if adapted.joint else adapted.module()
