"""The process that asks: one worker for each library, in turn, while the others wait."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from . import summary
from .rows import CHECKOUTS, INNERLOOP, OWN, PLAIN, PLAIN_BARE, PROFILED, Row
from .tasks import prepare, torchvision_folder

ROOT = Path(__file__).parents[1]
MACHINE = "matrix product"
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-4, 1e-3  # relative
PAUSE = 0.05  # seconds before a turn, for the threads of the last one to go to sleep
REPEAT = 1.0  # seconds that a repeat should take at least: in training, steps follow one another

Say = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """What the command line says.

    Attributes:
        device: "cpu" or "cuda".
        repeats: timed repeats of each library.
        quick: tiny problems, one step a repeat.
        data: the folder of the data sets.
        checkouts: library -> source checkout.
    """

    device: str = "cpu"
    repeats: int = 10
    quick: bool = False
    data: str | None = None
    checkouts: dict[str, str] = field(default_factory=dict)


class WorkerError(Exception):
    """A worker could not do what it was asked; the message is its own."""


class MissingError(WorkerError):
    """The library is not there."""


class Worker:
    """A process that answers one question at a time."""

    def __init__(self, pause: float) -> None:
        self.pause = pause
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the process
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            cwd=ROOT,
            text=True,
        )

    def become(self, job: dict[str, Any]) -> None:
        """Say what to be, without waiting until it is."""
        self._write(["become", job])

    def ready(self) -> dict[str, Any]:
        """Wait until it is what it was told to be; what it says of itself."""
        return self._read()

    def ask(self, question: str, **arguments: Any) -> dict[str, Any]:
        """
        Raises:
            WorkerError: with the worker's own words.
        """
        time.sleep(self.pause)
        self._write([question, arguments])
        return self._read()

    def _write(self, message: Any) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # if the process has ended, reading tells
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            last = (self.errors.read().strip().splitlines() or ["it said nothing"])[-1]
            raise WorkerError(f"the process ended with status {self.process.wait()}: {last}")
        answer: dict[str, Any] = json.loads(line)
        if "unavailable" in answer:
            raise MissingError(answer["unavailable"])
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.errors.close()


class Pool:
    """Where workers come from: new processes, so that nothing of one row is left in the next. Only quick runs, whose
    times do not count, use them again, since most of their time is importing torch."""

    def __init__(self, again: bool) -> None:
        self.again = again
        self.idle: dict[str, Worker] = {}

    def take(self, library: str) -> Worker:
        return self.idle.pop(library, None) or Worker(pause=0.0 if self.again else PAUSE)

    def give_back(self, library: str, worker: Worker) -> None:
        if self.again:
            self.idle[library] = worker
        else:
            worker.close()

    def close(self) -> None:
        for worker in self.idle.values():
            worker.close()


def start_machine(settings: Settings) -> Worker:
    """The worker that multiplies matrices."""
    worker = Worker(pause=0.0 if settings.quick else PAUSE)
    worker.become({"machine": True, "device": settings.device, "quick": settings.quick})
    worker.ready()
    return worker


def measure(row: Row, settings: Settings, machine: Worker, pool: Pool, say: Say) -> dict[str, Any]:
    """Everything about one row, as plain values."""
    row = row.small() if settings.quick else row
    about = {"name": row.name, "what": row.what, "note": row.note, "date": time.strftime("%Y-%m-%d")}
    with tempfile.TemporaryDirectory() as folder:
        try:
            prepared = prepare(row, Path(folder), settings.data, settings.quick)
        except FileNotFoundError as error:
            say(f"{row.name}: skipped, {error}")
            return {**about, "skipped": summary.without_folders(str(error)), "libraries": {}}
        say(f"{row.name}: {prepared.data}")
        found = _Measurement(row, settings, prepared.file, machine, pool, say).run()
    return {**about, "data": prepared.data, "lr": row.lr, "order": row.order, "outer_lr": row.outer_lr, **found}


class _Measurement:
    """One row while it is measured: its workers, and what is known of each library."""

    def __init__(self, row: Row, settings: Settings, file: str, machine: Worker, pool: Pool, say: Say) -> None:
        self.row, self.settings, self.file = row, settings, file
        self.machine, self.pool, self.say = machine, pool, say
        self.workers: dict[str, Worker] = {}
        self.libraries: dict[str, dict[str, Any]] = {}
        self.times: dict[str, list[float]] = {}
        self.rates: list[float] = []

    def run(self) -> dict[str, Any]:
        try:
            # All have imported what they need before the first runs, for innerloop measures while it warms up.
            self._each(self._check)
            self._agree()
            self._each(self._start)
            self._each(self._ready)
            self._each(self._warm)
            for number in range(self.settings.repeats):
                self.rates.append(self.machine.ask("rate")["flops_per_second"])
                self._each(self._time, number)
            operations = self._count()
            self._each(self._profile)
        finally:
            for library, worker in self.workers.items():
                self.pool.give_back(library, worker)
        self._summarise(operations)
        return {
            "flops": operations,
            "peak_flops_per_second": max(self.rates),
            "best_peer": summary.best_peer(self.libraries, OWN),
            "libraries": self.libraries,
        }

    def _each(self, action: Callable[[str], None], first: int = 0) -> None:
        """Do something with every library that is still there, or note why it cannot be done."""
        names = [name for name in self.row.libraries if "reason" not in self.libraries.get(name, {})]
        first %= max(len(names), 1)
        for library in names[first:] + names[:first]:
            try:
                action(library)
            except WorkerError as error:
                status = "left out" if isinstance(error, MissingError) else "failed"
                self._drop(library, status, str(error))

    def _drop(self, library: str, status: str, reason: str) -> None:
        known, told = self.libraries.get(library, {}), summary.without_folders(reason)
        self.libraries[library] = {**known, "status": status, "reason": told}
        if worker := self.workers.pop(library, None):
            worker.close()
        self.say(f"  {library}: {status}: {reason}")

    def _check(self, library: str) -> None:
        """What the first step computes, from a process that ends with that: so its memory does not count."""
        self.libraries[library] = {}
        self._start(library)
        self._ready(library)
        self.libraries[library]["first_step"] = self.workers[library].ask("check")
        self.pool.give_back(library, self.workers.pop(library))

    def _start(self, library: str) -> None:
        settings, files = self.settings, None
        if library in CHECKOUTS:
            if library not in settings.checkouts and importlib.util.find_spec(library) is None:
                raise MissingError("not installed, and no checkout of it was given")
            if self.row.kind == "iteration" and not settings.quick:
                try:
                    files = torchvision_folder(settings.data)
                except FileNotFoundError as error:
                    raise MissingError(str(error)) from error
        job: dict[str, Any] = {"row": asdict(self.row), "library": library, "file": self.file, "quick": settings.quick}
        job |= {"checkout": settings.checkouts.get(library), "data": settings.data, "files": files}
        self.workers[library] = self.pool.take(library)
        self.workers[library].become({"machine": False, "device": settings.device, **job})

    def _ready(self, library: str) -> None:
        self.libraries[library] |= {"status": "measured", **self.workers[library].ready()}

    def _warm(self, library: str) -> None:
        warm = self.workers[library].ask("warm", least=3)
        seconds, last = warm["seconds"], warm["last"]
        self.times[library] = []
        self.libraries[library] |= {
            "warm_up": {"steps": warm["steps"], "seconds": seconds},
            "choices": warm["choices"],
            "steps_per_repeat": 1 if self.settings.quick else max(1, math.ceil(REPEAT / last)),
        }
        self.say(f"  {library}: warm after {seconds:.1f} s, {1e3 * last:.1f} ms a step")

    def _agree(self) -> None:
        """Note which libraries computed something else than innerloop, and time them no further."""
        own = self.libraries[INNERLOOP].get("first_step", {}).get("double")
        for library, found in self.libraries.items():
            if own and found["status"] == "measured":
                words = summary.disagreement(found["first_step"]["double"], own, LOSS_TOLERANCE, GRADIENT_TOLERANCE)
                if words:
                    self._drop(library, "disagrees", words)

    def _time(self, library: str) -> None:
        found = self.libraries[library]
        answer = self.workers[library].ask("time", steps=found["steps_per_repeat"])
        self.times[library].append(answer["seconds"])
        found["memory"] = answer["memory"]

    def _count(self) -> int | None:
        """Counted of the plain loop, so that it is not innerloop that says how much work there was."""
        library = PLAIN_BARE if PLAIN_BARE in self.row.libraries else PLAIN
        if library not in self.workers:
            return None
        flops: int = self.workers[library].ask("count")["flops"]
        return flops

    def _profile(self, library: str) -> None:
        """What is compiled cannot be looked into, and of whole iterations the data loading would be most."""
        if library in PROFILED and self.row.kind in ("images", "pairs") and self.settings.device == "cpu":
            self.libraries[library]["profile"] = self.workers[library].ask("profile")

    def _summarise(self, operations: int | None) -> None:
        own = self.libraries[INNERLOOP]
        for library, found in self.libraries.items():
            if found["status"] != "measured":
                continue
            found["seconds"] = summary.spread(self.times[library])
            found["times"] = self.times[library]
            if operations is not None:
                found["of_peak"] = operations / found["seconds"]["median"] / max(self.rates)
            if library != INNERLOOP and own["status"] == "measured":
                found["ratio"] = summary.paired(self.times[library], self.times[INNERLOOP])
                if own["memory"] > 0:
                    found["memory_ratio"] = found["memory"] / own["memory"]
