"""Figures of how a learner adapts to tasks. Every function draws on matplotlib axes and returns them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..common.streams import shown
from ..learner import MetaLearner
from ..task import Task, TaskSource, select, singles
from ..train.evaluate import Evaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The colorblind-safe palette of Okabe and Ito (2008).
BEFORE, AFTER, TRUTH, WRONG = "#999999", "#0072b2", "#009e73", "#d55e00"
TOGETHER = 25
"""The number of tasks in one call of `MetaLearner.predict`."""
BRIEF = 10
"""With more ways, the labels below the pictures are bare numbers."""
SHOTS = 5
"""The largest number of rows of pictures of a support or query set."""


@runtime_checkable
class FunctionSource(TaskSource, Protocol):
    """A source of regression tasks on functions that can be drawn, such as `innerloop.data.Sinusoid`."""

    @property
    def x(self) -> tuple[float, float]:
        """The range of the inputs."""
        ...

    def functions(self, n: int, generator: torch.Generator) -> Any:
        """Return the functions of the tasks that `sample` draws from an equal generator state."""
        ...


def new_figure(width: float, height: float) -> Figure:
    """Create an empty figure, ``width`` by ``height`` inches, that needs no display.

    Raises:
        ImportError: matplotlib is missing; the message names the extra.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install 'innerloop[plot]'") from error
    return Figure(figsize=(width, height), dpi=130, layout="constrained")


def in_figure(name: str) -> str:
    """Escape a name so that matplotlib shows it unchanged.

    Matplotlib reads text between dollar signs as a formula, and omits names that begin with an underscore from legends.
    """
    name = shown(name)  # escapes line breaks and characters without glyphs
    return (" " * name.startswith("_") + name).replace("$", r"\$")


