from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from innerloop.report import write_report
from innerloop.report.runs import UnreadableRunError
from innerloop.report.sweeps import answer, history, read_sweep, slices


@pytest.fixture
def sweep(trained: Path, tmp_path: Path) -> Path:
    """Seven trials, of which two have the runs of something real."""
    folder = tmp_path / "sweep"
    trials = []
    for number, score in enumerate([3.0, 2.0, None, 5.0, 1.0, 4.0, 6.0]):
        values = {"learner.lr": 10.0 ** (-number), "train.optimizer": "adam" if number % 2 else "sgd"}
        own = f"elsewhere/trial-{number:04d}-seed0"
        state = "pruned" if score is None else "complete"
        trials.append({"trial": number, "state": state, "score": score, "values": values, "runs": [own]})
        if number in (1, 4):
            shutil.copytree(trained / "sinusoids", folder / Path(own).name)
    told = {"study": "mine", "recipe": "sinusoid-maml", "direction": "minimize", "trials": trials}
    (folder / "sweep.json").write_text(json.dumps(told))
    return folder


def test_the_best_are_told_first(sweep: Path) -> None:
    found = read_sweep(sweep)
    assert found is not None
    assert [trial["trial"] for trial in found.ranked] == [4, 1, 0, 5, 3, 6]
    assert [path.name for path in found.runs[:2]] == ["trial-0004-seed0", "trial-0001-seed0"]
    assert all(path.parent == sweep for path in found.runs)
    told = answer(found)
    assert told.sentence.startswith("Best by meta-validation: learner.lr = 0.0001, train.optimizer = sgd (trial 4, 1)")
    assert "Of 7 trials, 1 were pruned." in told.sentence
    assert [row[0] for row in told.rows] == ["4", "1", "0", "5", "3", "6", "2"]
    assert told.rows[-1][1:3] == ["pruned", ""]


def test_a_metric_of_ones_own_has_its_name_its_direction_and_its_unit(sweep: Path) -> None:
    told = json.loads((sweep / "sweep.json").read_text())
    told |= {"direction": "maximize", "metric": "f1", "unit": "points"}
    (sweep / "sweep.json").write_text(json.dumps(told))
    found = read_sweep(sweep)
    assert found is not None
    assert [trial["trial"] for trial in found.ranked][:2] == [6, 3]
    assert "(trial 6, f1 6 points)" in answer(found).sentence
    assert answer(found).header[2] == "f1 (points)"
    assert history(found).figure.layout.yaxis.title.text == "f1 (points)"
    assert "higher is better" in history(found).about


def test_a_trial_that_failed_is_told_from_one_that_was_pruned(sweep: Path) -> None:
    found = read_sweep(sweep)
    found.summary["trials"][2]["why"] = "iteration 7: the loss of task 1 is not finite; see failed_task.pt"
    told = answer(found)
    assert "Of 7 trials, 0 were pruned. 1 failed" in told.sentence
    assert told.rows[-1][1] == "failed: iteration 7: the loss of task 1 is not finite"


def test_the_figures(sweep: Path) -> None:
    found = read_sweep(sweep)
    dots, best = history(found).figure.data
    assert list(dots.y) == [3.0, 2.0, 5.0, 1.0, 4.0, 6.0]
    assert list(best.y) == [3.0, 2.0, 2.0, 1.0, 1.0, 1.0]
    figure = slices(found).figure
    assert figure.layout.xaxis.type == "log"
    assert figure.layout.xaxis2.type == "category"
    assert [axis.title.text for axis in (figure.layout.xaxis, figure.layout.xaxis2)] == [
        "learner.lr",
        "train.optimizer",
    ]


def test_a_report_of_a_sweep_shows_the_runs_of_the_best(sweep: Path, tmp_path: Path) -> None:
    left_out = write_report([sweep], tmp_path / "report.html", models=False)
    page = (tmp_path / "report.html").read_text()
    assert "What did the sweep mine find?" in page
    assert page.index("trial-0004-seed0") < page.index("trial-0001-seed0")
    assert len(left_out) == 3  # whose directories are not there


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"trials": 3}', '{"trials": [], "direction": "minimize"}'])
def test_a_damaged_sweep_is_told_in_a_line(sweep: Path, tmp_path: Path, text: str) -> None:
    (sweep / "sweep.json").write_text(text)
    with pytest.raises(UnreadableRunError, match=r"sweep: its sweep.json cannot be read \("):
        read_sweep(sweep)
    with pytest.raises(UnreadableRunError, match="cannot be read"):
        write_report([sweep], tmp_path / "report.html")
