"""`innerloop train` and `innerloop sweep`."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ..common import streams
from ..common.disk import writing
from ..recipe import config, experiment
from ..recipe import sweep as sweeping
from ..recipe.trials import why_none
from ..report.sweeps import SweepRecord
from ..report.sweeps import answer as sweep_answer
from ..train import LOGGERS, Interrupted, joined
from ..train.record import dumps
from ..train.world import restarted
from .app import DataOption, DeviceOption, JsonOption, SetOption, app

Tracker = Enum("Tracker", {name: name for name in LOGGERS}, type=str)  # type: ignore[misc]
RecipeArgument = Annotated[str, typer.Argument(help="The name of a recipe (see `list`), or the path of a TOML file.")]
DownloadOption = Annotated[bool, typer.Option("--download", help="Download missing data.")]
RunOption = Annotated[
    Path | None, typer.Option("--run", "--run-dir", help="The run directory.", show_default="runs/RECIPE-seedN")
]
LogOption = Annotated[
    list[Tracker] | None,
    typer.Option(help="Also log to this experiment tracker (repeatable).", show_default=False),
]
ResumeOption = Annotated[
    bool,
    typer.Option("--resume", help="Resume from the last checkpoint in the run directory, or start if it has none."),
]
ChangesOption = Annotated[bool, typer.Option("--accept-changes", help="Resume even if the recipe has changed.")]
DeterministicOption = Annotated[
    bool,
    typer.Option(
        "--deterministic",
        help="Fail on torch operations that are not deterministic, as some on GPUs; do not measure execution plans.",
    ),
]
ReplanOption = Annotated[
    bool,
    typer.Option("--replan", help="Measure again which execution plan is fastest; this may change low-order bits."),
]
ProfileOption = Annotated[bool, typer.Option("--profile", help="Profile some iterations to RUN/profile.json.")]
DryRunOption = Annotated[
    bool,
    typer.Option("--dry-run", help="Run a few iterations and estimate the time and memory of the run; write nothing."),
]
HourlyOption = Annotated[
    float, typer.Option(min=0.0, help="With --dry-run: the price of an hour of the machine, to estimate the cost.")
]
StorageOption = Annotated[
    str | None,
    typer.Option(
        help="Where to store the study: sqlite:///FILE, postgresql+psycopg://USER@HOST/DB or journal:FILE.",
        show_default="sqlite:///FOLDER/sweep.db",
    ),
]
FolderOption = Annotated[
    Path | None, typer.Option("--folder", help="The folder for the run directories.", show_default="sweeps/NAME")
]


SpaceOption = Annotated[
    Path,
    typer.Option(
        help="A TOML file with the search space: learner.lr = {low = 0.001, high = 1.0, log = true}, or {choices = "
        "[...]}."
    ),
]
TrialsOption = Annotated[int, typer.Option(min=1, help="Total number of trials that all workers together finish.")]
JobsOption = Annotated[
    int, typer.Option(min=1, help="Number of workers on this machine; they divide its cores among them.")
]


@app.command()
def train(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    run: RunOption = None,
    data: DataOption = None,
    download: DownloadOption = False,
    device: DeviceOption = "cpu",
    seed: Annotated[int | None, typer.Option(help="Random seed.", show_default="the recipe's")] = None,
    resume: ResumeOption = False,
    log: LogOption = None,
    verbose: Annotated[bool, typer.Option("--verbose/--quiet", help="Show progress.")] = True,
    accept_changes: ChangesOption = False,
    deterministic: DeterministicOption = False,
    replan: ReplanOption = False,
    profile: ProfileOption = False,
    dry_run: DryRunOption = False,
    hourly: HourlyOption = 0.0,
) -> None:
    """Meta-train a recipe, then evaluate the model on the test split.

    Ctrl-C, SIGTERM and SIGHUP (a closed terminal) save a checkpoint and exit with 130, 143 and 129. Training continues
    if its output can no longer be written. Under `torchrun`, several processes share the tasks of every meta-batch; if
    one of them fails, torchrun's restart resumes from the last checkpoint.
    """
    streams.keep_going()
    if hourly and not dry_run:
        raise typer.BadParameter("--hourly needs --dry-run, which estimates the cost")
    settings = config.load_recipe(recipe, overrides or (), seed)
    run = run or Path("runs") / f"{_stem(recipe)}-seed{settings['seed']}"
    loggers = [LOGGERS[tracker.value]() for tracker in log or ()]
    if deterministic:
        experiment.make_deterministic()
    place = experiment.Place(data, device, download)
    if dry_run:
        streams.out("\n".join(experiment.estimate(settings, place).lines(hourly)))
        return
    command = experiment.command(recipe, overrides or [], run, seed, data, device, deterministic)
    with joined(config.find_device(device)) as world:
        try:
            result, tested = experiment.conduct(
                settings, run, replace(place, world=world), command=command, resume=resume or restarted(),
                accept_changes=accept_changes, profile=profile, replan=replan, loggers=loggers, progress=verbose,
            )  # fmt: skip
        except Interrupted as stop:
            if world.first:
                streams.err(f"{stop.reason}; resume with: {command} --resume")
            raise typer.Exit(128 + stop.signal) from None
    if world.first:
        streams.out(f"test: {tested}")
        streams.out(f"trained {result.iterations} iterations in {result.seconds:.0f} s; run: {streams.shown(run)}")


def _stem(recipe: str) -> str:
    return Path(recipe).stem if recipe.endswith(".toml") else recipe


@app.command()
def sweep(
    recipe: RecipeArgument,
    space: SpaceOption,
    trials: TrialsOption = 20,
    storage: StorageOption = None,
    name: Annotated[str | None, typer.Option(help="Name of the study.", show_default="the recipe's")] = None,
    folder: FolderOption = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds that each trial is trained with.")] = 1,
    jobs: JobsOption = 1,
    overrides: SetOption = None,
    data: DataOption = None,
    download: DownloadOption = False,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Sweep the hyperparameters of a recipe, judged by its meta-validation score.

    The same command resumes a study. On several machines that share the storage, it works on the study in parallel.
    """
    streams.keep_going()
    domains = sweeping.load_space(space, recipe, overrides or ())
    name = name or _stem(recipe)
    folder = folder or Path("sweeps") / name
    folder.mkdir(parents=True, exist_ok=True)
    url = storage or f"sqlite:///{folder / 'sweep.db'}"
    place = experiment.Place(data, device, download)
    work = sweeping.Sweep(recipe, tuple(overrides or ()), domains, folder, place, seeds)
    study = work.study(url, name)
    others = [_worker(jobs) for _ in range(jobs - 1)]
    try:
        if jobs > 1:
            torch.set_num_threads(_cores(jobs))
        work.run(study, trials, streams.err)
    except KeyboardInterrupt as stop:
        streams.err("stopped; run the same command to resume the study")
        raise typer.Exit(128 + getattr(stop, "signal", 2)) from None
    finally:
        for other in others:  # Ctrl-C reaches them too, and they end when all trials are finished
            other.wait()
        summary = sweeping.summary(study, recipe, overrides or [])
        with writing(folder / "sweep.json") as file:
            file.write((dumps(summary, indent=2) + "\n").encode())
    if as_json:
        streams.out(dumps(summary))
    else:
        _show(SweepRecord(folder, summary))
    _require_best(summary)


