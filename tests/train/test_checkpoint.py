from __future__ import annotations

import hashlib
import os
import pickle

import pytest
import torch

from innerloop.train import checkpoint
from innerloop.train.checkpoint import Checkpoints


@pytest.fixture
def checkpoints(tmp_path):
    found = Checkpoints(tmp_path, keep_best=2)
    found.directory.mkdir()
    return found


def state(iteration):
    return {"iteration": iteration, "weights": {"w": torch.arange(200.0) + iteration}}


def names(checkpoints):
    return sorted(path.name for path in checkpoints.directory.iterdir())


def test_the_last_two_states_are_kept(checkpoints):
    for iteration in (0, 10, 20, 30):
        checkpoints.save(state(iteration))
    assert checkpoints.iterations() == [20, 30]
    assert checkpoints.newest()["iteration"] == 30


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "foreign", "hostile"])
def test_a_damaged_newest_state_falls_back_and_says_so(checkpoints, damage, tmp_path):
    for iteration in (10, 20):
        checkpoints.save(state(iteration))
    path = checkpoints.directory / "state-00000020.pt"
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[content.index(torch.tensor([25.0, 26.0]).numpy().tobytes())] ^= 1
    path.write_bytes(
        {
            "truncated": bytes(content[: len(content) // 2]),
            "empty": b"",
            "flipped": bytes(content),
            "foreign": b"not a checkpoint",
            "hostile": b"",
        }[damage]
    )
    if damage == "hostile":

        class Hostile:
            def __reduce__(self):
                return (os.mkdir, (str(tmp_path / "executed"),))

        torch.save({"format": 1, "iteration": 20, "best": [], "x": Hostile()}, path, pickle_module=pickle)
        path.write_bytes(path.read_bytes() + hashlib.sha256(path.read_bytes()).digest())  # past the checksum
    with pytest.warns(UserWarning, match=r"state-00000020.pt is not a usable checkpoint.*falling back") as caught:
        assert checkpoints.newest()["iteration"] == 10
    message = str(caught[0].message)
    assert "weights_only" not in message
    assert "\n" not in message
    assert ("it would run posix.mkdir" in message or "nt.mkdir" in message) is (damage == "hostile")
    assert not (tmp_path / "executed").exists()


def test_any_flipped_byte_is_noticed(checkpoints):
    checkpoints.save(state(7))
    path = checkpoints.directory / "state-00000007.pt"
    content = path.read_bytes()
    for position in range(0, len(content), max(1, len(content) // 150)):
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="checksum does not match"):
            checkpoint.load(path)


def test_all_damaged_and_none_at_all(checkpoints):
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        checkpoints.newest()
    checkpoints.save(state(1))
    (checkpoints.directory / "state-00000001.pt").write_bytes(b"?")
    with (
        pytest.warns(UserWarning, match="there is no earlier one"),
        pytest.raises(ValueError, match="all of them are damaged"),
    ):
        checkpoints.newest()


@pytest.mark.parametrize("fails", ["fsync", "write"])
def test_a_failing_write_changes_nothing(checkpoints, monkeypatch, fails):
    checkpoints.save(state(1))
    before = {name: (checkpoints.directory / name).read_bytes() for name in names(checkpoints)}

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full) if fails == "fsync" else monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(state(2))
    assert {name: (checkpoints.directory / name).read_bytes() for name in names(checkpoints)} == before


@pytest.mark.parametrize(
    ("key", "value"),
    [("iteration", None), ("iteration", 3), ("best", None), ("best", [1]), ("best", [{"iteration": 4}]), ("learner", 1),
     ("best", [{"iteration": "x", "score": 1.0, "ci95": 1.0}]), ("tasks", "x"), ("plans", [])],
)  # fmt: skip
def test_a_state_with_other_content_and_a_fitting_checksum_falls_back(tmp_path, key, value):
    """As another program, or an attacker, would write it."""
    checkpoints = Checkpoints(tmp_path)
    for iteration in (1, 2):
        checkpoints.save(state(iteration))
    path = checkpoints.directory / "state-00000002.pt"
    whole = checkpoint.load(path)
    for changed in ({**whole, key: value}, {name: given for name, given in whole.items() if name != key}):
        if key in changed or key in whole:
            checkpoint.save(path, changed)
            with pytest.warns(UserWarning, match=rf"{path.name} is not a usable checkpoint: it.*; falling back"):
                assert checkpoints.newest()["iteration"] == 1


def test_a_crash_between_writing_and_renaming_leaves_the_state_before(checkpoints):
    checkpoints.save(state(1))
    (checkpoints.directory / f".innerloop-{'0' * 32}.tmp.pt").write_bytes(b"half")
    assert checkpoints.newest()["iteration"] == 1


@pytest.mark.parametrize("higher", [True, False])
def test_the_best_are_kept(checkpoints, higher):
    scores = {10: 3.0, 20: 5.0, 30: float("nan"), 40: 1.0, 50: 4.0}
    for iteration, score in scores.items():
        entry = {"iteration": iteration, "score": score, "ci95": 0.1}
        very_best = checkpoints.consider({"w": torch.tensor(float(iteration))}, entry, higher)
        assert very_best == (iteration in ((10, 20) if higher else (10, 40)))
        checkpoints.save(state(iteration))
    expected = [20, 50] if higher else [40, 10]
    assert [entry["iteration"] for entry in checkpoints.best] == expected
    assert checkpoints.weights()["learner"]["w"] == expected[0]
    checkpoints.save(state(60))
    assert [n for n in names(checkpoints) if n.startswith("best")] == sorted(f"best-{i:08d}.pt" for i in expected)


def test_a_damaged_best_gives_way_to_the_next(checkpoints):
    for iteration in (1, 2):
        entry = {"iteration": iteration, "score": float(iteration), "ci95": 0.1}
        checkpoints.consider({"w": torch.tensor(float(iteration))}, entry, True)
    checkpoints.save(state(2))
    (checkpoints.directory / "best-00000002.pt").write_bytes(b"?")
    with pytest.warns(UserWarning, match="next best"):
        assert checkpoints.weights()["iteration"] == 1
