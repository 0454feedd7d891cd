"""The problems of imitation that a recipe can name."""

from __future__ import annotations

from collections.abc import Callable

from ..data import Sources
from .environments import Environment
from .plane import Reach
from .source import Imitation, Shown
from .table import Goal, Table


def sources(environment: Environment, shown: Shown) -> Sources:
    """Return the training, validation and test tasks, which share neither objects nor demonstrators."""
    return Sources(*(Imitation(environment, split, shown) for split in ("train", "val", "test")))


def reach_2d_tasks(
    objects: int = 3, frames: int = 8, horizon: int = 8, moments: int = 3, size: int = 32, shown: Shown = "video"
) -> Sources:
    """`Reach`: a video of an arm that reaches for one of several objects; a robot in the plane has to do the same."""
    return sources(Reach(objects, frames, horizon, moments, size), shown)


def table_tasks(
    goal: Goal = "push",
    objects: int = 2,
    cases: int = 1000,
    frames: int = 8,
    horizon: int = 22,
    moments: int = 4,
    size: int = 48,
    shown: Shown = "video",
) -> Sources:
    """`Table`: a video of a demonstrator who pushes one of several objects, or reaches for it, in MuJoCo.

    A robot arm has to do the same with the same object.
    """
    return sources(Table(goal, objects, cases, frames, horizon, moments, size), shown)


TASKS: dict[str, Callable[..., Sources]] = {"reach-2d": reach_2d_tasks, "table": table_tasks}
"""The builders of task sources, by name."""
