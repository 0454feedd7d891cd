"""Read ``metrics.jsonl``: check its lines, and read a long record with little memory.

A line in which a value is missing or has another type is damaged and left out, so that code that shows a run can rely
on what it reads.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

Line = dict[str, Any]
Check = Callable[[Any], bool]

MOST = 2_000
"""The number of lines of a kind that are at least kept of a longer record, if they are small."""
SIZE = 8 * 2**20
"""The most bytes of lines of a kind that are kept of a longer record."""
MANY, SIZE_OF_MANY = 1_000, 2**20
"""The most bytes that are kept of more than 1,000 lines of a kind, because no curve has more than 1,000 points."""
NEWLINE = 10
LONGEST = 64 * 2**20
"""The longest possible line of a record, in bytes."""
_KIND = re.compile(rb'\{"kind": ?"([a-z_]+)"')
_MEAN = re.compile(rb'"mean": ?(-?[0-9][0-9.eE+-]*)')


# -- checks of lines --------------------------------------------------------------------------------------------------


def whole(value: Any) -> bool:
    """Return whether a value is a whole number."""
    return type(value) is int and abs(value) < 2**63


def number(value: Any) -> bool:
    """Return whether a value is a finite number, or null, which stands for one that was not finite."""
    return value is None or whole(value) or (type(value) is float and math.isfinite(value))


def listed(check: Check) -> Check:
    """Return a check for a list of values that pass a check."""
    return lambda value: type(value) is list and all(map(check, value))


def numbers(value: Any) -> bool:
    """Return whether a value is a list of numbers that pass `number`."""
    if type(value) is not list:
        return False
    if all(type(one) is float for one in value) and math.isfinite(sum(value)):
        return True  # a fast path, because a record has thousands of lists
    return all(map(number, value))


def table(check: Check) -> Check:
    """Return a check for an object whose values pass a check."""
    return lambda value: type(value) is dict and all(map(check, value.values()))


def kind_of(*types: type) -> Check:
    """Return a check for a value of one of these types."""
    return lambda value: type(value) in types


def _tasks(line: Line) -> bool:
    """Return whether the lists of all tasks have the same lengths."""
    tasks, after = len(line["steps"]), len(line["after"])
    names = [f"{part}_{what}" for part in ("support", "query") for what in ("loss", "accuracy")]
    lists = [line[name] for name in names if name in line]
    return after > 0 and all(len(some) == tasks and all(len(one) == after for one in some) for some in lists)


NUMBERS, TEXT, TRUTH = numbers, kind_of(str), kind_of(bool)
SETTING = kind_of(str, int, float, bool, type(None))
JUDGED: Mapping[str, Check] = {
    "metric": TEXT, "higher_is_better": TRUTH, "unit": TEXT, "mean": number, "ci95": number, "num_tasks": whole,
    "steps": NUMBERS, "steps_ci95": NUMBERS, "transductive": TRUTH, "scores": NUMBERS, "seconds": number,
    "sets": table(table(number)),
}  # fmt: skip
"""The fields that a validation and a test may have."""
NEEDED: Mapping[str, tuple[str, ...]] = {
    "run": ("schema",),
    "train": ("loss", "grad_norm", "lr", "tasks_per_second", "seconds", "steps"),
    "tasks": ("steps", "after", "support_loss", "query_loss"),
    "rates": ("rates",),
    "validation": ("metric", "mean", "ci95", "num_tasks", "transductive"),
}
"""The fields that every line of a kind must have."""
FIELDS: Mapping[str, Mapping[str, Check]] = {
    "run": {"schema": whole, "tasks": whole, "steps": whole, "environment": table(SETTING)},
    "train": {
        **dict.fromkeys(("loss", "objective", "grad_norm", "lr", "tasks_per_second", "seconds", "memory_mib"), number),
        "steps": NUMBERS,
        "phases": table(lambda value: value is not None and number(value)),
    },
    "tasks": {
        "steps": listed(listed(NUMBERS)),
        "after": listed(whole),
        **dict.fromkeys(("support_loss", "query_loss", "support_accuracy", "query_accuracy"), listed(NUMBERS)),
        "grad_norms": table(number),
    },
    "rates": {"rates": lambda value: bool(value) and table(NUMBERS)(value) and all(value.values())},
    "validation": JUDGED,
}
"""The types of the fields of a line."""


def fits_judgement(line: Line) -> bool:
    """Return whether a validation or a test has an interval for every step."""
    steps, half = line.get("steps"), line.get("steps_ci95")
    return steps is None or half is None or len(steps) == len(half)


FITS: Mapping[str, Check] = {"tasks": _tasks, "validation": fits_judgement}


def sound(entry: Any) -> bool:
    """Return whether a line has all fields that its kind must have, and no field of another type."""
    if type(entry) is not dict or not whole(entry.get("iteration")) or type(entry.get("kind")) is not str:
        return False
    kind, checks = entry["kind"], FIELDS.get(entry["kind"], {})
    return (
        all(name in entry for name in NEEDED.get(kind, ()))
        and all(check(entry[name]) for name, check in checks.items() if name in entry)
        and (kind not in FITS or FITS[kind](entry))
    )


def parsed(line: bytes) -> Line | None:
    """Parse a line; return None if it is damaged."""
    try:
        entry: Line = json.loads(line, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None
    return entry if sound(entry) else None


# -- reading ----------------------------------------------------------------------------------------------------------


class EndlessLineError(ValueError):
    """A line is too long to be one of a record."""


@dataclass(slots=True)
class Series:
    """The lines of one kind; if there are many, a regular subset of them.

    Attributes:
        entries: the index, length and content of the lines that are kept.
        size: their total size in bytes.
        count: the number of lines so far, including damaged ones.
        every: one of this many lines is kept.
        extremes: the lines with the lowest and the highest mean, by index, so that the best is kept.
        last: the last line, whether or not it is kept.
        judged: whether the lines have means.
    """

    entries: list[tuple[int, int, Line]] = field(default_factory=list)
    size: int = 0
    count: int = 0
    every: int = 1
    extremes: dict[str, tuple[float, int, bytes]] = field(default_factory=dict)
    last: bytes = b""
    judged: bool = False

    def add(self, size: int, entry: Line, most: int | None) -> None:
        """Keep a line, and drop some earlier ones if there are too many."""
        self.entries.append((self.count, size, _compact(entry)))
        self.size += size
        while most is not None and len(self.entries) > 2 and self._too_much(most):
            self.every *= 2
            self.entries = [kept for kept in self.entries if kept[0] % self.every == 0]
            self.size = sum(size for _, size, _ in self.entries)

    def _too_much(self, most: int) -> bool:
        number = len(self.entries)
        return number > 2 * most or self.size > (SIZE_OF_MANY if number > MANY else SIZE)

    def note(self, line: bytes) -> None:
        """Remember a line with the lowest or the highest mean so far."""
        if match := _MEAN.search(line):
            mean = float(match[1])
            for name, sign in (("low", 1), ("high", -1)):
                if name not in self.extremes or sign * mean < sign * self.extremes[name][0]:
                    self.extremes[name] = mean, self.count, line

    def lines(self) -> list[Line]:
        """Return the kept lines in the order of the record."""
        kept = {index: entry for index, _, entry in self.entries}
        if self.every > 1:
            others = [(index, line) for _, index, line in self.extremes.values()] + [(self.count - 1, self.last)]
            for index, line in others:
                if index not in kept and (entry := parsed(line)) is not None:
                    kept[index] = entry
        return [kept[index] for index in sorted(kept)]


def _compact(entry: Line) -> Line:
    """Return the line with interned names, which saves memory."""
    return {sys.intern(name): _compact(value) if type(value) is dict else value for name, value in entry.items()}


@dataclass(slots=True)
class Record:
    """What has been read of a ``metrics.jsonl``, from where a later reading can continue.

    Attributes:
        series: the lines by kind.
        damaged: the number of parsed lines that were damaged.
        inode, end: the identity of the file, and how far it was read.
    """

    series: dict[str, Series] = field(default_factory=dict)
    damaged: int = 0
    inode: int = -1
    end: int = 0

    @property
    def every(self) -> int:
        """One of how many lines was kept, for the kind with the most lines."""
        return max((series.every for series in self.series.values()), default=1)

    def lines(self) -> dict[str, list[Line]]:
        """Return the lines by kind, without empty kinds."""
        return {kind: lines for kind, series in self.series.items() if (lines := series.lines())}


def read_record(path: Path, earlier: Record | None = None, most: int | None = None) -> Record:
    """Read a record to its last complete line.

    Args:
        path: the file.
        earlier: an earlier result, from where reading continues, unless the file was restarted or truncated.
        most: keep about this many lines of a kind, evenly spaced, instead of all.

    Raises:
        EndlessLineError: it has a line that is too long.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        about = os.fstat(file.fileno())
        if earlier and earlier.inode == about.st_ino and earlier.end <= about.st_size and _ends(file, earlier.end):
            series = {kind: replace(one, entries=list(one.entries), extremes=dict(one.extremes))
                      for kind, one in earlier.series.items()}  # fmt: skip
            record = replace(earlier, series=series)
        else:
            record = Record(inode=about.st_ino)
        file.seek(record.end)
        _read(file, record, most, path)
    return record


