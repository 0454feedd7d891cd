"""Run trained models on unseen tasks for the report: past the trained steps, as functions, as pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..common.interrupts import raise_interrupt_behind
from ..data import Sources
from ..imitation import Imitation
from ..learner import MetaLearner
from ..recipe.config import arguments, load_run
from ..rl import Interaction
from ..task import TaskSource, select, singles
from ..train import Evaluation, evaluate
from . import lives, strips
from .curves import WIDTH
from .figures import FunctionSource, episode, episode_height, failed_episode, solved_episode
from .figures import new_figure as new_picture
from .plots import STEPS
from .runs import Run
from .series import NothingToDrawError, by_recipe, one_scale
from .traces import SHADES, Interactive, Trace, curve, interval, new_figure, with_frames

FUNCTIONS = 4
Loaded = tuple[MetaLearner, Sources, dict[str, Any]]
"""The result of `load_run`."""


class Picture(NamedTuple):
    """An image of the page; ``source`` is a data URL."""

    source: str
    title: str
    about: str


def figures(
    runs: Mapping[str, Run], data: Path | None = None, say: Callable[[str], object] = lambda _: None
) -> Iterator[Interactive | Picture | str]:
    """Draw figures and pictures of unseen tasks, or explain why there are none.

    Figures of single tasks show only the first seed of each recipe.

    Args:
        runs: by their labels.
        data: the folder of the data, as in `load_run`.
        say: is called with a line of text before each step that takes time.
    """
    loaded: dict[str, Loaded] = {}
    judged: dict[str, tuple[int, int, Evaluation]] = {}
    failed: dict[str, str] = {}
    for index, (name, run) in enumerate(runs.items()):
        with _noting(name, failed):
            loaded[name] = load_run(run.path, data)
            say(f"running {name} on unseen tasks")
            judged[name] = index, loaded[name][0].steps, further(*loaded[name])
    if judged:
        try:
            yield past(judged)
        except NothingToDrawError as nothing:
            yield f"Not drawn: Past the trained steps ({nothing})."
    shown = {members[0].path for members in by_recipe(list(runs.values())).values()}
    for name in judged:
        if runs[name].path in shown:
            say(f"drawing unseen tasks of {name}")
            drawn: list[Interactive | Picture] = []
            with _noting(name, failed):
                drawn.extend(at_work(name, *loaded[name]))
            yield from drawn
    if failed:
        reasons = "; ".join(f"{name}: {why}" for name, why in failed.items())
        yield f"Not run on unseen tasks: {reasons}."


@contextmanager
def _noting(name: str, failed: dict[str, str]) -> Iterator[None]:
    """Note an error of one run, so that the others are still shown: saved runs may have been damaged or changed."""
    try:
        yield
    except Exception as error:
        raise_interrupt_behind(error)
        failed[name] = _first_line(error)


def at_work(
    name: str, learner: MetaLearner, sources: Sources, settings: Mapping[str, Any]
) -> Iterator[Interactive | Picture]:
    """Draw single unseen tasks of a run."""
    steps, transductive = settings["evaluate"].get("steps"), settings["evaluate"].get("transductive", True)
    if isinstance(sources.test, FunctionSource):
        yield functions(name, learner, sources.test, learner.steps if steps is None else steps)
    elif isinstance(sources.test, Interaction):
        yield lives.interactive(name, learner, sources.test, steps)
    elif isinstance(sources.test, Imitation):
        yield from attempts(name, learner, sources.test, steps)
    else:
        assert isinstance(sources.test, TaskSource)
        yield from pictures(name, learner, sources.test, steps, transductive)


def further(learner: MetaLearner, sources: Sources, settings: Mapping[str, Any]) -> Evaluation:
    """Evaluate the metric before, during and past the trained steps."""
    steps = max(2 * learner.steps, settings["evaluate"].get("steps") or 0, 1)
    return evaluate(
        learner, sources.test, max(20, min(100, STEPS // steps)), steps,
        settings["evaluate"].get("transductive", True), arguments(dict(settings), "evaluate").get("metric"),
    )  # fmt: skip


def past(judged: Mapping[str, tuple[int, int, Evaluation]]) -> Interactive:
    """Plot the results of `further`; ``judged`` has each run's index, inner steps in training, and result."""
    traces, scales, numbers, trained = [], set(), set(), set()
    for name, (index, steps, result) in judged.items():
        scales.add(result.scale)
        numbers.add(result.num_tasks)
        trained.add(steps)
        traces += interval(range(len(result.steps)), result.steps, result.steps_ci95, name, index, "steps:")
    figure = new_figure(traces, "inner steps", one_scale(scales).label)
    for steps in sorted(trained):
        figure.add_vline(steps, line={"dash": "dot", "width": 1, "color": "#888888"})
    about = (
        f"Means over {_listed(numbers)} unseen tasks; bands: 95 % intervals; dotted line: the number of steps in "
        f"training ({_listed(trained)})."
    )
    return Interactive(figure, "Past the trained steps", about)


