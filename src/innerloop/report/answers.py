"""What a report says in words and tables: are the loops learning, which run is better, and what did it cost?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .. import config
from ..train.progress import clock
from .differences import Interval, What, change, difference, higher_is_better, judged, score
from .runs import Line, Run
from .series import by_recipe

Runs = Mapping[str, Run]
NOISE = "may be noise"


@dataclass(frozen=True)
class Answer:
    """A sentence and the table behind it.

    Attributes:
        sentence: the answer.
        header: of the table's columns; the first says what a row is of.
        rows: cells as text.
    """

    sentence: str
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = field(default=(), repr=False)


def inner(runs: Runs) -> Answer:
    """Whether the steps help on unseen tasks."""
    rows, verdicts = [], []
    for name, run in runs.items():
        line = judged(run, "test") or judged(run, "validation")
        if line is None or "steps" not in line or not line["steps"]:
            rows.append([name, "", "", "", "not judged yet", ""])
            continue
        values, half = line["steps"], line["steps_ci95"]
        metric = line["metric"]
        if len(values) == 1:
            rows.append([name, _value(values[0], half[0], metric), "", "", "no inner steps", protocol(run, line)])
            continue
        sign = 1 if higher_is_better(metric) else -1
        gain, noise = sign * (values[-1] - values[0]), math.hypot(half[0], half[-1])
        verdict = "learns" if gain > noise else "gets worse" if gain < -noise else NOISE
        verdicts.append(verdict)
        cells = [_value(values[k], half[k], metric) for k in (0, 1, len(values) - 1)]
        rows.append([name, *cells, verdict, protocol(run, line)])
    header = ["run", "before", "after 1 step", "after all steps", "inner loop", "protocol"]
    return Answer(_counted(verdicts, "learns", "on unseen tasks"), header, rows)


def outer(runs: Runs) -> Answer:
    """Whether validations became better from the first to the last."""
    rows, verdicts = [], []
    for name, run in runs.items():
        lines = [line for line in run.lines.get("validation", ()) if line["mean"] is not None]
        if len(lines) < 2:
            rows.append([name, "", "", "", "", "fewer than two validations"])
            continue
        first, last, best = lines[0], lines[-1], run.best or lines[-1]
        metric, away = first["metric"], change(first, last)
        verdict = better(away, metric, "learns", "gets worse")
        verdicts.append(verdict)
        cells = [
            f"{_value(line['mean'], line['ci95'], metric)} at {line['iteration']:,}" for line in (first, last, best)
        ]
        rows.append([name, *cells, _interval(away, metric), verdict])
    header = ["run", "first validation", "last", "best", "last less first", "outer loop"]
    return Answer(_counted(verdicts, "learns", "by meta-validation"), header, rows)


def rates(runs: Runs) -> Answer:
    """What became of learned inner rates."""
    said, fixed = [], set()
    for name, run in runs.items():
        if lines := run.lines.get("rates"):
            best = run.best["iteration"] if run.best else lines[-1]["iteration"]
            line = min(lines, key=lambda line: abs(line["iteration"] - best))
            values = [
                (v, key or "all parameters") for key, some in line["rates"].items() for v in some if v is not None
            ]
            (low, where_low), (high, where_high) = min(values), max(values)
            said.append(
                f"{name}: learned rates from {low:.3g} ({where_low}) to {high:.3g} ({where_high}) at iteration "
                f"{line['iteration']:,}."
            )
        elif (rate := run.config.get("learner", {}).get("lr")) is not None:
            fixed.add(rate)
    if fixed:
        kept = " and ".join(f"{rate:g}" for rate in sorted(fixed))
        said.append(
            f"{'Elsewhere no' if said else 'No'} learned rates are recorded; the inner rate is, or began, at {kept}."
        )
    return Answer(" ".join(said))


def comparison(runs: Runs) -> Answer:
    """Which recipe is better than the first one given, and whether that may be noise."""
    groups = by_recipe(list(runs.values()))
    what: What = "test" if all(judged(run, "test") for run in runs.values()) else "validation"
    metrics = {line["metric"] for run in runs.values() if (line := judged(run, what))}
    header = ["recipe", "seeds", "best validation" if what == "validation" else "test", "over", "difference",
              "interval over", "against the first"]  # fmt: skip
    if len(metrics) != 1:
        return Answer("Nothing to compare: " + ("no run is judged yet." if not metrics else "different metrics."))
    metric, base = metrics.pop(), next(iter(groups.values()))
    rows, said, noise = [], [], []
    for index, (name, members) in enumerate(groups.items()):
        found, seeds = score(members, what), ", ".join(str(run.config.get("seed", "?")) for run in members)
        away = difference(base, members, what) if index and _comparable(base[0], members[0]) else None
        verdict = better(away, metric, "better", "worse") if away else "judged by other tasks" if index else "the first"
        if verdict in ("better", "worse"):
            said.append(f"{name} is {verdict} than {next(iter(groups))}")
        noise += [name] if verdict == NOISE else []
        told = [_interval(away, metric), away.over] if away else ["", ""]
        rows.append([name, seeds, *([_interval(found, metric), found.over] if found else ["", ""]), *told, verdict])
    note = "" if what == "test" else " Not all have been tested, so these are best validations, which flatter."
    if len(groups) == 1:
        return Answer(f"These are runs of one recipe.{note}", header, rows)
    said += [f"the difference of {', '.join(noise)} from {next(iter(groups))} may be noise"] if noise else []
    sentence = "; ".join(said) if said else "nothing is judged by the same tasks as the first"
    return Answer(f"{sentence}.{note} Intervals are of single comparisons.", header, rows)


def machine(runs: Runs) -> Answer:
    """Time, throughput, memory, hardware and versions."""
    rows = []
    for name, run in runs.items():
        last = (run.lines.get("train") or [{}])[-1]
        about = (run.lines.get("run") or [{}])[0].get("environment") or run.results.get("environment", {})
        seconds, wanted = last.get("seconds"), run.config.get("train", {}).get("iterations")
        of = f" of {wanted:,}" if wanted and wanted != run.iteration else ""
        rate, memory = last.get("tasks_per_second"), last.get("memory_mib")
        rows.append([
            name,
            f"{run.iteration:,}{of}" + ("" if run.finished else ", not finished"),
            clock(seconds) if seconds is not None else "",
            f"{rate:.3g} tasks/s" if rate else "",
            f"{memory:,.0f} MiB" if memory else "",
            ", ".join(str(about[key]) for key in ("cpu", "device") if key in about and about[key] != "cpu")
            + (f", {about['threads']} threads" if "threads" in about else ""),
            ", ".join(f"{key} {about[key]}" for key in ("innerloop", "torch", "python") if key in about),
        ])  # fmt: skip
    header = ["run", "iterations", "training", "throughput", "memory at most", "hardware", "versions"]
    return Answer("", header, rows)


def recipes(runs: Runs) -> Answer:
    """In which values the recipes differ."""
    groups = {name: members[0] for name, members in by_recipe(list(runs.values())).items() if members[0].config}
    flat = {name: _flat(run.config) for name, run in groups.items()}
    keys = sorted({key for values in flat.values() for key in values} - {"description", "seed"})
    differing = [key for key in keys if len({repr(values.get(key)) for values in flat.values()}) > 1]
    rows = [[key, *(_setting(values.get(key)) for values in flat.values())] for key in differing]
    if len(groups) < 2:
        return Answer("")
    return Answer("Where the recipes differ:" if rows else "", ["setting", *groups], rows)


def texts(runs: Runs) -> dict[str, str]:
    """The recipes themselves."""
    groups = by_recipe(list(runs.values()))
    return {name: config.dumps(members[0].config) for name, members in groups.items() if members[0].config}


def protocol(run: Run, line: Line) -> str:
    """How a run was judged: by which tasks, how many, in how many steps, and whether it saw the query set."""
    tasks = run.config.get("tasks", {})
    told = [str(tasks["name"])] if "name" in tasks else []
    ways, shots = tasks.get("ways"), tasks.get("shots")
    told += [f"{ways}-way {shots}-shot"] if ways and shots else [f"{shots} shots"] if shots else []
    steps = len(line["steps"]) - 1
    told += [f"{steps} step{'s' * (steps != 1)}", f"{line['num_tasks']:,} tasks"]
    told += ["transductive" if line["transductive"] else "inductive"]
    told += [] if judged(run, "test") else [f"best validation (iteration {line['iteration']:,})"]
    return ", ".join(told)


def better(away: Interval, metric: str, good: str, bad: str) -> str:
    """A difference in a word."""
    if away.holds_zero:
        return NOISE
    return good if (away.mean > 0) == higher_is_better(metric) else bad


def _comparable(first: Run, second: Run) -> bool:
    """Whether two runs are judged by tasks of one kind: of one source, of as many ways and shots."""
    kinds = [[run.config.get("tasks", {}).get(key) for key in ("name", "ways", "shots")] for run in (first, second)]
    return kinds[0] == kinds[1]


def _counted(verdicts: Sequence[str], good: str, where: str) -> str:
    number = sum(verdict == good for verdict in verdicts)
    if not verdicts:
        return "Nothing to say yet."
    if number == len(verdicts):
        return f"Yes, {where}" + (f", in all {number} runs." if number > 1 else ".")
    if number:
        return f"In {number} of {len(verdicts)} runs, {where}."
    return f"Not that it could be told from noise {where}." if NOISE in verdicts else f"No, it gets worse {where}."


def _value(value: float | None, half: float | None, metric: str) -> str:
    if value is None or half is None:
        return "not finite"
    digits, sign = _format(metric)
    return f"{value:{digits}} ± {half:{digits}}{sign}"


def _interval(found: Interval, metric: str) -> str:
    digits, sign = _format(metric)
    return f"{found.mean:{digits}}{sign} [{found.low:{digits}}, {found.high:{digits}}]"


def _format(metric: str) -> tuple[str, str]:
    return (".2f", " %") if metric == "accuracy" else (".3g", "")


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{before}{key}.") if isinstance(value, Mapping) else {f"{before}{key}": value}
    return found


def _setting(value: Any) -> str:
    return "not given" if value is None else str(value)
