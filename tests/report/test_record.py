"""Records that are long, odd or damaged."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import innerloop as il
from innerloop import cli
from innerloop.report import UnreadableRunError, read_run
from innerloop.report.record import MOST, read_record

TRAIN = {
    "kind": "train", "iteration": 1, "objective": 1.0, "loss": 1.0, "steps": [1.0, 0.5], "grad_norm": 0.1, "lr": 0.001,
    "tasks_per_second": 100.0, "seconds": 1.0, "phases": {"tasks": 0.1, "gradient": 0.5, "update": 0.1},
    "memory_mib": 310.5,
}  # fmt: skip
VALIDATION = {
    "kind": "validation", "iteration": 1, "metric": "mse", "higher_is_better": False, "unit": "", "mean": 1.0,
    "ci95": 0.1, "num_tasks": 4, "steps": [2.0, 1.0], "steps_ci95": [0.1, 0.1], "transductive": True,
    "scores": [1.0, 1.1, 0.9, 1.0], "seconds": 1.0,
}  # fmt: skip
TASKS = {
    "kind": "tasks", "iteration": 1, "steps": [[[1.0], [0.5]]], "after": [0, 1, 2], "support_loss": [[1.0, 0.5, 0.2]],
    "query_loss": [[1.0, 0.6, 0.3]], "grad_norms": {"w": 0.1},
}  # fmt: skip
RATES = {"kind": "rates", "iteration": 1, "rates": {"w": [0.1, 0.2]}}
BEGUN = {"kind": "run", "iteration": 0, "schema": 1, "tasks": 4, "steps": 2, "environment": {"cpu": "x"}}


def write(run: Path, *lines: dict[str, object]) -> Path:
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def whole(run: Path) -> Path:
    return write(run, BEGUN, RATES, *({**line, "iteration": i} for i in (1, 2) for line in (TRAIN, TASKS, VALIDATION)))


@pytest.mark.parametrize("line", [BEGUN, TRAIN, TASKS, RATES, VALIDATION], ids=lambda line: line["kind"])
def test_a_field_of_another_type_is_damage(tmp_path, line):
    """Whatever is shown of a line; the record has one whole line besides."""
    first = TRAIN if line is not TRAIN else BEGUN
    assert read_run(write(tmp_path / "sound", first, line)).damaged == 0
    for name in line:
        for wrong in ("310", [[["x"]]], {"a": ["x"]}, True):
            if type(wrong) is type(line[name]) and wrong is not True and not isinstance(wrong, list | dict):
                continue
            if isinstance(line[name], bool) and wrong is True:
                continue
            run = write(tmp_path / f"{name}-{wrong!r}".replace("/", ""), first, {**line, name: wrong})
            assert read_run(run).damaged == 1, (name, wrong)


def test_ten_runs_of_which_three_are_broken(tmp_path, capsys):
    runs = [whole(tmp_path / f"run{i}") for i in range(10)]
    (runs[2] / "metrics.jsonl").write_text(json.dumps({**TRAIN, "memory_mib": "310"}) + "\n")
    (runs[5] / "results.json").write_text('{"test": {"metric": 3}}')
    (runs[7] / "config.toml").write_text("train = 3\n")
    page = tmp_path / "report.html"
    assert cli.run(["report", *map(str, runs), "--record-only", "-o", str(page)]) == 0
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 3
    assert [any(f"run{i} " in line for line in told) for i in range(10)] == [i in (2, 5, 7) for i in range(10)]
    text = page.read_text()
    assert "3 of 10 run directories are left out" in text
    assert all(f"</span>run{i}" in text for i in (0, 1, 3, 4, 6, 8, 9))


def test_a_path_that_cannot_be_looked_at_does_not_lose_the_others(tmp_path, capsys):
    """Because it is too long; folders that may not be entered fail in the same way, but not for root."""
    long = tmp_path / ("x" * 300)
    page = tmp_path / "report.html"
    assert cli.run(["report", str(whole(tmp_path / "sound")), str(long), "--record-only", "-o", str(page)]) == 0
    assert f"left out: {long} cannot be read: " in capsys.readouterr().err
    assert "</span>sound" in page.read_text()


def test_a_run_that_cannot_be_shown_is_named_and_left_out(tmp_path, capsys, monkeypatch):
    """Even where what is read is sound and drawing it fails all the same."""
    from innerloop.report import interactive

    draw = interactive.validation

    def odd(runs):
        if any(run.name == "odd" for run in runs.values()):
            raise TypeError("unforeseen")
        return draw(runs)

    monkeypatch.setattr(interactive, "validation", odd)
    runs = [whole(tmp_path / name) for name in ("odd", "sound")]
    page = tmp_path / "report.html"
    assert cli.run(["report", *map(str, runs), "--record-only", "-o", str(page)]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{runs[0]} is damaged: it cannot be shown (TypeError: unforeseen)" in line
    assert "</span>sound" in page.read_text()


def test_a_name_cannot_end_the_script(tmp_path):
    run = whole(tmp_path / "<!--<script>")
    page = tmp_path / "report.html"
    assert cli.run(["report", str(run), "--record-only", "-o", str(page)]) == 0
    data = page.read_text().partition('<script id="data" type="application/json">')[2].partition("</script>")[0]
    assert "<" not in data
    assert any(trace["name"] == "<!--<script>" for figure in json.loads(data) for trace in figure["data"])


def test_long_records_are_thinned_with_the_first_the_last_and_the_best(tmp_path):
    lines = 5 * MOST + 3
    best = 2 * MOST + 1  # which no stride meets
    many = (
        {**line, "iteration": i, "mean": 0.5 if i == best else 1.0 + i / lines}
        for i in range(1, lines + 1)
        for line in (TRAIN, VALIDATION)
    )
    run = read_run(write(tmp_path / "run", BEGUN, *many), most=MOST)
    for kind in ("train", "validation"):
        found = [line["iteration"] for line in run.lines[kind]]
        assert MOST <= len(found) <= 2 * MOST + 3
        assert (found[0], found[-1]) == (1, lines)
        assert found == sorted(set(found))
    assert run.best["iteration"] == best
    assert run.left_out == "one line of 4 read"
    assert len(read_run(tmp_path / "run").lines["train"]) == lines  # all, if nothing else is asked for


def test_a_thinned_reading_goes_on(tmp_path):
    run = write(tmp_path / "run", *({**TRAIN, "iteration": i} for i in range(3 * MOST)))
    first = read_run(run, most=MOST)
    before = [line["iteration"] for line in first.lines["train"]]
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps({**TRAIN, "iteration": i}) + "\n" for i in range(3 * MOST, 6 * MOST))
    second = read_run(run, first, MOST)
    assert second.lines == read_run(run, most=MOST).lines
    assert [line["iteration"] for line in first.lines["train"]] == before


def test_a_long_record_takes_little_memory(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with path.open("w") as file:
        for i in range(100_000):
            file.write(json.dumps({**TRAIN, "iteration": i}) + "\n")
    tracemalloc.start()
    try:
        read_record(path, most=MOST)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16e6 < path.stat().st_size


@pytest.mark.parametrize(("number", "kept"), [(500, 500), (1_000, 1_000), (1_500, 750)])
def test_large_lines_are_thinned_only_if_they_are_many(number: int, kept: int, tmp_path: Path) -> None:
    """A usual run has some hundreds of validations, with a score for each of hundreds of tasks."""
    path = tmp_path / "metrics.jsonl"
    lines = ({**VALIDATION, "iteration": i, "mean": 1.0, "scores": [1 / 3] * 300} for i in range(number))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_record(path, most=MOST).series["validation"]
    assert len(found.entries) == kept
    assert found.count == number


def test_a_line_without_an_end_is_named(tmp_path, monkeypatch):
    run = whole(tmp_path / "run")
    monkeypatch.setattr("innerloop.report.record.LONGEST", 10_000)
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b"\0" * 20_000)
    with pytest.raises(UnreadableRunError, match=r"run is damaged: .* has a line of more than 10,000 bytes"):
        read_run(run)


def test_plots_name_the_runs_that_cannot_be_read(tmp_path, capsys):
    runs = [whole(tmp_path / "sound"), tmp_path / "nowhere"]
    assert cli.run(["plot", *map(str, runs), "--kind", "meta-train", "-o", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == f"error: left out: {tmp_path / 'nowhere'} does not exist\n"
    assert (tmp_path / "out" / "meta-train.png").exists()
    assert cli.run(["plot", *map(str, runs[1:] * 2)]) == 1
    assert capsys.readouterr().err.count("error: ") == 1
    assert cli.run(["plot", str(runs[0]), "--kind", "rates", "--kind", "functions", "-o", str(tmp_path / "out")]) == 0
    bare = write(tmp_path / "bare", BEGUN)
    assert cli.run(["plot", str(bare), "--kind", "rates", "--kind", "inner", "-o", str(tmp_path / "out")]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert errors == [f"error: no figure could be drawn for {bare}: see above"]


def test_a_model_that_cannot_be_run_does_not_lose_the_others(tmp_path, capsys, monkeypatch):
    """What is saved may be anybody's: weights and recipes that fit each other can fail in any way."""
    from innerloop.report import unseen

    def odd(name, *_):
        if name == "odd":
            raise RuntimeError("unforeseen")
        yield unseen.Picture("data:image/png;base64,", f"picture of {name}", "about")

    monkeypatch.setattr(unseen, "load_run", lambda path, _: (SimpleNamespace(steps=1), None, {"evaluate": {}}))
    monkeypatch.setattr(unseen, "further", lambda *_: 1 / 0)
    runs = [whole(tmp_path / name) for name in ("odd", "sound")]
    page = tmp_path / "report.html"
    assert cli.run(["report", *map(str, runs), "-o", str(page)]) == 0
    assert "Not run on unseen tasks: odd: division by zero; sound: division by zero." in page.read_text()
    found = il.evaluate(il.maml(il.models.mlp(1, 2, 1), loss=torch.nn.functional.mse_loss), il.Sinusoid(), num_tasks=2)
    monkeypatch.setattr(unseen, "further", lambda *_: found)
    monkeypatch.setattr(unseen, "at_work", odd)
    monkeypatch.setattr(unseen, "by_recipe", lambda runs: {run.name: [run] for run in runs})
    assert cli.run(["report", *map(str, runs), "-o", str(page)]) == 0
    text = page.read_text()
    assert "Not run on unseen tasks: odd: unforeseen." in text
    assert "picture of sound" in text
    assert "Past the trained steps" in text
