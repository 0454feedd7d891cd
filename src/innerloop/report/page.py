"""The report: one self-contained HTML page about runs, which a browser shows offline."""

from __future__ import annotations

import itertools
import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from .. import __version__
from ..common.disk import is_link, writing
from ..common.streams import shown
from . import answers, interactive, sweeps, unseen
from .answers import Answer
from .record import MOST
from .runs import Run, UnreadableRunError, read_run
from .series import NothingToDrawError, by_recipe, labelled
from .sweeps import SweepRecord, read_sweep
from .traces import LIGHT, SHADES, Interactive, dash

MARK = '<meta name="generator" content="innerloop'
"""The tag by which a report is recognized."""
PIECE = 2**20
"""The number of characters that are encoded at once, so that memory does not hold a long page twice."""
PLOTLY = f"/* {secrets.token_hex(16)} */"
"""The placeholder for plotly in the page; it is random, so that no name of a run is the same."""
Section = dict[str, Any]
Figures = Mapping[str, Callable[[Mapping[str, Run]], Interactive]]


def write_report(
    runs: Sequence[str | Path],
    output: str | Path,
    data: Path | None = None,
    models: bool = True,
    say: Callable[[str], object] = lambda _: None,
) -> list[str]:
    """Write the report of some run directories.

    Args:
        runs: the directories; those that cannot be read are left out, and the page says so. The folder of a sweep
            stands for the runs of its best trials.
        output: the HTML file; if it exists, it must be a report, which is replaced.
        data: the folder of the data, as in `innerloop.load_run`.
        models: whether to run the trained models on unseen tasks, which needs their weights and data, and takes time.
        say: is called with a line of text before each step that takes time.

    Returns:
        A line for each directory that was left out, which says why.

    Raises:
        UnreadableRunError: none of the directories can be read.
        FileExistsError: the file exists and is not a report; it does not change.
        NotADirectoryError: the file's folder is a file.
        ImportError: a package of the extra ``report`` is missing.
    """
    output = Path(output)
    if os.path.lexists(output) and not _is_report(output):
        raise FileExistsError(f"{output} exists and is not a report: give another file with -o")
    if output.parent.exists() and not output.parent.is_dir():
        raise NotADirectoryError(f"{output.parent} is a file, so {output} cannot be written: give another file with -o")
    readable, searched, broken = _read(runs)
    if not readable:
        raise UnreadableRunError("; ".join(broken) if broken else "a report needs at least one run directory")
    try:
        text = page(labelled(readable), broken, data, models, say, searched)
    except ImportError:
        raise
    except Exception:  # reading checks single values, but not whether they fit each other
        readable, searched, wrong = _showable(readable, searched)
        if not (wrong and readable):
            raise
        broken += wrong
        text = page(labelled(readable), broken, data, models, say, searched)
    output.parent.mkdir(parents=True, exist_ok=True)
    with writing(output) as file:
        for start in range(0, len(text), PIECE):
            file.write(text[start : start + PIECE].encode("utf-8", "backslashreplace"))  # names need not be UTF-8
    return broken


def _is_report(path: Path) -> bool:
    """Return whether a file is an earlier report, which may be replaced. A link is replaced, whatever its target."""
    if is_link(path):
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return MARK.encode() in file.read(2_000)


def _showable(runs: Sequence[Run], searched: Sequence[SweepRecord]) -> tuple[list[Run], list[SweepRecord], list[str]]:
    """Return the runs and sweeps that can be shown, and error messages for the others."""
    kept: list[Run] = []
    sought: list[SweepRecord] = []
    wrong: list[str] = []
    every: list[Run | SweepRecord] = [*runs, *searched]
    for one in every:
        try:
            if isinstance(one, Run):
                _sections({one.name: one})
                answers.texts({one.name: one})
                kept.append(one)
            else:
                _sweep(one)
                sought.append(one)
        except Exception as error:
            why = (str(error).splitlines() or [""])[0]
            why = shown(f"{type(error).__name__}: {why}")
            wrong.append(f"{shown(one.path)} is damaged: it cannot be shown ({why})")
    return kept, sought, wrong


def _read(paths: Sequence[str | Path]) -> tuple[list[Run], list[SweepRecord], list[str]]:
    """Return the runs and sweeps in some directories, and error messages for the others."""
    readable, searched, broken = [], [], []
    todo = [Path(path) for path in paths]
    while todo:
        path = todo.pop(0)
        try:
            if (sweep := read_sweep(path)) is None:
                readable.append(read_run(path, most=MOST))
            else:
                searched.append(sweep)
                todo = [*sweep.runs, *todo]
        except UnreadableRunError as error:
            broken.append(str(error))
    return readable, searched, broken


