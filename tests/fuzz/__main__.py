"""Compare the library with a plain inner loop on random models.

python -m tests.fuzz --examples 3000 --seed 0 --jobs 2
python -m tests.fuzz --case '{"x": [3], "layers": ["nn.Linear(3, 2)"]}'
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings

from .differences import Report, check
from .layers import KINDS
from .models import Case, cases
from .reduce import reduce, signature

SLOW = re.compile("Transformer|LSTM|GRU|RNN|Multihead|orthogonal|Unbatched|3d|solve|LPPool|norm")
"""Layers of so many operations that compiling them takes minutes."""
ALIKE = 5
"""Differences that have been reduced to one cause so often in a row are counted to it without being reduced."""


class Summary:
    """What many cases came to."""

    def __init__(self) -> None:
        self.models = self.compared = self.results = self.compiled = 0
        self.status: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.verdicts: Counter[str] = Counter()
        self.wrong: dict[str, dict[str, Any]] = {}
        self.torch_wrong: dict[str, dict[str, Any]] = {}
        self.broken: list[str] = []
        self.excused: list[str] = []
        self.alike: dict[str, list[str]] = {}

    def add(self, report: Report, reducing: bool) -> None:
        self.models += 1
        self.compared += report.status == "compared"
        self.results += report.compared
        self.status[report.status.split(":")[0]] += 1
        if report.status != "compared":
            self.status[report.status] += 1
            return
        self.kinds.update(report.kinds)
        self.refused.update({f"{plan}, {name}: {why}": 1 for (plan, name), why in report.refused.items()})
        self.verdicts.update(d.verdict.split(":")[0] for d in report.differences)
        if excused := [d for d in report.differences if d.verdict in ("rounding", "kink")]:
            first = excused[0]
            self.excused.append(f"{first.plan}, {first.result}: {first.error:.1e} {first.verdict}: {report.case}")
        for found, into in ((report.faults, self.wrong), (_torch(report), self.torch_wrong)):
            if found:
                self._note(report, found, into, reducing)

    def _note(self, report: Report, found: list[Any], into: dict[str, dict[str, Any]], reducing: bool) -> None:
        alike = " & ".join(sorted({f"{d.plan}, {d.result}: {d.verdict}" for d in found}))
        seen = self.alike.setdefault(alike, [])
        if len(seen) >= ALIKE and len(set(seen[-ALIKE:])) == 1:
            key = seen[-1]  # these have turned out to be one cause, time and again
        else:
            small, differences = reduce(report, found) if reducing else (report.case, found)
            key = signature(small, differences)
            seen.append(key)
        if key in into:
            into[key]["count"] += 1
            return
        into[key] = {
            "count": 1, "case": str(small), "drawn": str(report.case),
            "differences": [f"{d.plan}, {d.result}: {d.error:.1e} {d.verdict} ({d.detail})" for d in differences],
        }  # fmt: skip

    def data(self) -> dict[str, Any]:
        return {
            "models": self.models, "compared": self.compared, "results": self.results, "compiled": self.compiled,
            "kinds": dict(sorted(self.kinds.items())), "status": dict(self.status.most_common()),
            "refused": dict(self.refused.most_common()), "verdicts": dict(self.verdicts.most_common()),
            "torch_wrong": self.torch_wrong, "differences": self.wrong, "broken": self.broken,
            "excused": self.excused,
        }  # fmt: skip


def _torch(report: Report) -> list[Any]:
    return [d for d in report.differences if d.verdict == "torch is wrong"]


def merge(parts: list[dict[str, Any]]) -> dict[str, Any]:
    whole: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            if isinstance(value, int):
                whole[name] = whole.get(name, 0) + value
            elif isinstance(value, list):
                whole[name] = whole.get(name, []) + value
            else:
                into = whole.setdefault(name, {})
                for key, entry in value.items():
                    if isinstance(entry, int):
                        into[key] = into.get(key, 0) + entry
                    elif key in into:
                        into[key]["count"] += entry["count"]
                    else:
                        into[key] = entry
    whole["number_of_kinds"] = len(whole["kinds"])
    return whole


def run(
    examples: int, start: int, compile_every: int, reducing: bool, only: tuple[str, ...] = (), note: Path | None = None
) -> dict[str, Any]:
    """Check so many cases."""
    summary, begun = Summary(), time.perf_counter()

    @seed(start)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases(only or tuple(KINDS)))
    def one(case: Case) -> None:
        due = bool(compile_every) and summary.models // compile_every >= summary.compiled
        compiled = due and len(case.layers) < 4 and case.steps < 3 and not SLOW.search(case.model)
        summary.compiled += compiled
        try:
            summary.add(check(case, compiled=compiled), reducing)
        except Exception:  # of the fuzzer itself
            summary.broken.append(f"{case}\n{traceback.format_exc(limit=-4)}")
        if summary.models % 25 == 0 and note is not None:
            note.write_text(json.dumps({**summary.data(), "seconds": int(time.perf_counter() - begun)}, indent=1))

    one()
    return {**summary.data(), "seconds": int(time.perf_counter() - begun)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=3000, help="number of models")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--compile-every", type=int, default=100, help="also compiles one model in so many; 0 for none")
    parser.add_argument("--no-reduce", action="store_true", help="report models as they were drawn")
    parser.add_argument("--kind", action="append", default=[], help="kinds of layers that models are built around")
    parser.add_argument("--case", action="append", default=[], help="check this case alone, as JSON")
    parser.add_argument("--out", type=Path, help="write the summary here, too, every now and then")
    given_ = parser.parse_args()
    torch.set_num_threads(1)
    if given_.case:
        for text in given_.case:
            show(check(Case.read(text)))
        return
    if given_.jobs > 1:
        result = several(given_)
    else:
        start = given_.seed
        result = run(given_.examples, start, given_.compile_every, not given_.no_reduce, tuple(given_.kind), given_.out)
    text = json.dumps(result, indent=1)
    if given_.out:
        given_.out.write_text(text)
    print(text)


def several(given_: argparse.Namespace) -> dict[str, Any]:
    """The same in several processes, each with a seed of its own."""
    jobs, command = given_.jobs, [sys.executable, "-m", "tests.fuzz", "--compile-every", str(given_.compile_every)]
    command += ["--no-reduce"] * given_.no_reduce + [part for k in given_.kind for part in ("--kind", k)]
    started = []
    for job in range(jobs):
        examples = given_.examples // jobs + (job < given_.examples % jobs)
        options = ["--examples", str(examples), "--seed", str(given_.seed * 1000 + job)]
        if given_.out:
            options += ["--out", f"{given_.out}.{job}"]
        started.append(subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        outputs = [process.communicate()[0] for process in started]
    finally:
        for process in started:
            process.terminate()
    return merge([json.loads(output) for output in outputs])


def show(report: Report) -> None:
    print(f"{report.case.model}\n{report.case}\n{report.status}, {report.compared} results compared")
    for (plan, name), why in report.refused.items():
        print(f"  refused: {plan}, {name}: {why}")
    for d in report.differences:
        print(f"  {d.plan}, {d.result}: {d.error:.1e} {d.verdict} ({d.detail})")


if __name__ == "__main__":
    main()
