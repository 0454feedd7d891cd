"""Ways to imitate, each a small composition: a learner of the core's parts, with a loss that clones behaviour."""

from __future__ import annotations

from typing import Any, TypedDict

from torch import Tensor
from torch.nn import functional as F
from typing_extensions import Unpack  # torch brings it

from .. import rules
from ..engine import Vectorize
from ..inner import Loss, Memory
from ..learner import MetaLearner
from ..losses import TemporalLoss
from ..objectives import Unrolled
from ..select import Selection, everything, named
from .policies import Policy


class Options(TypedDict, total=False):
    """How a learner runs; see `MetaLearner`."""

    memory: Memory
    vectorize: Vectorize


def cloning(output: Any, y: Tensor) -> Tensor:
    """The mean squared error of actions: behavioural cloning."""
    return F.mse_loss(output.actions, y)


def daml(
    policy: Policy,
    lr: float = 1.0,
    steps: int = 1,
    clip: float | None = None,
    heads: tuple[str, ...] = ("seen",),
    channels: int = 32,
    kernel: int = 5,
    layers: int = 3,
    inner_loss: Loss | None = None,
    adapt: Selection | None = None,
    **options: Unpack[Options],
) -> MetaLearner:
    """Domain-adaptive meta-learning: a learned loss adapts the policy to a video of another demonstrator.

    Policy and loss are meta-learned so that the adapted policy acts rightly (Yu et al. 2018, Algorithm 1).

    Args:
        policy: its output has the parts that the loss looks at.
        lr: of the inner steps, whose scale the learned loss can change.
        steps: inner steps.
        clip: of every number of an inner gradient, to +- this.
        heads: what the learned loss looks at: ``"seen"``, ``"points"``, ``"hidden"``, ``"actions"``, one or more.
        channels: of the convolutions of the learned loss; see `TemporalLoss`.
        kernel: steps that such a convolution looks at.
        layers: convolutions of the learned loss.
        inner_loss: another inner loss than that.
        adapt: which of the policy's parameters the learned loss moves; if not given, those before what it looks at.
        options: see `MetaLearner`.
    """
    if inner_loss is None:
        if unknown := [head for head in heads if head not in policy.sizes]:
            raise ValueError(f"heads look at {', '.join(policy.sizes)}; there is no {', '.join(unknown)}")
        inner_loss = TemporalLoss({head: policy.sizes[head] for head in heads}, channels, kernel, layers)
        if adapt is None and "actions" not in heads:
            adapt = named("eye.*") if {*heads} <= {"points", "seen"} else everything - named("head.*")
    return MetaLearner(
        policy, _rule(lr, clip), adapt or everything, Unrolled(), cloning, inner_loss=inner_loss, steps=steps, **options
    )


def mil(
    policy: Policy, lr: float = 0.1, steps: int = 1, clip: float | None = None, **options: Unpack[Options]
) -> MetaLearner:
    """Meta-imitation learning: MAML on demonstrations by the robot itself, whose actions are known.

    Source: Finn et al. 2017, One-Shot Visual Imitation Learning via Meta-Learning.
    """
    citation = (
        "Finn, Yu, Zhang, Abbeel, Levine. One-Shot Visual Imitation Learning via Meta-Learning. CoRL 2017. "
        "arXiv:1709.04905"
    )
    return MetaLearner(
        policy, _rule(lr, clip), everything, Unrolled(), cloning, steps=steps, citation=citation, **options
    )


def _rule(lr: float, clip: float | None) -> rules.UpdateRule:
    return rules.SGD(lr) if clip is None else rules.Chain(rules.Clip(clip), rules.SGD(lr))


def cloned(policy: Policy, **options: Unpack[Options]) -> MetaLearner:
    """Behavior cloning without adaptation, as a baseline.

    The policy either ignores the demonstration, or reads it (`Contextual`, `Watching`).
    """
    return MetaLearner(policy, rules.SGD(0.0), everything, Unrolled(), cloning, steps=0, **options)


PRESETS = {"daml": daml, "mil": mil, "cloned": cloned}
"""The ways that a recipe can name."""
