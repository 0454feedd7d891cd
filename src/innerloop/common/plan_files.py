"""The plans in a folder of the user's: one file for each, which says how some learner runs quickest on this machine."""

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
"""Of the files, and of what measuring means: files of another version are not read."""
MOST = 1000
"""Plans that are kept in the user's folder. The oldest go."""
LIMIT = 2**16
"""Bytes of one."""
LARGEST = 2**31


def valid(decision: Any) -> bool:
    """Whether something from a file is a decision."""
    if not isinstance(decision, dict) or not isinstance(decision.get("why", ""), str):
        return False
    numbers = {key: value for key, value in decision.items() if type(value) in (int, float) and 0 <= value < LARGEST}
    if "compiled" in decision:
        return type(decision["compiled"]) is bool and "enough" in numbers
    counts = numbers.get("size"), numbers.get("threads")
    return all(type(count) is int for count in counts) and counts[1] != 0


def folder() -> Path:
    """Where plans are kept."""
    return cache_folder() / "plans"


def entries() -> Iterator[tuple[Path, dict[str, Any]]]:
    """The plans in the user's folder, with what they are for."""
    for path in sorted(folder().glob("*.json"), key=_age):
        if (entry := read(path)) is not None:
            yield path, entry


def clear() -> int:
    """Remove all plans from the user's folder; how many there were."""
    found = list(folder().glob("*.json"))
    for path in found:
        path.unlink(missing_ok=True)
    return len(found)


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def read(path: Path) -> dict[str, Any] | None:
    """A plan, or ``None`` if there is none that can be used."""
    try:
        entry = json.loads(read_text(path, LIMIT))
    except (OSError, ValueError, RecursionError):
        return None
    usable = isinstance(entry, dict) and entry.get("version") == VERSION and valid(entry.get("decision"))
    return entry if usable else None


def write(path: Path, entry: dict[str, Any], replace: bool) -> dict[str, Any]:
    """Keep a plan, unless there is one.

    Returns:
        What is kept. A folder that cannot be written to keeps nothing, and every learner measures.
    """
    text = json.dumps(entry, indent=1).encode()
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not replace and (before := _first(path, text)) is not None:
            return before
        if replace or read(path) is None:
            with writing(path) as file:
                file.write(text)
        if path.name.startswith("0"):  # now and then
            for old in sorted(path.parent.glob("*.json"), key=_age)[:-MOST]:
                old.unlink(missing_ok=True)
    return entry


def _first(path: Path, text: bytes) -> dict[str, Any] | None:
    """Write a file that is not there yet; else what another process wrote first, if that can be used."""
    temporary = path.with_name(f".{path.stem}-{os.getpid()}-{time.monotonic_ns()}")
    try:
        temporary.write_bytes(text)
        os.link(temporary, path)  # fails if the file is there; nobody sees half of it
    except OSError:
        return read(path)
    finally:
        temporary.unlink(missing_ok=True)
    return None
