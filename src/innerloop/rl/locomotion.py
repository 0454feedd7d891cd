"""Half-cheetah and ant whose goals differ from task to task, all at once in MuJoCo's own threads.

Bodies are those of Gymnasium's current MuJoCo environments (version 5), goals and rewards those of the code of Finn et
al. 2017 (of the ant's position: of later code), but for the cost of contact forces, which was always zero under the
simulator's versions since 2018 and is left out. The same problems one by one, as Gymnasium environments, are in
`innerloop.rl.gym`.
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
    """A body and what it is to do. Formulas are of arrays, NumPy's as well as torch's.

    Attributes:
        environment: the id of Gymnasium's environment.
        options: of that environment.
        skipped: coordinates at the beginning that are not observed.
        draw: ``(n, generator) -> goals [n, G]``.
        reward: ``(velocity, position, action, goal) -> reward``: velocity and position in the plane and action have
            an axis for their numbers behind all others, and so does the goal.
        healthy: the range of the body's height; below and above an episode ends.
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
"""What bodies can be asked to do: to run forwards or backwards (U{-1, 1}), at a speed (U[0, 2] m/s of the cheetah,
U[0, 3] of the ant), to a place (U[-3, 3]^2 m, which the ant sees its own position for)."""


def family(body: Body, goal: Goal) -> Family:
    """What is known of a body and a goal.

    Raises:
        ValueError: there is no such combination.
    """
    if (body, goal) not in FAMILIES:
        known = ", ".join(f"{one} {other}" for one, other in FAMILIES)
        raise ValueError(f"no {body!r} with the goal {goal!r}; there are {known}")
    return FAMILIES[body, goal]


class Locomotion:
    """A simulated body with a goal of each task.

    All episodes of all tasks are stepped by one call of MuJoCo, in as many threads as torch has. Episodes differ by
    their first state, to which Gymnasium's reset noise is added.

    Args:
        body: ``"half-cheetah"`` or ``"ant"``.
        goal: ``"direction"``, ``"velocity"`` or, of the ant, ``"position"``.
        horizon: steps of an episode: 100 and 200 are in use, and returns of one are not those of the other.

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
        """Goals ``[n, 1]``, or ``[n, 2]`` of positions."""
        return self.family.draw(n, generator)

    def reset(self, tasks: Tensor, episodes: int, generator: torch.Generator) -> Tensor:
        """See `Environment`."""
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
        """See `Environment`. Actions beyond [-1, 1] are clipped to it."""
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
        """MuJoCo's threads, which are started at the first step and left behind by copies."""
        if self._threads is None:
            import mujoco
            from mujoco import rollout

            number = torch.get_num_threads()
            self._threads = rollout.Rollout(nthread=number), [mujoco.MjData(self._model) for _ in range(number)]
        threads, data = self._threads
        return lambda state, control: threads.rollout(self._model, data, state, control, nstep=self._skip)

    @contextmanager
    def camera(self, width: int, height: int) -> Iterator[Callable[[Tensor], Any]]:
        """A function that makes a picture ``[height, width, 3]``, uint8, of a state, as those in ``state`` are.

        Raises:
            RuntimeError: nothing can be rendered here; the message says what may help.
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
    """An environment of Gymnasium's.

    Raises:
        ImportError: it, or MuJoCo, is not installed; the message says how to install them.
    """
    headless()
    try:
        import gymnasium
    except ImportError as error:
        raise ImportError("simulators need Gymnasium and MuJoCo: pip install 'innerloop[rl]'") from error
    mujoco = mujoco_for(name)
    mujoco.set_mju_user_warning(lambda message: None)  # of what bodies say that is deprecated, into a file beside us
    try:
        return gymnasium.make(name, **options)
    finally:
        mujoco.set_mju_user_warning(None)
