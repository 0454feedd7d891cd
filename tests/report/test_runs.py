"""What a run wrote down is read back, however far it came, and what is no run is told in a line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from torch.nn import functional as F

import innerloop as il
from innerloop.report import UnreadableRunError, read_run
from innerloop.report.record import sound


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of learned rates, with inner mini-batches, recorded at every second iteration."""
    path = tmp_path_factory.mktemp("runs") / "sinusoids"
    learner = il.MetaLearner(il.models.mlp(1, 8, 1), il.PerStepSGD(0.01), loss=F.mse_loss, steps=4, batch_size=5)
    options = {"iterations": 6, "tasks": 3, "validate_every": 3, "val_tasks": 4, "log_every": 1, "trace_every": 2}
    il.Trainer(learner, il.Sinusoid(), il.Sinusoid(), path, progress=False, trace_tasks=2, **options).fit()
    return path


def test_a_run_is_read(run: Path) -> None:
    found = read_run(run)
    assert (found.name, found.finished, found.iteration, found.damaged) == ("sinusoids", True, 6, 0)
    assert found.config == {}
    assert {kind: len(lines) for kind, lines in found.lines.items()} == {
        "run": 1, "rates": 4, "train": 6, "tasks": 3, "validation": 2
    }  # fmt: skip
    iterations, losses = found.column("train", "loss")
    assert iterations == [1, 2, 3, 4, 5, 6]
    assert all(loss > 0 for loss in losses)
    assert found.column("train", "accuracy") == ([], [])
    best = found.best
    assert best is not None
    assert best["mean"] == min(line["mean"] for line in found.lines["validation"])
    assert len(best["scores"]) == 4
    last = found.lines["train"][-1]
    assert set(last["phases"]) == {"tasks", "gradient", "record", "update", "validation"}
    assert last["seconds"] == pytest.approx(sum(last["phases"][name] for name in ("tasks", "gradient", "update")))
    assert last["memory_mib"] > 10


def test_the_nesting_is_read_as_frames(run: Path) -> None:
    found = read_run(run)
    steps = found.frame("steps")
    assert list(steps.columns) == ["iteration", "task", "epoch", "step", "loss"]
    assert len(steps) == 3 * 2 * 4
    assert steps[steps.step >= 2].epoch.eq(1).all()
    tasks = found.frame("tasks")
    assert list(tasks.columns) == ["iteration", "task", "after", "support_loss", "query_loss"]
    assert sorted(tasks.after.unique()) == [0, 1, 2, 3, 4]
    rates = found.frame("rates")
    assert rates[rates.iteration == 0].rate.eq(rates.rate.iloc[0]).all()
    assert rates.parameter.nunique() == 4
    assert rates.groupby("iteration").size().eq(4 * 4).all()
    assert list(found.frame("train").iteration) == [1, 2, 3, 4, 5, 6]
    assert found.frame("validation").metric.eq("mse").all()
    with pytest.raises(ValueError, match="got 'losses'"):
        found.frame("losses")  # type: ignore[arg-type]


def copied(run: Path, to: Path, metrics: bytes) -> Path:
    to.mkdir()
    (to / "metrics.jsonl").write_bytes(metrics)
    return to


def test_what_is_damaged_or_cut_off_is_left_out(run: Path, tmp_path: Path) -> None:
    whole = (run / "metrics.jsonl").read_bytes()
    cut = read_run(copied(run, tmp_path / "cut", whole[:-10]))
    assert (cut.damaged, cut.finished) == (0, False)
    lines = whole.splitlines(keepends=True)
    lines[3] = lines[3][:20] + b"\n"
    lines[5] = b'["not a record"]\n'
    damaged = read_run(copied(run, tmp_path / "damaged", b"".join(lines)))
    assert damaged.damaged == 2
    assert sum(map(len, damaged.lines.values())) == len(lines) - 2


