"""Checkpoints of a run: complete states to resume from, and the best weights.

Files are written under a temporary name, flushed to disk and then renamed (`innerloop.common.disk`), so a name always
belongs to a complete file. They are ``torch.save`` archives, which load with ``weights_only=True`` and run no code,
followed by the SHA-256 of the archive, which detects damaged files.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import pickle
import re
import stat
import warnings
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from ..common.disk import refuse_link, subfolder, writing
from ..common.ranges import require_at_least

FORMAT = 1
DIGEST = hashlib.sha256().digest_size
END = b"PK\x05\x06"
TYPES: dict[str, type | tuple[type, ...]] = {
    "iteration": int, "best": list, "learner": dict, "optimizer": dict, "tasks": torch.Tensor, "random": torch.Tensor,
    "config": dict, "plans": dict, "skipped": int, "environment": dict, "phases": dict, "seconds": (int, float),
    "cuda_random": torch.Tensor, "source": dict,
}  # fmt: skip
"""The types of the entries that a checkpoint may have."""
STATE, BEST = "state-{:08d}.pt", "best-{:08d}.pt"


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write tensors and plain values, atomically."""
    archive = io.BytesIO()
    torch.save({"format": FORMAT, **state}, archive)
    # The buffer is released here, also after an error: Python 3.12.1 crashes if garbage collection finds it.
    with archive.getbuffer() as content, writing(path) as file:
        file.write(content)
        file.write(hashlib.sha256(content).digest())


def load(path: Path) -> dict[str, Any]:
    """Read a file of `save`, with tensors on the CPU, without running code from it.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is damaged, from another program, or has another format.
    """
    try:
        content = memoryview(_read(path))
        archive, digest = content[:-DIGEST], content[-DIGEST:]
        if hashlib.sha256(archive).digest() != digest:
            raise ValueError("its checksum does not match: it is damaged, cut off, or not an innerloop checkpoint")
        state = torch.load(io.BytesIO(archive), map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # a file of another program can fail in any way
        raise ValueError(f"{path} is not a usable checkpoint: {_reason(error)}") from error
    return state


def _checked(path: Path, *needed: str) -> dict[str, Any]:
    """Load a file and check its entries, since another program could write a matching checksum.

    Raises:
        FileNotFoundError, ValueError: as `load`, or an entry is missing or of another type.
    """
    state = load(path)
    wrong = [f"its {key} is missing" for key in needed if key not in state]
    wrong += [
        f"its {key} has the type {type(state[key]).__name__}"
        for key, kind in TYPES.items()
        if key in state and not isinstance(state[key], kind)
    ]
    if not wrong and not all(map(_is_entry, state.get("best", []))):
        wrong = ["its best is not a list of iterations and scores"]
    if wrong:
        raise ValueError(f"{path} is not a usable checkpoint: {wrong[0]}")
    return state


def _is_entry(entry: Any) -> bool:
    """Return whether a value describes one of the best weights."""
    if not isinstance(entry, dict) or not {"iteration", "score", "ci95"} <= entry.keys():
        return False
    numbers = isinstance(entry["score"], (int, float)) and isinstance(entry["ci95"], (int, float))
    return numbers and isinstance(entry["iteration"], int) and entry["iteration"] >= 0


def _read(path: Path) -> bytes:
    """Read a file if it ends like an archive with a digest, since other files may be too large for memory."""
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is not a regular file")
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - DIGEST - len(END) - 18, 0))  # the record at the end of an archive has 22 bytes
        if not file.read(len(END)) == END:
            raise ValueError("its checksum does not match: it is damaged, cut off, or not an innerloop checkpoint")
        file.seek(0)
        return file.read()


def _reason(error: Exception) -> str:
    """Return what is wrong with a file on one line, without torch's advice to run the code in it."""
    text = str(error)
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in text:
        if found := re.search(r"GLOBAL ([\w.]+)", text):
            return (
                f"it would run {found[1]}, which no innerloop checkpoint does: it may be malicious and was not opened; "
                "delete it"
            )
        return "it contains other things than tensors and plain values, so it was not opened"
    return (text.splitlines() or [type(error).__name__])[0]


