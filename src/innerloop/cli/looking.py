"""`innerloop list`, `plans`, `plot`, `report`, `film` and `watch`: what exists, and how runs went."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..common import plan_files, streams
from ..common.disk import refuse_linked_folder, replacing, subfolder, writing
from ..recipe import config
from ..report import Run, UnreadableRunError, read_run
from ..report.record import MOST
from ..train.record import dumps
from ..use.pretrained import description, shipped
from .app import DataOption, DeviceOption, JsonOption, TrustOption, app

# -- list -------------------------------------------------------------------------------------------------------------


@app.command("list")
def list_(as_json: JsonOption = False) -> None:
    """List the recipes, presets, data sets and models, and the trained models that come with the package."""
    shelves = {
        "recipes": {name: config.load_recipe(name)["description"] for name in config.recipes()},
        "presets": _first_lines(config.PRESETS),
        "data": _first_lines(config.TASKS),
        "models": _first_lines(config.MODELS),
        "trained": {name: description(folder) for name, folder in shipped().items()},
    }
    if as_json:
        streams.out(dumps(shelves))
        return
    for title, entries in shelves.items():
        table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None)
        for name, text in entries.items():
            table.add_row(Text(name), Text(text))
        Console().print(table)


def _first_lines(functions: Mapping[str, Callable[..., Any]]) -> dict[str, str]:
    return {
        name: (inspect.getdoc(function) or "").split("\n\n")[0].replace("\n", " ").replace("`", "")
        for name, function in functions.items()
    }


# -- plans ------------------------------------------------------------------------------------------------------------


@app.command("plans")
def plans_(
    clear: Annotated[
        bool, typer.Option("--clear", help="Remove all stored plans, so that they are measured again.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show or remove the stored execution plans: the fastest way to run tasks, as measured on this machine.

    Each run also keeps its own plans, in `plans.json`.
    """
    if clear:
        number = plan_files.clear()
        streams.out(
            dumps({"removed": number})
            if as_json
            else f"removed {number} plans from {streams.shown(plan_files.folder())}"
        )
        return
    plans = [entry for _, entry in plan_files.entries()]
    if as_json:
        streams.out(dumps({"folder": str(plan_files.folder()), "plans": plans}))
        return
    streams.out(f"{len(plans)} plans in {streams.shown(plan_files.folder())}")
    for entry in plans:
        about = [str(entry.get(key)) for key in ("made", "model", "processor", "device")]
        about += [f"{entry.get('threads')} threads", f"torch {entry.get('torch')}"]
        streams.out(streams.shown(", ".join(about)))
        streams.out(f"  {streams.shown(entry.get('for'))}: {streams.shown(entry['decision'].get('why', ''))}")


# -- plot -------------------------------------------------------------------------------------------------------------


IterationOption = Annotated[
    int | None,
    typer.Option(
        help="For figures of one iteration: draw the recorded one nearest to this.",
        show_default="the last, or the best",
    ),
]


