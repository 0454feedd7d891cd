"""Others are told what the record is told: real TensorBoard files, real trackers where they are installed."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import innerloop as il
from innerloop import cli
from innerloop.train import LOGGERS, Logger, NonFiniteError
from innerloop.train.loggers import MLflow, TensorBoard, WandB, numbers


class Listener:
    """A logger of one's own."""

    def __init__(self) -> None:
        self.begun: list[tuple[Path | None, dict[str, Any], int]] = []
        self.told: dict[tuple[int, str], float] = {}
        self.closed = 0

    def begin(self, run: Path | None, config: Mapping[str, Any], iteration: int) -> None:
        self.begun.append((run, dict(config), iteration))

    def log(self, iteration: int, values: Mapping[str, float]) -> None:
        self.told |= {(iteration, name): value for name, value in values.items()}

    def close(self) -> None:
        self.closed += 1


def train(
    run: Path | None, *loggers: Logger | str, iterations: int = 4, resume: bool = False, lr: float = 1e-3
) -> None:
    torch.manual_seed(0)
    learner = il.MetaLearner(il.models.mlp(1, 8, 1), il.PerStepSGD(0.01), loss=F.mse_loss, steps=2)
    il.Trainer(
        learner, il.Sinusoid(), il.Sinusoid(), run, iterations=iterations, tasks=3, validate_every=2, val_tasks=4,
        checkpoint_every=2, log_every=1, lr=lr, progress=False, loggers=loggers, config={"train": {"lr": lr}},
    ).fit(resume)  # fmt: skip


def recorded(run: Path) -> dict[tuple[int, str], float]:
    """What a record has to tell."""
    found = {}
    for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        at = line["iteration"]
        if line["kind"] == "train":
            for name in ("loss", "objective", "grad_norm", "lr", "tasks_per_second", "seconds", "memory_mib"):
                found[at, f"train/{name}"] = line[name]
            found[at, "train/first_inner_loss"], found[at, "train/last_inner_loss"] = line["steps"]
        if line["kind"] == "validation":
            found[at, "validation/mse"], found[at, "validation/ci95"] = line["mean"], line["ci95"]
        if line["kind"] == "rates":
            for name, rates in line["rates"].items():
                found |= {(at, f"rates/{name}/step {step + 1}"): rate for step, rate in enumerate(rates)}
    return found


def test_a_logger_of_ones_own_is_told_what_the_record_is(tmp_path: Path) -> None:
    listener = Listener()
    train(tmp_path / "run", listener)
    assert listener.begun == [(tmp_path / "run", {"train": {"lr": 1e-3}}, 0)]
    assert listener.told == recorded(tmp_path / "run")
    assert len(listener.told) > 40
    assert listener.closed == 1
    train(tmp_path / "run", listener, iterations=6, resume=True)
    assert listener.begun[-1][2] == 4
    assert listener.told == recorded(tmp_path / "run")


def test_there_need_be_no_run_directory(tmp_path: Path) -> None:
    listener = Listener()
    train(None, listener)
    assert {name for _, name in listener.told if name.startswith("validation")} == {"validation/mse", "validation/ci95"}
    with pytest.raises(ValueError, match="TensorBoard needs a run directory"):
        train(None, LOGGERS["tensorboard"]())


def test_every_logger_that_began_is_closed_whatever_happens(tmp_path: Path) -> None:
    class Refusing(Listener):
        def begin(self, run: Path | None, config: Mapping[str, Any], iteration: int) -> None:
            raise RuntimeError("no")

    first, refusing = Listener(), Refusing()
    with pytest.raises(RuntimeError, match="no"):
        train(tmp_path / "a", first, refusing)
    assert (first.closed, refusing.closed) == (1, 0)
    last = Listener()
    with pytest.raises(NonFiniteError):
        train(tmp_path / "b", last, lr=1e30)
    assert last.closed == 1


