"""The record of a run: metrics line by line, results, and the software and hardware."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import secrets
import shutil
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import torch

from ..common.disk import naming, opened, writing
from ..common.machine import processor
from ..common.streams import json_safe
from .loggers import Logger, numbers

MACHINE_FIELDS = (
    "seconds", "phases", "tasks_per_second", "environment_steps_per_second", "memory_mib", "environment",
)  # fmt: skip
"""The fields of ``metrics.jsonl`` and ``results.json`` that depend on the machine: time, memory, versions. Only these
differ between two runs of the same computation."""

SCHEMA = 1
"""The version of the format of ``metrics.jsonl``; see docs/record.md."""
_BEGIN = re.compile(rb'\{"kind": "[a-z]+", "iteration": ([0-9]{1,15}), "')


class Metrics:
    """Writes ``metrics.jsonl``, one JSON object per line with ``"kind"`` and ``"iteration"`` (updates done, from 1).

    Args:
        run: the run directory; ``None`` writes nothing.
        loggers: loggers that get the numbers, too.
        config: the configuration that loggers get at first.
    """

    def __init__(
        self, run: Path | None, loggers: Sequence[Logger] = (), config: Mapping[str, Any] | None = None
    ) -> None:
        self.run, self.path = run, run / "metrics.jsonl" if run else None
        self.loggers, self.config = tuple(loggers), dict(config or {})
        self._begun: list[Logger] = []
        self._file: IO[bytes] | None = None
        self._size = 0

    def open(self, iteration: int) -> None:
        """Append after the lines up to an iteration; later lines, and an incomplete last line, are dropped."""
        for logger in self.loggers:
            logger.begin(self.run, self.config, iteration)
            self._begun.append(logger)
        if self.path is None:
            return
        if os.path.lexists(self.path) and not self.path.is_file():
            raise OSError(f"{self.path} is not a regular file: remove it")
        damaged = 0
        with ExitStack() as stack, writing(self.path) as file:
            for line in stack.enter_context(self.path.open("rb")) if self.path.exists() else ():
                if (at := _iteration(line)) <= iteration:
                    file.write(line)
                damaged += at == math.inf and line.endswith(b"\n")  # the last line may be incomplete
        self._attach()
        if damaged:
            warnings.warn(f"{damaged:,} lines of {self.path} could not be read and are dropped", stacklevel=4)
        if iteration and not self._size:
            warnings.warn(f"{self.path} has no line of the previous {iteration:,} iterations", stacklevel=4)

    def _attach(self) -> None:
        """Open the file to append to it."""
        assert self.path is not None
        self._file = os.fdopen(opened(self.path, os.O_RDWR | os.O_APPEND), "ab+", buffering=0)
        self._size = os.fstat(self._file.fileno()).st_size

    def append(self, kind: str, iteration: int, **fields: Any) -> None:
        """Write one line. Numbers that are not finite become null."""
        if self._file is not None:
            self._check()
            self._write((dumps({"kind": kind, "iteration": iteration, **fields}) + "\n").encode())
        if self._begun and (values := numbers(kind, fields)):
            for logger in self._begun:
                logger.log(iteration, values)

    def _write(self, line: bytes) -> None:
        """Write a whole line; the file is unbuffered, so a nearly full disk may take only a part at a time."""
        assert self.path is not None
        assert self._file is not None
        with naming(self.path):
            while line:
                written = self._file.write(line)
                self._size += written
                line = line[written:]

    def _check(self) -> None:
        """Warn if another process removed, replaced, truncated or extended the file, and repair the record.

        Otherwise lines would go to a file without a name, or would be lost after an incomplete line.
        """
        assert self.path is not None
        assert self._file is not None
        here = os.fstat(self._file.fileno())
        try:
            there: os.stat_result | None = os.lstat(self.path)
        except FileNotFoundError:
            there = None
        if there is None or not os.path.samestat(here, there):
            self._restore(there is not None)
        elif here.st_size != self._size:
            lost = self._size - here.st_size
            what = f"cut {lost:,} bytes off" if lost > 0 else f"wrote {-lost:,} bytes to"
            warnings.warn(f"another program {what} {self.path}; training and the record continue", stacklevel=4)
            self._size = here.st_size
            self._file.seek(max(self._size - 1, 0))
            if self._file.read(1) not in (b"", b"\n"):
                self._write(b"\n")

    def _restore(self, replaced: bool) -> None:
        """Write the record under its name again; another file with that name is renamed."""
        assert self.path is not None
        assert self._file is not None
        kept = ""
        if replaced:
            other = self.path.with_name(f"metrics.{secrets.token_hex(4)}.jsonl")
            self.path.rename(other)
            kept = f", and the other file was renamed to {other.name}"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file.seek(0)
        with writing(self.path) as file:
            shutil.copyfileobj(self._file, file)
        self._file.close()
        self._attach()
        what = "was replaced" if replaced else "was removed"
        warnings.warn(f"{self.path} {what} during the training; it was restored completely{kept}", stacklevel=5)

    @property
    def empty(self) -> bool:
        """Whether the file is open and has no line yet."""
        return self._file is not None and self._size == 0

    def sync(self) -> None:
        """Flush appended lines to the disk, before a checkpoint is saved."""
        if self._file is not None and self.path is not None:
            self._check()
            with naming(self.path):
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file and the loggers."""
        while self._begun:
            self._begun.pop().close()
        if self._file is not None and self.path is not None:
            try:
                self._check()
            finally:
                file, self._file = self._file, None
                with naming(self.path):
                    file.close()


def peak_memory(device: torch.device) -> float:
    """Return the peak memory in MiB: of the GPU if the learner is on one, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # on Windows
        return 0.0
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _iteration(line: bytes) -> float:
    """Return the iteration of a line, infinity for a damaged line."""
    if (known := _BEGIN.match(line)) and line.endswith(b"}\n"):  # the usual form; parsing takes longer
        return float(known[1])
    try:
        return float(json.loads(line)["iteration"]) if line.endswith(b"\n") else math.inf
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return math.inf


def dumps(value: Any, indent: int | None = None) -> str:
    """Return JSON that every parser can read and every terminal can show.

    NaN and infinities become null. Control characters and names that are not UTF-8 are escaped.
    """
    return json_safe(json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def write_results(run: Path, results: Mapping[str, Any]) -> None:
    """Write ``results.json``, atomically."""
    with writing(run / "results.json") as file:
        file.write((dumps(results, indent=2) + "\n").encode())


def environment(device: torch.device) -> dict[str, Any]:
    """Return versions and hardware, as plain values."""
    from .. import __version__

    return {
        "innerloop": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": processor(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
    }