@app.command()
def plot(
    runs: Annotated[list[Path], typer.Argument(help="Run directories.")],
    kinds: Annotated[
        list[str] | None, typer.Option("--kind", help="Figure kind (repeatable).", show_default="all")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", help="The folder for the figures.", show_default="RUN/figures")
    ] = None,
    window: Annotated[
        int | None, typer.Option(min=1, help="Window of the running means, in points.", show_default=False)
    ] = None,
    iteration: IterationOption = None,
    task: Annotated[int, typer.Option(help="For figures of one task: the index of the recorded task.")] = 0,
    data: DataOption = None,
    device: DeviceOption = "cpu",
    _trust: TrustOption = False,
) -> None:
    """Draw how a run went, how its model does on unseen tasks, and how several runs compare.

    Kinds: `inner` (support loss of one task), `inner-grid` and `query-grid` (many tasks over meta-training),
    `final-support`, `meta-train`, `validation`, `rates`, `adaptation`, `functions`, `episodes`, `paths`, `strips`,
    `gaze`, `compare`.
    """
    from ..report import plots

    readable, broken = _readable(runs)
    every = [*plots.PLOTS, *(["compare"] if len(readable) > 1 else [])]
    options = plots.Options(window, iteration, task, data, device)
    names = [run.name for run in readable]
    drawn = 0
    for kind, run, figure in plots.plots(readable, kinds or every, options):
        if isinstance(figure, str):
            streams.err(f"{kind}: not drawn, {figure}")
            continue
        whose = run.name if names.count(run.name) == 1 else "-".join(run.path.resolve().parts[-2:])
        name = kind if output is None or len(readable) == 1 or kind == "compare" else f"{whose}-{kind}"
        folder = subfolder(run.path, "figures") if output is None else _made(output)
        path = folder / f"{name}.png"
        with writing(path) as file:
            figure.savefig(file, format="png")
        streams.out(streams.shown(path))
        drawn += 1
    if broken:
        raise UnreadableRunError(f"left out: {'; '.join(broken)}")
    if not drawn:
        names = [str(run.path) for run in readable]
        raise ValueError(f"no figure could be drawn for {', '.join(names)}: see above")


def _readable(paths: list[Path]) -> tuple[list[Run], list[str]]:
    """Return the runs that can be read, and error messages for the others.

    Raises:
        UnreadableRunError: no run can be read.
    """
    runs, broken = [], []
    for path in paths:
        try:
            runs.append(read_run(path, most=MOST))
        except UnreadableRunError as error:
            broken.append(str(error))
            continue
        if runs[-1].left_out:
            streams.err(f"{streams.shown(path)}: {runs[-1].left_out}")
    if not runs:
        raise UnreadableRunError("; ".join(broken))
    return runs, broken


def _made(folder: Path) -> Path:
    """Create a folder for results if it does not exist."""
    refuse_linked_folder(folder / "result")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


# -- report -----------------------------------------------------------------------------------------------------------


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run directories, or the folder of a sweep.")],
    output: Annotated[Path, typer.Option("-o", help="The HTML file to write.")] = Path("report.html"),
    record_only: Annotated[
        bool,
        typer.Option(
            "--record-only", help="Only show the record; do not run the trained models, which needs data and time."
        ),
    ] = False,
    data: DataOption = None,
    _trust: TrustOption = False,
) -> None:
    """Write one HTML page, readable offline, about how runs went and which is better."""
    from ..report import write_report

    for line in write_report(runs, output, data, not record_only, streams.err):
        streams.err(f"left out: {streams.shown(line)}")
    streams.out(streams.shown(output))


# -- film -------------------------------------------------------------------------------------------------------------


@app.command()
def film(
    run: Annotated[Path, typer.Argument(help="The directory of a locomotion or imitation run.")],
    output: Annotated[
        Path | None, typer.Option("-o", help="The GIF file to write.", show_default="RUN/figures/film.gif")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Number of inner steps.", show_default="the recipe's")] = None,
    seed: Annotated[int, typer.Option(help="Random seed of the tasks.")] = 0,
    _trust: TrustOption = False,
) -> None:
    """Film unseen tasks before and after adaptation, as a GIF.

    A locomotion film shows the body before adaptation (left) and after it (right). An imitation film shows the
    demonstration, and the robot before and after adaptation.
    """
    from ..imitation import Imitation
    from ..report import lives, strips

    learner, sources, settings = config.load_run(run)
    path = subfolder(run, "figures") / "film.gif" if output is None else _made(output.parent) / output.name
    show: Any = strips.film if isinstance(sources.test, Imitation) else lives.film
    with replacing(path) as temporary:
        show(learner, sources.test, temporary, settings["evaluate"].get("steps") if steps is None else steps, seed)
    streams.out(streams.shown(path))


# -- watch ------------------------------------------------------------------------------------------------------------


@app.command()
def watch(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between updates.")] = 2.0,
) -> None:
    """Show a run in the terminal while it trains: losses, validation, learned rates, throughput, memory, ETA."""
    from ..report.watch import watch as show

    try:
        show(run, Console(), every)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
