"""Several processes come to what one comes to, and end together."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from innerloop.train import World
from innerloop.train.checkpoint import Checkpoints
from tests.forked import python

SCRIPT = Path(__file__).parent / "processes.py"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def train(size: int, run: Path, name: str, iterations: int, action: str = "") -> list[tuple[int, str]]:
    """Of every process, its exit code and what it said."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1",
               "PYTHONFAULTHANDLER": "1"}  # what aborts says where  # fmt: skip
    command = python(SCRIPT, run, name, iterations, action)
    processes = []
    for rank in range(size):
        own = {"RANK": str(rank), "WORLD_SIZE": str(size)} if size > 1 else {}
        environment = {**os.environ, **address, **own}
        pipe = subprocess.PIPE
        processes.append(subprocess.Popen(command, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True))
    return [(p.returncode, said) for p, (said, _) in [(p, p.communicate(timeout=600)) for p in processes]]


def succeed(*arguments) -> None:
    assert train(*arguments) == [(0, "")] * arguments[0]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return Checkpoints(run).newest()["learner"]


def losses(run: Path) -> list[float]:
    lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    names = {"train": "loss", "validation": "mean"}  # of which a run that is to end early has one more at its end
    told = (
        line for line in lines if line["kind"] == "train" or (line["kind"] in names and line["iteration"] % 10 == 0)
    )
    return [line[names[line["kind"]]] for line in told]


def assert_close(run: Path, other: Path) -> None:
    ours, theirs = weights(run), weights(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == torch.float64 or not tensor.is_floating_point()
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=1e-6, msg=name)
    assert len(losses(run)) == 55
    assert losses(run) == pytest.approx(losses(other), abs=1e-6)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("maml-plus-plus", "promp", "remembering", "unequal")]


@pytest.mark.parametrize("name", ["maml", *SLOW])
def test_two_processes_come_to_what_one_does_and_so_do_resumed_ones(tmp_path, name):
    succeed(1, tmp_path / "one", name, 50)
    succeed(2, tmp_path / "two", name, 50)
    assert_close(tmp_path / "two", tmp_path / "one")
    for size, iterations in ((2, 17), (1, 33), (2, 50)):
        succeed(size, tmp_path / "changing", name, iterations)
    assert_close(tmp_path / "changing", tmp_path / "one")
    assert {path.name for path in (tmp_path / "two").iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}


def test_a_process_that_dies_ends_the_others_with_a_message(tmp_path):
    (code, said), (killed, _) = train(2, tmp_path, "maml", 50, "die")
    assert killed == -9
    assert code == 1
    assert "LostProcessError: another process of this training ended" in said
    succeed(2, tmp_path, "maml", 50)


def test_a_signal_to_one_process_stops_all_after_the_same_iteration(tmp_path):
    ended = train(2, tmp_path, "maml", 50, "term")
    assert [code for code, _ in ended] == [143, 143]
    assert "stopped after iteration 10" in ended[0][1]
    assert "stopped after iteration 10" in ended[1][1]
    assert Checkpoints(tmp_path).newest()["iteration"] == 10


def test_a_process_that_leaves_first_does_not_fail_the_others(tmp_path):
    assert train(2, tmp_path, "maml", 5, "leave") == [(0, ""), (0, "")]


def test_what_is_not_finite_in_one_process_stops_all(tmp_path):
    ended = train(2, tmp_path, "maml", 50, "poison")
    for code, said in ended:
        assert code == 1, ended
        assert "iteration 10: the loss of task 5 (counted from 0)" in said


@pytest.mark.slow
def test_restarting_by_torchrun(tmp_path):
    """As `torchrun` does when one of its processes fails."""
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"]
    arguments = [str(SCRIPT), str(tmp_path / "run"), "maml", "50", "die-once"]
    done = subprocess.run([sys.executable, *command, *arguments], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    succeed(1, tmp_path / "one", "maml", 50)
    assert_close(tmp_path / "run", tmp_path / "one")


def hosts(names: list[str]) -> list[tuple[list[str], str]]:
    """Of two hosts, what begins a command there, and their addresses: network namespaces with a wire between them where
    the system allows that, else two addresses of this machine."""
    steps = [
        *(f"ip netns add {name}" for name in names),
        f"ip link add {names[0]} netns {names[0]} type veth peer name {names[1]} netns {names[1]}",
        *(f"ip -n {name} addr add 10.77.0.{i}/24 dev {name}" for i, name in enumerate(names, 1)),
        *(f"ip -n {name} link set {device} up" for name in names for device in (name, "lo")),
    ]
    if shutil.which("ip") and all(subprocess.run(step.split(), capture_output=True).returncode == 0 for step in steps):
        return [(["ip", "netns", "exec", name], f"10.77.0.{i}") for i, name in enumerate(names, 1)]
    return [([], "127.0.0.1"), ([], "127.0.0.2")]


@pytest.mark.slow
def test_two_hosts(tmp_path):
    names = [f"il{os.getpid()}{letter}" for letter in "ab"]
    try:
        places = hosts(names)
        print("hosts:", places)
        port, agents = free_port(), []
        for before, address in places:
            words = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "test",
                     "--rdzv-conf", f"is_host={not agents}", "--rdzv-endpoint", f"{places[0][1]}:{port}",
                     "--local-addr", address]  # fmt: skip
            command = [*before, sys.executable, "-m", "torch.distributed.run", *words, str(SCRIPT)]
            # Each has a directory of its own: what the hosts share is the network alone.
            command += [str(tmp_path / f"run{len(agents)}"), "maml", "50"]
            network = {"GLOO_SOCKET_IFNAME": names[len(agents)]} if before else {}
            agents.append(subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1", **network}))
        assert [agent.wait(timeout=600) for agent in agents] == [0, 0]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False) if shutil.which(
                "ip"
            ) else None
    succeed(1, tmp_path / "one", "maml", 50)
    (written,) = [run for run in (tmp_path / "run0", tmp_path / "run1") if run.exists()]
    assert_close(written, tmp_path / "one")


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_every_task_is_somebodys(size):
    for total in range(size, 12):
        parts = [World(rank, size).bounds(total) for rank in range(size)]
        assert [i for part in parts for i in range(part.start, part.stop)] == list(range(total))
        lengths = [part.stop - part.start for part in parts]
        assert max(lengths) - min(lengths) <= 1


def test_fewer_tasks_than_processes_are_refused():
    with pytest.raises(ValueError, match=r"4 processes need meta-batches of at least as many tasks, got tasks=3"):
        World(0, 4).bounds(3)
