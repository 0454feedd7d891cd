"""The decision processes that a recipe can name: builders of sources, with signatures that define the options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from ..data import Sources
from .advantages import Baseline, LinearBaseline, ValueFunction
from .environments import Bandit, Environment, Navigation, Tabular
from .interaction import Interaction
from .locomotion import Body, Goal, Locomotion

Expected = Literal["linear", "network"]


def sources(
    environment: Environment, discount: float, trace: float, baseline: Expected, eval_episodes: int | None = None
) -> Sources:
    """Return the sources for training, validation and test.

    All three draw from one family, since tasks never run out. They share one baseline, which only training fits.
    """
    expected = _baseline(environment, baseline)
    return Sources(*(Interaction(environment, discount, trace, expected, eval_episodes) for _ in range(3)))


def _baseline(environment: Environment, name: Expected) -> Baseline:
    if name not in ("linear", "network"):
        raise ValueError(f'baseline must be "linear" or "network", got {name!r}')
    if name == "linear":
        return LinearBaseline()
    return ValueFunction(environment.observations, environment.horizon)


def navigation_tasks(
    horizon: int = 100,
    discount: float = 0.99,
    trace: float = 1.0,
    baseline: Expected = "linear",
    eval_episodes: int | None = None,
) -> Sources:
    """`Navigation`: a point has to move to an unknown goal in the plane.

    ``eval_episodes`` is the number of episodes per inner step in validation and test.
    """
    return sources(Navigation(horizon), discount, trace, baseline, eval_episodes)


def bandit_tasks(
    arms: int = 5,
    horizon: int = 10,
    noise: float = 0.5,
    discount: float = 1.0,
    trace: float = 1.0,
    baseline: Expected = "linear",
    eval_episodes: int | None = None,
) -> Sources:
    """`Bandit`: arms with different mean rewards in each task."""
    return sources(Bandit(arms, horizon, noise), discount, trace, baseline, eval_episodes)


def tabular_tasks(
    states: int = 3,
    actions: int = 2,
    horizon: int = 4,
    discount: float = 1.0,
    trace: float = 1.0,
    baseline: Expected = "linear",
    eval_episodes: int | None = None,
) -> Sources:
    """`Tabular`: small random Markov decision processes."""
    return sources(Tabular(states, actions, horizon), discount, trace, baseline, eval_episodes)


def locomotion_tasks(
    body: Body = "half-cheetah",
    goal: Goal = "direction",
    horizon: int = 200,
    discount: float = 0.99,
    trace: float = 1.0,
    baseline: Expected = "linear",
    eval_episodes: int | None = None,
) -> Sources:
    """`Locomotion`: a half-cheetah or an ant that has to run in a direction, at a speed, or to a place."""
    return sources(Locomotion(body, goal, horizon), discount, trace, baseline, eval_episodes)


TASKS: dict[str, Callable[..., Sources]] = {
    "navigation": navigation_tasks,
    "bandit": bandit_tasks,
    "tabular": tabular_tasks,
    "locomotion": locomotion_tasks,
}
