"""What a policy does in unseen tasks, before and after it has adapted.

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
"""Tasks that are drawn, and episodes of each."""
SIZE, SPEED = (320, 240), 20
"""Of films: pixels, and pictures a second."""


@dataclass(frozen=True)
class Lives:
    """Episodes of some unseen tasks.

    Attributes:
        tasks: the environment's, ``[T, ...]``.
        episodes: after 0, 1, ..., K inner steps.
    """

    tasks: Any
    episodes: tuple[Rollout, ...]

    def title(self, task: int) -> str:
        """Mean returns of a task before and after adaptation."""
        first, last = (self.episodes[k].returns[task].mean() for k in (0, -1))
        return f"return {first:.4g} → {last:.4g}"


def live(learner: MetaLearner, source: Interaction, steps: int | None, tasks: int = TASKS, seed: int = 0) -> Lives:
    """Live through unseen tasks; the same seed gives the same ones."""
    generator = torch.Generator().manual_seed(seed)
    drawn = source.environment.tasks(tasks, generator)
    steps = learner.steps if steps is None else steps
    found = source.episodes(learner, drawn, steps, generator, source.eval_episodes)
    return Lives(drawn, tuple(part.episodes for part in found))


def paths(learner: MetaLearner, source: Interaction, steps: int | None) -> Figure:
    """Six unseen tasks: of navigation where the point goes, of others the rewards over time."""
    found, figure = live(learner, source, steps), new_figure(11, 7.5)
    panels = list(figure.subplots(2, 3).flat)
    for task, axes in enumerate(panels):
        if isinstance(source.environment, Navigation):
            _ways(axes, found, task)
        else:
            _rewards(axes, found, task)
        axes.set_title(found.title(task), fontsize="medium")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _ways(axes: Axes, found: Lives, task: int) -> None:
    for (episodes, name), colour in zip(_ends(found), (BEFORE, AFTER), strict=True):
        for number in range(min(SHOWN, episodes.returns.shape[1])):
            x, y = _way(episodes, task, number)
            axes.plot(x, y, color=colour, linewidth=1, alpha=0.7, label=None if number else name)
    goal = found.tasks[task].tolist()
    axes.plot(*goal, "*", color=TRUTH, markersize=14, label="goal")
    axes.plot(0, 0, "o", color="black", markersize=4, label="start")
    axes.set_xlim(-1, 1)
    axes.set_ylim(-1, 1)
    axes.set_aspect("equal")


def _rewards(axes: Axes, found: Lives, task: int) -> None:
    for (episodes, name), colour in zip(_ends(found), (BEFORE, AFTER), strict=True):
        axes.plot(_earned(episodes, task).tolist(), color=colour, label=name)
    axes.set_xlabel("step of the episode")
    axes.set_ylabel("reward")


def _ends(found: Lives) -> Iterator[tuple[Rollout, str]]:
    yield found.episodes[0], "before adaptation"
    last = len(found.episodes) - 1
    yield found.episodes[last], f"after {last} step{'s' * (last != 1)}"


def _way(episodes: Rollout, task: int, number: int) -> tuple[list[float], list[float]]:
    """Where a point went, until the end."""
    alive = episodes.alive[task, number] > 0
    x, y = episodes.observations[task, number][alive].unbind(-1)
    return x.tolist(), y.tolist()


def _earned(episodes: Rollout, task: int) -> Tensor:
    """Mean rewards of the steps of a task's episodes."""
    return episodes.rewards[task].mean(0)


