"""Measure innerloop beside learn2learn, higher, TorchOpt and a plain PyTorch loop: python -m benchmarks.run

The results go to benchmarks/results/MACHINE.json, rows that were measured before and are not now are kept; then
`python -m benchmarks.table` makes benchmarks/RESULTS.md. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from innerloop.common.disk import write_text
from innerloop.train.record import dumps, environment

from .driver import Pool, Settings, measure, start_machine
from .rows import CHECKOUTS, INNERLOOP, ROWS

RESULTS = Path(__file__).parent / "results"
FEWEST = 10


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser("python -m benchmarks.run", description=__doc__.splitlines()[0])
    for name in CHECKOUTS:
        made.add_argument(f"--{name}", metavar="PATH", help=f"source checkout of {name}, if it is not installed")
    made.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    made.add_argument("--rows", nargs="+", metavar="NAME", help=f"all unless given: {', '.join(ROWS)}")
    made.add_argument("--repeats", type=int, default=FEWEST, help=f"timed repeats, at least {FEWEST}")
    made.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs; keeps no result")
    made.add_argument("--data", metavar="ROOT", help="folder with omniglot/; $INNERLOOP_DATA unless given")
    made.add_argument("--out", type=Path, metavar="FILE", help="results/MACHINE.json unless given")
    return made


def check(arguments: argparse.Namespace) -> None:
    """Refuse what would fail later.

    Raises:
        ValueError: with the offending value, the valid ones and the fix.
    """
    if unknown := [name for name in arguments.rows or () if name not in ROWS]:
        raise ValueError(f"--rows {' '.join(unknown)}: there are only {', '.join(ROWS)}")
    least = 1 if arguments.quick else FEWEST
    if arguments.repeats < least:
        raise ValueError(f"--repeats {arguments.repeats}: at least {least}, or --quick for a run that does not count")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no CUDA GPU here; use --device cpu")
    for name in CHECKOUTS:
        path = getattr(arguments, name)
        if path is not None and not (Path(path) / name / "__init__.py").is_file():
            raise ValueError(f"--{name} {path}: no package {name} in it; give the folder that holds {name}/__init__.py")
    if arguments.data is not None and not Path(arguments.data).is_dir():
        raise ValueError(f"--data {arguments.data}: no such folder; give the one that holds omniglot/")


def machine(device: str) -> str:
    """What the result file is named after: the GPU, or the CPU and its cores."""
    known = environment(torch.device(device))
    name = known["device"] if device == "cuda" else f"{known['cpu']} {os.cpu_count()} cores"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def write(path: Path, results: dict[str, Any]) -> None:
    """Keep the rows of an earlier run of the same versions on the same machine that this one did not measure."""
    if path.is_file():
        before = json.loads(path.read_text())
        if before["environment"] == results["environment"] and before["quick"] == results["quick"]:
            rows = {row["name"]: row for row in (*before["rows"], *results["rows"])}
            results = {**results, "rows": [rows[name] for name in ROWS if name in rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, dumps(results, indent=1) + "\n")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(words: Sequence[str] | None = None) -> int:
    """0 if innerloop ran in every row that was not skipped."""
    made = parser()
    arguments = made.parse_args(words)
    try:
        check(arguments)
    except ValueError as error:
        made.error(str(error))
    checkouts = {name: str(Path(path).resolve()) for name in CHECKOUTS if (path := getattr(arguments, name))}
    data = str(Path(arguments.data).resolve()) if arguments.data else None
    settings = Settings(arguments.device, arguments.repeats, arguments.quick, data, checkouts)
    results: dict[str, Any] = {
        "quick": arguments.quick,
        "repeats": arguments.repeats,
        "cores": os.cpu_count(),
        "environment": environment(torch.device(arguments.device)),
        "date": time.strftime("%Y-%m-%d"),
        "rows": [],
    }
    out = arguments.out or (None if arguments.quick else RESULTS / f"{machine(arguments.device)}.json")
    worker, pool = start_machine(settings), Pool(again=settings.quick)
    for name in arguments.rows or ROWS:
        results["rows"].append(measure(ROWS[name], settings, worker, pool, _say))
        if out is not None:
            write(out, results)  # after every row, for a row may take minutes
    for part in (worker, pool):
        part.close()
    if out is not None:
        print(out)
    ran = [row["libraries"][INNERLOOP]["status"] == "measured" for row in results["rows"] if row["libraries"]]
    return 0 if all(ran) else 1


if __name__ == "__main__":
    sys.exit(main())
