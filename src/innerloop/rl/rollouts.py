"""Rollouts: one call of the policy per step acts in all episodes of all tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .distributions import Distribution
from .environments import Environment


class Rollout(NamedTuple):
    """The episodes of T tasks, E episodes of at most H steps for each.

    Attributes:
        observations: the observation before each action, 0 after the end, ``[T, E, H, O]``.
        actions: the actions, ``[T, E, H, A]``, or their indices ``[T, E, H]``.
        rewards: the rewards, 0 after the end, ``[T, E, H]``.
        alive: 1 for steps that happened and 0 after the end, ``[T, E, H]``.
        behaviour: the distributions that the actions were drawn from, ``[T, E, H, ...]``.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    alive: Tensor
    behaviour: Distribution

    @property
    def returns(self) -> Tensor:
        """The undiscounted sums of rewards, ``[T, E]``."""
        return self.rewards.sum(-1)

    @property
    def steps(self) -> int:
        """The number of environment steps that happened."""
        return int(self.alive.sum())


@torch.no_grad()
def rollout(
    environment: Environment,
    policy: Callable[[Tensor], Distribution],
    tasks: Any,
    episodes: int,
    generator: torch.Generator,
    greedy: bool = False,
) -> Rollout:
    """Collect episodes of every task.

    Args:
        environment: the family of tasks.
        policy: ``[T, E, O]`` -> distributions over actions; it gets observations on the CPU, and may answer on any
            device.
        tasks: T tasks of the environment.
        episodes: the number E of episodes of each task.
        generator: the source of all randomness, on the CPU.
        greedy: take the most likely actions instead of sampling.
    """
    observation = environment.reset(tasks, episodes, generator)
    alive = torch.ones(observation.shape[:2])
    observed, taken, earned, happened, behaviour = [], [], [], [], []
    for _ in range(environment.horizon):
        # Observations after the end, which may be infinite, are replaced by zeros.
        observation = torch.where(alive[..., None] > 0, observation, 0)
        distribution = policy(observation)
        action = distribution.mode() if greedy else distribution.sample(generator)
        step = environment.step(action.cpu())
        observed.append(observation)
        taken.append(action.cpu())
        behaviour.append(pytree.tree_map(lambda leaf: leaf.cpu(), distribution))
        earned.append(torch.where(alive > 0, step.reward, 0))
        happened.append(alive)
        observation, alive = step.observation, alive * ~step.done
        if not alive.any():
            break
    behaviours = pytree.tree_map(lambda *leaves: torch.stack(leaves, 2), *behaviour)
    observations, actions, rewards, steps = (torch.stack(parts, 2) for parts in (observed, taken, earned, happened))
    return _padded(Rollout(observations, actions, rewards, steps, behaviours), environment.horizon)


def _padded(rollout: Rollout, horizon: int) -> Rollout:
    """Pad episodes with zeros to the whole horizon, so that all meta-batches have the same shape."""
    lacking = horizon - rollout.rewards.shape[2]
    if not lacking:
        return rollout

    def pad(leaf: Tensor) -> Tensor:
        return torch.cat([leaf, leaf.new_zeros(*leaf.shape[:2], lacking, *leaf.shape[3:])], 2)

    padded: Rollout = pytree.tree_map(pad, rollout)
    return padded
