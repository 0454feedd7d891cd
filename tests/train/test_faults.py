"""Non-finite numbers, memory, and disks that fail while a checkpoint is written."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import innerloop as il
from innerloop.train import NonFiniteError, load_failed
from innerloop.train.checkpoint import Checkpoints
from innerloop.train.faults import OutOfMemoryError, enough_memory
from innerloop.train.record import Metrics
from tests.forked import python


class Poisoned:
    """Sinusoids of which some meta-batches have a task that is no number."""

    def __init__(self, *at):
        self.source, self.at, self.draws = il.Sinusoid(5), at, 0

    def sample(self, n, generator):
        self.draws += 1
        tasks = self.source.sample(n, generator)
        if self.draws in self.at:
            tasks.query.y[1, 0] = float("nan")
        return tasks

    def state_dict(self):
        return {"draws": self.draws}

    def load_state_dict(self, state):
        self.draws = state["draws"]


def trainer(source, run=None, **options):
    torch.manual_seed(0)
    learner = il.maml(il.models.mlp(1, 8, 1), lr=0.01, loss=F.mse_loss)
    options = {"iterations": 20, "tasks": 4, "checkpoint_every": 5, "log_every": 1, "progress": False, **options}
    return il.Trainer(learner, source, run=run, **options)


# -- numbers that are not finite --------------------------------------------------------------------------------------


def test_skipping_leaves_everything_as_it_was(tmp_path):
    skipping = trainer(Poisoned(8), tmp_path, non_finite="skip", lr=0.01)
    states = {}

    def watch(iteration, values):
        states[iteration] = {name: p.clone() for name, p in skipping.learner.state_dict().items()}

    skipping.recorder.metrics.append = lambda kind, iteration, **fields: watch(iteration, fields)
    skipping.fit()
    assert all(torch.equal(states[7][name], states[8][name]) for name in states[7])
    assert not all(torch.equal(states[8][name], states[9][name]) for name in states[8])
    assert skipping.faults.skipped == 1


def test_what_was_skipped_is_counted_in_the_record_and_in_checkpoints(tmp_path):
    trainer(Poisoned(4, 12), tmp_path, non_finite="skip", iterations=15).fit()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    counts = {line["iteration"]: line.get("skipped", 0) for line in lines if line["kind"] == "train"}
    assert counts == {i: (i >= 4) + (i >= 12) for i in range(1, 16)}
    assert [line["loss"] for line in lines if line["iteration"] == 4 and line["kind"] == "train"] == [None]
    again = trainer(Poisoned(18), tmp_path, non_finite="skip", max_skipped=2)
    with pytest.raises(NonFiniteError, match=r"iteration 18: .*after 2 skipped updates, the limit max_skipped"):
        again.fit(resume=True)


def test_the_task_that_stopped_it_can_be_tried_again(tmp_path):
    with pytest.raises(NonFiniteError):
        trainer(Poisoned(8), tmp_path).fit()
    tasks, state, iteration = load_failed(tmp_path)
    assert (iteration, tasks.support.x.shape) == (7, (1, 5, 1))
    learner = trainer(Poisoned()).learner
    learner.load_state_dict(state)
    _, outcome = learner.meta_gradient(tasks, iteration)
    assert outcome.loss.isnan().all()


def test_tasks_of_different_sizes_that_stopped_it_can_be_tried_again(tmp_path):
    def task(points, value):
        x = torch.rand(points, 1)
        return x, value * x, x, value * x

    source = il.data.from_tasks([task(4, 1.0), task(5, float("inf")), task(6, 1.0), task(7, float("inf"))])
    with pytest.raises(NonFiniteError, match=r"the loss of tasks \d, \d"):
        trainer(source, tmp_path, tasks=4).fit()
    tasks, state, iteration = load_failed(tmp_path)
    assert sorted(len(task.support.x) for task in tasks) == [5, 7]
    learner = trainer(Poisoned()).learner
    learner.load_state_dict(state)
    assert not learner.meta_gradient(tasks, iteration)[1].loss.isfinite().any()


def test_unknown_policies_are_refused():
    with pytest.raises(ValueError, match='"stop" or "skip", got \'ignore\''):
        trainer(Poisoned(), non_finite="ignore")


def test_the_state_of_a_source_is_kept(tmp_path):
    trainer(Poisoned(), tmp_path, iterations=10).fit()
    again = trainer(Poisoned(), tmp_path, iterations=15)
    again.fit(resume=True)
    assert again.train.draws == 15


# -- memory -----------------------------------------------------------------------------------------------------------

HUNGRY = """
import resource, torch
import innerloop as il
learner = il.maml(il.models.conv4(channels=3, ways=5, width=64, image_size=84), steps=5)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, used + 2**29))
source = il.Strokes(ways=5, shots=5, queries=15, size=84)
class Coloured:
    def sample(self, n, generator):
        tasks = source.sample(n, generator)
        return il.Task(*(il.Batch(part.x.expand(-1, -1, 3, -1, -1), part.y) for part in tasks))
