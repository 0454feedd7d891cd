"""What a run writes down for people and plots: metrics line by line, results, and on what they were computed."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch

from ..streams import json_safe
from .checkpoint import naming, writing
from .loggers import Logger, numbers

MACHINE_FIELDS = (
    "seconds", "phases", "tasks_per_second", "environment_steps_per_second", "memory_mib", "environment",
)  # fmt: skip
"""The fields of ``metrics.jsonl`` and ``results.json`` that tell of the machine: time, memory, versions. Those alone
differ between two runs of the same computation."""

SCHEMA = 1
"""The version of what ``metrics.jsonl`` holds; see RECORD.md."""


class Metrics:
    """``metrics.jsonl``: one JSON object a line, each with ``"kind"`` and ``"iteration"`` (updates done, from 1).

    Args:
        run: the run directory; ``None`` writes nothing.
        loggers: who is told the numbers, too.
        config: what they are told at first.
    """

    def __init__(
        self, run: Path | None, loggers: Sequence[Logger] = (), config: Mapping[str, Any] | None = None
    ) -> None:
        self.run, self.path = run, run / "metrics.jsonl" if run else None
        self.loggers, self.config = tuple(loggers), dict(config or {})
        self._begun: list[Logger] = []
        self._file: IO[str] | None = None

    def open(self, iteration: int) -> None:
        """Append after the lines up to an iteration; later ones, and a last line that was cut off, are dropped."""
        for logger in self.loggers:
            logger.begin(self.run, self.config, iteration)
            self._begun.append(logger)
        if self.path is None:
            return
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        with writing(self.path) as file:
            file.writelines(line for line in lines if _iteration(line) <= iteration)
        self._file = self.path.open("a", encoding="utf-8")

    def append(self, kind: str, iteration: int, **fields: Any) -> None:
        """Write one line. Numbers that are not finite become null."""
        if self._file is not None and self.path is not None:
            with naming(self.path):
                self._file.write(dumps({"kind": kind, "iteration": iteration, **fields}) + "\n")
                self._file.flush()
        if self._begun and (told := numbers(kind, fields)):
            for logger in self._begun:
                logger.log(iteration, told)

    @property
    def empty(self) -> bool:
        """Whether lines can be appended and there is none yet."""
        return self._file is not None and self._file.tell() == 0

    def sync(self) -> None:
        """Have on the disk what was appended, before a checkpoint says that it was."""
        if self._file is not None and self.path is not None:
            with naming(self.path):
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """No more lines."""
        while self._begun:
            self._begun.pop().close()
        if self._file is not None and self.path is not None:
            file, self._file = self._file, None
            with naming(self.path):
                file.close()


def peak_memory(device: torch.device) -> float:
    """The most memory so far, in MiB: of the GPU where the learner is on one, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # on Windows
        return 0.0
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _iteration(line: bytes) -> float:
    """The iteration of a line, infinite for what is not a whole record."""
    try:
        return float(json.loads(line)["iteration"]) if line.endswith(b"\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf


def dumps(value: Any, indent: int | None = None) -> str:
    """JSON as every parser reads it, and any terminal shows it: NaN and infinities become null, and controls and names
    that are not UTF-8 are escaped."""
    return json_safe(json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def write_results(run: Path, results: Mapping[str, Any]) -> None:
    """Write ``results.json``, all or nothing."""
    with writing(run / "results.json") as file:
        file.write((dumps(results, indent=2) + "\n").encode())


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and hardware, as plain values."""
    from .. import __version__

    return {
        "innerloop": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
