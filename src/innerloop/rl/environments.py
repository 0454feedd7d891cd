"""Families of Markov decision processes that step whole meta-batches: E episodes of each of T tasks, all at once."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..common.ranges import require_at_least


class Step(NamedTuple):
    """The result of actions.

    Attributes:
        observation: the next observations, ``[T, E, O]``, float32.
        reward: the rewards, ``[T, E]``, float32.
        done: whether episodes ended with this step, not counting the horizon, ``[T, E]``, bool.
    """

    observation: Tensor
    reward: Tensor
    done: Tensor


@runtime_checkable
class Environment(Protocol):
    """A family of tasks, each a Markov decision process.

    Attributes:
        observations: the number O of elements of an observation.
        actions: the number A of elements of an action, or the number of discrete actions.
        discrete: whether actions are discrete.
        horizon: the largest number of steps of an episode.
    """

    observations: int
    actions: int
    discrete: bool
    horizon: int

    def tasks(self, n: int, generator: torch.Generator) -> Any:
        """Draw the parameters of ``n`` tasks, a tensor ``[n, ...]`` or a pytree of such tensors."""
        ...

    def reset(self, tasks: Any, episodes: int, generator: torch.Generator) -> Tensor:
        """Start ``episodes`` episodes of each task, and return the first observations ``[T, E, O]``.

        The generator is the only source of randomness in these episodes.
        """
        ...

    def step(self, action: Tensor) -> Step:
        """Take one step in all episodes, with actions ``[T, E, A]`` or indices ``[T, E]``."""
        ...


class Navigation:
    """A point in the plane that has to move to a goal that it does not observe (Finn et al. 2017, section 5.3).

    It starts at the origin, and an action moves it by at most 0.1 along each axis. The reward is the negative distance
    to the goal, drawn from U[-0.5, 0.5]^2, after the move. An episode ends within 0.01 of the goal. (The paper's text
    has the squared distance, its code the distance.)

    Args:
        horizon: number of steps of an episode.
    """

    observations, actions, discrete = 2, 2, False
    REACH, NEAR = 0.1, 0.01

    def __init__(self, horizon: int = 100) -> None:
        require_at_least(1, horizon=horizon)
        self.horizon = horizon

    def tasks(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw goals ``[n, 2]``."""
        return torch.rand(n, 2, generator=generator) - 0.5

    def reset(self, tasks: Tensor, episodes: int, generator: torch.Generator) -> Tensor:
        """Start episodes; see `Environment`."""
        self._goal = tasks[:, None]
        self._position = torch.zeros(len(tasks), episodes, 2)
        return self._position

    def step(self, action: Tensor) -> Step:
        """Take a step; see `Environment`."""
        self._position = self._position + action.clamp(-self.REACH, self.REACH)
        distance = torch.linalg.vector_norm(self._position - self._goal, dim=-1)
        return Step(self._position, -distance, distance < self.NEAR)


class TabularTask(NamedTuple):
    """Finite Markov decision processes.

    Attributes:
        transition: the probability of each next state, ``[n, S, A, S]``.
        reward: the rewards, ``[n, S, A]``.
    """

    transition: Tensor
    reward: Tensor


class Tabular:
    """Random finite Markov decision processes, small enough to be solved exactly; episodes start in the first state.

    Observations are one-hot states. Transitions are drawn from Dirichlet(1), rewards from U[-1, 1] for every task.

    Args:
        states: number of states.
        actions: number of actions.
        horizon: number of steps of an episode.
    """

    discrete = True

    def __init__(self, states: int = 3, actions: int = 2, horizon: int = 4) -> None:
        require_at_least(1, states=states, actions=actions, horizon=horizon)
        self.observations, self.actions, self.horizon = states, actions, horizon

    def tasks(self, n: int, generator: torch.Generator) -> TabularTask:
        """Draw ``n`` tasks."""
        uniform = torch.rand(n, self.observations, self.actions, self.observations, generator=generator)
        weights = -uniform.clamp_min(1e-12).log()  # exponential variates, normalized, are Dirichlet
        reward = 2 * torch.rand(n, self.observations, self.actions, generator=generator) - 1
        return TabularTask(weights / weights.sum(-1, keepdim=True), reward)

    def reset(self, tasks: TabularTask, episodes: int, generator: torch.Generator) -> Tensor:
        """Start episodes; see `Environment`."""
        self._tasks, self._generator = tasks, generator
        self._state = torch.zeros(len(tasks.reward), episodes, dtype=torch.long)
        return self._observation()

    def step(self, action: Tensor) -> Step:
        """Take a step; see `Environment`."""
        of = torch.arange(len(self._state))[:, None]
        reward = self._tasks.reward[of, self._state, action]
        chances = self._tasks.transition[of, self._state, action].cumsum(-1)
        draw = torch.rand(self._state.shape, generator=self._generator)[..., None] * chances[..., -1:]
        self._state = (draw >= chances).sum(-1).clamp_max(self.observations - 1)
        return Step(self._observation(), reward, torch.zeros_like(self._state, dtype=torch.bool))

    def _observation(self) -> Tensor:
        return torch.nn.functional.one_hot(self._state, self.observations).float()


class Bandit:
    """A bandit with noisy rewards; each task has its own mean rewards of the arms, drawn from N(0, 1).

    Observations carry no information. Without adaptation the best policy earns 0 on average; with perfect knowledge it
    earns, per pull, the expected maximum of as many normal variates as there are arms (`best_arm`).

    Args:
        arms: number of arms.
        horizon: number of pulls of an episode.
        noise: standard deviation of a pull's reward.
    """

    observations, discrete = 1, True

    def __init__(self, arms: int = 5, horizon: int = 10, noise: float = 0.5) -> None:
        require_at_least(1, arms=arms, horizon=horizon)
        require_at_least(0, noise=noise)
        self.actions, self.horizon, self.noise = arms, horizon, noise

    def tasks(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw mean rewards ``[n, arms]``."""
        return torch.randn(n, self.actions, generator=generator)

    def reset(self, tasks: Tensor, episodes: int, generator: torch.Generator) -> Tensor:
        """Start episodes; see `Environment`."""
        self._means, self._generator, self._episodes = tasks, generator, episodes
        return torch.ones(len(tasks), episodes, 1)

    def step(self, action: Tensor) -> Step:
        """Take a step; see `Environment`."""
        noise = self.noise * torch.randn(action.shape, generator=self._generator)
        reward = self._means.gather(1, action) + noise
        return Step(torch.ones(*action.shape, 1), reward, torch.zeros_like(action, dtype=torch.bool))


def best_arm(arms: int) -> float:
    """Return the mean reward of the best arm of a `Bandit`: the expected maximum of ``arms`` normal variates."""
    x = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    cumulative = 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    return float(torch.trapezoid(x * torch.gradient(cumulative**arms, spacing=(x,))[0], x))