il.Trainer(learner, Coloured(), tasks=16, iterations=2, progress=False).fit()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is Linux's")
def test_out_of_memory_names_what_would_help():
    done = subprocess.run([sys.executable, "-c", HUNGRY], capture_output=True, text=True)
    name, _, last = done.stderr.splitlines()[-1].partition(": ")
    assert name == "innerloop.train.faults.OutOfMemoryError"
    assert last.startswith("iteration 1: a meta-batch of 16 tasks does not fit into memory (")
    assert "tasks=8" in last
    assert 'memory="constant"' in last
    assert 'precision="bfloat16"; first order; a smaller model' in last


def test_advice_on_memory_leaves_out_what_was_taken():
    learner = il.fomaml(il.models.mlp(1, 8, 1), steps=1, precision="bfloat16", vectorize=1)
    with pytest.raises(OutOfMemoryError, match=r"memory: a smaller model") as told, enough_memory(learner, 1, 3):
        raise MemoryError("no more")
    assert "first order" not in str(told.value)
    assert "bfloat16" not in str(told.value)


def test_other_errors_stay_what_they_are():
    class Broken:
        def sample(self, n, generator):
            tasks = il.Sinusoid(5).sample(n, generator)
            return il.Task(il.Batch(tasks.support.x.expand(-1, -1, 2), tasks.support.y), tasks.query)

    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        trainer(Broken()).fit()


# -- disks ------------------------------------------------------------------------------------------------------------


class CrashError(BaseException):
    """The machine is off."""


