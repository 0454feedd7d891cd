"""The command line: list what there is, train by a recipe, evaluate a run, draw it."""

from __future__ import annotations

import inspect
import shlex
import sys
import warnings
from collections.abc import Callable, Mapping
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from . import __version__, config
from .data import TASKS
from .learner import MetaLearner
from .models import MODELS
from .presets import PRESETS
from .report import read_run
from .task import TaskSource
from .train import LOGGERS, Ensemble, Interrupted, NonFiniteError, Trainer, evaluate
from .train.checkpoint import holds_run, writing
from .train.record import dumps, environment, write_results

EXPECTED = (ValueError, OSError, ImportError, NonFiniteError)
"""What the user can mend: shown as one message. Anything else is a bug, and shown with its traceback."""

app = typer.Typer(
    help="Gradient-based meta-learning: train a model to learn from a few examples.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

DataOption = Annotated[
    Path | None,
    typer.Option("--data", help="Where the data are; else $INNERLOOP_DATA and the cache.", show_default=False),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a value of the recipe, e.g. learner.lr=0.1.", show_default=False
    ),
]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ... or auto.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object, as the last line.")]


Tracker = Enum("Tracker", {name: name for name in LOGGERS}, type=str)  # type: ignore[misc]


class Split(str, Enum):
    """Which of a data set's splits."""

    train, val, test = "train", "val", "test"


def run(arguments: list[str]) -> int:
    """Run a command line; errors that the user can mend become one message on standard error.

    Returns:
        The exit code: 0, 1 after an error, 2 after wrong usage, 130 after Ctrl-C, 143 after SIGTERM.
    """
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    try:
        app(arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except EXPECTED as error:
        if "--debug" in arguments:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _version(wanted: bool) -> None:
    if wanted:
        print(f"innerloop {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of every error.")] = False,
) -> None:
    """Options of all commands; what they do is done by their callbacks and by `run`."""


# -- list -------------------------------------------------------------------------------------------------------------


@app.command("list")
def list_(as_json: JsonOption = False) -> None:
    """List the recipes, presets, data sets and models."""
    shelves = {
        "recipes": {name: config.load_recipe(name)["description"] for name in config.recipes()},
        "presets": _first_lines(PRESETS),
        "data": _first_lines(TASKS),
        "models": _first_lines(MODELS),
    }
    if as_json:
        print(dumps(shelves))
        return
    for title, entries in shelves.items():
        table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None)
        for name, text in entries.items():
            table.add_row(name, Text(text))
        Console().print(table)


def _first_lines(functions: Mapping[str, Callable[..., Any]]) -> dict[str, str]:
    return {
        name: (inspect.getdoc(function) or "").split("\n\n")[0].replace("\n", " ").replace("`", "")
        for name, function in functions.items()
    }


# -- train ------------------------------------------------------------------------------------------------------------


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="The name of a recipe (see `list`), or the path of a TOML file.")],
    overrides: SetOption = None,
    run: Annotated[Path | None, typer.Option(help="The run directory.", show_default="runs/RECIPE-seedN")] = None,
    data: DataOption = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch data that are not there.")] = False,
    device: DeviceOption = "cpu",
    seed: Annotated[int | None, typer.Option(help="Of everything random.", show_default="the recipe's")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the run directory.")] = False,
    log: Annotated[
        list[Tracker] | None,
        typer.Option(help="Also tell these, several times for several.", show_default=False),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose/--quiet", help="Show progress.")] = True,
) -> None:
    """Meta-train by a recipe, then evaluate on the test split as the recipe says."""
    settings = config.load_recipe(recipe, overrides or (), seed)
    run = run or Path("runs") / f"{_stem(recipe)}-seed{settings['seed']}"
    _claim(run, settings, resume)
    loggers = [LOGGERS[tracker.value]() for tracker in log or ()]
    learner, sources = config.build(settings, data, device, download)
    options = config.arguments(settings, "train")
    trainer = Trainer(learner, sources.train, sources.val, run, seed=settings["seed"], config=settings,
                      loggers=loggers, progress=verbose, **options)  # fmt: skip
    run.mkdir(parents=True, exist_ok=True)
    with writing(run / "config.toml") as file:
        file.write(config.dumps(settings).encode())
    command = _command(recipe, overrides or [], run, data, device, seed)
    try:
        result = trainer.fit(resume)
    except Interrupted as stop:
        print(f"stopped after iteration {trainer.iteration}; go on with: {command} --resume", file=sys.stderr)
        raise typer.Exit(128 + stop.signal) from None
    found = evaluate(learner, sources.test, **config.arguments(settings, "evaluate"))
    results = {
        "command": command,
        "seed": settings["seed"],
        "iterations": result.iterations,
        "seconds": result.seconds,
        "validation": list(result.best),
        "test": {**found.as_dict(), "scores": [round(score, 4) for score in found.scores[:, -1].tolist()]},
        "citations": list(learner.citations),
        "environment": environment(trainer.device),
    }
    write_results(run, results)
    print(f"test: {found}\ntrained {result.iterations} iterations in {result.seconds:.0f} s; run: {run}")


def _stem(recipe: str) -> str:
    return Path(recipe).stem if recipe.endswith(".toml") else recipe


def _claim(run: Path, settings: config.Config, resume: bool) -> None:
    """Refuse a directory that holds a run, or to resume a run under another recipe, before anything is touched."""
    saved = run / "config.toml"
    if not resume and (saved.exists() or holds_run(run)):
        raise FileExistsError(f"{run} already holds a run: add --resume to go on with it, or give another --run")
    if resume and saved.exists():
        before = config.load_recipe(saved)
        if changed := config.differences(before, settings):
            raise ValueError(
                f"{run} was started with another {', '.join(changed)}; resume it with `innerloop train {saved} "
                f"--run {run} --resume`, or give another --run"
            )


def _command(recipe: str, overrides: list[str], run: Path, data: Path | None, device: str, seed: int | None) -> str:
    """The command line that starts the run; with ``--resume``, that goes on with it."""
    words = ["innerloop", "train", recipe]
    words += [word for override in overrides for word in ("--set", override)]
    words += ["--run", str(run)]
    words += ["--data", str(data)] if data else []
    words += ["--device", device] if device != "cpu" else []
    words += ["--seed", str(seed)] if seed is not None else []
    return shlex.join(words)


# -- evaluate ---------------------------------------------------------------------------------------------------------


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
) -> None:
    """Evaluate the best validated weights of a run.

    The JSON has `metric` (`accuracy`, in per cent, or `mse`), `mean` and `ci95` over `num_tasks` tasks, `steps` (the
    mean after 0, 1, ... steps), `steps_ci95`, `transductive`, `split`, `seed` and `run`, and with an ensemble
    `ensemble`: its `size` and what it came to, likewise; with `--set`, `overrides`.
    """
    together, sources, settings = config.load_ensemble(run, ensemble or 1, data, device, overrides or ())
    given = {"num_tasks": tasks, "steps": steps, "transductive": transductive, "seed": seed}
    options = config.arguments(settings, "evaluate") | {k: v for k, v in given.items() if v is not None}
    source: TaskSource = getattr(sources, split.value)

    def judged(title: str, learner: MetaLearner | Ensemble) -> dict[str, Any]:
        found = evaluate(learner, source, **options)
        print(f"{title}: {found}", file=sys.stderr if as_json else sys.stdout)
        return found.as_dict()

    told = judged(split.value, together.learners[0])
    told |= {"split": split.value, "seed": options["seed"], "run": str(run)}
    told |= {"overrides": overrides} if overrides else {}
    if ensemble:
        title = f"{split.value}, ensemble of {ensemble}"
        told["ensemble"] = {"size": ensemble, **judged(title, together)}
    if as_json:
        print(dumps(told))


