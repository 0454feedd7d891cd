"""Plans in the user's cache folder, one file for each: how a learner runs fastest on this machine."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from .disk import cache_folder, read_text, writing

VERSION = 1
"""The version of the format and of the measurements; files of another version are not read."""
MOST = 1000
"""The number of plans in the cache folder; the oldest are removed."""
LIMIT = 2**16
"""The largest size of a file in bytes."""
LARGEST = 2**31


def valid(decision: Any) -> bool:
    """Return whether a value from a file is a valid decision."""
    if not isinstance(decision, dict) or not isinstance(decision.get("why", ""), str):
        return False
    numbers = {key: value for key, value in decision.items() if type(value) in (int, float) and 0 <= value < LARGEST}
    if "compiled" in decision:
        return type(decision["compiled"]) is bool and "enough" in numbers
    counts = numbers.get("size"), numbers.get("threads")
    return all(type(count) is int for count in counts) and counts[1] != 0


def folder() -> Path:
    """Return the folder of plans."""
    return cache_folder() / "plans"


def entries() -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the plans in the cache folder, with their paths, the oldest first."""
    for path in sorted(folder().glob("*.json"), key=_age):
        if (entry := read(path)) is not None:
            yield path, entry


def clear() -> int:
    """Remove all plans from the cache folder; return their number."""
    paths = list(folder().glob("*.json"))
    for path in paths:
        path.unlink(missing_ok=True)
    return len(paths)


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def read(path: Path) -> dict[str, Any] | None:
    """Return a plan, or ``None`` if there is none that can be used."""
    try:
        entry = json.loads(read_text(path, LIMIT))
    except (OSError, ValueError, RecursionError):
        return None
    usable = isinstance(entry, dict) and entry.get("version") == VERSION and valid(entry.get("decision"))
    return entry if usable else None


def write(path: Path, entry: dict[str, Any], replace: bool) -> dict[str, Any]:
    """Store a plan, unless there is one already.

    Returns:
        The stored plan. If the folder cannot be written to, nothing is stored and every learner measures.
    """
    text = json.dumps(entry, indent=1).encode()
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not replace and (before := _first(path, text)) is not None:
            return before
        if replace or read(path) is None:
            with writing(path) as file:
                file.write(text)
        if path.name.startswith("0"):  # only occasionally
            for old in sorted(path.parent.glob("*.json"), key=_age)[:-MOST]:
                old.unlink(missing_ok=True)
    return entry


def _first(path: Path, text: bytes) -> dict[str, Any] | None:
    """Write a new file and return ``None``; if another process was first, return its plan if that can be used."""
    temporary = path.with_name(f".{path.stem}-{os.getpid()}-{time.monotonic_ns()}")
    try:
        temporary.write_bytes(text)
        os.link(temporary, path)  # fails if the file exists; it is never incomplete
    except OSError:
        return read(path)
    finally:
        temporary.unlink(missing_ok=True)
    return None