def _read(file: IO[bytes], record: Record, most: int | None, path: Path) -> None:
    known: dict[bytes, Series] = {}  # by the beginning of lines, so that not every line has to be parsed
    for line in iter(partial(file.readline, LONGEST), b""):
        if line[-1] != NEWLINE:
            if len(line) >= LONGEST:
                raise EndlessLineError(f"{path} has a line of more than {LONGEST:,} bytes")
            return  # it is still being written, or incomplete
        record.end += len(line)
        series = known.get(line[: line.find(b",")])
        if series is None or not series.count % series.every:
            series = _parse_and_keep(line, series, record, most, known)
            if series is None:
                continue
        series.last = line
        if series.judged and most is not None:
            series.note(line)
        series.count += 1


def _parse_and_keep(
    line: bytes, series: Series | None, record: Record, most: int | None, known: dict[bytes, Series]
) -> Series | None:
    """Parse a line and keep it; return its series, or None if it is damaged."""
    entry = parsed(line)
    if entry is None:
        record.damaged += 1
        if series is not None:
            series.count += 1
        return None
    series = record.series.setdefault(entry["kind"], Series(judged=entry["kind"] == "validation"))
    begin = line[: line.find(b",")]
    if (kind := _KIND.fullmatch(begin)) and kind[1].decode() == entry["kind"]:
        known[begin] = series
    if not series.count % series.every:
        series.add(len(line), entry, most)
    return series


def _ends(file: IO[bytes], end: int) -> bool:
    """Return whether a line ends at this position."""
    if end == 0:
        return True
    file.seek(end - 1)
    return file.read(1) == b"\n"
