"""The same seed gives the same bits: beside other work, and after a run was killed. No flag is needed for that."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from innerloop.train import checkpoint
from innerloop.train.record import MACHINE_FIELDS

RECIPES = {
    "sinusoid-maml": {"iterations": 100, "validate_every": 25, "val_tasks": 25, "checkpoint_every": 5},
    "strokes-5w1s-maml": {"iterations": 12, "validate_every": 6, "val_tasks": 8, "checkpoint_every": 2},
    "omniglot-20w1s-quick-maml++": {"iterations": 12, "validate_every": 6, "val_tasks": 8, "checkpoint_every": 1},
    "navigation-maml-trpo": {"iterations": 6, "validate_every": 3, "val_tasks": 8, "checkpoint_every": 1},
    "daml-2d": {"iterations": 20, "validate_every": 10, "val_tasks": 8, "checkpoint_every": 2},
}


def command(recipe: str, run: Path) -> list[str]:
    settings = [f"train.{key}={value}" for key, value in RECIPES[recipe].items()] + ["evaluate.num_tasks=8"]
    words = [word for setting in settings for word in ("--set", setting)]
    return [sys.executable, "-m", "innerloop", "train", recipe, "--seed", "3", "--quiet", "--run", str(run), *words]


def results(run: Path) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, torch.Tensor]]:
    """What a run wrote and computed, but for what tells of the machine."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    told = json.loads((run / "results.json").read_text())
    apart = {*MACHINE_FIELDS, "command"}
    state = checkpoint.load(max((run / "checkpoints").glob("state-*.pt")))
    return (
        [{k: v for k, v in line.items() if k not in apart} for line in lines if line["kind"] != "begin"],
        {k: v for k, v in told.items() if k not in apart},
        state["learner"],
    )


def assert_same(run: Path, other: Path) -> None:
    (lines, told, weights), (lines_too, told_too, weights_too) = results(run), results(other)
    assert [line for line, too in zip(lines, lines_too, strict=True) if line != too] == []
    assert told == told_too
    assert weights.keys() == weights_too.keys()
    assert all(torch.equal(weight, weights_too[name]) for name, weight in weights.items())


@contextmanager
def busy(loops: int) -> Iterator[None]:
    """Other processes that take all the time they get."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(loops)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def reached(run: Path) -> int:
    """The last iteration in the record."""
    try:
        return int(
            json.loads((run / "metrics.jsonl").read_bytes().rpartition(b"\n")[0].rpartition(b"\n")[2])["iteration"]
        )
    except (OSError, ValueError):
        return 0


def killed(words: list[str], run: Path, moments: random.Random) -> bool:
    """Go on with a run, and kill it at a random moment of some iterations to come; whether it was not done before."""
    target = reached(run) + moments.choice([0, 0, 1, 1, 2, 5])
    process = subprocess.Popen([*words, "--resume"], env=os.environ)
    while process.poll() is None and reached(run) < target:
        time.sleep(0.001)
    if process.poll() is None:
        try:
            process.wait(moments.random() if target else 5 * moments.random())
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
    return process.wait() != 0


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> dict[str, Path]:
    """One run of each recipe, when it is asked for."""
    folder = tmp_path_factory.mktemp("undisturbed")
    os.environ["INNERLOOP_DATA"] = str(data_root)

    class Runs(dict[str, Path]):
        def __missing__(self, recipe: str) -> Path:
            run = self[recipe] = folder / recipe
            subprocess.run(command(recipe, run), check=True)
            return run

    return Runs()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_beside_four_busy_loops(recipe: str, undisturbed: dict[str, Path], tmp_path: Path) -> None:
    alone = undisturbed[recipe]
    with busy(4):
        subprocess.run(command(recipe, tmp_path / "run"), check=True)
    assert_same(tmp_path / "run", alone)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_killed_and_resumed_at_twenty_moments(recipe: str, undisturbed: dict[str, Path], tmp_path: Path) -> None:
    alone, moments, kills, lives = undisturbed[recipe], random.Random(5), 0, 0
    while kills < 20:  # in as many runs as that takes
        run = tmp_path / f"run{lives}"
        while kills < 20 and killed(command(recipe, run), run, moments):
            kills += 1
        subprocess.run([*command(recipe, run), "--resume"], check=True)
        assert_same(run, alone)
        lives += 1
