"""Read run directories. Everything that shows a run uses `read_run`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..common.disk import read_text
from ..common.streams import shown
from ..metrics import Scale
from ..recipe.config import Config, parse
from ..train.record import SCHEMA
from .record import (
    JUDGED,
    SETTING,
    EndlessLineError,
    Line,
    Record,
    fits_judgement,
    kind_of,
    number,
    read_record,
    table,
    whole,
)

if TYPE_CHECKING:
    import pandas as pd

Frame = Literal["train", "validation", "steps", "tasks", "rates"]


class UnreadableRunError(ValueError):
    """A directory has no run, or one that cannot be read. The message is one line, and names the directory."""


@dataclass(frozen=True)
class Run:
    """The content of a run directory, as far as it has been written.

    Attributes:
        path: the run directory.
        lines: the lines of ``metrics.jsonl`` by kind, in the order of iterations; see docs/record.md.
        config: the resolved recipe, empty for a run without one.
        results: the content of ``results.json``, empty while the run trains.
        damaged: the number of unreadable lines that were left out; an incomplete last line does not count.
        record: how far the record was read, from where a later reading continues.
    """

    path: Path
    lines: dict[str, list[Line]] = field(repr=False)
    config: Config = field(repr=False)
    results: dict[str, Any] = field(repr=False)
    damaged: int = 0
    record: Record = field(default_factory=Record, repr=False, compare=False)

    @property
    def name(self) -> str:
        """The name of the directory, safe to show."""
        return shown(self.path.resolve().name)

    @property
    def left_out(self) -> str:
        """What is left out of the record, in words; empty if nothing is."""
        parts = [f"{self.damaged:,} damaged lines left out"] if self.damaged else []
        parts += [f"one line of {self.record.every:,} read"] if self.record.every > 1 else []
        return ", ".join(parts)

    @property
    def finished(self) -> bool:
        """Whether all iterations are done, and, for a run by a recipe, the test too."""
        return self.results.get("iterations") == self.iteration and ("test" in self.results or not self.config)

    @property
    def iteration(self) -> int:
        """The last iteration in the record."""
        return max((lines[-1]["iteration"] for lines in self.lines.values() if lines), default=0)

    @property
    def best(self) -> Line | None:
        """The best validation by its metric, or None if there is none."""
        lines = [line for line in self.lines.get("validation", ()) if line["mean"] is not None]
        if not lines:
            return None
        sign = 1 if Scale.read(lines[0]).higher_is_better else -1
        return max(lines, key=lambda line: sign * line["mean"])

    def column(self, kind: str, name: str) -> tuple[list[int], list[Any]]:
        """Return the iterations and the values of a field, from the records of a kind that have it.

        Values that were not finite are read as NaN.
        """
        lines = [line for line in self.lines.get(kind, ()) if name in line]
        values = [float("nan") if line[name] is None else line[name] for line in lines]
        return [line["iteration"] for line in lines], values

    def frame(self, what: Frame = "train") -> pd.DataFrame:
        """Return one kind of record as a pandas data frame.

        The rows of each kind are

        - ``"train"``, ``"validation"``: the lines of that kind;
        - ``"steps"``: the inner steps: iteration, task, epoch, step, loss;
        - ``"tasks"``: each task after each recorded number of steps: iteration, task, after, and losses and accuracies
          on support and query set;
        - ``"rates"``: the learned rates: iteration, parameter, step, rate.

        Raises:
            ImportError: pandas is missing; the message names the extra.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("data frames need pandas: pip install 'innerloop[report]'") from error
        if what in _ROWS:
            kind, rows = _ROWS[what]
            return pd.DataFrame([row for line in self.lines.get(kind, ()) for row in rows(line)])
        if what not in ("train", "validation"):
            raise ValueError(f'a frame must be "train", "validation", "steps", "tasks" or "rates", got {what!r}')
        return pd.DataFrame(self.lines.get(what, []))


def _steps(line: Line) -> Iterator[Line]:
    for task, epochs in enumerate(line["steps"]):
        step = 0
        for epoch, losses in enumerate(epochs):
            for loss in losses:
                yield {"iteration": line["iteration"], "task": task, "epoch": epoch, "step": step, "loss": loss}
                step += 1


def _tasks(line: Line) -> Iterator[Line]:
    names = [f"{part}_{what}" for part in ("support", "query") for what in ("loss", "accuracy")]
    for task in range(len(line["steps"])):
        for index, after in enumerate(line["after"]):
            values = {name: line[name][task][index] for name in names if name in line}
            yield {"iteration": line["iteration"], "task": task, "after": after, **values}


