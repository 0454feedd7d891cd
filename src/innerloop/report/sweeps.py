"""The result of a sweep, read from ``sweep.json``: its trials in words, in a table and in figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.disk import read_text
from ..common.streams import shown
from ..metrics import Scale
from .answers import Answer
from .record import SETTING, TEXT, Check, kind_of, listed, number, table, whole
from .runs import UnreadableRunError
from .series import NothingToDrawError
from .traces import Interactive, new_figure, shade, short

SHOWN = 5
"""The number of best trials whose runs a report compares."""


@dataclass(frozen=True)
class SweepRecord:
    """A finished sweep.

    Attributes:
        path: its folder.
        summary: the content of ``sweep.json``.
    """

    path: Path
    summary: dict[str, Any]

    @property
    def scale(self) -> Scale:
        """The metric of the scores, which older sweeps do not name."""
        name, unit = self.summary.get("metric", "score"), self.summary.get("unit", "")
        return Scale(name, self.summary["direction"] == "maximize", unit)

    @property
    def ranked(self) -> list[dict[str, Any]]:
        """The completed trials, the best first."""
        sign = -1 if self.scale.higher_is_better else 1
        done = [trial for trial in self.summary["trials"] if trial["state"] == "complete"]
        return sorted(done, key=lambda trial: (sign * trial["score"], trial["trial"]))

    @property
    def runs(self) -> list[Path]:
        """The run directories of the best trials, beside ``sweep.json``, even if the folder was moved."""
        return [self.path / Path(run).name for trial in self.ranked[:SHOWN] for run in trial["runs"]]

    @property
    def keys(self) -> list[str]:
        """The hyperparameters that were swept."""
        return sorted({key for trial in self.summary["trials"] for key in trial["values"]})


def read_sweep(path: Path) -> SweepRecord | None:
    """Read the sweep of a folder; return ``None`` if the folder has no sweep.

    Raises:
        UnreadableRunError: its ``sweep.json`` is damaged.
    """
    file = path / "sweep.json"
    try:
        if not file.is_file():
            return None
    except OSError:  # such as a folder without permission; reading it as a run reports that
        return None
    try:
        summary = json.loads(read_text(file))
        if type(summary) is not dict or not _is_valid(summary):
            raise ValueError("a value is missing or has another type")
        sweep = SweepRecord(path, summary)
        if not sweep.keys:
            raise ValueError("it has no trials")
    except (ValueError, RecursionError, OSError) as error:
        raise UnreadableRunError(f"{shown(path)}: its sweep.json cannot be read ({shown(error)})") from error
    return sweep


TRIAL: Mapping[str, Check] = {
    "trial": whole, "state": TEXT, "score": number, "values": table(SETTING), "runs": listed(TEXT), "why": TEXT,
}  # fmt: skip


def _is_valid(summary: Mapping[str, Any]) -> bool:
    """Return whether all values that are shown of a sweep, and of every trial, are present."""
    trials = summary.get("trials")
    if not all(TEXT(summary.get(name, "")) for name in ("study", "direction", "metric", "unit")):
        return False
    if not {"study", "direction"} <= summary.keys() or not listed(kind_of(dict))(trials):
        return False
    return all(
        {"trial", "state", "score", "values"} <= trial.keys()
        and all(check(trial[name]) for name, check in TRIAL.items() if name in trial)
        and (trial["state"] != "complete" or (trial["score"] is not None and "runs" in trial))
        for trial in trials or ()
    )


def answer(sweep: SweepRecord) -> Answer:
    """Return the best values, and a table of all trials."""
    trials, ranked = sweep.summary["trials"], sweep.ranked
    rows = [_row(trial, sweep.keys) for trial in (*ranked, *(t for t in trials if t["state"] != "complete"))]
    ended = [trial for trial in trials if trial["state"] == "pruned"]
    failed = sum("why" in trial for trial in ended)
    sentence = f"Of {len(ranked) + len(ended)} trials, {len(ended) - failed} were pruned."
    sentence += f" {failed} failed, for the reasons in the table." if failed else ""
    if ranked:
        values = ", ".join(f"{key} = {_plain(value)}" for key, value in ranked[0]["values"].items())
        sentence = (
            f"Best by meta-validation: {values} (trial {ranked[0]['trial']}, "
            f"{_score(sweep, ranked[0]['score'])}). {sentence}"
        )
        sentence += " The best score of many trials is too optimistic: judge the trial by its meta-test."
    return Answer(sentence, ["trial", "state", sweep.scale.label, *sweep.keys], rows)


def _score(sweep: SweepRecord, value: float) -> str:
    """Format a score with its name and its unit."""
    name = f"{sweep.scale.name} " if "metric" in sweep.summary else ""
    return f"{name}{value:.4g}{sweep.scale.suffix}"


def _row(trial: dict[str, Any], keys: Sequence[str]) -> list[str]:
    score = "" if trial["score"] is None else f"{trial['score']:.4g}"
    return [str(trial["trial"]), _state(trial), score, *(_plain(trial["values"].get(key, "")) for key in keys)]


def _state(trial: dict[str, Any]) -> str:
    """Return the state of a trial, which distinguishes failed trials from pruned ones."""
    return "failed: " + trial["why"].split(";")[0] if "why" in trial else str(trial["state"])


def _plain(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def history(sweep: SweepRecord) -> Interactive:
    """Draw the scores in the order of trials, and the best so far."""
    done = sorted(sweep.ranked, key=lambda trial: trial["trial"])
    if not done:
        raise NothingToDrawError("no trial was completed")
    better = max if sweep.scale.higher_is_better else min
    x, y = [trial["trial"] for trial in done], [trial["score"] for trial in done]
    best = [better(y[: i + 1]) for i in range(len(y))]
    names = [", ".join(f"{key} = {_plain(value)}" for key, value in trial["values"].items()) for trial in done]
    dots = {"type": "scatter", "mode": "markers", "name": "trial", "marker": {"color": shade(0), "size": 8}}
    line = {"type": "scatter", "mode": "lines", "name": "best so far", "line": {"color": shade(1), "shape": "hv"}}
    traces = [{**dots, "x": x, "y": y, "text": names}, {**line, "x": x, "y": best}]
    about = f"The best meta-validation of each completed trial; {'higher' if better is max else 'lower'} is better."
    figure = new_figure(traces, "trial", sweep.scale.label, xaxis_dtick=max(1, len(sweep.summary["trials"]) // 8))
    return Interactive(figure, "Trials", about, own_legend=True)


def slices(sweep: SweepRecord) -> Interactive:
    """Draw the scores against each hyperparameter that was swept, one below the other."""
    done, keys = sweep.ranked, sweep.keys
    if not done:
        raise NothingToDrawError("no trial was completed")
    height = 60 + 260 * len(keys)
    figure, gap = new_figure(height=height), 80 / height  # the gap has room for the name of an axis
    for index, key in enumerate(keys):
        axis = "" if index == 0 else str(index + 1)
        values = [trial["values"].get(key) for trial in done]
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        wide = numbers and min(values) > 0 and max(values) / min(values) > 20
        figure.add_scatter(
            x=[short(value) if numbers else str(value) for value in values],
            y=[short(trial["score"]) for trial in done],
            mode="markers",
            showlegend=False,
            marker={"color": shade(0), "size": 8},
            text=[f"trial {trial['trial']}" for trial in done],
            xaxis=f"x{axis}",
            yaxis=f"y{axis}",
        )
        top = 1 - index / len(keys)
        kind = "log" if wide else "linear" if numbers else "category"
        plain = {"automargin": True, "zeroline": False}
        figure.update_layout({
            f"xaxis{axis}": {"title": {"text": key}, "type": kind, "anchor": f"y{axis}", **plain},
            f"yaxis{axis}": {"title": {"text": sweep.scale.label}, "domain": [top - 1 / len(keys) + gap, top],
                             "anchor": f"x{axis}", **plain},
        })  # fmt: skip
    about = "Each point is a completed trial. Other hyperparameters vary at the same time, and may explain a trend."
    return Interactive(figure, "Score by value", about, own_legend=True)
