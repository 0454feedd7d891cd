"""The sentences and tables of a report: are the loops learning, which run is better, and what did it cost?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..metrics import Scale
from ..recipe import config
from ..train.progress import clock
from .differences import Interval, What, change, comparable, difference, judged, score
from .record import Line
from .runs import Run
from .series import by_recipe, nearest

Runs = Mapping[str, Run]
NOISE = "may be noise"


@dataclass(frozen=True)
class Answer:
    """A sentence and the table behind it.

    Attributes:
        sentence: the answer.
        header: the titles of the columns; the first one says what a row describes.
        rows: the cells as text.
    """

    sentence: str
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = field(default=(), repr=False)


def inner(runs: Runs) -> Answer:
    """Answer whether the inner steps help on unseen tasks: compare before the first with after the last."""
    rows, verdicts = [], []
    for name, run in runs.items():
        line = judged(run, "test") or judged(run, "validation")
        if line is None or not line["steps"] or len(line["steps_ci95"]) != len(line["steps"]):
            rows.append([name, "", "", "", "not evaluated yet", ""])
            continue
        values, half, scale = line["steps"], line["steps_ci95"], Scale.read(line)
        if len(values) == 1:
            rows.append([name, _value(values[0], half[0], scale), "", "", "no inner steps", protocol(run, line)])
            continue
        if None in (values[0], values[-1], half[0], half[-1]):
            verdict = "is not finite"
        else:
            away, noise = values[-1] - values[0], math.hypot(half[0], half[-1])
            verdict = better(Interval(away, away - noise, away + noise, ""), scale, "learns", "gets worse")
        verdicts.append(verdict)
        cells = [_value(values[k], half[k], scale) for k in (0, 1, len(values) - 1)]
        rows.append([name, *cells, verdict, protocol(run, line)])
    header = ["run", "before", "after 1 step", "after all steps", "inner loop", "protocol"]
    where = "On unseen tasks, comparing before and after the inner steps"
    return Answer(_counted(verdicts, where), header, rows)


def outer(runs: Runs) -> Answer:
    """Answer whether validations improved from the first to the last, or at least up to the best."""
    rows, verdicts = [], []
    for name, run in runs.items():
        lines = [line for line in run.lines.get("validation", ()) if line["mean"] is not None]
        if len(lines) < 2:
            rows.append([name, "", "", "", "", "fewer than two validations"])
            continue
        first, last, best = lines[0], lines[-1], run.best or lines[-1]
        scale, away = Scale.read(first), change(first, last)
        verdict = better(away, scale, "learns", "gets worse")
        if verdict != "learns" and not change(first, best).holds_zero and not change(best, last).holds_zero:
            verdict = "learns, then gets worse again"
        verdicts.append(verdict)
        three = [(line["iteration"], _value(line["mean"], line["ci95"], scale)) for line in (first, last, best)]
        rows.append([name, *(f"{value} at {at:,}" for at, value in three), _interval(away, scale), verdict])
    header = ["run", "first validation", "last", "best", "last - first", "outer loop"]
    where = "Comparing the first meta-validation (much may have been learned before it) and the last"
    return Answer(_counted(verdicts, where), header, rows)


def rates(runs: Runs) -> Answer:
    """Answer which inner rates were learned."""
    sentences, fixed = [], set()
    for name, run in runs.items():
        if lines := run.lines.get("rates"):
            line = nearest(lines, run.best["iteration"] if run.best else None)
            values = [
                (rate, f"{key or 'all parameters'}, step {step}" if len(some) > 1 else key or "all parameters")
                for key, some in line["rates"].items()
                for step, rate in enumerate(some, 1)
                if rate is not None
            ]
            if not values:
                sentences.append(f"{name}: no learned rate is finite.")
                continue
            (low, where_low), (high, where_high) = min(values), max(values)
            sentences.append(
                f"{name}: learned rates range from {low:.3g} ({where_low}) to {high:.3g} ({where_high}) at iteration "
                f"{line['iteration']:,}."
            )
        elif (rate := run.config.get("learner", {}).get("lr")) is not None:
            fixed.add(rate)
    if fixed:
        initial = " and ".join(f"{rate:g}" for rate in sorted(fixed))
        others = "The other runs have" if sentences else "There are"
        sentences.append(f"{others} no recorded learned rates; the inner rate is, or started at, {initial}.")
    return Answer(" ".join(sentences))


def comparison(runs: Runs) -> Answer:
    """Answer which recipe is better than the first one, and whether the difference may be noise."""
    groups = by_recipe(list(runs.values()))
    what: What = "test" if all(judged(run, "test") for run in runs.values()) else "validation"
    scales = {Scale.read(line) for run in runs.values() if (line := judged(run, what))}
    if len(scales) != 1:
        why = "no run has been evaluated yet." if not scales else "the runs have different metrics."
        return Answer(f"There is nothing to compare: {why}")
    scale, (base, bases) = scales.pop(), next(iter(groups.items()))
    rows: list[list[str]] = []
    by_verdict: dict[str, list[str]] = {}
    for name, members in groups.items():
        own, seeds = score(members, what), ", ".join(str(run.config.get("seed", "?")) for run in members)
        alike = name != base and comparable(bases[0], members[0], what)
        away = difference(bases, members, what) if alike else None
        verdict = better(away, scale, "better", "worse") if away else "" if name == base else "not comparable"
        if away:
            alone = " (one seed each, so this holds only for these weights)" if "tasks" in away.over else ""
            by_verdict.setdefault(verdict, []).append(f"{name}{alone}")
        cells = [_interval(away, scale), away.over] if away else ["", ""]
        rows.append([name, seeds, *([_interval(own, scale), own.over] if own else ["", ""]), *cells, verdict])
    kind = "test" if what == "test" else "best validation"
    header = ["recipe", "seeds", kind, "over", "difference", "interval over", "than the first"]
    note = ["Not all runs have been tested, so these are best validations, which are too optimistic."]
    note = [] if what == "test" else note
    if len(groups) == 1:
        return Answer(" ".join(["These are runs of one recipe.", *note]), header[:4], [row[:4] for row in rows])
    sentences = [
        f"{'No clear difference from' if verdict == NOISE else f'{verdict.capitalize()} than'} {base}: "
        f"{', '.join(names)}."
        for verdict, names in by_verdict.items()
    ] or ["No other recipe was evaluated on the same kind of tasks in the same way as the first."]
    note += ["Each interval is for a single comparison."]
    return Answer(" ".join([*sentences, *note]), header, rows)


def sets(runs: Runs) -> Answer:
    """Answer on which sets of a mixture of tasks the runs are good."""
    rows, sentences = [], []
    for name, run in runs.items():
        if (found := sets_of(run)) is None:
            continue
        what, parts, scale = found
        for title, part in parts.items():
            number = part["num_tasks"]
            value = _value(part["mean"], part["ci95"] if number > 1 else math.inf, scale)
            rows.append([name, title, value, f"{number:,}", what])
        means = {title: part["mean"] for title, part in parts.items() if part["mean"] is not None}
        if len(means) > 1:
            best, worst = sorted(means, key=means.__getitem__, reverse=scale.higher_is_better)[:: len(means) - 1]
            digits, sign = _format(scale)
            values = [f"{title} ({means[title]:{digits}}{sign})" for title in (best, worst)]
            sentences.append(f"{name}: best on {values[0]}, worst on {values[1]}")
    return Answer("; ".join(sentences) + "." * bool(sentences), ["run", "set", "score", "tasks", "of"], rows)


def sets_of(run: Run) -> tuple[str, dict[str, Line], Scale] | None:
    """Return what a run was evaluated on, the results on the sets of that mixture, and their scale, if any."""
    what: What = "test" if judged(run, "test") else "validation"
    line = judged(run, what) or {}
    needed = {"mean", "ci95", "num_tasks"}
    parts = {title: part for title, part in line.get("sets", {}).items() if needed <= part.keys() and part["num_tasks"]}
    return ("the test" if what == "test" else "the best validation", parts, Scale.read(line)) if parts else None


def machine(runs: Runs) -> Answer:
    """Return time, throughput, memory, hardware and versions."""
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
            + (f", {about['threads']} thread{'s' * (about['threads'] != 1)}" if "threads" in about else ""),
            ", ".join(f"{key} {about[key]}" for key in ("innerloop", "torch", "python") if key in about),
        ])  # fmt: skip
    header = ["run", "iterations", "training", "throughput", "peak memory", "hardware", "versions"]
    return Answer("", header, rows)


def recipes(runs: Runs) -> Answer:
    """Return the settings in which the recipes differ."""
    groups = {name: members[0] for name, members in by_recipe(list(runs.values())).items() if members[0].config}
    flat = {name: _flat(run.config) for name, run in groups.items()}
    keys = sorted({key for values in flat.values() for key in values} - {"description", "seed"})
    differing = [key for key in keys if len({repr(values.get(key)) for values in flat.values()}) > 1]
    rows = [[key, *(_setting(values.get(key)) for values in flat.values())] for key in differing]
    if len(groups) < 2:
        return Answer("")
    return Answer("Where the recipes differ:" if rows else "", ["setting", *groups], rows)


def texts(runs: Runs) -> dict[str, str]:
    """Return the recipes as TOML, by name."""
    groups = by_recipe(list(runs.values()))
    return {name: config.dumps(members[0].config) for name, members in groups.items() if members[0].config}


def protocol(run: Run, line: Line) -> str:
    """Describe how a run was evaluated: the tasks, their number, the inner steps, and whether transductively."""
    tasks = run.config.get("tasks", {})
    parts = [str(tasks["name"])] if "name" in tasks else []
    ways, shots = (config.spoken(tasks[key]) if tasks.get(key) else "" for key in ("ways", "shots"))
    parts += [f"{ways}-way {shots}-shot"] if ways and shots else [f"{shots} shots"] if shots else []
    steps = len(line["steps"]) - 1
    parts += [f"{steps} step{'s' * (steps != 1)}", f"{line['num_tasks']:,} tasks"]
    parts += ["transductive" if line["transductive"] else "inductive"]
    parts += [] if judged(run, "test") else [f"best validation (iteration {line['iteration']:,})"]
    return ", ".join(parts)


def better(away: Interval, scale: Scale, good: str, bad: str) -> str:
    """Return the verdict on a difference: good, bad, or maybe noise."""
    if away.holds_zero:
        return NOISE
    return good if (away.mean > 0) == scale.higher_is_better else bad


def _counted(verdicts: Sequence[str], where: str) -> str:
    """Count the verdicts."""
    if not verdicts:
        return "There are no results yet."
    if len(verdicts) == 1:
        alone = {"learns": "yes", NOISE: "there is no clear change; the difference may be noise"}
        return f"{where}: {alone.get(verdicts[0], f'no, it {verdicts[0]}')}."
    counts = ", ".join(f"{verdict} ({verdicts.count(verdict)})" for verdict in sorted(set(verdicts)))
    return f"{where}, for {len(verdicts)} runs: {counts}."


def _value(value: float | None, half: float | None, scale: Scale) -> str:
    if value is None or half is None:
        return "not finite"
    digits, sign = _format(scale)
    if half == math.inf:  # of one task, which gives no interval
        return f"{value:{digits}}{sign}"
    return f"{value:{digits}} ± {half:{digits}}{sign}"


def _interval(interval: Interval, scale: Scale) -> str:
    digits, sign = _format(scale)
    mean, low, high = (_signed(f"{value:{digits}}") for value in (interval.mean, interval.low, interval.high))
    return f"{mean}{sign} [{low}, {high}]"


def _signed(text: str) -> str:
    """Remove the sign of a number that is rounded to zero."""
    return text.lstrip("-") if float(text) == 0 else text


def _format(scale: Scale) -> tuple[str, str]:
    return scale.digits(".3g"), scale.suffix


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{before}{key}.") if isinstance(value, Mapping) else {f"{before}{key}": value}
    return flat


def _setting(value: Any) -> str:
    return "not set" if value is None else str(value)