class Checkpoints:
    """The checkpoints of one run: its last two complete states, and the weights of its best validations.

    Args:
        run: the run directory; the files are in its folder ``checkpoints``.
        keep_best: the number of best weights to keep.

    Attributes:
        best: a list with ``{"iteration", "score", "ci95"}`` of each of the best weights, best first.
    """

    def __init__(self, run: Path, keep_best: int = 3) -> None:
        require_at_least(1, keep_best=keep_best)
        self.directory, self.keep_best = run / "checkpoints", keep_best
        self.best: list[dict[str, Any]] = []
        self._before: list[dict[str, Any]] = []

    def make(self) -> None:
        """Make the folder.

        Raises:
            OSError: it is a symbolic link, or cannot be created.
        """
        subfolder(self.directory.parent, self.directory.name)

    def iterations(self) -> list[int]:
        """Return the iterations with a complete state, in ascending order."""
        stems = (path.stem.removeprefix("state-") for path in self.directory.glob("state-*.pt"))
        return sorted(int(stem) for stem in stems if stem.isdecimal())

    def save(self, state: Mapping[str, Any]) -> None:
        """Write a complete state, named by its ``"iteration"``, and delete files that are no longer needed."""
        self.make()
        save(self.directory / STATE.format(state["iteration"]), {**state, "best": self.best})
        for iteration in self.iterations():
            if iteration > state["iteration"]:  # from an earlier session of this run, which is being repeated
                (self.directory / STATE.format(iteration)).unlink()
        self.drop_states(state["iteration"])
        # The previous state may be needed as a fallback, so the weights in its list stay, too.
        wanted = {BEST.format(entry["iteration"]) for entry in (*self.best, *self._before)}
        for path in self.directory.glob("best-*.pt"):
            if path.name not in wanted:
                path.unlink()
        self._before = list(self.best)

    def drop_states(self, present: int) -> None:
        """Delete the states before the present iteration, except the latest of them.

        A run that was killed while it saved may have left several.
        """
        earlier = [iteration for iteration in self.iterations() if iteration < present]
        for iteration in earlier[:-1]:
            (self.directory / STATE.format(iteration)).unlink()

    def newest(self) -> dict[str, Any]:
        """Return the newest complete state that can be read; warn for each state that cannot.

        Raises:
            FileNotFoundError: there is no state.
            ValueError: no state can be read.
        """
        iterations = self.iterations()
        if not iterations:
            raise FileNotFoundError(f"no checkpoint in {self.directory}")
        for iteration in reversed(iterations):
            try:
                path = self.directory / STATE.format(iteration)
                state = _checked(path, "iteration", "best")
                if state["iteration"] != iteration:
                    raise ValueError(f"{path} is not a usable checkpoint: it holds iteration {state['iteration']}")
            except ValueError as error:
                then = "falling back to the previous one" if iteration > iterations[0] else "there is no earlier one"
                warnings.warn(f"{error}; {then}", stacklevel=3)
                continue
            self.best, self._before = list(state["best"]), list(state["best"])
            return state
        raise ValueError(
            f"no usable checkpoint in {self.directory}: all of them are damaged; move it away, or use another directory"
        )

    def consider(self, weights: Mapping[str, Any], entry: dict[str, Any], higher_is_better: bool) -> bool:
        """Save the weights if they are among the best so far; return whether they are the best.

        Args:
            weights: the learner's state.
            entry: ``{"iteration", "score", "ci95"}``; entries with a score that is not finite are never kept.
            higher_is_better: the order of scores.
        """

        def rank(entry: dict[str, Any]) -> tuple[float, int]:
            return (-entry["score"] if higher_is_better else entry["score"], entry["iteration"])

        finite = (one for one in (*self.best, entry) if math.isfinite(one["score"]))
        table = sorted(finite, key=rank)[: self.keep_best]
        if entry in table:
            refuse_link(self.directory)
            save(self.directory / BEST.format(entry["iteration"]), {"learner": weights, **entry})
        self.best = table
        return bool(table) and table[0] is entry

    def weights(self) -> dict[str, Any]:
        """Return the best weights that can be read, ``{"iteration", "learner", ...}``, or the newest state."""
        newest = self.newest()
        return next(self._readable(), newest)

    def best_weights(self, number: int) -> list[dict[str, Any]]:
        """Return the ``number`` best weights, best first.

        Raises:
            ValueError: fewer weights can be read.
        """
        self.newest()
        weights = list(islice(self._readable(), number))
        if len(weights) < number:
            raise ValueError(
                f"{self.directory} has the weights of {len(weights)} validations, not of {number}: request fewer, or "
                f"train with train.keep_best = {number} and validate at least that many times"
            )
        return weights

    def _readable(self) -> Iterator[dict[str, Any]]:
        for entry in self.best:
            try:
                yield _checked(self.directory / BEST.format(entry["iteration"]), "learner")
            except (ValueError, FileNotFoundError) as error:
                warnings.warn(f"{error}; taking the next best", stacklevel=4)


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the keys, as ``section.key``, that differ between two configurations, except the description."""
    first, second = _flat(one), _flat(other)
    keys = sorted(first.keys() | second.keys(), key=list(first | second).index)
    return [key for key in keys if key != "description" and first.get(key) != second.get(key)]


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    flat = {key: value for key, value in config.items() if not isinstance(value, dict)}
    for name, section in config.items():
        if isinstance(section, dict):
            flat |= {f"{name}.{key}": value for key, value in section.items()}
    return flat


def holds_run(run: Path) -> bool:
    """Return whether a directory holds (part of) a run, which must not be overwritten."""
    return any(os.path.lexists(run / name) for name in ("checkpoints", "metrics.jsonl"))
