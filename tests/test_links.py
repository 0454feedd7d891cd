"""A run directory from somebody else does not make any command write outside of it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from innerloop import cli
from innerloop.train.claim import claimed
from innerloop.train.loggers import MLflow, TensorBoard

pytestmark = pytest.mark.skipif(os.name != "posix", reason="links of POSIX")
SETS = ["iterations=4", "validate_every=2", "checkpoint_every=2", "val_tasks=2", "tasks=2", "log_every=1"]
TRAIN = ["train", "sinusoid-maml", "--quiet", "--set", "evaluate.num_tasks=2", "--set", "model.sizes=[1, 4, 1]"]
TRAIN += [word for setting in SETS for word in ("--set", f"train.{setting}")]


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("links") / "run"
    assert cli.run([*TRAIN, "--run", str(run)]) == 0
    return run


@pytest.fixture
def run(original, tmp_path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "run"))


@pytest.fixture
def outside(tmp_path):
    """A file and a folder of the user's, and what checks that they are untouched."""
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / ".profile").write_text("mine")
    yield folder
    assert [path.name for path in folder.iterdir()] == [".profile"]
    assert (folder / ".profile").read_text() == "mine"


def plant(path: Path, target: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


GUESSED = [".config.toml.tmp", ".metrics.jsonl.tmp", ".results.json.tmp", "checkpoints/.state-00000006.pt.tmp"]
REPLACED = ["config.toml", "results.json", "metrics.jsonl", "checkpoints/state-00000004.pt"]


@pytest.mark.parametrize("name", [*GUESSED, *REPLACED])
def test_resuming_a_run_writes_through_no_link(run, outside, name, capsys):
    content = (run / name).read_bytes() if name in REPLACED else b""
    copy = outside.parent / "copy"
    copy.write_bytes(content)
    plant(run / name, copy if content else outside / ".profile")
    words = [*TRAIN, "--set", "train.iterations=6", "--run", str(run), "--resume", "--accept-changes"]
    assert cli.run(words) == 0, capsys.readouterr().err
    assert copy.read_bytes() == content
    if name in REPLACED[:3]:
        assert not (run / name).is_symlink()


@pytest.mark.parametrize("name", [".lock", "checkpoints", "tensorboard", "wandb", "figures"])
@pytest.mark.parametrize("dangling", [False, True])
def test_training_refuses_links_where_it_would_write(run, outside, name, dangling, capsys):
    target = outside / "new" if dangling else outside / ".profile" if name == ".lock" else outside
    plant(run / name, target)
    words = [*TRAIN, "--set", "train.iterations=6", "--run", str(run), "--resume", "--accept-changes"]
    assert cli.run(words) == 1
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert f"{run / name} is a symbolic link" in error


def test_a_hard_link_is_not_written_to_either(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    run = tmp_path / "run"
    run.mkdir()
    os.link(precious, run / ".lock")
    with claimed(run):
        assert "process" in (run / ".lock").read_text()
    assert precious.read_text() == "mine"


def test_what_a_killed_training_left_half_written_is_removed(run):
    half = run / "checkpoints" / f".innerloop-{'0' * 32}.tmp.pt"
    half.write_bytes(b"half")
    (run / "checkpoints" / ".mine").touch()
    with claimed(run):
        assert not half.exists()
    assert (run / "checkpoints" / ".mine").exists()


def test_figures_replace_links_and_refuse_linked_folders(run, outside, capsys):
    (run / "figures").mkdir()
    plant(run / "figures" / "meta-train.png", outside / ".profile")
    words = ["plot", str(run), "--kind", "meta-train"]
    assert cli.run(words) == 0
    assert (run / "figures" / "meta-train.png").read_bytes().startswith(b"\x89PNG")
    assert not (run / "figures" / "meta-train.png").is_symlink()
    shutil.rmtree(run / "figures")
    plant(run / "figures", outside)
    plant(run / "mine", outside)
    capsys.readouterr()
    for again, name in (
        (words, "figures"),
        ([*words, "-o", str(run / "mine")], "mine"),
        ([*words, "-o", str(run / "mine" / "deeper")], "mine"),
        (["report", str(run), "--record-only", "-o", str(run / "mine" / "report.html")], "mine"),
    ):
        assert cli.run(again) == 1
        assert f"{run / name} is a symbolic link" in capsys.readouterr().err


def test_a_folder_for_figures_that_the_user_gives_may_be_a_link(run, tmp_path):
    (tmp_path / "large-disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "large-disk")
    assert cli.run(["plot", str(run), "--kind", "meta-train", "-o", str(tmp_path / "out")]) == 0
    assert [path.name for path in (tmp_path / "large-disk").iterdir()] == ["meta-train.png"]


def test_a_run_directory_that_is_a_link_is_trained_in(tmp_path):
    (tmp_path / "large-disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "large-disk")
    assert cli.run([*TRAIN, "--run", str(tmp_path / "run")]) == 0
    assert (tmp_path / "large-disk" / "results.json").exists()


def test_a_profile_replaces_a_link(tmp_path, outside):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("profile.json", "profile.json.tmp"):
        plant(run / name, outside / ".profile")
    assert cli.run([*TRAIN, "--set", "train.iterations=9", "--run", str(run), "--profile"]) == 0
    assert (run / "profile.json").read_bytes().lstrip().startswith(b"{")
    assert not (run / "profile.json").is_symlink()


def test_event_files_have_names_that_cannot_be_guessed(tmp_path):
    pytest.importorskip("tensorboard")
    names = set()
    for _ in range(2):
        logger = TensorBoard()
        logger.begin(tmp_path, {}, 0)
        logger.log(1, {"train/loss": 1.0})
        logger.close()
    names = {path.suffix for path in (tmp_path / "tensorboard").iterdir()}
    assert len(names) == 2
    assert all(len(name) == 33 for name in names)


def test_the_name_of_an_mlflow_run_replaces_a_link(tmp_path, outside, monkeypatch):
    class Stub:
        def start_run(self, run_id, run_name):
            assert run_id is None
            return type("Run", (), {"info": type("Info", (), {"run_id": "abc"})})

        def __getattr__(self, name):
            return lambda *_, **__: None

    monkeypatch.setattr("innerloop.train.loggers._imported", lambda _: Stub())
    plant(tmp_path / "mlflow.txt", outside / "nothing")
    MLflow().begin(tmp_path, {"learner": {"lr": 0.1}}, 0)
    assert (tmp_path / "mlflow.txt").read_text() == "abc"


@pytest.mark.parametrize("name", ["sweep.db", "sweep.json", "trial-0000-seed0"])
def test_a_sweep_writes_through_no_link(tmp_path, outside, name, capsys):
    pytest.importorskip("optuna")
    folder = tmp_path / "sweep"
    folder.mkdir()
    (tmp_path / "space.toml").write_text("learner.lr = {low = 0.01, high = 0.1}\n")
    plant(folder / name, outside if "trial" in name else outside / "nothing")
    words = ["sweep", *TRAIN[1:2], *TRAIN[3:], "--space", str(tmp_path / "space.toml"), "--folder", str(folder)]
    code = cli.run([*words, "--trials", "1"])
    if name == "sweep.json":
        assert code == 0
        assert not (folder / name).is_symlink()
    else:
        assert code == 1
        assert f"{folder / name} is a symbolic link" in capsys.readouterr().err