def page(
    runs: Mapping[str, Run],
    broken: Sequence[str] = (),
    data: Path | None = None,
    models: bool = True,
    say: Callable[[str], object] = lambda _: None,
    searched: Sequence[SweepRecord] = (),
) -> str:
    """Return the report as HTML.

    Args:
        runs: by the labels under which they are shown.
        broken: error messages about directories that were left out.
        data: the folder of the data; see `write_report`.
        models: whether to load the learners and draw unseen tasks.
        say: is called with a line of text before each step that takes time.
        searched: the sweeps that the runs come from.
    """
    sections = [*map(_sweep, searched), *_sections(runs)]
    if models:
        learned = next(section for section in sections if section["name"] == "learned")
        for item in unseen.figures(runs, data, say):
            key = "notes" if isinstance(item, str) else "figures" if isinstance(item, Interactive) else "pictures"
            learned[key].append(item)
    figures = [figure for section in sections for figure in section["figures"]]
    counter = itertools.count()
    for section in sections:
        section["figures"] = [(next(counter), figure) for figure in section["figures"]]
    return _rendered(
        title=next(iter(runs)) if len(runs) == 1 else f"{len(runs)} runs",
        runs=[(name, i % len(SHADES), dash(i), i, _state(run)) for i, (name, run) in enumerate(runs.items())],
        broken=broken,
        sections=sections,
        recipes=answers.texts(runs),
        differing=answers.recipes(runs),
        data="[" + ",\n".join(_safe(figure) for figure in figures) + "]",
    )


def _rendered(**values: Any) -> str:
    """Render the page with all its assets inside."""
    try:
        import jinja2
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        missing = (error.name or "").split(".")[0]
        raise ImportError(f"a report needs {missing}: pip install 'innerloop[report]'") from error
    assets = resources.files(__package__) / "assets"
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    text: str = environment.from_string((assets / "page.html").read_text("utf-8")).render(
        version=__version__,
        palettes=[{"dark": dark, "light": light} for dark, light in zip(SHADES, LIGHT, strict=True)],
        style=(assets / "page.css").read_text("utf-8"),
        script=(assets / "page.js").read_text("utf-8"),
        plotly=PLOTLY,
        **values,
    )
    before, after = text.split(PLOTLY)  # inserted at the end, because jinja would keep several copies of its megabytes
    return "".join([before, get_plotlyjs(), after])


def _sections(runs: Mapping[str, Run]) -> list[Section]:
    """Return the sections: a question, its answer, and its figures by title (for those that cannot be drawn)."""
    of = interactive
    several = {"Comparison of recipes": of.compare} if len(by_recipe(list(runs.values()))) > 1 else {}
    inner: Figures = {
        "Unseen tasks, step by step": of.adaptation,
        "The support loss of single tasks": of.inner_losses,
        "The query loss of single tasks": partial(of.inner_losses, what="query"),
        "Where the inner loop ends": of.final_support,
    }
    outer = {"Meta-train loss": of.meta_loss, "Meta-validation": of.validation, "Meta-gradients": of.gradient_norms}
    mixed = [_section("sets", "How good is it on each set?", answers.sets(runs), runs, {"Set by set": of.sets})]
    learned = {"Learned inner rates": of.rates, "Task by task": of.distribution}
    return [
        _section("inner", "Is the inner loop learning?", answers.inner(runs), runs, inner),
        _section("outer", "Is the outer loop learning?", answers.outer(runs), runs, outer),
        _section("learned", "What did it learn?", answers.rates(runs), runs, learned),
        _section("better", "Which run is better, and is that noise?", answers.comparison(runs), runs, several),
        *(section for section in mixed if section["answer"].rows),
        _section("cost", "What did it cost?", answers.machine(runs), runs, {"Time per phase": of.phases}),
    ]


def _sweep(sweep: SweepRecord) -> Section:
    """Return the section about a sweep."""
    draw = {"Trials": lambda _: sweeps.history(sweep), "Score by value": lambda _: sweeps.slices(sweep)}
    name = f"sweep-{sweep.path.resolve().name}"
    return _section(name, f"What did the sweep {sweep.summary['study']} find?", sweeps.answer(sweep), {}, draw)


def _section(name: str, question: str, answer: Answer, runs: Mapping[str, Run], draw: Figures) -> Section:
    drawn: list[Interactive] = []
    lacking: dict[str, list[str]] = {}
    for title, function in draw.items():
        try:
            drawn.append(function(runs))
        except NothingToDrawError as nothing:
            lacking.setdefault(str(nothing), []).append(title)
    notes = [f"Not drawn: {', '.join(titles)} ({reason})." for reason, titles in lacking.items()]
    return {"name": name, "question": question, "answer": answer, "figures": drawn, "notes": notes, "pictures": []}


def _state(run: Run) -> str:
    """Return what limits the trust in a run's numbers: it is not finished, or parts are left out."""
    states = [] if run.finished else ["not tested" if run.results else "not finished"]
    states += [run.left_out] if run.left_out else []
    return ", ".join(states)


def _safe(figure: Interactive) -> str:
    """Return the figure as JSON that is safe in a script element."""
    plain: dict[str, Any] = json.loads(figure.figure.to_json())
    about = {"slider": figure.slider, "ownLegend": figure.own_legend}
    # A name such as "<!--<script>" would make the browser read the rest of the page as the script.
    return json.dumps({**plain, **about}, separators=(",", ":")).replace("<", "\\u003c").replace(">", "\\u003e")
