"""A run in the terminal: what there is to see, while it goes on and afterwards."""

from __future__ import annotations

import io
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from innerloop import cli
from innerloop.report import read_run
from innerloop.report.watch import BARS, curve, view, watch

CONFIG = "[train]\niterations = 40\n"


def write(folder: Path, lines: list[dict[str, Any]], config: str = CONFIG) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.toml").write_text(config)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def training(iteration: int, **changes: Any) -> dict[str, Any]:
    about = {"kind": "train", "iteration": iteration, "loss": 40.0 - iteration, "steps": [3.0, 1.0], "lr": 0.001}
    phases = {"gradient": 9.0, "validation": 1.0}
    machine = {"tasks_per_second": 12.3, "seconds": 6.0 * iteration, "phases": phases, "memory_mib": 1234.5}
    return {**about, **machine, "grad_norm": 0.5, **changes}


def validation(iteration: int, mean: float | None) -> dict[str, Any]:
    about = {"kind": "validation", "iteration": iteration, "metric": "accuracy", "mean": mean, "ci95": 1.5}
    return {**about, "num_tasks": 9, "transductive": True}


def named(iteration: int, mean: float | None) -> dict[str, Any]:
    """A validation by a metric that a user named."""
    return {**validation(iteration, mean), "metric": "f1", "higher_is_better": True, "unit": "points"}


def shown(run: Path, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(view(read_run(run)))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_a_metric_of_ones_own_has_its_name_its_direction_and_its_unit(tmp_path: Path) -> None:
    run = write(tmp_path / "run", [training(1), named(5, 0.25), named(10, 0.75), named(15, None), named(20, 0.5)])
    test = {**named(20, 0.5), "metric": "loss", "higher_is_better": False, "unit": ""}
    (run / "results.json").write_text(json.dumps({"iterations": 20, "test": test}))
    text = shown(run)
    assert "meta-validation f1" in text
    assert "0.5 ± 1.5 points" in text
    assert "0.75 ± 1.5 points at iteration 10" in text
    assert "test, loss" in text
    assert "0.5 ± 1.5 on 9 unseen tasks" in text


def test_a_run_that_goes_on_tells_how_far_it_is_and_how_it_goes(tmp_path: Path) -> None:
    rates = {"kind": "rates", "iteration": 10, "rates": {"body.weight": [0.4, -0.01], "": [0.1]}}
    lines = [training(i) for i in range(1, 11)] + [validation(5, 61.0), validation(10, 60.0), rates]
    text = shown(write(tmp_path / "run", lines))
    assert "10 of 40 (25 %), ETA 0:03:00 of training" in text
    assert f"{BARS[-1]}" in text
    assert "60 ± 1.5 %" in text
    assert "61 ± 1.5 % at iteration 5" in text
    assert "gradient 90 %, validation 10 %" in text
    assert "1,234 MiB" in text
    assert "body.weight" in text
    assert "-0.01" in text
    assert max(map(len, text.splitlines())) <= 80


def test_what_is_not_there_is_not_shown(tmp_path: Path) -> None:
    text = shown(write(tmp_path / "run", [{"kind": "run", "iteration": 0, "schema": 1}], config=""))
    assert text.split() == ["run", "iteration", "0"]
    odd = [training(1, loss=None, grad_norm=None, steps=[None]), training(2, loss=None, grad_norm=None, steps=[])]
    text = shown(write(tmp_path / "odd", [*odd, validation(2, 50.0), validation(3, None)]))
    assert text.count("not finite") == 2


def test_a_finished_run_is_shown_with_its_test(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write(tmp_path / "run", [training(40), validation(40, 70.0)])
    test = {"mean": 71.2, "ci95": 0.9, "num_tasks": 600}
    (run / "results.json").write_text(json.dumps({"iterations": 40, "test": test}))
    assert cli.run(["watch", str(run)]) == 0
    out = capsys.readouterr().out
    assert "40, finished" in out
    assert "71.2 ± 0.9 % on 600 unseen tasks" in out
    assert cli.run(["watch", str(tmp_path)]) == 1
    assert "is not a run directory" in capsys.readouterr().err


def test_watching_ends_with_the_run(tmp_path: Path) -> None:
    run = write(tmp_path / "run", [training(1)])
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    watching = threading.Thread(target=watch, args=(run, console, 0.05), daemon=True)
    watching.start()
    while "1 of 40" not in console.file.getvalue():  # type: ignore[attr-defined]
        watching.join(0.01)
        assert watching.is_alive()
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(training(40)) + "\n")
    (run / "results.json").write_text('{"iterations": 40, "test": null}')
    watching.join(600)
    assert not watching.is_alive()
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.index("1 of 40") < text.index("40, finished")


@given(st.lists(st.floats(allow_nan=True), max_size=200), st.integers(1, 60))
def test_a_curve_fits_its_width(values: list[float], width: int) -> None:
    text = curve(values, width)
    assert len(text) == min(len(values), -(-len(values) // max(1, -(-len(values) // width))))
    assert len(text) <= width
    assert set(text) <= {*BARS, "?"}
