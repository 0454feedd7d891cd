"""How much better than expected an action was: returns, baselines, generalized advantage estimation."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .rollouts import Rollout


def discounted(rewards: Tensor, discount: float) -> Tensor:
    """Discounted sums of the rewards to come, ``[..., H] -> [..., H]``."""
    sums, running = [], torch.zeros_like(rewards[..., 0])
    for reward in reversed(rewards.unbind(-1)):
        running = reward + discount * running
        sums.append(running)
    return torch.stack(sums[::-1], -1)


def generalized(rewards: Tensor, values: Tensor, alive: Tensor, discount: float, trace: float) -> Tensor:
    """Generalized advantage estimates (Schulman et al. 2016, Eq. 16); nothing comes after the horizon.

    Args:
        rewards: of each step, ``[..., H]``.
        values: the returns expected at each step, ``[..., H]``.
        alive: 1 for steps that happened and 0 after the end of an episode, ``[..., H]``.
        discount: of the rewards, gamma.
        trace: lambda; 1 takes returns minus values, 0 one-step errors.
    """
    later = torch.cat([(values * alive)[..., 1:], torch.zeros_like(values[..., :1])], -1)
    return discounted((rewards + discount * later - values) * alive, discount * trace)


def normalized(advantages: Tensor, alive: Tensor) -> tuple[Tensor, Tensor]:
    """Normalize advantages ``[T, E, H]`` to mean 0 and standard deviation 1 within each task.

    Only the steps that happened count. Returns the advantages and their divisors ``[T, 1, 1]``.
    """
    number = alive.sum((1, 2), keepdim=True)
    centred = (advantages - (advantages * alive).sum((1, 2), keepdim=True) / number) * alive
    spread = (centred.square().sum((1, 2), keepdim=True) / number).sqrt() + 1e-8
    return centred / spread, spread


class Baseline(Protocol):
    """What returns are expected."""

    def __call__(self, episodes: Rollout, returns: Tensor) -> Tensor:
        """Values ``[T, E, H]`` for steps whose discounted returns were ``[T, E, H]``."""
        ...

    def learn(self, episodes: Rollout, returns: Tensor) -> None:
        """For the meta-batches to come."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Of what it has learned."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> Any:
        """Take it up."""
        ...


class LinearBaseline:
    """Least squares on features of observation and time, fitted to each task alone (Duan et al. 2016, section 5).

    The features are ``[o, o^2, t, t^2, t^3, 1]`` with observations clipped to 10 and time in hundreds of steps.

    Args:
        ridge: added to the diagonal of the normal equations.
    """

    def __init__(self, ridge: float = 1e-5) -> None:
        self.ridge = ridge

    def __call__(self, episodes: Rollout, returns: Tensor) -> Tensor:
        """See `Baseline`."""
        features = self._features(episodes.observations).flatten(1, 2)
        rows = features * episodes.alive.flatten(1)[..., None]
        square = rows.mT @ features
        square.diagonal(dim1=-2, dim2=-1).add_(self.ridge)
        weights = torch.linalg.solve(square, rows.mT @ returns.double().flatten(1)[..., None])
        values: Tensor = (features @ weights).view_as(returns).to(returns.dtype)
        return values * episodes.alive

    def learn(self, episodes: Rollout, returns: Tensor) -> None:
        """Nothing is kept."""

    @staticmethod
    def _features(observations: Tensor) -> Tensor:
        clipped = observations.clamp(-10, 10).double()
        time = torch.arange(observations.shape[2], dtype=torch.float64)[:, None] / 100
        time = torch.cat([time, time**2, time**3, torch.ones_like(time)], 1).expand(*observations.shape[:3], 4)
        return torch.cat([clipped, clipped.square(), time], -1)

    def state_dict(self) -> dict[str, Any]:
        """There is none: it begins anew with every task."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to take up."""


class ValueFunction:
    """A network that learns, from all tasks as they come, what returns to expect of an observation at a time.

    It judges episodes by what it knew before them. It is one function for all tasks: what sets these apart remains in
    the advantages.

    Args:
        observations: numbers that an observation has.
        horizon: steps of an episode.
        hidden: sizes of the layers between.
        lr: of Adam.
        epochs: steps that are taken on the episodes before, between and after the inner steps of every meta-batch.
    """

    def __init__(
        self, observations: int, horizon: int, hidden: tuple[int, ...] = (64, 64), lr: float = 1e-2, epochs: int = 20
    ) -> None:
        layers: list[nn.Module] = []
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            for inputs, outputs in pairwise((observations + 1, *hidden, 1)):
                layers += [nn.Linear(inputs, outputs), nn.Tanh()]
        self.network = nn.Sequential(*layers[:-1])
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr)
        self.centre, self.spread = 0.0, 0.0  # of the first returns, in whose units it predicts
        self.horizon, self.epochs = horizon, epochs

    @torch.no_grad()
    def __call__(self, episodes: Rollout, returns: Tensor) -> Tensor:
        """See `Baseline`."""
        values: Tensor = self.centre + self.spread * self.network(self._inputs(episodes))[..., 0]
        return values * episodes.alive

    def learn(self, episodes: Rollout, returns: Tensor) -> None:
        """See `Baseline`."""
        x, alive = self._inputs(episodes), episodes.alive
        if not self.spread:
            lived = returns[alive > 0]
            self.centre, self.spread = lived.mean().item(), lived.std().item() + 1e-8
        targets = (returns - self.centre) / self.spread
        with torch.enable_grad():
            for _ in range(self.epochs):
                loss = ((self.network(x)[..., 0] - targets).square() * alive).sum() / alive.sum()
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()

    def _inputs(self, episodes: Rollout) -> Tensor:
        shape = episodes.rewards.shape
        time = torch.arange(shape[2], dtype=episodes.rewards.dtype)[:, None] / self.horizon
        return torch.cat([episodes.observations, time.expand(*shape, 1)], -1)

    def state_dict(self) -> dict[str, Any]:
        """Network, optimizer, units."""
        parts = {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        return {**parts, "centre": self.centre, "spread": self.spread}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them up."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.centre, self.spread = state["centre"], state["spread"]