def _rates(line: Line) -> Iterator[Line]:
    for parameter, rates in line["rates"].items():
        for step, rate in enumerate(rates):
            yield {"iteration": line["iteration"], "parameter": parameter, "step": step, "rate": rate}


_ROWS = {"steps": ("tasks", _steps), "tasks": ("tasks", _tasks), "rates": ("rates", _rates)}
"""The frames of nested records: the kind of line, and its rows."""


def read_run(path: str | Path, earlier: Run | None = None, most: int | None = None) -> Run:
    """Read a run directory. A run that still trains, or has an incomplete last line, is read as far as it is complete.

    Args:
        path: the run directory.
        earlier: an earlier result for the same directory and the same ``most``: its lines are not read again, unless
            the record was restarted or truncated.
        most: if a kind has more than twice as many lines, keep about this many of them, evenly spaced, with the first,
            the last and the best; by default keep all. A million lines then take a second and little memory.

    Raises:
        UnreadableRunError: there is no such directory, it has no run or a damaged one, or a later version wrote it.
    """
    path = Path(path)
    try:
        return _read_run(path, earlier, most)
    except OSError as error:
        raise UnreadableRunError(f"{shown(path)} cannot be read: {shown(error)}") from error


def _read_run(path: Path, earlier: Run | None, most: int | None) -> Run:
    name, metrics = shown(path), path / "metrics.jsonl"
    if not path.is_dir():
        raise UnreadableRunError(f"{name} {'is a file, not a run directory' if path.exists() else 'does not exist'}")
    if not metrics.is_file():
        why = "it has no metrics.jsonl" if any(path.iterdir()) else "it is empty"
        why = "its metrics.jsonl is not a regular file" if os.path.lexists(metrics) else why
        raise UnreadableRunError(f"{name} is not a run directory: {why}")
    try:
        record = read_record(metrics, earlier.record if earlier else None, most)
    except EndlessLineError as error:
        raise UnreadableRunError(f"{name} is damaged: {shown(error)}") from error
    lines = record.lines()
    if not lines:
        damaged = f": all {record.damaged:,} lines of its metrics.jsonl are damaged" if record.damaged else ""
        raise UnreadableRunError(
            f"{name} is damaged{damaged}" if damaged else
            f"{name} has no record yet: its metrics.jsonl has no complete line"
        )  # fmt: skip
    if (schema := lines.get("run", [{}])[0].get("schema", 0)) > SCHEMA:
        raise UnreadableRunError(
            f"{name} was recorded by a later version (schema {schema}, this one reads up to {SCHEMA}): update innerloop"
        )
    config = _loaded(path / "config.toml", parse, _wrong_config)
    results = _loaded(path / "results.json", json.loads, _wrong_results)
    return Run(path, lines, config, results, record.damaged, record)


def _loaded(path: Path, reader: Callable[[str], Any], wrong: Callable[[Any], str]) -> dict[str, Any]:
    """Read a file of the run directory; return an empty dict if it does not exist."""
    if not os.path.lexists(path):
        return {}
    try:
        content = reader(read_text(path))
        why = wrong(content) if isinstance(content, dict) else "it is not the file of a run"
    except (ValueError, RecursionError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
    if why:
        raise UnreadableRunError(f"{shown(path.parent)} is damaged: {path.name}: {shown(why)}")
    return dict(content)


def _wrong_config(config: Any) -> str:
    """Return what is wrong with the parts of a recipe that are shown; empty if nothing is."""
    for name in ("tasks", "model", "learner", "train", "evaluate"):
        if not isinstance(config.get(name, {}), dict):
            return f"{name} = {config[name]!r} is not a section"
    for name, key, check in (("train", "iterations", whole), ("learner", "lr", number)):
        if not check(value := config.get(name, {}).get(key, 0)):
            return f"{name}.{key} = {value!r} is not a number"
    return ""


def _wrong_results(results: Any) -> str:
    """Return what is wrong with the parts of results that are shown; empty if nothing is."""
    for name, check in (("iterations", whole), ("environment", table(SETTING)), ("test", kind_of(dict, type(None)))):
        if name in results and not check(results[name]):
            return f"{name} has another type"
    test = results.get("test") or {}
    wrong = [name for name, check in JUDGED.items() if name in test and not check(test[name])]
    if wrong or not fits_judgement(test):
        return f"{wrong[0] if wrong else 'steps_ci95'} of the test has another type or length"
    return ""
