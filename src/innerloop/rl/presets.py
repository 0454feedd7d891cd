"""Published algorithms of meta-reinforcement learning, each a small composition.

Each is a learner made of the core's parts, with losses of policies and its own outer step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypedDict

from torch import nn
from typing_extensions import Unpack  # torch brings it

from .. import rules
from ..engine import Vectorize
from ..inner import Loss, Memory
from ..learner import MetaLearner
from ..objectives import Objective, Unrolled
from ..select import Selection, everything, head_of, named
from .losses import Along, Clipped, Penalised, Sampling, ratio, score
from .outer import PPO, TRPO

Inner = Literal["score", "ratio"]
INNER = {"score": score, "ratio": ratio}


class Running(TypedDict, total=False):
    """How a learner runs; see `MetaLearner`. Nothing is compiled, since most of the time goes into acting."""

    memory: Memory
    vectorize: Vectorize


class Options(Running, total=False):
    """What every preset hands on to the learner; see `MetaLearner`."""

    steps: int


def _learner(
    policy: nn.Module,
    rule: rules.UpdateRule,
    adapt: Selection,
    objective: Objective,
    outer: TRPO | PPO,
    episodes: int,
    inner: Inner,
    citation: str = "",
    loss: Loss = ratio,
    **options: Unpack[Options],
) -> MetaLearner:
    if inner not in INNER:
        raise ValueError(f"inner is {' or '.join(INNER)}, got {inner!r}")
    learner = MetaLearner(
        policy,
        rule,
        adapt,
        objective,
        loss,
        inner_loss=INNER[inner],
        batch_size=episodes,
        compile=False,
        citation=citation,
        **options,
    )
    learner.outer = outer
    return learner


def maml_trpo(
    policy: nn.Module,
    lr: float = 0.1,
    episodes: int = 20,
    later_lr: float | None = None,
    order: int = 2,
    max_kl: float = 0.01,
    inner: Inner = "score",
    weights: tuple[float, ...] | None = None,
    **options: Unpack[Options],
) -> MetaLearner:
    """MAML for policies: inner policy gradients, an outer trust region (Finn et al. 2017, Algorithm 3).

    Args:
        policy: a module whose output is a distribution over actions.
        lr: of the inner steps.
        episodes: of a task, that an inner step is taken on.
        later_lr: of the steps after the first; Finn et al. halve the rate for these.
        order: 2 differentiates through the inner steps, 1 does not.
        max_kl: how far the adapted policies may move in an outer step.
        inner: the inner loss, `score` or `ratio`.
        weights: of the policies after 0, 1, ..., K steps, to train all of them (`Along`); else it is the last alone.
        options: see `MetaLearner`.
    """
    if weights is not None and len(weights) != options.get("steps", 1) + 1:
        raise ValueError(f"weights are of the policies after 0, 1, ..., {options.get('steps', 1)} steps, got {weights}")
    rule, objective = _rule(lr, later_lr), Along(order, weights)
    return _learner(policy, rule, everything, objective, TRPO(max_kl), episodes, inner, **options)


def _rule(lr: float, later_lr: float | None) -> rules.UpdateRule:
    return rules.SGD(lr) if later_lr is None else rules.PerStepSGD((lr, later_lr), learned=False)


def fomaml_trpo(
    policy: nn.Module, lr: float = 0.1, episodes: int = 20, max_kl: float = 0.01, **options: Unpack[Options]
) -> MetaLearner:
    """First-order `maml_trpo`: the updates are taken as constants (Finn et al. 2017, section 5.2).

    Args:
        policy: see `maml_trpo`.
        lr: of the inner steps.
        episodes: of a task, that an inner step is taken on.
        max_kl: how far the adapted policies may move in an outer step.
        options: see `MetaLearner`.
    """
    return maml_trpo(policy, lr, episodes, order=1, max_kl=max_kl, **options)


def e_maml(
    policy: nn.Module,
    lr: float = 0.1,
    episodes: int = 20,
    strength: float = 1.0,
    max_kl: float = 0.01,
    **options: Unpack[Options],
) -> MetaLearner:
    """E-MAML: the meta-gradient counts what the policy samples to adapt from, too (Stadie et al. 2018).

    Args:
        policy: see `maml_trpo`.
        lr: of the inner steps.
        episodes: of a task, that an inner step is taken on.
        strength: of the term for sampling; see `Sampling`.
        max_kl: how far the adapted policies may move in an outer step.
        options: see `MetaLearner`.
    """
    objective = Sampling(strength=strength)
    return _learner(policy, rules.SGD(lr), everything, objective, TRPO(max_kl), episodes, "score", **options)


def promp(
    policy: nn.Module,
    lr: float = 0.1,
    episodes: int = 20,
    outer_lr: float = 1e-3,
    epochs: int = 5,
    clip: float = 0.3,
    penalty: float = 5e-4,
    target_kl: float | None = 0.01,
    **options: Unpack[Options],
) -> MetaLearner:
    """Proximal meta-policy search (ProMP; Rothfuss et al. 2019).

    The inner loss is the ratio, the outer loss the clipped ratio with a penalty on leaving the policies that sampled.

    Args:
        policy: see `maml_trpo`.
        lr: of the inner steps.
        episodes: of a task, that an inner step is taken on.
        outer_lr: the learning rate of the outer steps; see `PPO`.
        epochs: outer steps on each meta-batch.
        clip: of the outer ratios; see `Clipped`.
        penalty: the strength of the penalty at first; see `Penalised`.
        target_kl: the divergence that the penalty is adapted to; ``None`` keeps its strength. See `PPO`.
        options: see `MetaLearner`.
    """
    outer, objective = PPO(outer_lr, epochs, target_kl), Penalised(strength=penalty)
    rule, loss = rules.SGD(lr), Clipped(clip)
    return _learner(policy, rule, everything, objective, outer, episodes, "ratio", loss=loss, **options)


def meta_sgd_trpo(
    policy: nn.Module, lr: float = 0.1, episodes: int = 20, max_kl: float = 0.01, **options: Unpack[Options]
) -> MetaLearner:
    """`maml_trpo` with a learned rate for every weight (Li et al. 2017, section 4.3).

    Args:
        policy: see `maml_trpo`.
        lr: the rate of every weight at first.
        episodes: of a task, that an inner step is taken on.
        max_kl: how far the adapted policies may move in an outer step.
        options: see `MetaLearner`.
    """
    rule = rules.ElementwiseSGD(lr)
    return _learner(policy, rule, everything, Unrolled(), TRPO(max_kl), episodes, "score", **options)


def cavia_trpo(
    policy: nn.Module, lr: float = 10.0, episodes: int = 20, max_kl: float = 0.01, **options: Unpack[Options]
) -> MetaLearner:
    """Only the policy's context adapts, from zero (Zintgraf et al. 2019, section 5.3).

    Args:
        policy: a policy with a context, such as ``gaussian_policy(context=5)``.
        lr: of the inner steps.
        episodes: of a task, that an inner step is taken on.
        max_kl: how far the adapted policies may move in an outer step.
        options: see `MetaLearner`.
    """
    citation = "Zintgraf, Shiarlis, Kurin, Hofmann, Whiteson. Fast Context Adaptation via Meta-Learning. ICML 2019."
    adapt = named("context", "*.context")
    return _learner(policy, rules.SGD(lr), adapt, Unrolled(), TRPO(max_kl), episodes, "score", citation, **options)


def anil_trpo(
    policy: nn.Module, lr: float = 0.1, episodes: int = 20, max_kl: float = 0.01, **options: Unpack[Options]
) -> MetaLearner:
    """`maml_trpo` in which only the last layer adapts (Raghu et al. 2020, section 4.3).

    Args:
        policy: see `maml_trpo`.
        lr: of the inner steps.
        episodes: of a task, that an inner step is taken on.
        max_kl: how far the adapted policies may move in an outer step.
        options: see `MetaLearner`.
    """
    citation = "Raghu, Raghu, Bengio, Vinyals. Rapid Learning or Feature Reuse? ICLR 2020. arXiv:1909.09157"
    adapt = head_of("head")
    return _learner(policy, rules.SGD(lr), adapt, Unrolled(), TRPO(max_kl), episodes, "score", citation, **options)


def trpo(
    policy: nn.Module,
    lr: float = 0.1,
    episodes: int = 20,
    later_lr: float | None = None,
    max_kl: float = 0.01,
    inner: Inner = "score",
    **running: Unpack[Running],
) -> MetaLearner:
    """Pretraining, a baseline: one policy for all tasks, trained without adapting (Schulman et al. 2015).

    It takes inner steps only in evaluation, at the given rates.

    Args:
        policy: see `maml_trpo`.
        lr: of the inner steps in evaluation.
        episodes: of a task, for each inner step and each outer step.
        later_lr: of the inner steps after the first, if it is another.
        max_kl: how far the policy may move in an outer step.
        inner: the inner loss in evaluation, `score` or `ratio`.
        running: see `MetaLearner`.
    """
    rule, objective, outer = _rule(lr, later_lr), Unrolled(), TRPO(max_kl)
    return _learner(policy, rule, everything, objective, outer, episodes, inner, steps=0, **running)


PRESETS: dict[str, Callable[..., MetaLearner]] = {
    "maml-trpo": maml_trpo,
    "fomaml-trpo": fomaml_trpo,
    "e-maml": e_maml,
    "promp": promp,
    "meta-sgd-trpo": meta_sgd_trpo,
    "cavia-trpo": cavia_trpo,
    "anil-trpo": anil_trpo,
    "trpo": trpo,
}
"""The algorithms that a recipe can name."""
