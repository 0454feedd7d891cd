"""Reading what a run wrote down. Everything that shows a run goes through `read_run`."""

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
    """A directory that holds no run, or one that cannot be read. The message is one line, and names the directory."""


@dataclass(frozen=True)
class Run:
    """What a run directory holds, as far as it was written.

    Attributes:
        path: the run directory.
        lines: those of ``metrics.jsonl`` by kind, in the order of iterations; see docs/record.md.
        config: the resolved recipe, empty for a run without one.
        results: what ``results.json`` has, empty while the run goes on.
        damaged: how many lines could not be read, and are left out; a last one that was cut off is not counted.
        record: how far the record was read, so that a later reading can go on from there.
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
        """What of the record is not shown, in words; empty if all of it is."""
        told = [f"{self.damaged:,} damaged lines left out"] if self.damaged else []
        told += [f"one line of {self.record.every:,} read"] if self.record.every > 1 else []
        return ", ".join(told)

    @property
    def finished(self) -> bool:
        """Whether all iterations were done, and, of a run by a recipe, its test too."""
        return self.results.get("iterations") == self.iteration and ("test" in self.results or not self.config)

    @property
    def iteration(self) -> int:
        """The last iteration that there is a line of."""
        return max((lines[-1]["iteration"] for lines in self.lines.values() if lines), default=0)

    @property
    def best(self) -> Line | None:
        """The best validation if there was any, by the direction of its metric."""
        found = [line for line in self.lines.get("validation", ()) if line["mean"] is not None]
        if not found:
            return None
        sign = 1 if Scale.read(found[0]).higher_is_better else -1
        return max(found, key=lambda line: sign * line["mean"])

    def column(self, kind: str, name: str) -> tuple[list[int], list[Any]]:
        """The iterations and the values of a field, where records of the kind have it.

        Values that were not finite are read as NaN.
        """
        found = [line for line in self.lines.get(kind, ()) if name in line]
        values = [float("nan") if line[name] is None else line[name] for line in found]
        return [line["iteration"] for line in found], values

    def frame(self, what: Frame = "train") -> pd.DataFrame:
        """A pandas data frame of one kind of record.

        It has a row for every

        - ``"train"``, ``"validation"``: line of that kind;
        - ``"steps"``: inner step: iteration, task, epoch, step, loss;
        - ``"tasks"``: task and number of steps after which it was judged: iteration, task, after, and losses and
          accuracies on support and query set;
        - ``"rates"``: learned rate: iteration, parameter, step, rate.

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
            raise ValueError(f'a frame is "train", "validation", "steps", "tasks" or "rates", got {what!r}')
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
"""Frames of what is nested: the kind of line, and its rows."""


def read_run(path: str | Path, earlier: Run | None = None, most: int | None = None) -> Run:
    """What a run directory holds. A run that goes on, or was cut off within a line, is read as far as it came.

    Args:
        path: the run directory.
        earlier: of the same directory, read in the same way: what was read then is not read again, unless the record
            was begun or cut anew.
        most: of a record with more than twice as many lines of a kind, keep about so many, evenly, with the first, the
            last and the best; all if not given. A million lines then take a second and little memory.

    Raises:
        UnreadableRunError: there is no such directory, it holds no run, or one that is damaged, or a later version
            wrote it.
    """
    path = Path(path)
    try:
        return _read_run(path, earlier, most)
    except OSError as error:
        raise UnreadableRunError(f"{shown(path)} cannot be read: {shown(error)}") from error


def _read_run(path: Path, earlier: Run | None, most: int | None) -> Run:
    name, metrics = shown(path), path / "metrics.jsonl"
    if not path.is_dir():
        raise UnreadableRunError(f"{name} is {'a file, not a run directory' if path.exists() else 'not there'}")
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
            f"{name} has no record yet: its metrics.jsonl has no whole line"
        )  # fmt: skip
    if (schema := lines.get("run", [{}])[0].get("schema", 0)) > SCHEMA:
        raise UnreadableRunError(
            f"{name} was recorded by a later version (schema {schema}, this one knows up to {SCHEMA}): update innerloop"
        )
    config = _loaded(path / "config.toml", parse, _wrong_config)
    results = _loaded(path / "results.json", json.loads, _wrong_results)
    return Run(path, lines, config, results, record.damaged, record)


def _loaded(path: Path, reader: Callable[[str], Any], wrong: Callable[[Any], str]) -> dict[str, Any]:
    """A file of the run directory, empty if it is not there."""
    if not os.path.lexists(path):
        return {}
    try:
        found = reader(read_text(path))
        why = wrong(found) if isinstance(found, dict) else "it is not of a run"
    except (ValueError, RecursionError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
    if why:
        raise UnreadableRunError(f"{shown(path.parent)} is damaged: {path.name}: {shown(why)}")
    return dict(found)


def _wrong_config(config: Any) -> str:
    """What is wrong with a recipe, of what is shown of it; empty if nothing is."""
    for name in ("tasks", "model", "learner", "train", "evaluate"):
        if not isinstance(config.get(name, {}), dict):
            return f"{name} = {config[name]!r} is not a section"
    for name, key, check in (("train", "iterations", whole), ("learner", "lr", number)):
        if not check(value := config.get(name, {}).get(key, 0)):
            return f"{name}.{key} = {value!r} is not a number"
    return ""


def _wrong_results(results: Any) -> str:
    """What is wrong with results, of what is shown of them; empty if nothing is."""
    for name, check in (("iterations", whole), ("environment", table(SETTING)), ("test", kind_of(dict, type(None)))):
        if name in results and not check(results[name]):
            return f"{name} is of another type"
    test = results.get("test") or {}
    wrong = [name for name, check in JUDGED.items() if name in test and not check(test[name])]
    if wrong or not fits_judgement(test):
        return f"{wrong[0] if wrong else 'steps_ci95'} of the test is of another type or length"
    return ""
