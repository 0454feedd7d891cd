"""What happens to ``metrics.jsonl`` while a training writes it is noticed."""

from __future__ import annotations

import json
import os

import pytest

from innerloop.train.record import Metrics

pytestmark = pytest.mark.skipif(os.name != "posix", reason="open files cannot be removed elsewhere")


@pytest.fixture
def metrics(tmp_path):
    (tmp_path / "run").mkdir()
    found = Metrics(tmp_path / "run")
    found.open(0)
    for iteration in range(1, 4):
        found.append("train", iteration, loss=1.0)
    yield found
    found.close()


def iterations(path):
    return [json.loads(line)["iteration"] for line in path.read_text().splitlines()]


@pytest.mark.parametrize("then", ["append", "sync", "close"])
def test_a_record_that_is_removed_is_restored(metrics, then):
    metrics.path.unlink()
    with pytest.warns(UserWarning, match=r"metrics.jsonl was removed .* it was restored completely") as told:
        metrics.append("train", 4, loss=1.0) if then == "append" else getattr(metrics, then)()
    assert len(told) == 1
    assert "\n" not in str(told[0].message)
    assert iterations(metrics.path) == [1, 2, 3, 4][: 3 + (then == "append")]
    if then != "close":
        metrics.append("train", 5, loss=1.0)
        assert iterations(metrics.path)[-1] == 5


def test_a_record_that_is_removed_with_its_folder_is_restored(metrics):
    metrics.path.unlink()
    metrics.path.parent.rmdir()
    with pytest.warns(UserWarning, match="restored"):
        metrics.append("train", 4, loss=1.0)
    assert iterations(metrics.path) == [1, 2, 3, 4]


@pytest.mark.parametrize("link", [False, True])
def test_another_file_of_its_name_is_kept_and_not_written_to(metrics, tmp_path, link):
    other = tmp_path / "other"
    other.write_text("mine")
    metrics.path.unlink()
    metrics.path.symlink_to(other) if link else other.replace(metrics.path)
    with pytest.warns(UserWarning, match="was replaced .* the other file was renamed to metrics"):
        metrics.append("train", 4, loss=1.0)
    assert iterations(metrics.path) == [1, 2, 3, 4]
    (kept,) = (path for path in metrics.path.parent.iterdir() if path != metrics.path)
    assert kept.read_text() == "mine"
    assert kept.is_symlink() == link


def test_a_record_that_is_cut_goes_on_with_a_line_of_its_own(metrics):
    os.truncate(metrics.path, metrics.path.stat().st_size - 5)
    with pytest.warns(
        UserWarning, match="another program cut 5 bytes off .*; training and the record continue"
    ) as told:
        metrics.append("train", 4, loss=1.0)
    assert len(told) == 1
    metrics.append("train", 5, loss=1.0)  # is told of once
    lines = metrics.path.read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in (*lines[:2], *lines[3:])] == [1, 2, 4, 5]
    os.truncate(metrics.path, 0)
    with pytest.warns(UserWarning, match="cut"):
        metrics.append("train", 6, loss=1.0)
    assert iterations(metrics.path) == [6]


def test_what_others_wrote_is_told_of(metrics):
    with metrics.path.open("a") as file:
        file.write("half a line")
    with pytest.warns(UserWarning, match="another program wrote 11 bytes to"):
        metrics.append("train", 4, loss=1.0)
    assert json.loads(metrics.path.read_text().splitlines()[-1])["iteration"] == 4


def test_resuming_tells_of_lines_that_are_lost(tmp_path):
    lines = [json.dumps({"kind": "train", "iteration": i, "loss": 1.0}) + "\n" for i in range(1, 6)]
    (tmp_path / "metrics.jsonl").write_text("".join([*lines[:2], "broken\n", *lines[2:]]) + '{"kind": "cut')
    metrics = Metrics(tmp_path)
    with pytest.warns(UserWarning, match="1 lines of .* could not be read and are dropped") as told:
        metrics.open(4)
    assert len(told) == 1
    assert iterations(metrics.path) == [1, 2, 3, 4]
    metrics.close()
    metrics.path.unlink()
    with pytest.warns(UserWarning, match="has no line of the previous 4 iterations"):
        metrics.open(4)
    metrics.close()
