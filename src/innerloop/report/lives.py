"""Rollouts of a policy in unseen tasks, before and after adaptation.

The figures are paths in the plane, rewards over time, and films of bodies.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..learner import MetaLearner
from ..rl import Interaction, Locomotion, Navigation, Rollout, Step, rollout
from ..task import Source
from .figures import AFTER, BEFORE, TRUTH, new_figure
from .series import NothingToDrawError
from .traces import Interactive, Trace, curve, with_frames
from .traces import new_figure as new_interactive

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TASKS, SHOWN = 6, 5
"""The number of tasks that are drawn, and of episodes of each."""
SIZE, SPEED = (320, 240), 20
"""The size of a film in pixels, and its frames per second."""


@dataclass(frozen=True)
class Lives:
    """Episodes of some unseen tasks.

    Attributes:
        tasks: the tasks of the environment, ``[T, ...]``.
        episodes: the episodes after 0, 1, ..., K inner steps.
    """

    tasks: Any
    episodes: tuple[Rollout, ...]

    def title(self, task: int) -> str:
        """Return the mean returns of a task before and after adaptation, as text."""
        first, last = (self.episodes[k].returns[task].mean() for k in (0, -1))
        return f"return {first:.4g} → {last:.4g}"


def live(learner: MetaLearner, source: Interaction, steps: int | None, tasks: int = TASKS, seed: int = 0) -> Lives:
    """Run episodes of unseen tasks; the same seed gives the same tasks."""
    generator = torch.Generator().manual_seed(seed)
    drawn = source.environment.tasks(tasks, generator)
    steps = learner.steps if steps is None else steps
    parts = source.episodes(learner, drawn, steps, generator, source.eval_episodes)
    return Lives(drawn, tuple(part.episodes for part in parts))


def paths(learner: MetaLearner, source: Interaction, steps: int | None) -> Figure:
    """Draw six unseen tasks: the paths of the point for navigation, the rewards over time for others."""
    lived, figure = live(learner, source, steps), new_figure(11, 7.5)
    panels = list(figure.subplots(2, 3).flat)
    for task, axes in enumerate(panels):
        if isinstance(source.environment, Navigation):
            _ways(axes, lived, task)
        else:
            _rewards(axes, lived, task)
        axes.set_title(lived.title(task), fontsize="medium")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _ways(axes: Axes, lived: Lives, task: int) -> None:
    for (episodes, name), color in zip(_ends(lived), (BEFORE, AFTER), strict=True):
        for number in range(min(SHOWN, episodes.returns.shape[1])):
            x, y = _way(episodes, task, number)
            axes.plot(x, y, color=color, linewidth=1, alpha=0.7, label=None if number else name)
    goal = lived.tasks[task].tolist()
    axes.plot(*goal, "*", color=TRUTH, markersize=14, label="goal")
    axes.plot(0, 0, "o", color="black", markersize=4, label="start")
    axes.set_xlim(-1, 1)
    axes.set_ylim(-1, 1)
    axes.set_aspect("equal")


def _rewards(axes: Axes, lived: Lives, task: int) -> None:
    for (episodes, name), color in zip(_ends(lived), (BEFORE, AFTER), strict=True):
        axes.plot(_mean_rewards(episodes, task).tolist(), color=color, label=name)
    axes.set_xlabel("step of the episode")
    axes.set_ylabel("reward")


def _ends(lived: Lives) -> Iterator[tuple[Rollout, str]]:
    yield lived.episodes[0], "before adaptation"
    last = len(lived.episodes) - 1
    yield lived.episodes[last], f"after {last} step{'s' * (last != 1)}"


def _way(episodes: Rollout, task: int, number: int) -> tuple[list[float], list[float]]:
    """Return the path of a point until the end of an episode."""
    alive = episodes.alive[task, number] > 0
    x, y = episodes.observations[task, number][alive].unbind(-1)
    return x.tolist(), y.tolist()


def _mean_rewards(episodes: Rollout, task: int) -> Tensor:
    """Return the mean reward at each step of a task's episodes."""
    return episodes.rewards[task].mean(0)


