"""Calibration of predicted probabilities by a temperature."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ..adapted import Adapted
from ..learner import MetaLearner
from ..task import Source, TaskSource, select, singles, to
from .metrics import ignored, kind, tells_classes

SPREAD = 0.5
"""The prior standard deviation, in natural logarithms, of a task's temperature around that of validation tasks. A few
examples move the temperature a little, many move it all the way."""


def temperature(logits: Tensor, y: Tensor, around: float | None = None) -> float:
    """Return the divisor of logits that calibrates their softmax, between 1/100 and 100.

    It maximizes the likelihood (Guo et al. 2017, section 4.2).

    Args:
        logits: the logits ``[N, C]`` of examples that were not adapted on.
        y: their classes, ``[N]``.
        around: the center of a prior on the logarithm, with standard deviation `SPREAD`; None for no prior.
    """
    logits, candidates = logits.double(), torch.logspace(-2, 2, 401, dtype=torch.float64)
    # The likelihood is concave in 1 / temperature, so a grid of 2 % steps finds the maximum and always converges.
    losses = torch.stack([F.cross_entropy(logits / t, y, reduction="sum") for t in candidates])
    if around is not None:
        losses = losses + ((candidates.log() - math.log(around)) / SPREAD).square() / 2
    return float(candidates[losses.argmin()])


@torch.no_grad()
def temperature_on(learner: MetaLearner, source: Source, num_tasks: int = 100, seed: int = 0) -> float | None:
    """Return the temperature that fits the query sets of some tasks, with separate predictions for query examples.

    It is None if the learner does not classify, or if its outputs are not finite.

    Args:
        learner: the learner; its model and torch's random state stay as they are.
        source: a source of tasks that the learner was not trained on.
        num_tasks: the number of tasks.
        seed: the seed of the tasks.
    """
    if not isinstance(source, TaskSource) or kind(learner.loss) != "classes":
        return None
    generator, device = torch.Generator().manual_seed(seed), next(learner.parameters()).device
    logits, targets = [], []
    for _ in range(num_tasks):
        support, query = to(singles(select(source.sample(1, generator), slice(0, 1)))[0], device)
        if not tells_classes(learner.loss, query.y):
            return None
        logits.append(plain(learner.adapt(support, transductive=False))(query.x).cpu())
        targets.append(query.y.cpu())
    scores, y = torch.cat(logits).movedim(1, -1).flatten(0, -2), torch.cat(targets).flatten()
    counted = y != ignored(learner.loss)
    return temperature(scores[counted], y[counted]) if bool(scores[counted].isfinite().all()) else None


def plain(adapted: Adapted) -> Callable[[Tensor], Tensor]:
    """Return an adapted model as a plain module if possible; else itself, which uses the support set in every call."""
    return adapted if adapted.joint else adapted.module()
