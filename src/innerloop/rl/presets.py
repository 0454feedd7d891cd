"""Published algorithms of meta-reinforcement learning, each composed of a few parts.

Each is a learner with losses of policies and its own outer step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch import nn
from typing_extensions import Unpack  # torch brings it

from .. import rules
from ..learner import MetaLearner
from ..presets import Options, of_parts
from ..presets import composed as _composed
from ..select import head_of, named
from .losses import Along, Clipped, Penalized, Sampling, ratio, score
from .outer import PPO, TRPO

Inner = Literal["score", "ratio"]
INNER = {"score": score, "ratio": ratio}
OWN = ("loss", "inner_loss", "batch_size", "compile")
"""The options of learners that all presets here set themselves."""


def composed(
    policy: nn.Module, options: Mapping[str, Any], outer: TRPO | PPO, episodes: int, inner: Inner, **parts: Any
) -> MetaLearner:
    """Return a learner with an algorithm's own parts, which options replace, and with its outer step.

    Nothing is compiled, because most of the time is spent on acting.
    """
    if inner not in INNER:
        raise ValueError(f"inner must be {' or '.join(INNER)}, got {inner!r}")
    own = {"loss": ratio, "inner_loss": INNER[inner], "batch_size": episodes, "compile": False}
    learner = _composed(policy, options, **{**own, **parts})
    learner.outer = outer
    return learner


@of_parts(
    OWN, episodes="batch_size", lr="rule", later_lr="rule", order="objective", weights="objective", inner="inner_loss"
)
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
    """MAML for policies: inner policy gradients and an outer trust region (Finn et al. 2017, Algorithm 3).

    Args:
        policy: a module that returns a distribution over actions.
        lr: the rate of the inner steps.
        episodes: number of episodes of a task per inner step.
        later_lr: the rate of the steps after the first; Finn et al. halve the rate for these.
        order: 2 differentiates through the inner steps, 1 does not.
        max_kl: the bound on the divergence of adapted policies in an outer step; see `TRPO`.
        inner: the inner loss, ``"score"`` or ``"ratio"``.
        weights: the weights of the policies after 0, 1, ..., K steps (`Along`); by default only the last counts.
        options: see `MetaLearner`.

    Raises:
        ValueError: the number of weights is not the number of policies, or ``inner`` is unknown.
    """
    if weights is not None and len(weights) != options.get("steps", 1) + 1:
        steps = options.get("steps", 1)
        raise ValueError(f"weights needs a number for each policy after 0, 1, ..., {steps} steps, got {weights}")
    rule, objective = _rule(lr, later_lr), Along(order, weights)
    return composed(policy, options, TRPO(max_kl), episodes, inner, rule=rule, objective=objective)


def _rule(lr: float, later_lr: float | None) -> rules.UpdateRule:
    return rules.SGD(lr) if later_lr is None else rules.PerStepSGD((lr, later_lr), learned=False)


@of_parts(OWN, episodes="batch_size", lr="rule")
def fomaml_trpo(
    policy: nn.Module, lr: float = 0.1, episodes: int = 20, max_kl: float = 0.01, **options: Unpack[Options]
) -> MetaLearner:
    """First-order `maml_trpo`: updates are treated as constants (Finn et al. 2017, section 5.2).

    Args:
        policy: see `maml_trpo`.
        lr: the rate of the inner steps.
        episodes: number of episodes of a task per inner step.
        max_kl: the bound on the divergence of adapted policies in an outer step; see `TRPO`.
        options: see `MetaLearner`.
    """
    outer, objective = TRPO(max_kl), Along(order=1)
    return composed(policy, options, outer, episodes, "score", rule=rules.SGD(lr), objective=objective)


@of_parts(OWN, episodes="batch_size", lr="rule", strength="objective")
def e_maml(
    policy: nn.Module,
    lr: float = 0.1,
    episodes: int = 20,
    strength: float = 1.0,
    max_kl: float = 0.01,
    **options: Unpack[Options],
) -> MetaLearner:
    """E-MAML: the meta-gradient includes the effect on the episodes that the policy adapts to (Stadie et al. 2018).

    Args:
        policy: see `maml_trpo`.
        lr: the rate of the inner steps.
        episodes: number of episodes of a task per inner step.
        strength: the strength of the term for sampling; see `Sampling`.
        max_kl: the bound on the divergence of adapted policies in an outer step; see `TRPO`.
        options: see `MetaLearner`.
    """
    outer, objective = TRPO(max_kl), Sampling(strength=strength)
    return composed(policy, options, outer, episodes, "score", rule=rules.SGD(lr), objective=objective)


@of_parts(OWN, episodes="batch_size", lr="rule", penalty="objective", clip="loss")
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

    The inner loss is the ratio. The outer loss is the clipped ratio with a penalty on the divergence from the policies
    that acted.

    Args:
        policy: see `maml_trpo`.
        lr: the rate of the inner steps.
        episodes: number of episodes of a task per inner step.
        outer_lr: the learning rate of the outer steps; see `PPO`.
        epochs: outer steps on each meta-batch.
        clip: the clipping of outer ratios; see `Clipped`.
        penalty: the initial strength of the penalty; see `Penalized`.
        target_kl: the target of the divergence; ``None`` keeps the strength of the penalty. See `PPO`.
        options: see `MetaLearner`.
    """
    outer, objective = PPO(outer_lr, epochs, target_kl), Penalized(strength=penalty)
    parts: dict[str, Any] = {"rule": rules.SGD(lr), "objective": objective, "loss": Clipped(clip)}
    return composed(policy, options, outer, episodes, "ratio", **parts)


