"""Reading what a run wrote down. Everything that shows a run goes through `read_run`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..config import Config, parse
from ..metrics import Scale
from ..streams import shown
from ..train.record import SCHEMA

if TYPE_CHECKING:
    import pandas as pd

Line = dict[str, Any]
Frame = Literal["train", "validation", "steps", "tasks", "rates"]


class UnreadableRunError(ValueError):
    """A directory that holds no run, or one that cannot be read. The message is one line, and names the directory."""


@dataclass(frozen=True)
class Run:
    """What a run directory holds, as far as it was written.

    Attributes:
        path: the run directory.
        lines: those of ``metrics.jsonl`` by kind, in the order of iterations; see RECORD.md.
        config: the resolved recipe, empty for a run without one.
        results: what ``results.json`` has, empty while the run goes on.
        damaged: how many lines could not be read, and are left out; a last one that was cut off is not counted.
        place: which file the lines are of, and how far it was read, so that a later reading can go on from there.
    """

    path: Path
    lines: dict[str, list[Line]] = field(repr=False)
    config: Config = field(repr=False)
    results: dict[str, Any] = field(repr=False)
    damaged: int = 0
    place: tuple[int, int] = field(default=(-1, 0), repr=False)

    @property
    def name(self) -> str:
        """The name of the directory, safe to show."""
        return shown(self.path.resolve().name)

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
        """The iterations and the values of a field, where lines of the kind have it. Numbers that were not finite are
        not a number again."""
        found = [line for line in self.lines.get(kind, ()) if name in line]
        values = [float("nan") if line[name] is None else line[name] for line in found]
        return [line["iteration"] for line in found], values

    def frame(self, what: Frame = "train") -> pd.DataFrame:
        """A pandas data frame, a row for every

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


_NUMBER = (int, float, type(None))
_FIELDS: dict[str, dict[str, Any]] = {
    "run": {"schema": int},
    "train": {**dict.fromkeys(("loss", "grad_norm", "lr", "tasks_per_second", "seconds"), _NUMBER), "steps": list},
    "tasks": {"steps": list, "after": list, "support_loss": list, "query_loss": list},
    "rates": {"rates": dict},
    "validation": {"metric": str, "mean": _NUMBER, "ci95": _NUMBER, "num_tasks": int, "transductive": bool},
}
"""What every line of a kind has, and of which types; the others are damaged."""


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


def read_run(path: str | Path, earlier: Run | None = None) -> Run:
    """What a run directory holds. A run that goes on, or was cut off within a line, is read as far as it came.

    Args:
        path: the run directory.
        earlier: of the same directory: what was read then is not read again, unless the record was begun or cut anew.

    Raises:
        UnreadableRunError: there is no such directory, it holds no run, or a later version wrote it.
    """
    path = Path(path)
    if not path.is_dir():
        raise UnreadableRunError(f"{path} is {'a file, not a run directory' if path.exists() else 'not there'}")
    metrics = path / "metrics.jsonl"
    if not metrics.is_file():
        why = "it has no metrics.jsonl" if any(path.iterdir()) else "it is empty"
        raise UnreadableRunError(f"{path} is not a run directory: {why}")
    lines, damaged, place = _lines(metrics, earlier)
    if not lines:
        raise UnreadableRunError(f"{path} has no record yet: its metrics.jsonl has no whole line")
    if (schema := lines.get("run", [{}])[0].get("schema", 0)) > SCHEMA:
        raise UnreadableRunError(
            f"{path} was recorded by a later version (schema {schema}, this one knows up to {SCHEMA}): update innerloop"
        )
    config = _loaded(path / "config.toml", parse)
    results = _loaded(path / "results.json", json.loads)
    if not isinstance(config.get("train", {}), dict):
        raise UnreadableRunError(f"{path} is damaged: its config.toml is not of a run")
    return Run(path, lines, config, results, damaged, place)


def _loaded(path: Path, reader: Callable[[str], Any]) -> dict[str, Any]:
    """A file of the run directory, empty if it is not there."""
    if not path.exists():
        return {}
    try:
        found = reader(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UnreadableRunError(f"{path.parent} is damaged: {path.name}: {str(error).splitlines()[0]}") from error
    if not isinstance(found, dict):
        raise UnreadableRunError(f"{path.parent} is damaged: its {path.name} is not of a run")
    return found


def _lines(metrics: Path, earlier: Run | None = None) -> tuple[dict[str, list[Line]], int, tuple[int, int]]:
    """By kind, how many were damaged, and the place after the last whole one."""
    found: dict[str, list[Line]] = {}
    damaged = 0
    with metrics.open("rb") as file:
        about = os.fstat(file.fileno())
        end = 0
        if earlier and earlier.place[0] == about.st_ino and earlier.place[1] <= about.st_size:
            found = {kind: list(lines) for kind, lines in earlier.lines.items()}
            damaged, end = earlier.damaged, earlier.place[1]
            file.seek(end)
        for line in file:
            try:
                entry = json.loads(line)
            except ValueError:
                entry = None
            if not line.endswith(b"\n"):
                break  # it is being written, or was cut off
            end += len(line)
            if _sound(entry):
                found.setdefault(entry["kind"], []).append(entry)
            else:
                damaged += 1
    return found, damaged, (about.st_ino, end)


def _sound(entry: Any) -> bool:
    """Whether a line has what every line of its kind has."""
    if not isinstance(entry, dict) or type(entry.get("iteration")) is not int or not isinstance(entry.get("kind"), str):
        return False
    needed = _FIELDS.get(entry["kind"], {})
    return all(name in entry and isinstance(entry[name], kinds) for name, kinds in needed.items())
