"""Half-cheetah and ant with a different goal in each task, all stepped at once in MuJoCo's own threads.

Bodies are those of Gymnasium's current MuJoCo environments (version 5). Goals and rewards are those of the code of Finn
et al. 2017 (for the ant's position those of later code), without the cost of contact forces, which was always zero in
the simulator's versions since 2018. `innerloop.rl.gym` has the same problems as single Gymnasium environments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ..common.ranges import require_at_least
from .environments import Step
from .simulator import headless, mujoco_for, renderer

Body = Literal["half-cheetah", "ant"]
Goal = Literal["direction", "velocity", "position"]


@dataclass(frozen=True)
class Family:
    """A body with a kind of goal. Formulas work on NumPy arrays and on tensors.

    Attributes:
        environment: the id of the Gymnasium environment.
        options: options of that environment.
        skipped: the number of first coordinates that are not observed.
        draw: ``(n, generator) -> goals [n, G]``.
        reward: ``(velocity, position, action, goal) -> reward``; velocity and position are in the plane, and the last
            axis of each array holds its coordinates.
        healthy: the allowed range of the body's height; an episode ends outside of it.
    """

    environment: str
    draw: Callable[[int, torch.Generator], Tensor]
    reward: Callable[[Any, Any, Any, Any], Any]
    options: dict[str, Any] = field(default_factory=dict)
    skipped: int = 1
    healthy: tuple[float, float] = (-math.inf, math.inf)


def _directions(n: int, generator: torch.Generator) -> Tensor:
    return 2.0 * torch.randint(0, 2, (n, 1), generator=generator) - 1


def _uniform(low: float, high: float, size: int = 1) -> Callable[[int, torch.Generator], Tensor]:
    return lambda n, generator: low + (high - low) * torch.rand(n, size, generator=generator)


def _effort(action: Any, weight: float) -> Any:
    return weight * (action * action).sum(-1)


def _cheetah_direction(velocity: Any, position: Any, action: Any, goal: Any) -> Any:
    return velocity[..., 0] * goal[..., 0] - _effort(action, 0.05)


def _cheetah_velocity(velocity: Any, position: Any, action: Any, goal: Any) -> Any:
    return -abs(velocity[..., 0] - goal[..., 0]) - _effort(action, 0.05)


def _ant_direction(velocity: Any, position: Any, action: Any, goal: Any) -> Any:
    return velocity[..., 0] * goal[..., 0] - _effort(action, 0.005) + 0.05


def _ant_velocity(velocity: Any, position: Any, action: Any, goal: Any) -> Any:
    return 1 - abs(velocity[..., 0] - goal[..., 0]) - _effort(action, 0.005) + 0.05


def _ant_position(velocity: Any, position: Any, action: Any, goal: Any) -> Any:
    return 4 - abs(position - goal).sum(-1) - _effort(action, 0.005) + 0.05


_UNSEEN_CONTACTS = {"include_cfrc_ext_in_observation": False}
_ANT: dict[str, Any] = {"environment": "Ant-v5", "healthy": (0.2, 1.0)}

FAMILIES: dict[tuple[Body, Goal], Family] = {
    ("half-cheetah", "direction"): Family("HalfCheetah-v5", _directions, _cheetah_direction),
    ("half-cheetah", "velocity"): Family("HalfCheetah-v5", _uniform(0, 2), _cheetah_velocity),
    ("ant", "direction"): Family(
        draw=_directions, reward=_ant_direction, skipped=2, options=_UNSEEN_CONTACTS, **_ANT
    ),
    ("ant", "velocity"): Family(
        draw=_uniform(0, 3), reward=_ant_velocity, skipped=2, options=_UNSEEN_CONTACTS, **_ANT
    ),
    ("ant", "position"): Family(
        draw=_uniform(-3, 3, 2), reward=_ant_position, skipped=0, **_ANT,
        options={**_UNSEEN_CONTACTS, "exclude_current_positions_from_observation": False},
    ),
}  # fmt: skip
"""The problems: run forwards or backwards (U{-1, 1}), at a speed (U[0, 2] m/s for the cheetah, U[0, 3] for the ant), or
to a place (U[-3, 3]^2 m; here the ant observes its own position)."""


def family(body: Body, goal: Goal) -> Family:
    """Return the family of a body and a goal.

    Raises:
        ValueError: there is no such combination.
    """
    if (body, goal) not in FAMILIES:
        known = ", ".join(f"{one} {other}" for one, other in FAMILIES)
        raise ValueError(f"there is no {body!r} with the goal {goal!r}: choose one of {known}")
    return FAMILIES[body, goal]


class Locomotion:
    """A simulated body with a different goal in each task.

    One call of MuJoCo steps all episodes of all tasks, in as many threads as torch has. Episodes differ in their first
    state, to which Gymnasium's reset noise is added.

    Args:
        body: ``"half-cheetah"`` or ``"ant"``.
        goal: ``"direction"``, ``"velocity"`` or, for the ant, ``"position"``.
        horizon: number of steps of an episode; papers use 100 or 200, and their returns cannot be compared.

    Raises:
        ImportError: Gymnasium or MuJoCo is not installed.
        ValueError: there is no such combination.
    """

    discrete = False
    NOISE = 0.1

    def __init__(self, body: Body = "half-cheetah", goal: Goal = "direction", horizon: int = 200) -> None:
        require_at_least(1, horizon=horizon)
        self.family, self.horizon = family(body, goal), horizon
        base = make(self.family.environment, **self.family.options).unwrapped
        self._model = base.model
        self._start = torch.tensor(base.init_qpos), torch.tensor(base.init_qvel)
        self._skip, self._dt = base.frame_skip, base.dt
        self.observations, self.actions = base.observation_space.shape[0], self._model.nu
        self._threads: Any = None
        base.close()

    def tasks(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw goals ``[n, 1]``, or ``[n, 2]`` for positions."""
        return self.family.draw(n, generator)

    def reset(self, tasks: Tensor, episodes: int, generator: torch.Generator) -> Tensor:
        """Start episodes; see `Environment`."""
        position, velocity = self._start
        self._shape = (len(tasks), episodes)
        self._goal = tasks[:, None].double()
        noise = torch.rand(*self._shape, len(position), generator=generator, dtype=torch.float64)
        drift = torch.randn(*self._shape, len(velocity), generator=generator, dtype=torch.float64)
        self.state = torch.cat(
            [
                torch.zeros(*self._shape, 1, dtype=torch.float64),  # time
                position + self.NOISE * (2 * noise - 1),
                velocity + self.NOISE * drift,
            ],
            -1,
        )
        return self._observation()

    def step(self, action: Tensor) -> Step:
        """Take a step; see `Environment`. Actions are clipped to [-1, 1]."""
        action, before = action.double().clamp(-1, 1), self.state[..., 1:3]
        control = action.flatten(0, 1)[:, None].numpy()
        states, _ = self._rollout()(self.state.flatten(0, 1).numpy(), control)
        self.state = torch.from_numpy(states[:, -1]).view(*self._shape, -1)
        position = self.state[..., 1:3]
        reward = self.family.reward((position - before) / self._dt, position, action, self._goal)
        low, high = self.family.healthy
        finite = self.state.isfinite().all(-1)
        if math.isfinite(high):
            finite &= (self.state[..., 3] >= low) & (self.state[..., 3] <= high)
        return Step(self._observation(), reward.float().nan_to_num(0, 0, 0), ~finite)

    def _observation(self) -> Tensor:
        return self.state[..., 1 + self.family.skipped :].float().nan_to_num(0, 0, 0)

    def _rollout(self) -> Callable[[Any, Any], Any]:
        """Return a function that steps MuJoCo in threads, which start at the first step and are not copied."""
        if self._threads is None:
            import mujoco
            from mujoco import rollout

            number = torch.get_num_threads()
            self._threads = rollout.Rollout(nthread=number), [mujoco.MjData(self._model) for _ in range(number)]
        threads, data = self._threads
        return lambda state, control: threads.rollout(self._model, data, state, control, nstep=self._skip)

    @contextmanager
    def camera(self, width: int, height: int) -> Iterator[Callable[[Tensor], Any]]:
        """Yield a function that renders an image ``[height, width, 3]``, uint8, from a row of ``state``.

        Raises:
            RuntimeError: this machine cannot render; the message says what may help.
        """
        import mujoco

        data, taking = mujoco.MjData(self._model), renderer(self._model, width, height)

        def look(state: Tensor) -> Any:
            mujoco.mj_setState(self._model, data, state.numpy(), mujoco.mjtState.mjSTATE_FULLPHYSICS)
            mujoco.mj_forward(self._model, data)
            taking.update_scene(data, camera="track")
            return taking.render()

        try:
            yield look
        finally:
            taking.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_threads": None}


def make(name: str, **options: Any) -> Any:
    """Make a Gymnasium environment.

    Raises:
        ImportError: Gymnasium or MuJoCo is not installed; the message says how to install them.
    """
    headless()
    try:
        import gymnasium
    except ImportError as error:
        raise ImportError("simulators need Gymnasium and MuJoCo: pip install 'innerloop[rl]'") from error
    mujoco = mujoco_for(name)
    mujoco.set_mju_user_warning(lambda message: None)  # would write deprecations of the bodies to a file
    try:
        return gymnasium.make(name, **options)
    finally:
        mujoco.set_mju_user_warning(None)