@of_parts(OWN, episodes="batch_size", lr="rule")
def meta_sgd_trpo(
    policy: nn.Module, lr: float = 0.1, episodes: int = 20, max_kl: float = 0.01, **options: Unpack[Options]
) -> MetaLearner:
    """`maml_trpo` with a learned rate for every weight (Li et al. 2017, section 4.3).

    Args:
        policy: see `maml_trpo`.
        lr: the initial rate of every weight.
        episodes: number of episodes of a task per inner step.
        max_kl: the bound on the divergence of adapted policies in an outer step; see `TRPO`.
        options: see `MetaLearner`.
    """
    return composed(policy, options, TRPO(max_kl), episodes, "score", rule=rules.ElementwiseSGD(lr))


@of_parts(OWN, episodes="batch_size", lr="rule")
def cavia_trpo(
    policy: nn.Module, lr: float = 10.0, episodes: int = 20, max_kl: float = 0.01, **options: Unpack[Options]
) -> MetaLearner:
    """CAVIA for policies: only the policy's context adapts, from zero (Zintgraf et al. 2019, section 5.3).

    Args:
        policy: a policy with a context, such as ``gaussian_policy(context=5)``.
        lr: the rate of the inner steps.
        episodes: number of episodes of a task per inner step.
        max_kl: the bound on the divergence of adapted policies in an outer step; see `TRPO`.
        options: see `MetaLearner`.
    """
    citation = "Zintgraf, Shiarlis, Kurin, Hofmann, Whiteson. Fast Context Adaptation via Meta-Learning. ICML 2019."
    parts: dict[str, Any] = {"rule": rules.SGD(lr), "adapt": named("context", "*.context"), "citation": citation}
    return composed(policy, options, TRPO(max_kl), episodes, "score", **parts)


@of_parts(OWN, episodes="batch_size", lr="rule")
def anil_trpo(
    policy: nn.Module, lr: float = 0.1, episodes: int = 20, max_kl: float = 0.01, **options: Unpack[Options]
) -> MetaLearner:
    """ANIL for policies: `maml_trpo` in which only the last layer adapts (Raghu et al. 2020, section 4.3).

    Args:
        policy: see `maml_trpo`.
        lr: the rate of the inner steps.
        episodes: number of episodes of a task per inner step.
        max_kl: the bound on the divergence of adapted policies in an outer step; see `TRPO`.
        options: see `MetaLearner`.
    """
    citation = "Raghu, Raghu, Bengio, Vinyals. Rapid Learning or Feature Reuse? ICLR 2020. arXiv:1909.09157"
    parts: dict[str, Any] = {"rule": rules.SGD(lr), "adapt": head_of("head"), "citation": citation}
    return composed(policy, options, TRPO(max_kl), episodes, "score", **parts)


@of_parts((*OWN, "steps"), episodes="batch_size", lr="rule", later_lr="rule", inner="inner_loss")
def trpo(
    policy: nn.Module,
    lr: float = 0.1,
    episodes: int = 20,
    later_lr: float | None = None,
    max_kl: float = 0.01,
    inner: Inner = "score",
    **options: Unpack[Options],
) -> MetaLearner:
    """Pretraining, a baseline: one policy for all tasks, trained without adaptation (Schulman et al. 2015).

    It takes inner steps only in evaluation, with the given rates.

    Args:
        policy: see `maml_trpo`.
        lr: the rate of the inner steps in evaluation.
        episodes: number of episodes of a task for each inner step and each outer step.
        later_lr: the rate of the inner steps after the first, if it differs.
        max_kl: the bound on the divergence of the policy in an outer step; see `TRPO`.
        inner: the inner loss in evaluation, ``"score"`` or ``"ratio"``.
        options: see `MetaLearner`, without ``steps``.

    Raises:
        ValueError: ``steps`` is given.
    """
    if options.get("steps"):
        raise ValueError(f"trpo trains without inner steps, got steps={options['steps']}: see maml_trpo")
    return composed(policy, {**options, "steps": 0}, TRPO(max_kl), episodes, inner, rule=_rule(lr, later_lr))


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