def events(folder: Path) -> dict[tuple[int, str], float]:
    """What TensorBoard shows."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    shown = accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0})
    shown.Reload()
    return {(e.step, name): e.value for name in shown.Tags()["scalars"] for e in shown.Scalars(name)}


def test_tensorboard_shows_the_record_also_of_a_resumed_run(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = tmp_path / "run"
    train(run, TensorBoard())
    assert events(run / "tensorboard") == pytest.approx(recorded(run), rel=1e-6)
    # As after a crash: TensorBoard was told of iterations that no checkpoint has.
    (run / "checkpoints" / "state-00000004.pt").unlink()
    train(run, TensorBoard(), iterations=6, resume=True)
    assert events(run / "tensorboard") == pytest.approx(recorded(run), rel=1e-6)


def test_the_command_line_knows_them_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboard")
    small = ["train.iterations=2", "train.val_tasks=4", "train.tasks=2", "evaluate.num_tasks=4"]
    words = ["train", "sinusoid-maml", "--quiet", *(word for one in small for word in ("--set", one))]
    assert cli.run([*words, "--run", str(tmp_path / "run"), "--log", "tensorboard"]) == 0
    assert (2, "train/loss") in events(tmp_path / "run" / "tensorboard")
    assert cli.run([*words, "--run", str(tmp_path / "other"), "--log", "nothing"]) == 2
    assert not (tmp_path / "other").exists()


def test_what_is_not_installed_is_named_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("wandb", "trackio", "mlflow", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, module, None)
    for name, hint in (("wandb", "wandb"), ("trackio", "trackio"), ("mlflow", "mlflow"),
                       ("tensorboard", "'innerloop[tensorboard]'")):  # fmt: skip
        assert cli.run(["train", "sinusoid-maml", "--run", str(tmp_path / name), "--log", name]) == 1
        assert f"pip install {hint}" in capsys.readouterr().err
        assert not (tmp_path / name).exists()


def test_weights_and_biases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline: what it would send is in its own file."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    train(tmp_path / "run", WandB())
    (path,) = (tmp_path / "run").glob("wandb/offline-run-*/*.wandb")
    written = path.read_bytes()
    assert all(name.encode() in written for _, name in recorded(tmp_path / "run"))


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    train(tmp_path / "run", MLflow())
    train(tmp_path / "run", MLflow(), iterations=6, resume=True)
    client = mlflow.tracking.MlflowClient()
    (found,) = client.search_runs([client.get_experiment_by_name("innerloop").experiment_id])
    assert found.info.run_name == "run"
    assert found.data.params == {"train.lr": "0.001"}
    losses = {m.step: m.value for m in client.get_metric_history(found.info.run_id, "train/loss")}
    expected = {at: value for (at, name), value in recorded(tmp_path / "run").items() if name == "train/loss"}
    assert losses == pytest.approx(expected)
    assert all(math.isfinite(value) for value in found.data.metrics.values())


def test_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    train(tmp_path / "run", LOGGERS["trackio"]())
    assert any((tmp_path / "trackio").rglob("*.db"))


def test_loggers_are_given_by_name_or_refused(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    listener = Listener()
    train(tmp_path / "run", "tensorboard", listener)
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))
    assert listener.closed == 1
    with pytest.raises(ValueError, match="unknown logger 'tensorbord': it is one of tensorboard, wandb"):
        train(tmp_path / "other", "tensorbord")
    for strange in (Listener, 3, print):
        with pytest.raises(TypeError, match=r"a logger is a name \(tensorboard, .*got"):
            train(tmp_path / "other", strange)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"a list, such as \['tensorboard'\], got the string"):
        il.Trainer(il.maml(il.models.mlp(1, 4, 1), loss=F.mse_loss), il.Sinusoid(), loggers="tensorboard")
    assert not (tmp_path / "other").exists()


def test_loggers_get_the_score_on_each_set_of_a_mixture():
    sets = {"waves": {"mean": 1.5, "ci95": 0.1, "num_tasks": 3}, "lines": {"mean": 2.5, "ci95": None, "num_tasks": 1}}
    assert numbers("validation", {"metric": "mse", "mean": 2.0, "ci95": 0.5, "sets": sets}) == {
        "validation/mse": 2.0, "validation/ci95": 0.5, "validation/mse/waves": 1.5, "validation/mse/lines": 2.5
    }  # fmt: skip
