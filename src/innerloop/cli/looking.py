"""`innerloop list`, `plans`, `plot`, `report` and `watch`: looking at what there is."""

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
        bool, typer.Option("--clear", help="Remove them all, so that everything is measured anew.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what was found out about how tasks run quickest, or remove it. Runs keep their own plans (`plans.json`)."""
    if clear:
        number = plan_files.clear()
        streams.out(
            dumps({"removed": number})
            if as_json
            else f"removed {number} plans from {streams.shown(plan_files.folder())}"
        )
        return
    found = [entry for _, entry in plan_files.entries()]
    if as_json:
        streams.out(dumps({"folder": str(plan_files.folder()), "plans": found}))
        return
    streams.out(f"{len(found)} plans in {streams.shown(plan_files.folder())}")
    for entry in found:
        about = [str(entry.get(key)) for key in ("made", "model", "processor", "device")]
        about += [f"{entry.get('threads')} threads", f"torch {entry.get('torch')}"]
        streams.out(streams.shown(", ".join(about)))
        streams.out(f"  {streams.shown(entry.get('for'))}: {streams.shown(entry['decision'].get('why', ''))}")


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
    _trust: TrustOption = False,
) -> None:
    """Draw how a run went, what its model does with unseen tasks, and, of several runs, how they compare.

    Kinds: `inner` (support loss of one problem), `inner-grid` and `query-grid` (many problems over meta-training),
    `final-support`, `meta-train`, `validation`, `rates`, `adaptation`, `functions`, `episodes`, `paths`, `strips`,
    `gaze`, `compare`.
    """
    from ..report import plots

    found, broken = _readable(runs)
    every = [*plots.PLOTS, *(["compare"] if len(found) > 1 else [])]
    options = plots.Options(window, iteration, task, data, device)
    names = [run.name for run in found]
    drawn = 0
    for kind, run, figure in plots.plots(found, kinds or every, options):
        if isinstance(figure, str):
            streams.err(f"{kind}: not drawn, {figure}")
            continue
        whose = run.name if names.count(run.name) == 1 else "-".join(run.path.resolve().parts[-2:])
        name = kind if output is None or len(found) == 1 or kind == "compare" else f"{whose}-{kind}"
        folder = subfolder(run.path, "figures") if output is None else _made(output)
        path = folder / f"{name}.png"
        with writing(path) as file:
            figure.savefig(file, format="png")
        streams.out(streams.shown(path))
        drawn += 1
    if broken:
        raise UnreadableRunError(f"left out: {'; '.join(broken)}")
    if not drawn:
        raise ValueError(f"nothing is drawn of {', '.join(str(run.path) for run in found)}: see above")


def _readable(paths: list[Path]) -> tuple[list[Run], list[str]]:
    """The runs that can be read, and what is wrong with the others.

    Raises:
        UnreadableRunError: none can be read.
    """
    found, broken = [], []
    for path in paths:
        try:
            found.append(read_run(path, most=MOST))
        except UnreadableRunError as error:
            broken.append(str(error))
            continue
        if found[-1].left_out:
            streams.err(f"{streams.shown(path)}: {found[-1].left_out}")
    if not found:
        raise UnreadableRunError("; ".join(broken))
    return found, broken


def _made(folder: Path) -> Path:
    """A folder for results, made if need be."""
    refuse_linked_folder(folder / "result")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


# -- report -----------------------------------------------------------------------------------------------------------


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run directories, or the folder of a sweep.")],
    output: Annotated[Path, typer.Option("-o", help="The page, an HTML file.")] = Path("report.html"),
    record_only: Annotated[
        bool, typer.Option("--record-only", help="Leave out what takes the trained models, their data, and some time.")
    ] = False,
    data: DataOption = None,
    _trust: TrustOption = False,
) -> None:
    """Write one page, for any browser and without a network, of how runs went and which is better."""
    from ..report import write_report

    for line in write_report(runs, output, data, not record_only, streams.err):
        streams.err(f"left out: {streams.shown(line)}")
    streams.out(streams.shown(output))


# -- film -------------------------------------------------------------------------------------------------------------


@app.command()
def film(
    run: Annotated[Path, typer.Argument(help="A run directory, of locomotion or imitation.")],
    output: Annotated[Path | None, typer.Option("-o", help="A GIF.", show_default="RUN/figures/film.gif")] = None,
    steps: Annotated[int | None, typer.Option(help="Inner steps.", show_default="the recipe's")] = None,
    seed: Annotated[int, typer.Option(help="Of the tasks.")] = 0,
    _trust: TrustOption = False,
) -> None:
    """Film unseen tasks before and after adaptation.

    The film of a simulated body shows it before adaptation (left) and after it (right). The film of a robot that
    imitates shows the demonstration, and the robot before and after.
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
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between looks.")] = 2.0,
) -> None:
    """Show a run in the terminal, until it has finished: losses, validation, learned rates, throughput, memory."""
    from ..report.watch import watch as show

    try:
        show(run, Console(), every)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