def functions(name: str, learner: MetaLearner, source: FunctionSource, steps: int) -> Interactive:
    """Plot unseen functions: the truth, the support points, and the model before and after each step, with a slider."""
    grid = torch.linspace(*source.x, 101)[:, None]
    x = grid[:, 0].tolist()
    moving: list[list[Trace]] = [[] for _ in range(steps + 1)]
    still: list[Trace] = []
    for seed in range(FUNCTIONS):
        axes: dict[str, Any] = {"xaxis": f"x{seed + 1}", "yaxis": f"y{seed + 1}", "showlegend": not seed}
        state = torch.Generator().manual_seed(seed).get_state()
        task = select(source.sample(1, torch.Generator().set_state(state)), 0)
        truth = source.functions(1, torch.Generator().set_state(state))(grid)[0, :, 0].tolist()
        fits = [learner.adapt(task.support, steps=k)(grid)[:, 0].tolist() for k in range(steps + 1)]
        for k, values in enumerate(fits):
            moving[k].append(curve(x, values, "model", 0, **axes))
        at, values = task.support.x[:, 0].tolist(), task.support.y[:, 0].tolist()
        dots: dict[str, Any] = {"mode": "markers", "marker": {"color": SHADES[4], "size": 7, "symbol": "triangle-up"}}
        still += [
            curve(x, truth, "truth", 2, **axes),
            curve(x, fits[0], "before adaptation", 1, 1, opacity=0.6, **axes),
            curve(at, values, f"{len(at)} support points", 4, **dots, **axes),
        ]
    frames = [(f"after {k} step{'s' * (k != 1)}", traces) for k, traces in enumerate(moving)]
    figure = new_figure([*moving[-1], *still], "x", "y", grid={"rows": 2, "columns": 2, "pattern": "independent"})
    figure.update_layout(height=520)
    title = f"Unseen functions: {name}"
    return Interactive(
        with_frames(figure, frames), title, "Four unseen functions, and the model's fit to their support points.",
        "inner steps", steps, frames[-1][0], own_legend=True,
    )  # fmt: skip


def pictures(
    name: str, learner: MetaLearner, source: TaskSource, steps: int | None, transductive: bool
) -> Iterator[Picture]:
    """Draw an unseen episode that is solved and one that is not."""
    for kind, find in (("most", solved_episode), ("fewest", failed_episode)):
        seed = find(learner, source, transductive, steps=steps)
        height = episode_height(singles(source.sample(1, torch.Generator().manual_seed(seed)))[0])
        drawn = episode(new_picture(WIDTH, height), learner, source, steps, transductive, seed)
        about = (
            f"The task, of 100 unseen ones, with the {kind} query images classified correctly. These have blue frames, "
            "and the others have orange ones."
        )
        yield Picture(_address(drawn), f"The {kind} correct: {name}", about)


def attempts(name: str, learner: MetaLearner, source: Imitation, steps: int | None) -> Iterator[Picture]:
    """Draw the demonstration and what the robot did, and what a learned loss depends on."""
    about = "Four unseen tasks: the demonstration, and what the robot sees while it acts."
    yield Picture(_address(strips.strips(learner, source, steps)), f"Unseen tasks: {name}", about)
    try:
        figure = strips.gaze(learner, source, steps)
    except NothingToDrawError:
        return
    about = (
        "The same tasks. Bright areas are the pixels that the gradient of the learned loss depends on, and where the "
        "filters look in the robot's first picture."
    )
    yield Picture(_address(figure), f"What the learned loss looks at: {name}", about)


def _address(figure: Any) -> str:
    """Return the figure as a data URL, so that the page needs no other file."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _listed(numbers: set[int]) -> str:
    return " or ".join(map(str, sorted(numbers)))
