"""How many tasks a second two processes of one thread each train on, against one: python -m benchmarks.processes

The data are found by ``$INNERLOOP_DATA``.

Runs of one and of two processes take turns, so that what else the machine does meets both alike. Times are the
run's own (``seconds`` in ``metrics.jsonl``: drawing tasks, meta-gradient, update), without the first iterations.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from innerloop.common.disk import write_text
from innerloop.train.record import environment

RESULT = Path(__file__).parent / "processes.json"
RECIPE = "omniglot-5w1s-maml"
TASKS, ITERATIONS, WARM = 64, 16, 3
SETTINGS = (
    f"train.iterations={ITERATIONS}", "train.log_every=1", "train.trace_every=0", "train.val_tasks=2",
    "evaluate.num_tasks=2", f"train.tasks={TASKS}", "learner.vectorize=8", "learner.compile=false",
)  # fmt: skip


def rate(processes: int) -> float:
    """Tasks a second of one run."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        words = ["-m", "innerloop", "train", RECIPE, "--run", str(run), "--quiet"]
        words += [word for setting in SETTINGS for word in ("--set", setting)]
        plain = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        begun = [
            subprocess.Popen(
                [sys.executable, *words],
                env={**plain, "RANK": str(rank), "WORLD_SIZE": str(processes)} if processes > 1 else plain,
                stdout=subprocess.DEVNULL,
            )
            for rank in range(processes)
        ]
        if any(process.wait() for process in begun):
            raise RuntimeError(f"a run of {processes} processes failed")
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    seconds: dict[int, float] = {line["iteration"]: line["seconds"] for line in lines if line["kind"] == "train"}
    return TASKS * (ITERATIONS - WARM) / (seconds[ITERATIONS] - seconds[WARM])


def main(repeats: int) -> None:
    """Measure, print and write."""
    import torch

    rates: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(repeats):
        for processes in ((1, 2), (2, 1))[turn % 2]:
            rates[processes].append(round(rate(processes), 2))
        print(f"{turn + 1}: one {rates[1][-1]}, two {rates[2][-1]} tasks a second", flush=True)
    ratios = [two / one for one, two in zip(rates[1], rates[2], strict=True)]
    found = {
        "recipe": RECIPE,
        "settings": SETTINGS,
        "tasks_per_second": rates,
        "ratio": round(statistics.median(rates[2]) / statistics.median(rates[1]), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "environment": environment(torch.device("cpu")),
    }
    print(f"median of two over median of one: {found['ratio']}; {min(ratios):.2f} to {max(ratios):.2f} by turns")
    write_text(RESULT, json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10)
    main(parser.parse_args().repeats)