def adaptation_curve(axes: Axes, evaluation: Evaluation, label: str | None = None, trained: int | None = None) -> Axes:
    """Plot the metric after 0, 1, ..., K inner steps, with its 95 % interval over tasks.

    ``trained`` marks the number of inner steps in meta-training.
    """
    steps = range(len(evaluation.steps))
    mean, half = torch.tensor(evaluation.steps), torch.tensor(evaluation.steps_ci95)
    (line,) = axes.plot(steps, mean.tolist(), marker="o", color=None if label else AFTER, label=label)
    axes.fill_between(steps, (mean - half).tolist(), (mean + half).tolist(), alpha=0.2, color=line.get_color())
    if trained is not None:
        axes.axvline(trained, color=BEFORE, linestyle=":", label=f"trained with {trained}")
        axes.legend(fontsize="small")
    axes.set_xticks(list(steps)[:: max(1, len(steps) // 12)])
    axes.set_xlabel("inner steps")
    axes.set_ylabel(in_figure(evaluation.scale.label))
    axes.set_title(f"{evaluation.num_tasks} unseen tasks, {evaluation.mode}")
    return axes


def fits(
    axes: Axes, learner: MetaLearner, source: FunctionSource, steps: Sequence[int] = (0, 1, 10), seed: int = 0
) -> Axes:
    """Plot one unseen function, its support points, and the model's function after each number of steps."""
    state = torch.Generator().manual_seed(seed).get_state()
    task = select(source.sample(1, torch.Generator().set_state(state)), 0)
    truth = source.functions(1, torch.Generator().set_state(state))
    grid = torch.linspace(*source.x, 201)[:, None]
    axes.plot(grid[:, 0].tolist(), truth(grid)[0, :, 0].tolist(), color=TRUTH, linewidth=2, label="truth")
    for k in steps:
        values = learner.adapt(task.support, steps=k)(grid)[:, 0]
        style: dict[str, Any] = {"color": BEFORE, "linestyle": ":"} if k == 0 else {"color": AFTER, "linestyle": "--"}
        style |= {"alpha": 1.0 if k in (0, max(steps)) else 0.45}
        label = "before adaptation" if k == 0 else f"{k} step{'' if k == 1 else 's'}"
        axes.plot(grid[:, 0].tolist(), values.tolist(), label=label, **style)
    points = [task.support.x[:, 0].tolist(), task.support.y[:, 0].tolist()]
    axes.plot(*points, "k^", markersize=5, label=f"{len(task.support.x)} support points")
    axes.set_xlabel("x")
    axes.set_ylabel("y")
    return axes


def episode(
    figure: Figure,
    learner: MetaLearner,
    source: TaskSource,
    steps: int | None = None,
    transductive: bool = True,
    seed: int = 0,
) -> Figure:
    """Draw one unseen few-shot episode as pictures.

    The support images have one column for each class. The frames of the query images below show whether each was
    classified correctly, before adaptation (upper rows) and after it.
    """
    task = singles(source.sample(1, torch.Generator().manual_seed(seed)))[0]
    logits = learner.predict([task], steps, transductive)[0]
    support, query = task
    ways = int(support.y.max()) + 1
    groups = [("support", support.x, support.y, None), *_query_rows(query, logits)]
    heights = [min(len(x) // ways, SHOTS) for _, x, _, _ in groups]
    parts: Any = figure.subfigures(len(groups), 1, height_ratios=heights)
    for part, rows, (title, x, y, guess) in zip(parts, heights, groups, strict=True):
        right = "" if guess is None else f": {100 * (guess == y).float().mean():.0f} % correct"
        some = f" ({rows} of {len(x) // ways} per class)" if rows < len(x) // ways else ""
        part.suptitle(title + some + right, fontsize="medium", ha="left", x=0.02)
        grid = part.subplots(rows, ways, squeeze=False)
        x, y, guess = x[: rows * ways], y[: rows * ways], None if guess is None else guess[: rows * ways]
        guesses = [None] * len(x) if guess is None else guess
        for axes, image, label, predicted in zip(grid.flat, x, y, guesses, strict=True):
            _picture(axes, image, int(label), None if predicted is None else int(predicted), brief=ways > BRIEF)
    return figure


def episode_height(task: Task) -> float:
    """Return the height in inches that `episode` needs for a single task."""
    ways = int(task.support.y.max()) + 1
    support, query = (min(int(part.y.shape[-1]) // ways, SHOTS) for part in (task.support, task.query))
    return 1.2 + 0.85 * (support + 2 * query)


def _query_rows(query: Any, logits: Tensor) -> list[tuple[str, Tensor, Tensor, Tensor]]:
    taken = len(logits) - 1
    names = [("query, before adaptation", 0), (f"query, after {taken} step{'' if taken == 1 else 's'}", taken)]
    return [(name, query.x, query.y, _predicted(logits[k], query.y)) for name, k in names]


def _predicted(output: Tensor, y: Tensor) -> Tensor:
    """Return the classes that outputs predict; -1 where the outputs are NaN.

    The class is that of the largest logit. If targets are 0 and 1, there is one logit per example.
    """
    if y.is_floating_point():
        return torch.where(output.isnan(), -1, (output > 0).long())
    return torch.where(output.isnan().any(1), -1, output.argmax(1))


def _picture(axes: Axes, image: Tensor, label: int, predicted: int | None, brief: bool) -> None:
    picture = image.cpu().movedim(0, -1)
    drawn = picture if picture.shape[-1] == 3 else 1 - picture[..., 0]
    axes.imshow(drawn.tolist(), cmap="gray", vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[])
    kind, number = ("class", label) if predicted is None else ("predicted", predicted)
    what = str(number) if brief else f"{kind} {number}"
    axes.set_xlabel(what, fontsize="xx-small" if brief else "small", labelpad=1 if brief else None)
    color = "black" if predicted is None else AFTER if predicted == label else WRONG
    for spine in axes.spines.values():
        spine.set(edgecolor=color, linewidth=1 if predicted is None else 2.5)


def showcase(learner: MetaLearner, source: TaskSource, steps: int | None = None, transductive: bool = True) -> Figure:
    """Show what adaptation does: six unseen functions before and after it, or one few-shot episode that it solves."""
    if not isinstance(source, FunctionSource):
        seed = solved_episode(learner, source, transductive, steps=steps)
        return episode(new_figure(6, 5.5), learner, source, steps, transductive, seed)
    figure = new_figure(10, 6)
    taken = sorted({0, 1, learner.steps if steps is None else steps})
    grid = figure.subplots(2, 3).flat
    for seed, axes in enumerate(grid):
        fits(axes, learner, source, taken, seed)
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


def solved_episode(
    learner: MetaLearner, source: TaskSource, transductive: bool = True, first: int = 0, steps: int | None = None
) -> int:
    """Return the seed of the first task, from ``first`` on, all of whose queries are classified correctly.

    If there is none among 100 tasks, return the seed of the task with the most correct predictions.
    """
    return _episode_with(1.0, learner, source, transductive, first, steps)


def failed_episode(
    learner: MetaLearner, source: TaskSource, transductive: bool = True, first: int = 0, steps: int | None = None
) -> int:
    """Return the seed of the task, of 100 from ``first`` on, with the fewest queries classified correctly."""
    return _episode_with(0.0, learner, source, transductive, first, steps)


def _episode_with(
    share: float, learner: MetaLearner, source: TaskSource, transductive: bool, first: int, steps: int | None
) -> int:
    """Return the seed of the first task, of 100, whose share of correct predictions is nearest to ``share``."""
    taken = learner.steps if steps is None else steps
    nearest, seed = 2.0, first
    for start in range(first, first + 100, TOGETHER):
        seeds = range(start, start + TOGETHER)
        tasks = [singles(source.sample(1, torch.Generator().manual_seed(candidate)))[0] for candidate in seeds]
        outputs = learner.predict(tasks, taken, transductive, at=[taken])
        for candidate, output, y in zip(seeds, outputs, (task.query.y for task in tasks), strict=True):
            away = abs((_predicted(output[0], y) == y).float().mean().item() - share)
            if away < nearest:
                nearest, seed = away, candidate
        if nearest == 0:
            break
    return seed
