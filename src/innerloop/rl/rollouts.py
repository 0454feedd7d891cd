"""Acting: all episodes of all tasks go through one call of the policy a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .distributions import Distribution
from .environments import Environment


class Rollout(NamedTuple):
    """What T tasks x E episodes of at most H steps were like.

    Attributes:
        observations: ``[T, E, H, O]``: what was seen before each action, 0 after the end.
        actions: ``[T, E, H, A]``, or indices ``[T, E, H]``.
        rewards: ``[T, E, H]``, 0 after the end.
        alive: ``[T, E, H]``, 1 for the steps that happened and 0 for those after the end.
        behaviour: the distributions that the actions were drawn from, ``[T, E, H, ...]``.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    alive: Tensor
    behaviour: Distribution

    @property
    def returns(self) -> Tensor:
        """The sums of rewards ``[T, E]``, not discounted."""
        return self.rewards.sum(-1)

    @property
    def steps(self) -> int:
        """How many steps of the environment happened."""
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
    """Live through episodes of every task.

    Args:
        environment: where.
        policy: ``[T, E, O]`` -> distributions over actions; on any device, to which the observations are moved.
        tasks: T of the environment's.
        episodes: E of each task.
        generator: of all randomness, on the CPU.
        greedy: take the likeliest actions instead of drawing them.
    """
    observation = environment.reset(tasks, episodes, generator)
    alive = torch.ones(observation.shape[:2])
    seen, done, earned, lived, behaviour = [], [], [], [], []
    for _ in range(environment.horizon):
        # Whatever an environment shows after the end, an infinity perhaps, is nothing to anybody.
        observation = torch.where(alive[..., None] > 0, observation, 0)
        distribution = policy(observation)
        action = distribution.mode() if greedy else distribution.sample(generator)
        step = environment.step(action.cpu())
        seen.append(observation)
        done.append(action.cpu())
        behaviour.append(pytree.tree_map(lambda leaf: leaf.cpu(), distribution))
        earned.append(torch.where(alive > 0, step.reward, 0))
        lived.append(alive)
        observation, alive = step.observation, alive * ~step.done
        if not alive.any():
            break
    behaviours = pytree.tree_map(lambda *leaves: torch.stack(leaves, 2), *behaviour)
    observations, actions, rewards, lives = (torch.stack(parts, 2) for parts in (seen, done, earned, lived))
    return _padded(Rollout(observations, actions, rewards, lives, behaviours), environment.horizon)


def _padded(found: Rollout, horizon: int) -> Rollout:
    """To the whole horizon: that tasks of all meta-batches have one shape is worth more than a few zeros."""
    lacking = horizon - found.rewards.shape[2]
    if not lacking:
        return found

    def pad(leaf: Tensor) -> Tensor:
        return torch.cat([leaf, leaf.new_zeros(*leaf.shape[:2], lacking, *leaf.shape[3:])], 2)

    padded: Rollout = pytree.tree_map(pad, found)
    return padded
