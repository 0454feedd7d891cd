"""Show a run in the terminal, while it trains or afterwards."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..common.streams import HANDLER, shown
from ..metrics import Scale
from ..train.progress import clock
from .record import MOST
from .runs import Run, read_run
from .series import finite_mean, usual_window

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.table import Table
    from rich.text import Text

Row = tuple[str, str]
"""A label and its text."""
BARS = "▁▂▃▄▅▆▇█"
WIDTH = 40
"""The number of characters of a curve."""


def watch(path: str | Path, console: Console, every: float = 2.0) -> None:
    """Show a run, and update it until the run has finished; show it once if the console is not a terminal.

    Args:
        path: the run directory.
        console: the console to print to.
        every: seconds between updates.

    Raises:
        UnreadableRunError: there is no run.
    """
    from rich.live import Live

    run = read_run(path, most=MOST)
    if run.finished or not console.is_terminal:
        console.print(view(run, console.options.ascii_only))
        return
    with Live(view(run, console.options.ascii_only), console=console, auto_refresh=False) as live:
        while not run.finished:
            time.sleep(every)
            run = read_run(path, run, MOST)
            live.update(view(run, console.options.ascii_only), refresh=True)


def view(run: Run, ascii_only: bool = False) -> Group:
    """Return the current state of a run, for a rich console.

    Args:
        run: the run.
        ascii_only: whether the terminal can show only ASCII characters.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    def cell(text: str) -> Text:  # plain text, because a name may look like rich's markup
        text = shown(text)
        return Text(text.encode("ascii", HANDLER).decode() if ascii_only else text)

    table = Table(show_header=False, box=None, title=cell(run.name), title_justify="left", title_style="bold")
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    rows = [("iteration", _progress(run)), *_losses(run), *_validation(run), *_machine(run)]
    if run.left_out:
        rows.append(("record", run.left_out))
    for row in rows:
        table.add_row(*map(cell, row))
    parts = [table]
    if rates := run.lines.get("rates"):
        parts.append(_rates(rates[-1]["rates"], cell))
    return Group(*parts)


def curve(values: Sequence[float], width: int = WIDTH) -> str:
    """Draw values as a line of bars, scaled from the lowest to the highest; each bar is the mean of a stretch.

    >>> curve([0.0, 1.0, 2.0, 4.0])
    '▁▃▅█'
    """
    each = max(1, math.ceil(len(values) / width))
    stretches = [finite_mean(values[i : i + each]) for i in range(0, len(values), each)]
    finite = [value for value in stretches if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    spread = high / 2 - low / 2 or 1.0  # halves, whose difference cannot overflow
    parts = ((v / 2 - low / 2) / spread for v in stretches)
    return "".join(BARS[round(part * (len(BARS) - 1))] if math.isfinite(part) else "?" for part in parts)


def _progress(run: Run) -> str:
    last = run.config.get("train", {}).get("iterations")
    if run.finished:
        return f"{run.iteration:,}, finished"
    if not last:
        return f"{run.iteration:,}"
    text = f"{run.iteration:,} of {last:,} ({100 * run.iteration / last:.0f} %)"
    iterations, seconds = run.column("train", "seconds")
    if iterations and iterations[-1] and math.isfinite(seconds[-1]):
        left = (last - iterations[-1]) * seconds[-1] / iterations[-1]
        text += f", ETA {clock(left)} of training"
    return text


def _losses(run: Run) -> Iterator[Row]:
    losses = run.column("train", "loss")[1]
    if losses:
        window = usual_window(len(losses))
        mean = finite_mean(losses[-window:])
        yield "meta-train loss", f"{curve(losses)}  {mean:.4g} (mean of the last {min(window, len(losses))})"
    support = [
        sum(line["steps"]) / len(line["steps"]) for line in run.lines.get("train", ()) if _whole(line.get("steps"))
    ]
    if support:
        yield "support losses", f"{curve(support)}  {support[-1]:.4g}"


def _whole(values: object) -> bool:
    return isinstance(values, list) and bool(values) and None not in values


def _validation(run: Run) -> Iterator[Row]:
    means, best = run.column("validation", "mean")[1], run.best
    if best is None:
        return
    scale = Scale.read(best)
    unit = scale.suffix
    last = run.lines["validation"][-1]
    now = "not finite" if last["mean"] is None else f"{last['mean']:.4g} ± {_text(last['ci95'], '.2g')}{unit}"
    yield f"meta-validation {scale.name}", f"{curve(means)}  {now}"
    half = _text(best["ci95"], ".2g")
    yield "best", f"{best['mean']:.4g} ± {half}{unit} at iteration {best['iteration']:,}"
    if test := run.results.get("test"):
        tested = Scale.read(test) if "metric" in test else scale
        name = "test" if tested.name == scale.name else f"test, {tested.name}"
        result = f"{_text(test.get('mean'), '.4g')} ± {_text(test.get('ci95'), '.2g')}{tested.suffix}"
        yield name, f"{result} on {test.get('num_tasks', '?')} unseen tasks"


def _machine(run: Run) -> Iterator[Row]:
    if not (lines := run.lines.get("train")):
        return
    last = lines[-1]
    yield "outer learning rate, gradient norm", f"{_text(last['lr'])}, {_text(last['grad_norm'])}"
    spent = "not finite" if last["seconds"] is None else clock(last["seconds"])
    yield "throughput", f"{_text(last['tasks_per_second'])} tasks/s; {spent} of training"
    if phases := last.get("phases"):
        whole = sum(phases.values()) or 1.0
        shares = sorted(((seconds / whole, name) for name, seconds in phases.items()), reverse=True)
        yield "time", ", ".join(f"{name} {100 * share:.0f} %" for share, name in shares if share >= 0.005)
    if memory := last.get("memory_mib"):
        yield "peak memory", f"{memory:,.0f} MiB"


def _rates(rates: dict[str, list[float]], cell: Callable[[str], Text]) -> Table:
    from rich.table import Table

    steps = max(map(len, rates.values()))
    table = Table(title="learned rates", title_justify="left", title_style="dim", box=None)
    table.add_column("parameter", style="dim")
    for step in range(1, steps + 1):
        table.add_column(f"step {step}" if steps > 1 else "every step", justify="right")
    for name, values in rates.items():
        table.add_row(*map(cell, (name or "all", *map(_text, values))))
    return table


def _text(value: float | None, digits: str = ".3g") -> str:
    return "not finite" if value is None else f"{value:{digits}}"
