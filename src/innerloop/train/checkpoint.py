"""What a run leaves behind so that nothing is lost: complete states to resume from, and the best weights.

Files are written beside their final name, flushed to the disk and then renamed (`innerloop.disk`), so a name always
holds a whole file. They are ``torch.save`` archives, which load with ``weights_only=True`` and run no code, followed by
the SHA-256 of the archive, which tells a damaged file.
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
    """Write tensors and plain values, all or nothing."""
    archive = io.BytesIO()
    torch.save({"format": FORMAT, **state}, archive)
    # The buffer is released here, also after an error: Python 3.12.1 crashes where garbage collection finds it.
    with archive.getbuffer() as content, writing(path) as file:
        file.write(content)
        file.write(hashlib.sha256(content).digest())


def load(path: Path) -> dict[str, Any]:
    """Read what `save` wrote, tensors on the CPU. Runs no code of the file.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is damaged, foreign, or of another format.
    """
    try:
        content = memoryview(_read(path))
        archive, digest = content[:-DIGEST], content[-DIGEST:]
        if hashlib.sha256(archive).digest() != digest:
            raise ValueError("its checksum does not match: it is damaged, cut off, or no checkpoint of innerloop")
        state = torch.load(io.BytesIO(archive), map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # a file that is not ours can fail in any way
        raise ValueError(f"{path} is not a usable checkpoint: {_reason(error)}") from error
    return state


def _checked(path: Path, *needed: str) -> dict[str, Any]:
    """Load a file, and check what is in it: another program can write a fitting checksum, too.

    Raises:
        FileNotFoundError, ValueError: as `load`, or something is missing or of another type.
    """
    state = load(path)
    wrong = [f"its {key} is missing" for key in needed if key not in state]
    wrong += [
        f"its {key} is of type {type(state[key]).__name__}"
        for key, kind in TYPES.items()
        if key in state and not isinstance(state[key], kind)
    ]
    if not wrong and not all(map(_is_entry, state.get("best", []))):
        wrong = ["its best is not a list of iterations and scores"]
    if wrong:
        raise ValueError(f"{path} is not a usable checkpoint: {wrong[0]}")
    return state


def _is_entry(entry: Any) -> bool:
    """Whether a value describes one of the best weights."""
    if not isinstance(entry, dict) or not {"iteration", "score", "ci95"} <= entry.keys():
        return False
    numbers = isinstance(entry["score"], (int, float)) and isinstance(entry["ci95"], (int, float))
    return numbers and isinstance(entry["iteration"], int) and entry["iteration"] >= 0


def _read(path: Path) -> bytes:
    """The content of a file that ends as an archive and its digest do. Another one may be too large for the memory."""
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is not a regular file")
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - DIGEST - len(END) - 18, 0))  # the record at the end of an archive has 22 bytes
        if not file.read(len(END)) == END:
            raise ValueError("its checksum does not match: it is damaged, cut off, or no checkpoint of innerloop")
        file.seek(0)
        return file.read()


def _reason(error: Exception) -> str:
    """What is wrong with a file, on one line, and without torch's advice to run the code in it."""
    text = str(error)
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in text:
        if found := re.search(r"GLOBAL ([\w.]+)", text):
            return (
                f"it asks to run {found[1]}, which no checkpoint of innerloop does: it may be hostile, and was not "
                "opened; delete it"
            )
        return "it holds something else than tensors and plain values, and was not opened"
    return (text.splitlines() or [type(error).__name__])[0]


