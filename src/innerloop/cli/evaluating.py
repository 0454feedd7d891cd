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
    """A split of a data set."""

    train, val, test = "train", "val", "test"


StepsOption = Annotated[
    int | None, typer.Option(help="Number of inner steps; may exceed that of training.", show_default="the recipe's")
]
EnsembleOption = Annotated[
    int | None,
    typer.Option(
        min=2,
        help="Also evaluate an ensemble: the mean output of this many checkpoints with the best validation scores.",
        show_default=False,
    ),
]


@app.command("evaluate")
def evaluate_(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    split: Annotated[Split, typer.Option(help="The split that tasks are drawn from.")] = Split.test,
    tasks: Annotated[int | None, typer.Option(help="Number of tasks.", show_default="the recipe's")] = None,
    steps: StepsOption = None,
    transductive: Annotated[
        bool | None,
        typer.Option(
            "--transductive/--inductive",
            help="Normalize the query set of a task together (transductive), or classify each example by itself.",
            show_default="the recipe's",
        ),
    ] = None,
    ensemble: EnsembleOption = None,
    overrides: SetOption = None,
    data: DataOption = None,
    device: DeviceOption = "cpu",
    seed: Annotated[int | None, typer.Option(help="Random seed of the tasks.", show_default="the recipe's")] = None,
    as_json: JsonOption = False,
    _trust: TrustOption = False,
) -> None:
    """Evaluate a run, with the weights of its best validation score.

    The JSON has `metric` (its name), `higher_is_better` and `unit`, `mean` and `ci95` over `num_tasks` tasks, `steps`
    (the mean after 0, 1, ... steps), `steps_ci95`, `transductive`, `split`, `seed` and `run`; of a mixture
    `sets` (`mean`, `ci95` and `num_tasks` of each); with `--ensemble` also `ensemble` (its `size` and the same
    results), and with `--set` also `overrides`.
    """
    together, sources, settings = config.load_ensemble(run, ensemble or 1, data, device, overrides or ())
    given = {"num_tasks": tasks, "steps": steps, "transductive": transductive, "seed": seed}
    options = config.arguments(settings, "evaluate") | {k: v for k, v in given.items() if v is not None}
    source: TaskSource = getattr(sources, split.value)

    def judged(title: str, learner: MetaLearner | Ensemble) -> dict[str, Any]:
        with blaming(run):
            evaluation = evaluate(learner, source, **options)
        (streams.err if as_json else streams.out)(f"{title}: {evaluation}")
        return evaluation.as_dict()

    results = judged(split.value, together.learners[0])
    results |= {"split": split.value, "seed": options["seed"], "run": str(run)}
    results |= {"overrides": overrides} if overrides else {}
    if ensemble:
        title = f"{split.value}, ensemble of {ensemble}"
        results["ensemble"] = {"size": ensemble, **judged(title, together)}
    if as_json:
        streams.out(dumps(results))
