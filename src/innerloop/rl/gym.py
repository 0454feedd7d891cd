"""Gymnasium: the locomotion problems as environments with registered ids, and anybody's environments with a
``set_task`` as families of tasks.

``gymnasium.make("innerloop.rl.gym:innerloop/HalfCheetahDirection-v0")`` makes one; the others are
``HalfCheetahVelocity``, ``AntDirection``, ``AntVelocity`` and ``AntPosition``. Once this module is imported, the ids do
without its name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.envs.mujoco.ant_v5 import AntEnv
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv
from torch import Tensor

from .environments import Step
from .locomotion import FAMILIES, family

BODIES = {"half-cheetah": ("HalfCheetah", HalfCheetahEnv), "ant": ("Ant", AntEnv)}
HORIZON = 200


class _Goal:
    """What makes an environment of Gymnasium's one whose goal can be set; a task of the next episodes."""

    body: str
    goal: str

    def __init__(self, **options: Any) -> None:
        self.family = family(self.body, self.goal)
        self.task = self.family.draw(1, torch.Generator().manual_seed(0))[0].numpy()
        super().__init__(**{**self.family.options, **options})

    def set_task(self, task: Any) -> None:
        """The goal: ``[1]``, or ``[2]`` of positions."""
        self.task = np.asarray(task, dtype=np.float64).reshape(self.task.shape)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """As the environment does, with the reward that the goal gives. Actions beyond [-1, 1] are clipped to it."""
        action, before = np.clip(action, -1, 1), self.data.qpos[:2].copy()  # type: ignore[attr-defined]
        observation, _, ended, cut, info = super().step(action)  # type: ignore[misc]
        position = self.data.qpos[:2]  # type: ignore[attr-defined]
        velocity = (position - before) / self.dt  # type: ignore[attr-defined]
        reward = float(self.family.reward(velocity, position, action, self.task))
        return observation, reward, bool(ended), cut, info


def _class(body: str, goal: str) -> type:
    name, base = BODIES[body]
    return type(f"{name}{goal.capitalize()}", (_Goal, base), {"body": body, "goal": goal, "__module__": __name__})


CLASSES = {key: _class(*key) for key in FAMILIES}
globals().update({cls.__name__: cls for cls in CLASSES.values()})  # by which entry points and pickles find them


for _cls in CLASSES.values():
    gymnasium.register(
        f"innerloop/{_cls.__name__}-v0", entry_point=f"{__name__}:{_cls.__name__}", max_episode_steps=HORIZON
    )


class VectorTasks:
    """A family of tasks in a vector environment of Gymnasium's kind: episodes of all tasks are its sub-environments.

    Args:
        make: ``number -> vector environment`` with so many sub-environments, ``set_task(tasks)`` for an array
            ``[number, ...]``, ``reset(seed=[...])`` and ``step(actions)``; see `Workers` for plain environments.
        draw: ``(n, generator) -> tasks [n, ...]``, a tensor.
        horizon: steps of an episode.

    Raises:
        TypeError: its sub-environments have no ``set_task``, or spaces that policies do not know.
    """

    def __init__(
        self, make: Callable[[int], Any], draw: Callable[[int, torch.Generator], Tensor], horizon: int = 200
    ) -> None:
        self._make, self._draw, self.horizon = make, draw, horizon
        self._vector = make(1)
        if not hasattr(self._vector, "set_task"):
            raise TypeError(f"{type(self._vector).__name__} has no set_task(tasks), so its tasks cannot be set")
        seen, acted = self._vector.single_observation_space, self._vector.single_action_space
        self.discrete = isinstance(acted, gymnasium.spaces.Discrete)
        if not isinstance(seen, gymnasium.spaces.Box) or not (self.discrete or isinstance(acted, gymnasium.spaces.Box)):
            raise TypeError(f"policies know Box observations and Box or Discrete actions, not {seen} and {acted}")
        self.observations = int(np.prod(seen.shape))
        self.actions = int(acted.n) if self.discrete else int(np.prod(acted.shape))

    def tasks(self, n: int, generator: torch.Generator) -> Tensor:
        """Tasks ``[n, ...]``."""
        return self._draw(n, generator)

    def reset(self, tasks: Tensor, episodes: int, generator: torch.Generator) -> Tensor:
        """See `Environment`. Every episode has a seed of its own."""
        number = len(tasks) * episodes
        if self._vector.num_envs != number:
            self._vector.close()
            self._vector = self._make(number)
        self._shape = (len(tasks), episodes)
        seeds = torch.randint(2**31 - 1, (number,), generator=generator).tolist()
        self._vector.set_task(tasks.repeat_interleave(episodes, 0).numpy())
        return self._tensor(self._vector.reset(seed=seeds)[0])

    def step(self, action: Tensor) -> Step:
        """See `Environment`. Continuous actions are clipped to their space."""
        taken, space = action.flatten(0, 1).numpy(), self._vector.single_action_space
        if not self.discrete:
            taken = np.clip(taken.reshape(-1, *space.shape), space.low, space.high).astype(space.dtype)
        observation, reward, ended, cut, _ = self._vector.step(taken)
        done = torch.as_tensor(np.asarray(ended) | np.asarray(cut)).view(self._shape)
        return Step(self._tensor(observation), torch.as_tensor(np.asarray(reward)).float().view(self._shape), done)

    def _tensor(self, observation: Any) -> Tensor:
        return torch.as_tensor(np.asarray(observation, dtype=np.float32)).reshape(*self._shape, self.observations)

    def close(self) -> None:
        """End what runs the sub-environments."""
        self._vector.close()
