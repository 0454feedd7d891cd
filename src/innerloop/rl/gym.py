"""The locomotion problems as Gymnasium environments with registered ids.

``gymnasium.make("innerloop.rl.gym:innerloop/HalfCheetahDirection-v0")`` makes one; the others are
``HalfCheetahVelocity``, ``AntDirection``, ``AntVelocity`` and ``AntPosition``. After this module was imported, the ids
work without its name.
"""

from __future__ import annotations

from typing import Any

import torch

from .locomotion import FAMILIES, Body, Goal, family

try:
    import gymnasium
    import numpy as np
    from gymnasium.envs.mujoco.ant_v5 import AntEnv
    from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv
except ImportError as error:
    raise ImportError("these environments need Gymnasium and MuJoCo: pip install 'innerloop[rl]'") from error

BODIES: dict[Body, tuple[str, type]] = {"half-cheetah": ("HalfCheetah", HalfCheetahEnv), "ant": ("Ant", AntEnv)}
HORIZON = 200


class _Goal:
    """A mixin that gives a Gymnasium environment a goal, the task of the next episodes."""

    body: Body
    goal: Goal

    def __init__(self, **options: Any) -> None:
        self.family = family(self.body, self.goal)
        self.task = self.family.draw(1, torch.Generator().manual_seed(0))[0].numpy()
        super().__init__(**{**self.family.options, **options})

    def set_task(self, task: Any) -> None:
        """Set the goal, ``[1]``, or ``[2]`` for positions."""
        self.task = np.asarray(task, dtype=np.float64).reshape(self.task.shape)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step the environment, with the reward of the goal. Actions are clipped to [-1, 1]."""
        action, before = np.clip(action, -1, 1), self.data.qpos[:2].copy()  # type: ignore[attr-defined]
        observation, _, ended, cut, info = super().step(action)  # type: ignore[misc]
        position = self.data.qpos[:2]  # type: ignore[attr-defined]
        velocity = (position - before) / self.dt  # type: ignore[attr-defined]
        reward = float(self.family.reward(velocity, position, action, self.task))
        return observation, reward, bool(ended), cut, info


def _class(body: Body, goal: Goal) -> type:
    name, base = BODIES[body]
    return type(f"{name}{goal.capitalize()}", (_Goal, base), {"body": body, "goal": goal, "__module__": __name__})


CLASSES = {key: _class(*key) for key in FAMILIES}
globals().update({cls.__name__: cls for cls in CLASSES.values()})  # so that entry points and pickles find them


for _cls in CLASSES.values():
    gymnasium.register(
        f"innerloop/{_cls.__name__}-v0", entry_point=f"{__name__}:{_cls.__name__}", max_episode_steps=HORIZON
    )
