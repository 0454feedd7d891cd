"""The outer step: an optimizer of the meta-parameters, its learning rate, and clipping of the meta-gradient.

An algorithm can have its own outer step instead.
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
"""A name, or a function from the meta-parameters to an optimizer, whose learning rate the trainer overrides."""

LR = 1e-3
"""The default outer learning rate."""


class Outer(Protocol):
    """Moves the meta-parameters.

    A step that needs more than the meta-gradient, such as the trust region of `innerloop.rl.TRPO`, comes from the
    learner (`MetaLearner.outer`). The trainer sets it up with ``bind(learner, mean)``: ``mean`` turns means over the
    tasks of this process into means over all processes.

    Attributes:
        told: plain numbers about the last step, for the record.
    """

    @property
    def told(self) -> Mapping[str, float]:
        """Plain numbers about the last step, for the record."""
        ...

    def __call__(self, grads: Params, tasks: Tasks, iteration: int) -> float:
        """Move the parameters by the meta-gradient of a meta-batch; ``tasks`` is this process's part of it.

        Returns:
            The learning rate, or the number that the record shows instead.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the state that changes in training."""
        ...

    def load_state_dict(self, state: Any) -> None:
        """Load this state."""
        ...


class OuterStep:
    """Moves meta-parameters by meta-gradients.

    Args:
        learner: the learner; its parameters that require a gradient are moved.
        optimizer: ``"adam"``, ``"sgd"`` or a function from the parameters to an optimizer.
        lr: the learning rate, or its schedule.
        momentum: the momentum of SGD.
        clip: each element of the gradient is clamped to ``[-clip, clip]``.
        clip_norm: the gradient is scaled to at most this norm (after ``clip``).

    Raises:
        ValueError: the optimizer is unknown, there is momentum without SGD, or a clipping limit is not above 0.
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
        """Take one step and return its learning rate; the tasks are not used."""
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
                f"iteration {iteration + 1}: the outer rate train.lr = {lr:g} is too large, so the optimizer "
                "overflows: give a smaller one"
            ) from error
        self.optimizer.zero_grad()
        return lr

    def rate(self, iteration: int) -> float:
        """Return the learning rate of an iteration, counted from 0."""
        return value(self.lr, iteration)

    def state_dict(self) -> dict[str, Any]:
        """Return the optimizer's state."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state: Any) -> None:
        """Load the optimizer's state."""
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
    """Return the learner's own outer step, or one with an optimizer.

    Raises:
        ValueError: the learner has its own step, but an optimizer is given; or the arguments are wrong (`OuterStep`).
    """
    own = getattr(learner, "outer", None)
    if own is None:
        return OuterStep(learner, optimizer, lr, momentum, clip, clip_norm)
    if (optimizer, momentum, clip, clip_norm) != ("adam", 0.0, None, None) or lr != LR:
        raise ValueError(
            f"this learner moves its meta-parameters by {type(own).__name__}, which has its own settings: leave out "
            "optimizer, lr, momentum, clip and clip_norm"
        )
    own.bind(learner, mean)
    step: Outer = own
    return step


def make_optimizer(
    optimizer: Optimizer, parameters: list[nn.Parameter], lr: float, momentum: float
) -> torch.optim.Optimizer:
    """Return the outer optimizer by its name or factory."""
    if momentum and optimizer != "sgd":
        raise ValueError(f'momentum needs optimizer="sgd"; {optimizer!r} does not take it')
    if optimizer == "adam":
        return torch.optim.Adam(parameters, lr)
    if optimizer == "sgd":
        return torch.optim.SGD(parameters, lr, momentum)
    if callable(optimizer):
        return optimizer(parameters)
    raise ValueError(f'optimizer must be "adam", "sgd" or a function from the parameters, got {optimizer!r}')
