"""The process that asks: one worker for each library, in turn, while the others wait."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from . import summary
from .rows import INNERLOOP, OWN, PLAIN, PLAIN_BARE, Row
from .tasks import prepare, torchvision_folder

ROOT = Path(__file__).parents[1]
MACHINE = "matrix product"
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-4, 1e-3  # relative
PAUSE = 0.05  # seconds before a turn, for the threads of the last one to go to sleep
REPEAT = 0.25  # seconds that a repeat should take at least; quick steps are taken several at a time

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


class Failed(Exception):
    """A worker could not do what it was asked; the message is its own."""


class Missing(Failed):
    """The library is not there."""


class Worker:
    """A process that answers one question at a time."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the process
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            cwd=ROOT,
            text=True,
        )
        try:
            self.about = self._exchange(job)
        except Failed:
            self.close()
            raise

    def ask(self, question: str, **arguments: Any) -> dict[str, Any]:
        """
        Raises:
            Failed: with the worker's own words.
        """
        time.sleep(PAUSE)
        return self._exchange([question, arguments])

    def _exchange(self, message: Any) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the process has ended, which reading tells
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            last = (self.errors.read().strip().splitlines() or ["it said nothing"])[-1]
            raise Failed(f"the process ended with status {self.process.wait()}: {last}")
        answer: dict[str, Any] = json.loads(line)
        if "unavailable" in answer:
            raise Missing(answer["unavailable"])
        if "error" in answer:
            raise Failed(answer["error"])
        return answer

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.errors.close()


def measure(row: Row, settings: Settings, say: Say) -> dict[str, Any]:
    """Everything about one row, as plain values."""
    row = row.small() if settings.quick else row
    about = {"name": row.name, "what": row.what, "note": row.note, "date": time.strftime("%Y-%m-%d")}
    with tempfile.TemporaryDirectory() as folder:
        try:
            prepared = prepare(row, Path(folder), settings.data, settings.quick)
        except FileNotFoundError as error:
            say(f"{row.name}: skipped, {error}")
            return {**about, "skipped": str(error), "libraries": {}}
        say(f"{row.name}: {prepared.data}")
        found = _Measurement(row, settings, prepared.file, say).run()
    return {**about, "data": prepared.data, "lr": row.lr, "order": row.order, "outer_lr": row.outer_lr, **found}


class _Measurement:
    """One row while it is measured: its workers, and what is known of each library."""

    def __init__(self, row: Row, settings: Settings, file: str, say: Say) -> None:
        self.row, self.settings, self.file, self.say = row, settings, file, say
        self.workers: dict[str, Worker] = {}
        self.libraries: dict[str, dict[str, Any]] = {}
        self.times: dict[str, list[float]] = {}
        self.rates: list[float] = []

    def run(self) -> dict[str, Any]:
        machine = Worker({"machine": True, "device": self.settings.device, "quick": self.settings.quick})
        try:
            for library in self.row.libraries:
                self._tell(library, self._start)
            self._agree()
            for number in range(self.settings.repeats):
                self.rates.append(machine.ask("rate")["flops_per_second"])
                names = list(self.workers)
                for library in names[number % len(names) :] + names[: number % len(names)] if names else []:
                    self._tell(library, self._time)
            operations = self._count()
        finally:
            for worker in (machine, *self.workers.values()):
                worker.close()
        self._summarise(operations)
        best = summary.best_peer(self.libraries, OWN)
        return {
            "flops": operations,
            "peak_flops_per_second": max(self.rates),
            "best_peer": best,
            "libraries": self.libraries,
        }

    def _tell(self, library: str, action: Callable[[str], None]) -> None:
        """Do something with a library, or note why it cannot be done."""
        try:
            action(library)
        except Failed as error:
            status = "left out" if isinstance(error, Missing) else "failed"
            self.libraries[library] = {"status": status, "reason": str(error)}
            if worker := self.workers.pop(library, None):
                worker.close()
            self.say(f"  {library}: {status}: {error}")

    def _start(self, library: str) -> None:
        settings = self.settings
        files = None
        if self.row.kind == "iteration" and library not in OWN and not settings.quick:
            try:
                files = torchvision_folder(settings.data)
            except FileNotFoundError as error:
                raise Missing(str(error)) from error
        job = {"row": asdict(self.row), "library": library, "file": self.file, "device": settings.device}
        job |= {"checkout": settings.checkouts.get(library), "data": settings.data, "files": files}
        worker = self.workers[library] = Worker({"machine": False, "quick": settings.quick, **job})
        first = worker.ask("check")
        warm = worker.ask("warm", least=2)
        self.times[library] = []
        self.libraries[library] = {
            "status": "measured",
            **worker.about,
            "loss": first.get("loss"),
            "gradient_norm": first.get("gradient_norm"),
            "warm_up": {"steps": 1 + warm["steps"], "seconds": first["seconds"] + warm["seconds"]},
            "choices": warm["choices"],
            "steps_per_repeat": 1 if settings.quick else max(1, math.ceil(REPEAT / warm["last"])),
        }
        self.say(f"  {library}: warm after {first['seconds'] + warm['seconds']:.1f} s, {1e3 * warm['last']:.1f} ms a step")

    def _agree(self) -> None:
        """Note which libraries computed something else than innerloop, and time them no further."""
        own = self.libraries.get(INNERLOOP, {})
        for library, found in self.libraries.items():
            if library == INNERLOOP or found["status"] != "measured" or own.get("loss") is None:
                continue
            if difference := summary.disagreement(found, own, LOSS_TOLERANCE, GRADIENT_TOLERANCE):
                found.update(status="disagrees", reason=difference)
                self.workers.pop(library).close()
                self.say(f"  {library}: disagrees: {difference}")

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
