"""Advantages of actions: returns, baselines, generalized advantage estimation."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .rollouts import Rollout


def discounted(rewards: Tensor, discount: float) -> Tensor:
    """Return the discounted sums of future rewards, ``[..., H] -> [..., H]``."""
    sums, running = [], torch.zeros_like(rewards[..., 0])
    for reward in reversed(rewards.unbind(-1)):
        running = reward + discount * running
        sums.append(running)
    return torch.stack(sums[::-1], -1)


def generalized(rewards: Tensor, values: Tensor, alive: Tensor, discount: float, trace: float) -> Tensor:
    """Return generalized advantage estimates (Schulman et al. 2016, Eq. 16); rewards after the horizon are zero.

    Args:
        rewards: the reward of each step, ``[..., H]``.
        values: the expected return at each step, ``[..., H]``.
        alive: 1 for steps that happened and 0 after the end of an episode, ``[..., H]``.
        discount: the discount of rewards, gamma.
        trace: lambda; 1 gives returns minus values, 0 one-step errors.
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
    """Predicts expected returns."""

    def __call__(self, episodes: Rollout, returns: Tensor) -> Tensor:
        """Return the values ``[T, E, H]`` of steps, given their discounted returns ``[T, E, H]``."""
        ...

    def learn(self, episodes: Rollout, returns: Tensor) -> None:
        """Learn from episodes, for the next meta-batches."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the learned state."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> Any:
        """Load the learned state."""
        ...


class LinearBaseline:
    """Least squares on features of observation and time, fitted separately to each task (Duan et al. 2016, section 5).

    The features are ``[o, o^2, t, t^2, t^3, 1]`` with observations clipped to 10 and time in hundreds of steps.

    Args:
        ridge: added to the diagonal of the normal equations.
    """

    def __init__(self, ridge: float = 1e-5) -> None:
        self.ridge = ridge

    def __call__(self, episodes: Rollout, returns: Tensor) -> Tensor:
        """Return the values; see `Baseline`."""
        features = self._features(episodes.observations).flatten(1, 2)
        rows = features * episodes.alive.flatten(1)[..., None]
        square = rows.mT @ features
        square.diagonal(dim1=-2, dim2=-1).add_(self.ridge)
        weights = torch.linalg.solve(square, rows.mT @ returns.double().flatten(1)[..., None])
        values: Tensor = (features @ weights).view_as(returns).to(returns.dtype)
        return values * episodes.alive

    def learn(self, episodes: Rollout, returns: Tensor) -> None:
        """Do nothing, because it keeps nothing."""

    @staticmethod
    def _features(observations: Tensor) -> Tensor:
        clipped = observations.clamp(-10, 10).double()
        time = torch.arange(observations.shape[2], dtype=torch.float64)[:, None] / 100
        time = torch.cat([time, time**2, time**3, torch.ones_like(time)], 1).expand(*observations.shape[:3], 4)
        return torch.cat([clipped, clipped.square(), time], -1)

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state, because every task is fitted separately."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do nothing, because there is no state."""


class ValueFunction:
    """A network that predicts the return from an observation and the time, and learns from all tasks.

    It predicts values of episodes before it learns from them. Since it is one function for all tasks, the differences
    between tasks remain in the advantages.

    Args:
        observations: number of elements of an observation.
        horizon: number of steps of an episode.
        hidden: sizes of the hidden layers.
        lr: the learning rate of Adam.
        epochs: number of optimizer steps on each collection of episodes, before, between and after the inner steps.
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
        self.centre, self.spread = 0.0, 0.0  # mean and deviation of the first returns, which standardize targets
        self.horizon, self.epochs = horizon, epochs

    @torch.no_grad()
    def __call__(self, episodes: Rollout, returns: Tensor) -> Tensor:
        """Return the values; see `Baseline`."""
        values: Tensor = self.centre + self.spread * self.network(self._inputs(episodes))[..., 0]
        return values * episodes.alive

    def learn(self, episodes: Rollout, returns: Tensor) -> None:
        """Learn from episodes; see `Baseline`."""
        x, alive = self._inputs(episodes), episodes.alive
        if not self.spread:
            first = returns[alive > 0]
            self.centre, self.spread = first.mean().item(), first.std().item() + 1e-8
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
        """Return the state of the network and the optimizer, and the mean and deviation of returns."""
        parts = {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        return {**parts, "centre": self.centre, "spread": self.spread}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.centre, self.spread = state["centre"], state["spread"]
