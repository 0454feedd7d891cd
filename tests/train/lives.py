"""A training whose process is killed again and again: python lives.py RUN NAME SIGNAL KILLS SEED

Every life is a process of its own, forked from this one so that it need not import torch anew. A life that is to be
killed waits a few iterations later, lest it ends before it is killed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import innerloop as il
from innerloop.train import Interrupted

ITERATIONS = 200
FURTHER = 3
"""Iterations that a life goes on for, at most, beyond the one at which it is to be killed."""


def _functions() -> nn.Module:
    return nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1))


def _images(**options: Any) -> nn.Module:
    return il.models.conv4(channels=1, ways=3, width=4, image_size=16, **options)


LEARNERS = {
    "maml": lambda: il.maml(_functions(), lr=0.01, steps=2, loss=F.mse_loss),
    "maml-plus-plus": lambda: il.maml_plus_plus(_images(running=True), steps=2),
    "reptile": lambda: il.reptile(_functions(), steps=3, loss=F.mse_loss),
}


def trainer(run: Path, name: str) -> il.Trainer:
    torch.manual_seed(0)
    learner = LEARNERS[name]()
    options = {"lr": il.schedules.cosine(1e-2, 1e-3, ITERATIONS), "tasks": 4, "val_tasks": 4, "log_every": 1}
    source = il.Strokes(ways=3, shots=1, queries=2, size=16) if name == "maml-plus-plus" else il.Sinusoid(5)
    return il.Trainer(learner, source, source, run, iterations=ITERATIONS, checkpoint_every=3, validate_every=7,
                      keep_best=2, progress=False, **options)  # fmt: skip


def live(run: Path, name: str, last: int | None, killed: int) -> None:
    """One life; ends the process.

    Args:
        last: where to wait, if at all.
        killed: a pipe that is closed when the signal has been sent.
    """
    try:
        training = trainer(run, name)
        if last is not None:
            wait_at(type(training.train), run, last, killed)
        training.fit(resume=True)
    except Interrupted as stop:
        os._exit(128 + stop.signal)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def wait_at(source: Any, run: Path, last: int, killed: int) -> None:
    """Let a kind of source wait for the signal as soon as the record has this iteration."""
    sample = source.sample

    def wait(*args: Any) -> il.Task:
        if reached(run) >= last:
            os.read(killed, 1)
        return sample(*args)

    source.sample = wait


def reached(run: Path) -> int:
    """The last iteration in the record."""
    try:
        last = (run / "metrics.jsonl").read_bytes().rpartition(b"\n")[0].rpartition(b"\n")[2]
        return json.loads(last)["iteration"]
    except (OSError, ValueError):
        return 0


def main(run: Path, name: str, number: int, kills: int, seed: int) -> None:
    torch.set_num_threads(1)
    moments, done = random.Random(seed), 0
    while True:
        target = reached(run) + moments.randint(0, 9)  # 0 is while it begins
        killed, alive = os.pipe()
        if (child := os.fork()) == 0:
            os.close(alive)
            live(run, name, target + FURTHER if done < kills else None, killed)
        os.close(killed)
        ended = 0
        if done < kills:
            while not ended and reached(run) < target:
                time.sleep(0.001)  # which leaves the processor to the life
                ended, status = os.waitpid(child, os.WNOHANG)
            time.sleep(moments.uniform(0, 0.01))
            if not ended:
                os.kill(child, number)
        os.close(alive)
        if not ended:
            _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        if code == 0:
            break
        if code not in (-signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM):  # the second: before it was handled
            sys.exit(f"a life ended with {code}")
        done += 1
    print(done)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
