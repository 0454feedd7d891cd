"""Losses and objectives of policies, for the inner and the outer loop."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..episode import Episode, Loss, Step
from ..objectives import Judgement, Objective, Unrolled
from ..schedules import Schedule, value
from .distributions import Distribution


class Decisions(NamedTuple):
    """The targets ``y`` of a policy for observations ``x`` of E episodes of H steps each.

    Attributes:
        actions: the actions, ``[E, H, A]``, or their indices ``[E, H]``.
        advantages: the advantages of the actions, ``[E, H]``.
        weights: 1 for steps that happened and 0 after the end of an episode, ``[E, H]``.
        behaviour: the distributions that the actions were drawn from.
        worth: the reward per step of each episode minus that of the other tasks, in units of the advantages,
            ``[E, 1]``.
    """

    actions: Tensor
    advantages: Tensor
    weights: Tensor
    behaviour: Distribution
    worth: Tensor


def _mean(values: Tensor, y: Decisions) -> Tensor:
    return torch.where(y.weights > 0, values, 0).sum() / y.weights.sum()  # values after the end may be infinite


def score(output: Distribution, y: Decisions) -> Tensor:
    """Return the loss ``-log pi(a) A``, whose gradient is the policy gradient (Williams 1992)."""
    return -_mean(output.log_prob(y.actions) * y.advantages, y)


def ratio(output: Distribution, y: Decisions) -> Tensor:
    """Return the surrogate ``-pi(a) / pi_old(a) A`` (Rothfuss et al. 2019, section 5).

    If the policy is the one that acted, its gradient is that of `score`. Its second derivative has low variance and,
    near an optimum, is that of the expected return.
    """
    return -_mean(_ratio(output, y) * y.advantages, y)


def _ratio(output: Distribution, y: Decisions) -> Tensor:
    return (output.log_prob(y.actions) - y.behaviour.log_prob(y.actions)).exp()


class Clipped:
    """`ratio`, clipped so that there is no gain from leaving ``[1 - clip, 1 + clip]`` (Schulman et al. 2017, Eq. 7).

    Args:
        clip: the largest deviation of the ratio from 1, above 0.

    Raises:
        ValueError: ``clip`` is not above 0.
    """

    def __init__(self, clip: float = 0.3) -> None:
        if clip <= 0:
            raise ValueError(f"clip must be above 0, got {clip}")
        self.clip = clip

    def __call__(self, output: Distribution, y: Decisions) -> Tensor:
        """Return the loss, a scalar."""
        plain = _ratio(output, y)
        clipped = plain.clamp(1 - self.clip, 1 + self.clip)
        return -_mean(torch.minimum(plain * y.advantages, clipped * y.advantages), y)


def divergence(output: Distribution, y: Decisions) -> Tensor:
    """Return ``KL(pi_old || pi)``, the mean over the steps that happened."""
    return _mean(y.behaviour.kl(output), y)  # type: ignore[arg-type]


class Along(Unrolled):
    """The weighted losses of all policies of an adaptation, each on its own episodes.

    The episodes before an inner step are also the query set of the previous step. This is the multi-step loss of
    Antoniou et al. 2019 (Eq. 4) for tasks in which the learner acts.

    Args:
        order: as in `Unrolled`.
        weights: the weights of the policies after 0, 1, ..., K inner steps, which are divided by their sum; with
            ``None`` only the last policy counts.

    Raises:
        ValueError: a weight is negative, or all are zero.
    """

    def __init__(self, order: Schedule[int] = 2, weights: Sequence[float] | None = None) -> None:
        super().__init__(order)
        if weights is not None and (not any(weights) or min(weights) < 0):
            raise ValueError(f"weights must be at least 0, and not all 0, got {list(weights)}")
        self.weights = weights and tuple(weight / sum(weights) for weight in weights)

    def __call__(self, episode: Episode) -> Judgement:
        """Evaluate one task by the losses of the weighted policies.

        Raises:
            ValueError: the number of weights is not the number of policies.
        """
        weights = self.weights or (*[0.0] * episode.steps, 1.0)
        if len(weights) != episode.steps + 1:
            raise ValueError(f"{episode.steps} inner steps have {episode.steps + 1} policies, got {self.weights}")
        points = [episode.start, *episode.path(value(self.order, episode.iteration))]
        query = episode.query(points[-1])
        terms = [weights[-1] * query.loss]
        for weight, step in zip(weights[:-1], points, strict=False):
            if weight:
                x, y = episode.support(step.index)
                terms.append(weight * episode.loss(episode.output(step, x), y))
        return Judgement(torch.stack(terms).sum(), query)


class Judging(Along):
    """Another loss of the same policies that an objective evaluates, on the same path.

    Args:
        loss: the other loss.
        objective: the objective.
    """

    def __init__(self, loss: Loss, objective: Objective) -> None:
        super().__init__(getattr(objective, "order", 2), getattr(objective, "weights", None))
        self.loss = loss

    def __call__(self, episode: Episode) -> Judgement:
        """Evaluate one task as `Along` does, with the other loss."""
        return super().__call__(replace(episode, loss=self.loss))


class Sampling(Unrolled):
    """`Unrolled` plus the effect of the parameters on the episodes that adaptation learns from.

    The gradient of the expected return has a term ``grad log pi(episodes) x return after adapting`` for each inner step
    (Stadie et al. 2018), which MAML leaves out. The value of the term is zero if the policies are those that acted.

    Args:
        order: as in `Unrolled`.
        strength: the strength of that term; 1 is exact, up to discounting.
    """

    citation = (
        "Stadie, Yang, Houthooft, Chen, Duan, Wu, Abbeel, Sutskever. Some Considerations on Learning to Explore via "
        "Meta-Reinforcement Learning. 2018. arXiv:1803.01118"
    )

    def __init__(self, order: Schedule[int] = 2, strength: float = 1.0) -> None:
        super().__init__(order)
        self.strength = strength

    def __call__(self, episode: Episode) -> Judgement:
        """Evaluate one task by the query loss plus the term of the sampled episodes."""
        points = [episode.start, *episode.path(value(self.order, episode.iteration))]
        query = episode.query(points[-1])
        worth, terms = episode.task.query.y.worth.mean(), [torch.zeros_like(query.loss)]
        for step in points[:-1]:
            x, y = episode.support(step.index)
            likelier = episode.output(step, x).log_prob(y.actions) - y.behaviour.log_prob(y.actions)
            terms.append(-worth * torch.where(y.weights > 0, likelier, 0).sum())
        return Judgement(query.loss + self.strength * torch.stack(terms).sum(), query)


class InnerDivergence(Unrolled):
    """The divergence ``KL(pi_old || pi)`` before each inner step, averaged over the steps.

    Here ``pi_old`` is the policy that acted.
    """

    def __call__(self, episode: Episode) -> Judgement:
        """Evaluate one task by the divergence; the query loss is only reported."""
        points = [episode.start, *episode.path(value(self.order, episode.iteration))]
        query = episode.query(points[-1])
        return Judgement(inner_divergence(episode, points), query)


def inner_divergence(episode: Episode, points: Sequence[Step]) -> Tensor:
    """Return the mean divergence over the points before each step."""
    terms = [] if len(points) > 1 else [torch.zeros_like(next(iter(points[0].params.values())).sum())]
    for step in points[:-1]:
        x, y = episode.support(step.index)
        terms.append(divergence(episode.output(step, x), y))
    return torch.stack(terms).mean()


class Penalized(Unrolled):
    """`Unrolled`, plus `InnerDivergence` times a strength that the outer step adapts (Rothfuss et al. 2019, Eq. 13).

    Args:
        order: as in `Unrolled`.
        strength: the initial strength of the penalty.
    """

    citation = "Rothfuss, Lee, Clavera, Asfour, Abbeel. ProMP: Proximal Meta-Policy Search. ICLR 2019. arXiv:1810.06784"

    def __init__(self, order: Schedule[int] = 2, strength: float = 5e-4) -> None:
        super().__init__(order)
        self.strength = strength

    def __call__(self, episode: Episode) -> Judgement:
        """Evaluate one task by the query loss plus ``strength`` times the divergence."""
        points = [episode.start, *episode.path(value(self.order, episode.iteration))]
        query = episode.query(points[-1])
        return Judgement(query.loss + self.strength * inner_divergence(episode, points), query)

    def constants(self, iteration: int) -> Hashable:
        """Return the constants of `Unrolled`, and the strength, which the outer step changes."""
        return super().constants(iteration), self.strength
