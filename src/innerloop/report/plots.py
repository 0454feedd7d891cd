"""All figures of a run, by name: those from its record, and those that run the trained model on unseen tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..imitation import Imitation
from ..learner import MetaLearner
from ..recipe.config import arguments, load_run
from ..rl import Interaction
from ..task import InteractiveSource, singles
from ..train import evaluate
from . import lives
from . import strips as film_strips
from .curves import (
    WIDTH,
    compare,
    final_support_loss,
    inner_loss,
    learned_rates,
    meta_loss,
    panel,
    task_grid,
    validation,
)
from .figures import (
    FunctionSource,
    adaptation_curve,
    episode,
    episode_height,
    failed_episode,
    fits,
    new_figure,
    solved_episode,
)
from .runs import Run
from .series import NothingToDrawError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEPS = 1_000
"""The approximate total of inner steps for the curve over adaptation steps, which uses 20 to 100 unseen tasks."""


@dataclass(frozen=True)
class Options:
    """The options of figures.

    Attributes:
        window: the window of running means, in points; by default it depends on the number of points.
        iteration: for figures of one iteration; default: the last, or the best.
        task: for figures of one task: its index among the recorded ones.
        data, device: the folder of the data and the device of the model, as in `innerloop.load_run`.
    """

    window: int | None = None
    iteration: int | None = None
    task: int = 0
    data: Path | None = None
    device: str = "cpu"


def adaptation(run: Run, options: Options) -> Figure:
    """Plot the metric on unseen tasks before adaptation, after each step, and past the trained number of steps."""
    learner, sources, config = load_run(run.path, options.data, options.device)
    steps = max(2 * learner.steps, config["evaluate"].get("steps") or 0, 1)
    transductive = config["evaluate"].get("transductive", True)
    metric = arguments(config, "evaluate").get("metric")
    evaluation = evaluate(learner, sources.test, max(20, min(100, STEPS // steps)), steps, transductive, metric)
    return panel(adaptation_curve, evaluation, trained=learner.steps)


def functions(run: Run, options: Options) -> Figure:
    """Plot six unseen functions: the truth, and the model's function before and after adaptation."""
    learner, sources, config = load_run(run.path, options.data, options.device)
    if not isinstance(sources.test, FunctionSource):
        raise NothingToDrawError(f"the tasks of {run.path} are not functions that can be drawn")
    figure = new_figure(WIDTH * 1.5, 5.5)
    steps = sorted({0, 1, config["evaluate"].get("steps") or learner.steps})
    panels = list(figure.subplots(2, 3).flat)
    for seed, axes in enumerate(panels):
        fits(axes, learner, sources.test, steps, seed)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


def episodes(run: Run, options: Options) -> Figure:
    """Draw an unseen episode that is solved and one that is not, as pictures."""
    learner, sources, config = load_run(run.path, options.data, options.device)
    if isinstance(sources.test, FunctionSource | InteractiveSource):
        raise NothingToDrawError(f"the tasks of {run.path} do not have pictures")
    figure = new_figure(2 * WIDTH, episode_height(singles(sources.test.sample(1, torch.Generator().manual_seed(0)))[0]))
    transductive, steps = config["evaluate"].get("transductive", True), config["evaluate"].get("steps")
    parts: Any = figure.subfigures(1, 2)
    for part, name, find in zip(parts, ("most", "fewest"), (solved_episode, failed_episode), strict=True):
        seed = find(learner, sources.test, transductive, steps=steps)
        episode(part, learner, sources.test, steps, transductive, seed)
        part.suptitle(f"{name} correct of 100 tasks (task {seed})", fontsize="large")
    return figure


def paths(run: Run, options: Options) -> Figure:
    """Draw rollouts of a policy in six unseen tasks, before and after adaptation."""
    learner, sources, config = load_run(run.path, options.data, options.device)
    if not isinstance(sources.test, Interaction):
        raise NothingToDrawError(f"{run.path} is not a reinforcement-learning run")
    return lives.paths(learner, sources.test, config["evaluate"].get("steps"))


def strips(run: Run, options: Options) -> Figure:
    """Draw the demonstration and what the robot did, in four unseen tasks."""
    return film_strips.strips(*_robot(run, options))


def gaze(run: Run, options: Options) -> Figure:
    """Draw what a learned loss depends on, and where the policy looks before and after adaptation."""
    return film_strips.gaze(*_robot(run, options))


def _robot(run: Run, options: Options) -> tuple[MetaLearner, Imitation, int | None]:
    learner, sources, config = load_run(run.path, options.data, options.device)
    if not isinstance(sources.test, Imitation):
        raise NothingToDrawError(f"{run.path} is not an imitation run")
    return learner, sources.test, config["evaluate"].get("steps")


def _of_record(draw: Callable[..., Any], *takes: str) -> Callable[[Run, Options], Figure]:
    return lambda run, options: panel(draw, run, **{name: getattr(options, name) for name in takes})


def _grid(what: Any) -> Callable[[Run, Options], Figure]:
    return lambda run, options: task_grid(new_figure(WIDTH, 6.5), run, what, options.window)


PLOTS: dict[str, Callable[[Run, Options], Figure]] = {
    "inner": _of_record(inner_loss, "iteration", "task", "window"),
    "inner-grid": _grid("support"),
    "query-grid": _grid("query"),
    "final-support": _of_record(final_support_loss, "window"),
    "meta-train": _of_record(meta_loss, "window"),
    "validation": _of_record(validation),
    "rates": _of_record(learned_rates, "iteration"),
    "adaptation": adaptation,
    "functions": functions,
    "episodes": episodes,
    "paths": paths,
    "strips": strips,
    "gaze": gaze,
}
"""The figures of one run; `compare` is the figure of several."""


def plots(runs: Sequence[Run], kinds: Sequence[str], options: Options) -> Iterator[tuple[str, Run, Figure | str]]:
    """Yield each figure with its kind and run, or a message if the run has nothing to draw.

    Raises:
        ValueError: a kind is unknown, or there are too few runs to compare.
    """
    for kind in kinds:
        if kind not in (*PLOTS, "compare"):
            raise ValueError(f"unknown kind of figure {kind!r}. Known: {', '.join([*PLOTS, 'compare'])}")
        if kind == "compare" and len(runs) < 2:
            raise ValueError(f"compare needs at least two runs, got {len(runs)}")
    for kind in kinds:
        if kind == "compare":
            judged = [run for run in runs if run.best]
            for run in runs:
                if not run.best:
                    yield kind, run, f"{run.path} is left out, because it has no validations"
            if judged:
                yield kind, judged[0], _perhaps(judged[0], partial(panel, compare, judged))
            continue
        for run in runs:
            yield kind, run, _perhaps(run, partial(PLOTS[kind], run, options))


def _perhaps(run: Run, draw: Callable[[], Figure]) -> Figure | str:
    """Return the figure, or why there is none: the record lacks it, or the model or the data are missing."""
    try:
        return draw()
    except (NothingToDrawError, FileNotFoundError) as error:
        return str(error)
    except (LookupError, TypeError, AttributeError, ArithmeticError) as error:  # values that do not fit each other
        return f"{run.path} is damaged: it cannot be drawn ({type(error).__name__}: {error})"