class Disk:
    """Counts what is done to files, and fails at one of these operations: that one alone (``"full"``), or from it on
    (``"crash"``), the last write being cut short."""

    def __init__(self, monkeypatch, at: int | None, kind: str):
        self.at, self.kind, self.done, self.off = at, kind, 0, False
        for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "unlink"), (os, "open")):
            monkeypatch.setattr(owner, name, self.counted(getattr(owner, name), name))
        opened = os.fdopen
        disk = self

        class File:
            def __init__(self, file):
                self.file = file

            def __enter__(self):
                return self

            def __exit__(self, *_):
                self.file.close()

            def write(self, content):
                try:
                    disk.step("write")
                except BaseException:
                    self.file.write(bytes(content)[: len(content) // 2])
                    raise
                return self.file.write(content)

            def __getattr__(self, name):
                return getattr(self.file, name)

        def fdopen(descriptor, mode="r", *args, **options):
            file = opened(descriptor, mode, *args, **options)
            return File(file) if "w" in mode else file

        monkeypatch.setattr(os, "fdopen", fdopen)

    def step(self, name: str) -> None:
        self.done += 1
        if self.off or self.done == self.at:
            self.off = self.kind == "crash"
            if self.off:
                raise CrashError
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def counted(self, function, name):
        def call(*args, **options):
            self.step(name)
            return function(*args, **options)

        return call


def grow(checkpoints: Checkpoints, iteration: int) -> None:
    """A validation and a checkpoint, as a trainer makes them."""
    weights = {"w": torch.full((50,), float(iteration))}
    checkpoints.consider(weights, {"iteration": iteration, "score": float(iteration % 3), "ci95": 0.1}, True)
    checkpoints.save({"iteration": iteration, "learner": weights})


def operations(monkeypatch, run: Path) -> int:
    """How many there are in writing one more checkpoint."""
    with monkeypatch.context() as patched:
        checkpoints = prepared(run)
        disk = Disk(patched, None, "full")
        grow(checkpoints, 5)
    return disk.done


def prepared(run: Path) -> Checkpoints:
    checkpoints = Checkpoints(run, keep_best=2)
    checkpoints.directory.mkdir(parents=True)
    for iteration in range(1, 5):
        grow(checkpoints, iteration)
    return checkpoints


@pytest.mark.parametrize("kind", ["full", "crash"])
def test_a_fault_at_any_operation_leaves_a_checkpoint(monkeypatch, tmp_path, kind):
    total = operations(monkeypatch, tmp_path / "whole")
    assert total > 10
    for at in range(1, total + 1):
        run = tmp_path / f"{at}"
        checkpoints = prepared(run)
        with monkeypatch.context() as patched:
            Disk(patched, at, kind)
            with pytest.raises((OSError, CrashError)):
                grow(checkpoints, 5)
        found = Checkpoints(run, keep_best=2)
        state = found.newest()
        assert state["iteration"] in (4, 5), f"operation {at} of {total}"
        assert state["learner"]["w"][0] == state["iteration"]
        assert found.weights()["learner"]["w"][0] == found.weights()["iteration"] == found.best[0]["iteration"]
        for iteration in range(state["iteration"] + 1, 8):  # goes on as if nothing had been
            grow(found, iteration)
        assert found.iterations() == [6, 7]
        assert [entry["iteration"] for entry in found.best] == [2, 5]
        if kind == "full":
            assert not list(run.rglob(".innerloop-*"))


@pytest.fixture
def small_files():
    """Files of this process cannot grow beyond 100 bytes."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.filterwarnings("error")
def test_a_record_that_cannot_be_written_is_named(tmp_path, small_files):
    """The part of a line that was still written is not taken for another program's."""
    metrics = Metrics(tmp_path)
    metrics.open(0)
    metrics.append("train", 1, loss=1.0)
    with pytest.raises(OSError, match="File too large") as caught:
        metrics.append("train", 2, loss=1.0, text="x" * 100)
    assert caught.value.filename == str(tmp_path / "metrics.jsonl")
    assert (tmp_path / "metrics.jsonl").stat().st_size == 100
    metrics.close()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB, and what makes it larger."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("no file system can be mounted here")
    yield disk, lambda: subprocess.run(["mount", "-o", "remount,size=10m", str(disk)], check=True)
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
def test_a_full_disk_is_told_and_the_run_goes_on_once_there_is_room(small_disk, tmp_path):
    disk, grow_disk = small_disk
    words = ["train", "sinusoid-maml", "--quiet"]
    for setting in ("iterations=30", "validate_every=10", "checkpoint_every=5", "val_tasks=4", "log_every=1"):
        words += ["--set", f"train.{setting}"]
    words += ["--set", "evaluate.num_tasks=4", "--run"]
    program = python("-m", "innerloop", *words)
    full = subprocess.run([*program, str(disk / "run")], capture_output=True, text=True)
    assert full.returncode == 1
    assert full.stderr.startswith("error: [Errno 28] No space left on device")
    assert str(disk / "run") in full.stderr
    assert full.stderr.count("\n") == 1
    assert Checkpoints(disk / "run").newest()["iteration"] < 30
    grow_disk()
    subprocess.run([*program, str(disk / "run"), "--resume"], check=True, capture_output=True)
    subprocess.run([*program, str(tmp_path / "whole")], check=True, capture_output=True)
    ours, theirs = (Checkpoints(run).newest()["learner"] for run in (disk / "run", tmp_path / "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_directory_that_may_not_be_written_to(small_disk):
    disk, _ = small_disk
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    command = python("-m", "innerloop", "train", "sinusoid-maml", "--run", disk / "run", "--quiet")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: [Errno 30] Read-only file system")
