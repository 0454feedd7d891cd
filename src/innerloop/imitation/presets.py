"""Algorithms of imitation, each composed of a few parts: a learner with a loss that clones behavior."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F
from typing_extensions import Unpack  # torch brings it

from .. import optimizers, rules
from ..learner import MetaLearner
from ..losses import TemporalLoss
from ..presets import Options, composed, of_parts
from ..select import everything, named
from .policies import Policy


def cloning(output: Any, y: Tensor) -> Tensor:
    """Return the mean squared error of actions (behavioral cloning)."""
    return F.mse_loss(output.actions, y)


@of_parts(
    ("loss",),
    lr="rule",
    clip="rule",
    heads="inner_loss",
    channels="inner_loss",
    kernel="inner_loss",
    layers="inner_loss",
)
def daml(
    policy: Policy,
    lr: float = 1.0,
    clip: float | None = None,
    heads: tuple[str, ...] = ("seen",),
    channels: int = 32,
    kernel: int = 5,
    layers: int = 3,
    **options: Unpack[Options],
) -> MetaLearner:
    """Domain-adaptive meta-learning: a learned loss adapts the policy to a video of another demonstrator.

    Policy and loss are meta-learned so that the adapted policy imitates an expert (Yu et al. 2018, Algorithm 1).

    Args:
        policy: the policy; its output has the parts that the loss reads.
        lr: the rate of the inner steps; the learned loss can change their scale.
        clip: the limit to which each element of an inner gradient is clamped; ``None`` does not clip.
        heads: the parts that the learned loss reads, one or more of ``"seen"``, ``"points"``, ``"hidden"`` and
            ``"actions"``.
        channels: number of channels of the convolutions of the learned loss; see `TemporalLoss`.
        kernel: width of these convolutions in steps.
        layers: number of convolutions of the learned loss.
        options: see `MetaLearner`; by default ``adapt=`` selects the parameters that these parts depend on.

    Raises:
        ValueError: the policy has no such part.
    """
    adapt, inner_loss = options.get("adapt"), options.get("inner_loss")
    if inner_loss is None:
        if unknown := [head for head in heads if head not in policy.sizes]:
            raise ValueError(f"heads must be among {', '.join(policy.sizes)}, got {', '.join(unknown)}")
        inner_loss = TemporalLoss({head: policy.sizes[head] for head in heads}, channels, kernel, layers)
        if adapt is None and "actions" not in heads:
            adapt = named("eye.*") if {*heads} <= {"points", "seen"} else everything - named("head.*")
    own: dict[str, Any] = {"adapt": adapt or everything, "inner_loss": inner_loss}
    return composed(policy, {**options, **own}, rule=_rule(lr, clip), loss=cloning)


@of_parts(("loss",), lr="rule", clip="rule")
def mil(policy: Policy, lr: float = 0.1, clip: float | None = None, **options: Unpack[Options]) -> MetaLearner:
    """Meta-imitation learning: MAML on demonstrations by the robot itself, with known actions.

    The source is Finn et al. 2017, One-Shot Visual Imitation Learning via Meta-Learning.

    Args:
        policy: the policy.
        lr: the rate of the inner steps.
        clip: the limit to which each element of an inner gradient is clamped; ``None`` does not clip.
        options: see `MetaLearner`.
    """
    citation = (
        "Finn, Yu, Zhang, Abbeel, Levine. One-Shot Visual Imitation Learning via Meta-Learning. CoRL 2017. "
        "arXiv:1709.04905"
    )
    return composed(policy, options, rule=_rule(lr, clip), loss=cloning, citation=citation)


def _rule(lr: float, clip: float | None) -> rules.UpdateRule:
    return rules.SGD(lr) if clip is None else rules.Chain(optimizers.Clip(clip), rules.SGD(lr))


@of_parts(("loss", "steps"))
def cloned(policy: Policy, **options: Unpack[Options]) -> MetaLearner:
    """Behavior cloning without adaptation, as a baseline.

    The policy either ignores the demonstration, or reads it (`Contextual`, `Watching`).

    Args:
        policy: the policy.
        options: see `MetaLearner`, without ``steps``.

    Raises:
        ValueError: ``steps`` is given.
    """
    if options.get("steps"):
        raise ValueError(f"a cloned policy takes no inner steps, got steps={options['steps']}: see mil")
    return composed(policy, {**options, "steps": 0}, rule=rules.SGD(0.0), loss=cloning)


PRESETS = {"daml": daml, "mil": mil, "cloned": cloned}
"""The presets that a recipe can name."""