def interactive(name: str, learner: MetaLearner, source: Interaction, steps: int | None) -> Interactive:
    """Draw four unseen tasks, with a slider over inner steps."""
    lived, navigates = live(learner, source, steps, 4), isinstance(source.environment, Navigation)
    frames = []
    for taken, episodes in enumerate(lived.episodes):
        traces: list[Trace] = []
        for task in range(4):
            axes: dict[str, Any] = {"xaxis": f"x{task + 1}", "yaxis": f"y{task + 1}", "showlegend": not task}
            for number in range(min(SHOWN, episodes.returns.shape[1]) if navigates else 1):
                shown = {**axes, "showlegend": not task and not number, "mode": "lines"}
                if navigates:
                    x, y = _way(episodes, task, number)
                else:
                    y = _mean_rewards(episodes, task).tolist()
                    x = list(range(len(y)))
                traces.append(curve(x, y, "policy", 0, 1.5, **shown))
        frames.append((f"after {taken} step{'s' * (taken != 1)}", traces))
    titles = ("", "") if navigates else ("step of the episode", "reward")
    figure = new_interactive([*frames[-1][1], *(_goals(lived.tasks) if navigates else ())], *titles,
                             grid={"rows": 2, "columns": 2, "pattern": "independent"})  # fmt: skip
    figure.update_layout(height=620)
    if navigates:
        figure.update_xaxes(range=[-1, 1])
        figure.update_yaxes(range=[-1, 1])
    returns = ", ".join(f"{episodes.returns.mean():.4g}" for episodes in lived.episodes)
    what = "The path of the point" if navigates else "Mean rewards over an episode"
    about = f"{what} in four unseen tasks; mean returns after 0, 1, ... steps: {returns}."
    return Interactive(
        with_frames(figure, frames), f"Unseen tasks: {name}", about, "inner steps", len(frames) - 1, frames[-1][0],
        own_legend=True,
    )  # fmt: skip


def _goals(goals: Tensor) -> list[Trace]:
    marker = {"color": TRUTH, "size": 12, "symbol": "star"}
    return [
        {"type": "scatter", "mode": "markers", "name": "goal", "marker": marker, "showlegend": not task,
         "x": [goals[task, 0].item()], "y": [goals[task, 1].item()], "xaxis": f"x{task + 1}", "yaxis": f"y{task + 1}"}
        for task in range(4)
    ]  # fmt: skip


# -- films ------------------------------------------------------------------------------------------------------------


def film(learner: MetaLearner, source: Source, path: Path, steps: int | None, seed: int = 0, tasks: int = 2) -> None:
    """Write a GIF of a body before adaptation (left) and after it (right), with the most likely actions.

    The unseen tasks are stacked vertically.

    Raises:
        NothingToDrawError: the run is not a locomotion run.
        ImportError: Pillow is missing.
        RuntimeError: rendering does not work on this machine; the message says what may help.
    """
    if not isinstance(source, Interaction) or not isinstance(source.environment, Locomotion):
        raise NothingToDrawError("films need a locomotion or imitation run, and this run is neither")
    steps, generator = learner.steps if steps is None else steps, torch.Generator().manual_seed(seed)
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("films need Pillow: pip install 'innerloop[vision]'") from error
    watched, drawn = Watched(source.environment), _distinct_tasks(source.environment, tasks, seed)
    lived = list(source.episodes(learner, drawn, steps, generator, source.eval_episodes))
    for at in (0, -1):
        rollout(watched, lived[at].policy, drawn, 1, torch.Generator().manual_seed(seed), greedy=True)
    shown = [_padded(states, source.environment.horizon + 1) for states in watched.lives]
    pictures = [Image.fromarray(picture.numpy()) for picture in _rendered(source.environment, torch.stack(shown, 2))]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=1000 // SPEED, loop=0)


class Watched:
    """An environment whose states are recorded: ``lives[rollout][step]`` of ``[T, E, state]``."""

    def __init__(self, environment: Locomotion) -> None:
        self._environment = environment
        self.lives: list[list[Tensor]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._environment, name)

    def reset(self, tasks: Tensor, episodes: int, generator: torch.Generator) -> Tensor:
        """Reset the environment, and record its state."""
        first = self._environment.reset(tasks, episodes, generator)
        self.lives.append([self._environment.state])
        return first

    def step(self, action: Tensor) -> Step:
        """Step the environment, and record its state."""
        result = self._environment.step(action)
        self.lives[-1].append(self._environment.state)
        return result


def _padded(states: list[Tensor], length: int) -> Tensor:
    """Return the states of one episode of each task, ``[length, T, state]``; repeat the last state after the end."""
    return torch.stack([*states, *states[-1:] * (length - len(states))])[:, :, 0]


def _distinct_tasks(environment: Locomotion, tasks: int, seed: int) -> Tensor:
    """Draw unseen tasks that differ clearly."""
    drawn = environment.tasks(64, torch.Generator().manual_seed(seed))
    order = drawn[:, 0].argsort()
    return drawn[order[torch.linspace(0, 63, tasks).long()]]


def _rendered(environment: Locomotion, states: Tensor) -> Iterator[Tensor]:
    """Render states ``[H, T, 2, state]`` as pictures, with the tasks below each other."""
    with environment.camera(*SIZE) as look:
        for moment in states:
            yield torch.cat([torch.cat([torch.as_tensor(look(state)) for state in row], 1) for row in moment])