class Checkpoints:
    """The checkpoints of one run: its last two complete states, and the weights of its best validations.

    Args:
        run: the run directory; the files are in its ``checkpoints``.
        keep_best: how many best weights to keep.

    Attributes:
        best: a table, best first: ``{"iteration", "score", "ci95"}`` of each of the best weights.
    """

    def __init__(self, run: Path, keep_best: int = 3) -> None:
        require_at_least(1, keep_best=keep_best)
        self.directory, self.keep_best = run / "checkpoints", keep_best
        self.best: list[dict[str, Any]] = []
        self._before: list[dict[str, Any]] = []

    def make(self) -> None:
        """Make the folder.

        Raises:
            OSError: it is a symbolic link, or cannot be made.
        """
        subfolder(self.directory.parent, self.directory.name)

    def iterations(self) -> list[int]:
        """At which iterations there is a complete state, in ascending order."""
        stems = (path.stem.removeprefix("state-") for path in self.directory.glob("state-*.pt"))
        return sorted(int(stem) for stem in stems if stem.isdecimal())

    def save(self, state: Mapping[str, Any]) -> None:
        """Write a complete state, named by its ``"iteration"``; then drop what is no longer needed."""
        self.make()
        save(self.directory / STATE.format(state["iteration"]), {**state, "best": self.best})
        for iteration in self.iterations():
            if iteration > state["iteration"]:  # of a life of this run that is being repeated
                (self.directory / STATE.format(iteration)).unlink()
        self.drop_states(state["iteration"])
        # The state before this one may yet be the one to fall back to, so what its table names stays as well.
        wanted = {BEST.format(entry["iteration"]) for entry in (*self.best, *self._before)}
        for path in self.directory.glob("best-*.pt"):
            if path.name not in wanted:
                path.unlink()
        self._before = list(self.best)

    def drop_states(self, present: int) -> None:
        """Delete the states before that of the present iteration, but keep the latest of them.

        A run that was killed while it saved may have left several.
        """
        earlier = [iteration for iteration in self.iterations() if iteration < present]
        for iteration in earlier[:-1]:
            (self.directory / STATE.format(iteration)).unlink()

    def newest(self) -> dict[str, Any]:
        """The newest complete state that can be read, with a warning for each that cannot.

        Raises:
            FileNotFoundError: there is none at all.
            ValueError: none can be read.
        """
        iterations = self.iterations()
        if not iterations:
            raise FileNotFoundError(f"no checkpoint in {self.directory}")
        for iteration in reversed(iterations):
            try:
                path = self.directory / STATE.format(iteration)
                state = _checked(path, "iteration", "best")
                if state["iteration"] != iteration:
                    raise ValueError(f"{path} is not a usable checkpoint: it is of iteration {state['iteration']}")
            except ValueError as error:
                then = "falling back to the one before" if iteration > iterations[0] else "there is none before it"
                warnings.warn(f"{error}; {then}", stacklevel=3)
                continue
            self.best, self._before = list(state["best"]), list(state["best"])
            return state
        raise ValueError(
            f"no usable checkpoint in {self.directory}: all of them are damaged; move it away, or use another directory"
        )

    def consider(self, weights: Mapping[str, Any], entry: dict[str, Any], higher_is_better: bool) -> bool:
        """Keep the weights if they are among the best so far. Returns whether they are the very best.

        Args:
            weights: the learner's state.
            entry: ``{"iteration", "score", "ci95"}``; one whose score is not a finite number is never kept.
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
        """The best weights that can be read, ``{"iteration", "learner", ...}``; without validations the newest."""
        newest = self.newest()
        return next(self._readable(), newest)

    def best_weights(self, number: int) -> list[dict[str, Any]]:
        """That many of the best weights, best first.

        Raises:
            ValueError: there are fewer that can be read.
        """
        self.newest()
        found = list(islice(self._readable(), number))
        if len(found) < number:
            raise ValueError(
                f"{self.directory} has the weights of {len(found)} validations, not of {number}: ask for fewer, or "
                f"train with train.keep_best = {number} and validate that often"
            )
        return found

    def _readable(self) -> Iterator[dict[str, Any]]:
        for entry in self.best:
            try:
                yield _checked(self.directory / BEST.format(entry["iteration"]), "learner")
            except (ValueError, FileNotFoundError) as error:
                warnings.warn(f"{error}; taking the next best", stacklevel=4)


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The keys of configurations, as ``section.key``, whose values differ, apart from the description."""
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
    """Whether a directory holds (part of) a run that must not be written over."""
    return any(os.path.lexists(run / name) for name in ("checkpoints", "metrics.jsonl"))