# -- plot -------------------------------------------------------------------------------------------------------------


@app.command()
def plot(
    runs: Annotated[list[Path], typer.Argument(help="Run directories.")],
    kinds: Annotated[
        list[str] | None, typer.Option("--kind", help="Which figure, several times for several.", show_default="all")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", help="A folder.", show_default="RUN/figures")] = None,
    window: Annotated[int | None, typer.Option(min=1, help="Of running means, in points.", show_default=False)] = None,
    iteration: Annotated[
        int | None,
        typer.Option(
            help="Of figures of one iteration: the record nearest to it.", show_default="the last, or the best"
        ),
    ] = None,
    task: Annotated[int, typer.Option(help="Of figures of one task: which of those recorded.")] = 0,
    data: DataOption = None,
    device: DeviceOption = "cpu",
) -> None:
    """Draw how a run went, what its model does with unseen tasks, and, of several runs, how they compare.

    Kinds: `inner` (support loss of one problem), `inner-grid` and `query-grid` (many problems over meta-training),
    `final-support`, `meta-train`, `validation`, `rates`, `adaptation`, `functions`, `episodes`, `compare`.
    """
    from .report import plots

    found = [read_run(run) for run in runs]
    every = [*plots.PLOTS, *(["compare"] if len(found) > 1 else [])]
    options = plots.Options(window, iteration, task, data, device)
    names = [run.name for run in found]
    drawn = 0
    for kind, run, figure in plots.plots(found, kinds or every, options):
        if isinstance(figure, str):
            print(f"{kind}: not drawn, {figure}", file=sys.stderr)
            continue
        folder = output or run.path / "figures"
        whose = run.name if names.count(run.name) == 1 else "-".join(run.path.resolve().parts[-2:])
        name = kind if output is None or len(found) == 1 or kind == "compare" else f"{whose}-{kind}"
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / f"{name}.png")
        print(folder / f"{name}.png")
        drawn += 1
    if not drawn:
        raise typer.Exit(1)


# -- report -----------------------------------------------------------------------------------------------------------


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run directories.")],
    output: Annotated[Path, typer.Option("-o", help="The page, an HTML file.")] = Path("report.html"),
    record_only: Annotated[
        bool, typer.Option("--record-only", help="Leave out what takes the trained models, their data, and some time.")
    ] = False,
    data: DataOption = None,
) -> None:
    """Write one page, for any browser and without a network, of how runs went and which is better."""
    from .report import write_report

    say = partial(print, file=sys.stderr)
    for line in write_report(runs, output, data, not record_only, say):
        print(f"left out: {line}", file=sys.stderr)
    print(output)


# -- watch ------------------------------------------------------------------------------------------------------------


@app.command()
def watch(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between looks.")] = 2.0,
) -> None:
    """Show a run in the terminal, until it has finished: losses, validation, learned rates, throughput, memory."""
    from .report.watch import watch as show

    try:
        show(run, Console(), every)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
