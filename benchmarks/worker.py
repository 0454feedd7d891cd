"""The process of one library at one row: `python -m benchmarks.worker`, started by `benchmarks.driver`.

Reads a question a line, ``[name, arguments]`` in JSON, and answers each with an object. The first, "become", says what
to be. Between questions it waits in a read, which costs nothing.
"""

from __future__ import annotations

import copy
import json
import os
import sys
from typing import Any

import torch

from .measure import MatrixProduct, Peak, flops, profile, seconds
from .peers import UnavailableError
from .rows import Row
from .subjects import Job, build

MOST = 200  # steps that a library may take to settle


class Machine:
    """Answers with the rate of matrix products."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.product = MatrixProduct(job["device"], job["quick"])
        self.about = {"version": torch.__version__, "threads": torch.get_num_threads()}

    def rate(self) -> dict[str, Any]:
        return {"flops_per_second": self.product.rate()}


class Library:
    """Answers for one library: every public method is a question."""

    def __init__(self, job: dict[str, Any]) -> None:
        row = Row(**job.pop("row"))
        content = torch.load(job.pop("file"), map_location=job["device"], weights_only=True)
        self.device = job["device"]
        self.job = Job(row, content=content, **job)
        self.subject = build(self.job)
        self.about = {"version": self.subject.version, "threads": torch.get_num_threads()}

    def check(self) -> dict[str, Any]:
        """What the first step computes, in single and in double precision."""
        subjects = {"single": self.subject, "double": build(self.job._replace(exact=True))}
        return {precision: subject.check() for precision, subject in subjects.items()}

    def warm(self, least: int) -> dict[str, Any]:
        """Run until the library has settled."""
        self._run_model()
        self.peak = Peak(self.device)
        times: list[float] = []
        while len(times) < least or (len(times) < MOST and not self.subject.settled()):
            times.append(seconds(self.subject.step))
        times.append(seconds(self.subject.step))  # the step before may have compiled
        self.subject.reset()
        found = {"steps": len(times), "seconds": sum(times), "last": times[-1]}
        return {**found, "choices": self.subject.choices()}

    def _run_model(self) -> None:
        """Once forward and back, so that what any use of the model takes, such as the code of its operations, counts as
        the model's own."""
        if "support" in self.job.content:
            copy.deepcopy(self.subject.model)(self.job.tasks()[0][0]).square().sum().backward()

    def time(self, steps: int) -> dict[str, Any]:
        found = {"seconds": seconds(self.subject.step, steps), "memory": self.peak.bytes()}
        self.subject.reset()
        return found

    def count(self) -> dict[str, Any]:
        """The arithmetic of a step."""
        return {"flops": flops(self.subject.step)}

    def profile(self) -> dict[str, Any]:
        """Where the time of a step goes."""
        return {**profile(self.subject.step)}


def become(machine: bool, **job: Any) -> Machine | Library:
    return Machine(job) if machine else Library(job)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not come between the answers
    # Rounding to ten bits would make libraries that agree look as if they did not.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    being: Machine | Library | None = None
    while line := sys.stdin.readline():
        name, arguments = json.loads(line)
        found: dict[str, Any]
        try:
            if name == "become":
                being = None  # what it was before is freed first
                being = become(**arguments)
                found = being.about
            else:
                found = getattr(being, name)(**arguments)
        except UnavailableError as error:
            found = {"unavailable": str(error)}
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}
        print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    main()