def interactive(name: str, learner: MetaLearner, source: Interaction, steps: int | None) -> Interactive:
    """The same, with a slider over inner steps."""
    found, navigates = live(learner, source, steps, 4), isinstance(source.environment, Navigation)
    frames = []
    for taken, episodes in enumerate(found.episodes):
        traces: list[Trace] = []
        for task in range(4):
            axes: dict[str, Any] = {"xaxis": f"x{task + 1}", "yaxis": f"y{task + 1}", "showlegend": not task}
            for number in range(min(SHOWN, episodes.returns.shape[1]) if navigates else 1):
                shown = {**axes, "showlegend": not task and not number, "mode": "lines"}
                if navigates:
                    x, y = _way(episodes, task, number)
                else:
                    y = _earned(episodes, task).tolist()
                    x = list(range(len(y)))
                traces.append(curve(x, y, "policy", 0, 1.5, **shown))
        frames.append((f"after {taken} step{'s' * (taken != 1)}", traces))
    titles = ("", "") if navigates else ("step of the episode", "reward")
    figure = new_interactive([*frames[-1][1], *(_goals(found.tasks) if navigates else ())], *titles,
                             grid={"rows": 2, "columns": 2, "pattern": "independent"})  # fmt: skip
    figure.update_layout(height=620)
    if navigates:
        figure.update_xaxes(range=[-1, 1])
        figure.update_yaxes(range=[-1, 1])
    returns = ", ".join(f"{episodes.returns.mean():.4g}" for episodes in found.episodes)
    what = "Where the point goes" if navigates else "Mean rewards over an episode"
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
    """Write a GIF of a body before adaptation (left) and after it (right), by the likeliest actions.

    The unseen tasks are stacked below each other.

    Raises:
        NothingToDrawError: the run is not of a body.
        ImportError: Pillow is missing.
        RuntimeError: nothing can be rendered here; the message says what may help.
    """
    if not isinstance(source, Interaction) or not isinstance(source.environment, Locomotion):
        raise NothingToDrawError("films are of locomotion, and this run is of something else")
    steps, generator = learner.steps if steps is None else steps, torch.Generator().manual_seed(seed)
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("films need Pillow: pip install 'innerloop[vision]'") from error
    watched, drawn = Watched(source.environment), _telling(source.environment, tasks, seed)
    lived = list(source.episodes(learner, drawn, steps, generator, source.eval_episodes))
    for at in (0, -1):
        rollout(watched, lived[at].policy, drawn, 1, torch.Generator().manual_seed(seed), greedy=True)
    shown = [_padded(states, source.environment.horizon + 1) for states in watched.lives]
    pictures = [Image.fromarray(picture.numpy()) for picture in _rendered(source.environment, torch.stack(shown, 2))]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=1000 // SPEED, loop=0)


class Watched:
    """A body whose states are kept, ``lives[rollout][step]`` of ``[T, E, state]``."""

    def __init__(self, environment: Locomotion) -> None:
        self._environment = environment
        self.lives: list[list[Tensor]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._environment, name)

    def reset(self, tasks: Tensor, episodes: int, generator: torch.Generator) -> Tensor:
        """As the environment does."""
        first = self._environment.reset(tasks, episodes, generator)
        self.lives.append([self._environment.state])
        return first

    def step(self, action: Tensor) -> Step:
        """As the environment does."""
        found = self._environment.step(action)
        self.lives[-1].append(self._environment.state)
        return found


def _padded(states: list[Tensor], length: int) -> Tensor:
    """Of one episode of each task, ``[length, T, state]``; whose end came early stays as it was."""
    return torch.stack([*states, *states[-1:] * (length - len(states))])[:, :, 0]


def _telling(environment: Locomotion, tasks: int, seed: int) -> Tensor:
    """Unseen tasks that differ."""
    drawn = environment.tasks(64, torch.Generator().manual_seed(seed))
    order = drawn[:, 0].argsort()
    return drawn[order[torch.linspace(0, 63, tasks).long()]]


def _rendered(environment: Locomotion, states: Tensor) -> Iterator[Tensor]:
    """Pictures of states ``[H, T, 2, state]``, tasks below each other."""
    with environment.camera(*SIZE) as look:
        for moment in states:
            yield torch.cat([torch.cat([torch.as_tensor(look(state)) for state in row], 1) for row in moment])
