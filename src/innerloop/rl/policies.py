"""Policies: ordinary modules that return a distribution over actions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from ..common.ranges import require_at_least
from .distributions import Categorical, Gaussian

Activation = Literal["tanh", "relu"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "relu": torch.relu}
MIN_STD = 1e-6


class MLP(nn.Module):
    """Linear layers with activations; weights start Xavier-uniform, and biases at zero."""

    def __init__(self, sizes: Sequence[int], activation: Activation) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be {' or '.join(ACTIVATIONS)}, got {activation!r}")
        layers = [nn.Linear(inputs, outputs) for inputs, outputs in pairwise(sizes)]
        for layer in layers:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.layers, self.activation = nn.ModuleList(layers), activation

    def forward(self, x: Tensor) -> Tensor:
        """``[..., inputs] -> [..., outputs]``."""
        for layer in self.layers:
            x = ACTIVATIONS[self.activation](layer(x))
        return x


class Policy(nn.Module):
    """The base of policies: a network from an observation, and optionally a context, to a number for each action."""

    def __init__(
        self, observations: int, actions: int, hidden: tuple[int, ...], activation: Activation, context: int
    ) -> None:
        super().__init__()
        require_at_least(1, observations=observations, actions=actions)
        require_at_least(0, context=context)
        self.observations, self.actions = observations, actions
        sizes = (observations + context, *hidden)
        self.body, self.head = MLP(sizes, activation), nn.Linear(sizes[-1], actions)
        self.context = nn.Parameter(torch.zeros(context), requires_grad=False) if context else None
        nn.init.zeros_(self.head.bias)

    def numbers(self, observation: Tensor) -> Tensor:
        """``[..., observations] -> [..., actions]``."""
        if self.context is not None:
            observation = torch.cat([observation, self.context.expand(*observation.shape[:-1], -1)], -1)
        return self.head(self.body(observation))  # type: ignore[no-any-return]


class GaussianPolicy(Policy):
    """A policy of continuous actions: a network gives the means, and parameters the deviations (Duan et al. 2016).

    Args:
        observations: number of elements of an observation.
        actions: number of elements of an action.
        hidden: sizes of the hidden layers.
        activation: ``"tanh"`` or ``"relu"``.
        std: the initial standard deviation, in units of ``scale``.
        scale: the unit of actions, such as the range of an actuator; it multiplies means and deviations.
        context: size of a context vector that is appended to every observation. It starts at zero and is not
            meta-learned; CAVIA adapts it (Zintgraf et al. 2019, section 5.3).

    Raises:
        ValueError: a number is out of range.
    """

    discrete = False

    def __init__(
        self,
        observations: int,
        actions: int,
        hidden: tuple[int, ...] = (64, 64),
        activation: Activation = "tanh",
        std: float = 1.0,
        scale: float = 1.0,
        context: int = 0,
    ) -> None:
        super().__init__(observations, actions, hidden, activation, context)
        if std <= MIN_STD or scale <= 0:
            raise ValueError(f"std must be above {MIN_STD} and scale above 0, got {std} and {scale}")
        self.scale = scale
        self.log_std = nn.Parameter(torch.full((actions,), math.log(std)))
        nn.init.xavier_uniform_(self.head.weight)

    def forward(self, observation: Tensor) -> Gaussian:
        """Return a distribution over actions ``[..., actions]`` for observations ``[..., observations]``."""
        mean = self.numbers(observation)
        log_std = self.log_std.clamp_min(math.log(MIN_STD)) + math.log(self.scale)
        return Gaussian(self.scale * mean, log_std.expand_as(mean))


class CategoricalPolicy(Policy):
    """A policy of discrete actions.

    Args:
        observations: number of elements of an observation.
        actions: number of actions.
        hidden: sizes of the hidden layers; ``()`` for a linear policy, which is tabular on one-hot observations.
        activation: ``"tanh"`` or ``"relu"``.
        context: see `GaussianPolicy`.
    """

    discrete = True

    def __init__(
        self,
        observations: int,
        actions: int,
        hidden: tuple[int, ...] = (64, 64),
        activation: Activation = "tanh",
        context: int = 0,
    ) -> None:
        super().__init__(observations, actions, hidden, activation, context)
        nn.init.zeros_(self.head.weight)  # no preference at first

    def forward(self, observation: Tensor) -> Categorical:
        """Return a distribution over action indices ``[...]`` for observations ``[..., observations]``."""
        return Categorical(self.numbers(observation))


gaussian_policy = GaussianPolicy
categorical_policy = CategoricalPolicy
