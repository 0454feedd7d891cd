"""A run survives what machines do to it, and comes to what it would have come to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from torch.utils import _pytree as pytree

from innerloop.train.record import MACHINE_FIELDS
from tests.forked import python

LIVES = Path(__file__).parent / "lives.py"


def lives(run: Path, name: str, number: int, kills: int) -> int:
    """How many lives were ended before a training came to its own end."""
    command = python(LIVES, run, name, int(number), kills, 0)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def records(run: Path) -> list[dict]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{key: v for key, v in json.loads(line).items() if key not in MACHINE_FIELDS} for line in lines]


def states(run: Path) -> dict[str, dict]:
    """Everything that is in the files of the checkpoints, but the time."""
    found = {path.name: torch.load(path, weights_only=True) for path in (run / "checkpoints").iterdir()}
    return {name: {k: v for k, v in state.items() if k != "phases"} for name, state in found.items()}


def same(one: object, other: object) -> bool:
    """Bit for bit."""
    (leaves, shape), (others, other_shape) = pytree.tree_flatten(one), pytree.tree_flatten(other)
    return shape == other_shape and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(leaves, others, strict=True)
    )


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("maml-plus-plus", "reptile")]


@pytest.fixture(scope="module", params=["maml", *SLOW])
def undisturbed(request, tmp_path_factory) -> tuple[str, Path]:
    run = tmp_path_factory.mktemp("undisturbed") / request.param
    assert lives(run, request.param, signal.SIGKILL, 0) == 0
    return request.param, run


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_at_20_random_moments(undisturbed, number, tmp_path):
    name, whole = undisturbed
    assert lives(tmp_path / "run", name, number, 20) == 20
    assert records(tmp_path / "run") == records(whole)
    assert same(states(tmp_path / "run"), states(whole))
    left = {path.name for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert left == {path.name for path in whole.rglob("*") if path.is_file()}
