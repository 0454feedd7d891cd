"""What trained models do with unseen tasks, for the report: past the trained steps, as functions, as pictures."""

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
"""What `load_run` gives."""


class Picture(NamedTuple):
    """An image of the page, with its address, which holds all of it."""

    source: str
    title: str
    about: str


def figures(
    runs: Mapping[str, Run], data: Path | None = None, say: Callable[[str], object] = lambda _: None
) -> Iterator[Interactive | Picture | str]:
    """Draw figures and pictures of unseen tasks, or explain why there is none.

    Where a single task is shown, the first seed of a recipe stands for all.

    Args:
        runs: by their labels.
        data: where the data are, as in `load_run`.
        say: is told what is being done, for it takes its time.
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
            say(f"showing {name} at work")
            drawn: list[Interactive | Picture] = []
            with _noting(name, failed):
                drawn.extend(at_work(name, *loaded[name]))
            yield from drawn
    if failed:
        reasons = "; ".join(f"{name}: {why}" for name, why in failed.items())
        yield f"Not run on unseen tasks: {reasons}."


@contextmanager
def _noting(name: str, failed: dict[str, str]) -> Iterator[None]:
    """Within, an error of one run is noted, and others are shown all the same: what is saved may be anybody's."""
    try:
        yield
    except Exception as error:
        raise_interrupt_behind(error)
        failed[name] = _first_line(error)


def at_work(
    name: str, learner: MetaLearner, sources: Sources, settings: Mapping[str, Any]
) -> Iterator[Interactive | Picture]:
    """Single unseen tasks of a run."""
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
    """The metric before, during and past the trained steps."""
    steps = max(2 * learner.steps, settings["evaluate"].get("steps") or 0, 1)
    return evaluate(
        learner, sources.test, max(20, min(100, STEPS // steps)), steps,
        settings["evaluate"].get("transductive", True), arguments(dict(settings), "evaluate").get("metric"),
    )  # fmt: skip


def past(judged: Mapping[str, tuple[int, int, Evaluation]]) -> Interactive:
    """What `further` found for some runs: of each, its place among all, and its inner steps in training."""
    traces, scales, numbers, trained = [], set(), set(), set()
    for name, (index, steps, found) in judged.items():
        scales.add(found.scale)
        numbers.add(found.num_tasks)
        trained.add(steps)
        traces += interval(range(len(found.steps)), found.steps, found.steps_ci95, name, index, "steps:")
    figure = new_figure(traces, "inner steps", one_scale(scales).label)
    for steps in sorted(trained):
        figure.add_vline(steps, line={"dash": "dot", "width": 1, "color": "#888888"})
    about = (
        f"Means over {_listed(numbers)} unseen tasks, bands: 95 % intervals; dotted: the "
        f"{_listed(trained)} steps of training."
    )
    return Interactive(figure, "Past the trained steps", about)


def functions(name: str, learner: MetaLearner, source: FunctionSource, steps: int) -> Interactive:
    """Unseen functions: the truth, the support points, and the model before and after each step, with a slider."""
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
        with_frames(figure, frames), title, "Four unseen functions and what the model makes of their support points.",
        "inner steps", steps, frames[-1][0], own_legend=True,
    )  # fmt: skip


def pictures(
    name: str, learner: MetaLearner, source: TaskSource, steps: int | None, transductive: bool
) -> Iterator[Picture]:
    """An unseen episode that is solved and one that is not."""
    for kind, find in (("most", solved_episode), ("fewest", failed_episode)):
        seed = find(learner, source, transductive, steps=steps)
        height = episode_height(singles(source.sample(1, torch.Generator().manual_seed(seed)))[0])
        drawn = episode(new_picture(WIDTH, height), learner, source, steps, transductive, seed)
        about = (
            f"Of 100 unseen tasks, the one with the {kind} query images told right. Their frames are blue where they "
            "were told right, and orange where not."
        )
        yield Picture(_address(drawn), f"The {kind} told right: {name}", about)


def attempts(name: str, learner: MetaLearner, source: Imitation, steps: int | None) -> Iterator[Picture]:
    """What was demonstrated and what the robot did; what a learned loss learns from."""
    about = "Four unseen tasks: the demonstration, and what the robot sees while it acts."
    yield Picture(_address(strips.strips(learner, source, steps)), f"Unseen tasks: {name}", about)
    try:
        figure = strips.gaze(learner, source, steps)
    except NothingToDrawError:
        return
    about = (
        "The same tasks. Bright: pixels that the gradient of the learned loss depends on, and where the filters look "
        "in the robot's first picture."
    )
    yield Picture(_address(figure), f"What the learned loss looks at: {name}", about)


def _address(figure: Any) -> str:
    """Of a figure that may be no file: all of it."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _listed(numbers: set[int]) -> str:
    return " or ".join(map(str, sorted(numbers)))
