"""`innerloop evaluate`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from ..common import streams
from ..learner import MetaLearner
from ..recipe import config
from ..recipe.refusals import blaming
from ..task import TaskSource
from ..train import Ensemble, evaluate
from ..train.record import dumps
from .app import DataOption, DeviceOption, JsonOption, SetOption, TrustOption, app


class Split(str, Enum):
    """Which of a data set's splits."""

    train, val, test = "train", "val", "test"


@app.command("evaluate")
def evaluate_(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    split: Annotated[Split, typer.Option(help="Which tasks.")] = Split.test,
    tasks: Annotated[int | None, typer.Option(help="How many tasks.", show_default="the recipe's")] = None,
    steps: Annotated[
        int | None, typer.Option(help="Inner steps; may exceed training's.", show_default="the recipe's")
    ] = None,
    transductive: Annotated[
        bool | None,
        typer.Option(
            "--transductive/--inductive",
            help="Whether batch norm sees the whole query set of a task, or judges each example by itself.",
            show_default="the recipe's",
        ),
    ] = None,
    ensemble: Annotated[
        int | None,
        typer.Option(min=2, help="Also the mean output of that many best validated weights.", show_default=False),
    ] = None,
    overrides: SetOption = None,
    data: DataOption = None,
    device: DeviceOption = "cpu",
    seed: Annotated[int | None, typer.Option(help="Of the tasks.", show_default="the recipe's")] = None,
    as_json: JsonOption = False,
    _trust: TrustOption = False,
) -> None:
    """Evaluate the best validated weights of a run.

    The JSON has `metric` (its name), `higher_is_better` and `unit`, `mean` and `ci95` over `num_tasks` tasks, `steps`
    (the mean after 0, 1, ... steps), `steps_ci95`, `transductive`, `split`, `seed` and `run`, and with an ensemble
    `ensemble`: its `size` and what it came to, likewise; with `--set`, `overrides`.
    """
    together, sources, settings = config.load_ensemble(run, ensemble or 1, data, device, overrides or ())
    given = {"num_tasks": tasks, "steps": steps, "transductive": transductive, "seed": seed}
    options = config.arguments(settings, "evaluate") | {k: v for k, v in given.items() if v is not None}
    source: TaskSource = getattr(sources, split.value)

    def judged(title: str, learner: MetaLearner | Ensemble) -> dict[str, Any]:
        with blaming(run):
            found = evaluate(learner, source, **options)
        (streams.err if as_json else streams.out)(f"{title}: {found}")
        return found.as_dict()

    told = judged(split.value, together.learners[0])
    told |= {"split": split.value, "seed": options["seed"], "run": str(run)}
    told |= {"overrides": overrides} if overrides else {}
    if ensemble:
        title = f"{split.value}, ensemble of {ensemble}"
        told["ensemble"] = {"size": ensemble, **judged(title, together)}
    if as_json:
        streams.out(dumps(told))