def _require_best(summary: dict[str, Any]) -> None:
    """Exit with an error if no trial was completed."""
    if "best" not in summary:
        streams.err(f"error: {why_none(summary)}")
        raise typer.Exit(1)


def _show(sweep: SweepRecord) -> None:
    """Print the trials of a sweep, as the report shows them."""
    trials, summary = sweep_answer(sweep), sweep.summary
    table = Table(*(escape(streams.shown(title)) for title in trials.header), box=None)
    for row in trials.rows:
        table.add_row(*map(_cell, row))
    Console().print(table)
    if "best" in summary:
        best = summary["best"]
        streams.out(f"best: trial {best['trial']}, {best['score']:.4g}; to train with it: {summary['command']}")


def _cell(text: str) -> Text:
    return Text(streams.shown(text))


def _worker(jobs: int) -> subprocess.Popen[bytes]:
    """Start another process with the same command."""
    arguments = [word for word in sys.argv[1:] if not word.startswith("--jobs=")]
    if "--jobs" in arguments:
        at = arguments.index("--jobs")
        del arguments[at : at + 2]
    environment = {**os.environ, "OMP_NUM_THREADS": str(_cores(jobs))}
    return subprocess.Popen([sys.executable, "-m", "innerloop", *arguments], env=environment, stdout=subprocess.DEVNULL)


def _cores(jobs: int) -> int:
    return max(1, (os.cpu_count() or 1) // jobs)
