from __future__ import annotations

import os
import subprocess
import sys

import pytest

from innerloop.train.claim import claimed, is_claimed
from tests.forked import python

HOLD = """
import sys
from pathlib import Path
from innerloop.train.claim import claimed
with claimed(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_refused_until_the_first_has_ended(tmp_path, holder):
    run = tmp_path / "run"
    with (
        pytest.raises(BlockingIOError, match=rf"run is being trained by process {holder.pid} on .*: wait"),
        claimed(run),
    ):
        pass
    holder.kill()
    holder.wait()
    with claimed(run), claimed(run):  # once more within this process
        assert f"process {os.getpid()} " in (run / ".lock").read_text()
    with claimed(run):
        (run / "something").touch()
    assert [path.name for path in run.iterdir()] == ["something"]


def test_a_directory_into_which_nothing_came_is_unmade(tmp_path):
    with claimed(tmp_path / "a" / "b"):
        assert is_claimed(tmp_path / "a" / "b")
    assert not is_claimed(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_second_trainer_is_refused_and_touches_nothing(tmp_path, holder):
    before = sorted(tmp_path.rglob("*"))
    command = python("-m", "innerloop", "train", "sinusoid-maml", "--run", tmp_path / "run")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert f"is being trained by process {holder.pid}" in done.stderr
    assert sorted(tmp_path.rglob("*")) == before == [tmp_path / "run", tmp_path / "run" / ".lock"]


@pytest.mark.skipif(os.name == "posix" and os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_cannot_be_written_to(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError), claimed(tmp_path / "run"):
        pass
