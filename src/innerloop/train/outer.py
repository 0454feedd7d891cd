"""The outer step: an optimizer of the meta-parameters, its learning rate, and clipping of the meta-gradient.

An algorithm can bring an outer step of its own instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

import torch
from torch import nn

from ..common.ranges import require_at_least
from ..schedules import Schedule, value
from ..task import Params, Tasks
from .faults import NonFiniteError

Optimizer = Literal["adam", "sgd"] | Callable[[list[nn.Parameter]], torch.optim.Optimizer]
"""By name, or a function from the meta-parameters, whose own rate is overridden by the trainer's."""

LR = 1e-3
"""The rate of a trainer that is told none."""


class Outer(Protocol):
    """How the meta-parameters are moved.

    A step that needs more than the meta-gradient, such as the trust region of `innerloop.rl.TRPO`, comes from the
    learner (`MetaLearner.outer`). It is set up by ``bind(learner, mean)``, where ``mean`` averages this process's means
    over tasks over all processes.

    Attributes:
        told: plain numbers about the last step, for the record.
    """

    @property
    def told(self) -> Mapping[str, float]:
        """Plain numbers about the last step, for the record."""
        ...

    def __call__(self, grads: Params, tasks: Tasks, iteration: int) -> float:
        """Move the parameters by the meta-gradient of a meta-batch, of which this process holds a part.

        Returns the learning rate, or what the record shows in its place.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """What of it changes in training."""
        ...

    def load_state_dict(self, state: Any) -> None:
        """Take it up."""
        ...


class OuterStep:
    """Moves meta-parameters by meta-gradients.

    Args:
        learner: whose parameters are moved, those that require a gradient.
        optimizer: ``"adam"``, ``"sgd"`` or a function from the parameters to an optimizer.
        lr: its rate, or the schedule of it.
        momentum: of SGD.
        clip: each element of the gradient is clamped to ``[-clip, clip]``.
        clip_norm: the gradient is scaled to at most this norm (after ``clip``).

    Raises:
        ValueError: an unknown optimizer, momentum for another than SGD, or nothing left by clipping.
    """

    def __init__(
        self,
        learner: nn.Module,
        optimizer: Optimizer,
        lr: Schedule[float],
        momentum: float = 0.0,
        clip: float | None = None,
        clip_norm: float | None = None,
    ) -> None:
        require_at_least(1e-30, clip=clip, clip_norm=clip_norm)
        self.told: dict[str, float] = {}
        self.parameters = {name: p for name, p in learner.named_parameters() if p.requires_grad}
        self.lr, self.clip, self.clip_norm = lr, clip, clip_norm
        self.optimizer = make_optimizer(optimizer, list(self.parameters.values()), value(lr, 0), momentum)

    def __call__(self, grads: Params, tasks: Tasks, iteration: int) -> float:
        """One step; the rate it was taken at. The tasks are not looked at again."""
        lr = self.rate(iteration)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        for name, parameter in self.parameters.items():
            grad = grads[name]
            parameter.grad = grad if self.clip is None else grad.clamp(-self.clip, self.clip)
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(list(self.parameters.values()), self.clip_norm)
        try:
            self.optimizer.step()
        except RuntimeError as error:
            if "without overflow" not in str(error):
                raise
            raise NonFiniteError(
                f"iteration {iteration + 1}: the outer rate train.lr = {lr:g} is too large: the optimizer"
                " overflows; give a smaller one"
            ) from error
        self.optimizer.zero_grad()
        return lr

    def rate(self, iteration: int) -> float:
        """That of an iteration, counted from 0."""
        return value(self.lr, iteration)

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state: Any) -> None:
        """Take it up."""
        self.optimizer.load_state_dict(state)


def outer_step(
    learner: nn.Module,
    mean: Callable[[Params], Params],
    optimizer: Optimizer,
    lr: Schedule[float],
    momentum: float,
    clip: float | None,
    clip_norm: float | None,
) -> Outer:
    """The learner's own, or one by an optimizer.

    Raises:
        ValueError: the learner has its own, and an optimizer is given all the same; and as `OuterStep` does.
    """
    own = getattr(learner, "outer", None)
    if own is None:
        return OuterStep(learner, optimizer, lr, momentum, clip, clip_norm)
    if (optimizer, momentum, clip, clip_norm) != ("adam", 0.0, None, None) or lr != LR:
        raise ValueError(
            f"this learner moves its meta-parameters by {type(own).__name__}, which has settings of its own: leave "
            "optimizer, lr, momentum, clip and clip_norm out"
        )
    own.bind(learner, mean)
    step: Outer = own
    return step


def make_optimizer(
    optimizer: Optimizer, parameters: list[nn.Parameter], lr: float, momentum: float
) -> torch.optim.Optimizer:
    """The outer optimizer by its name or factory."""
    if momentum and optimizer != "sgd":
        raise ValueError(f'momentum is of optimizer="sgd"; {optimizer!r} does not take it')
    if optimizer == "adam":
        return torch.optim.Adam(parameters, lr)
    if optimizer == "sgd":
        return torch.optim.SGD(parameters, lr, momentum)
    if callable(optimizer):
        return optimizer(parameters)
    raise ValueError(f'optimizer is "adam", "sgd" or a function from the parameters, got {optimizer!r}')