def test_reading_goes_on_where_it_ended(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = (run / "metrics.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    folder = copied(run, tmp_path / "run", b"".join(lines[:4]) + b"[]\n" + lines[4][:9])
    first = read_run(folder)
    parsed: list[object] = []
    monkeypatch.setattr(
        "innerloop.report.record.sound", lambda entry, sound=sound: parsed.append(entry) or sound(entry)
    )
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(lines[4][9:] + b"".join(lines[5:]))
    second = read_run(folder, first)
    assert (second.lines, second.damaged) == (read_run(run).lines, 1)
    assert parsed[: len(lines) - 4] == [json.loads(line) for line in lines[4:]]
    assert sum(map(len, first.lines.values())) == 4
    # A resumed run cuts its record, in a file of its own.
    (folder / "new").write_bytes(b"".join(lines[:6]))
    (folder / "new").replace(folder / "metrics.jsonl")
    assert read_run(folder, second).lines == read_run(copied(run, tmp_path / "same", b"".join(lines[:6]))).lines


def test_a_number_that_was_not_finite_is_not_a_number_again(tmp_path: Path) -> None:
    line = {"kind": "train", "iteration": 1, "loss": None, "steps": [], "grad_norm": None, "lr": 0.1}
    metrics = json.dumps({**line, "tasks_per_second": 1.0, "seconds": 1.0}).encode() + b"\n"
    (loss,) = read_run(copied(tmp_path, tmp_path / "run", metrics)).column("train", "loss")[1]
    assert loss != loss


@pytest.mark.parametrize(
    "line",
    [
        b'{"kind": "train", "loss": 1.0}',
        b'{"kind": "train", "iteration": 3}',
        b'{"kind": "train", "iteration": "x", "loss": 1.0}',
        b'{"kind": ["train"], "iteration": 3}',
        b'{"kind": "validation", "iteration": 201}',
        b'{"kind": "run", "iteration": 0, "schema": "1"}',
        b'{"kind": "train", "iteration": 3, "loss": "abc", "steps": [], "grad_norm": 1, "lr": 1, '
        b'"tasks_per_second": 1, "seconds": 1}',
    ],
)
def test_a_line_that_is_not_of_its_kind_is_left_out(run: Path, tmp_path: Path, line: bytes) -> None:
    whole = (run / "metrics.jsonl").read_bytes()
    found = read_run(copied(run, tmp_path / "run", whole + line + b"\n"))
    assert found.damaged == 1
    assert found.lines == read_run(run).lines


def test_a_run_has_finished_when_its_test_is_made(run: Path, tmp_path: Path) -> None:
    of_recipe = copied(run, tmp_path / "run", (run / "metrics.jsonl").read_bytes())
    (of_recipe / "config.toml").write_text("[train]\niterations = 6\n")
    half, other = {"iterations": 6}, {"iterations": 3, "test": {}}
    for results, finished in (({}, False), (half, False), ({**half, "test": {}}, True), (other, False)):
        (of_recipe / "results.json").write_text(json.dumps(results))
        assert read_run(of_recipe).finished is finished


def test_what_is_no_run_is_told_in_a_line(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("")
    copied(run, tmp_path / "begun", b'{"kind": "tr')
    copied(run, tmp_path / "later", json.dumps({"kind": "run", "iteration": 0, "schema": 99}).encode() + b"\n")
    copied(run, tmp_path / "broken", (run / "metrics.jsonl").read_bytes())
    (tmp_path / "broken" / "config.toml").write_text("[model\n")
    told = {
        "nowhere": "does not exist",
        "file": "is a file, not a run directory",
        "empty": "is not a run directory: it is empty",
        "other": "is not a run directory: it has no metrics.jsonl",
        "begun": "has no record yet",
        "later": "later version .schema 99",
        "broken": "is damaged",
    }
    for name, message in told.items():
        with pytest.raises(UnreadableRunError, match=message) as error:
            read_run(tmp_path / name)
        assert len(str(error.value).splitlines()) == 1
        assert str(tmp_path / name) in str(error.value)
