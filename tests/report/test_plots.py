"""`innerloop plot` draws every figure that a real run has something for."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from innerloop import cli

SMALL = {
    "train.iterations": 4, "train.validate_every": 2, "train.val_tasks": 4, "train.tasks": 4, "train.log_every": 1,
    "evaluate.num_tasks": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of pictures with learned rates, and one run of functions."""
    folder = tmp_path_factory.mktemp("runs")
    learned = {"model.width": 4, "learner.preset": "maml-plus-plus", "learner.steps": 2}
    sets = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]
    more = [word for key, value in learned.items() for word in ("--set", f"{key}={value}")]
    for seed in ("0", "1"):
        path = str(folder / f"strokes-seed{seed}")
        assert cli.run(["train", "strokes-5w1s-maml", "--seed", seed, "--run", path, "--quiet", *sets, *more]) == 0
    assert cli.run(["train", "sinusoid-maml", "--run", str(folder / "sinusoids"), "--quiet", *sets]) == 0
    return folder


def ink(path: Path) -> int:
    """How many grey levels a picture has; an empty one has one."""
    with Image.open(path) as picture:
        assert picture.width >= 799
        return len(set(picture.convert("L").getdata()))


def test_every_figure_is_drawn(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    strokes = runs / "strokes-seed0"
    capsys.readouterr()
    assert cli.run(["plot", str(strokes)]) == 0
    out, err = capsys.readouterr()
    assert [Path(line).stem for line in out.split()] == [
        *("inner", "inner-grid", "query-grid", "final-support", "meta-train", "validation", "rates"),
        *("adaptation", "episodes"),
    ]
    assert err.splitlines() == [
        f"functions: not drawn, the tasks of {strokes} are not functions that can be drawn",
        f"paths: not drawn, {strokes} is not a reinforcement-learning run",
        f"strips: not drawn, {strokes} is not an imitation run",
        f"gaze: not drawn, {strokes} is not an imitation run",
    ]
    assert all(ink(Path(line)) > 20 for line in out.split())
    assert cli.run(["plot", str(runs / "sinusoids"), "--kind", "functions", "--kind", "adaptation"]) == 0
    assert all(ink(Path(line)) > 20 for line in capsys.readouterr().out.split())


def test_several_runs_are_compared_in_a_folder(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [str(runs / f"strokes-seed{seed}") for seed in (0, 1)]
    assert cli.run(["plot", *names, "--kind", "compare", "--kind", "validation", "-o", str(tmp_path / "new")]) == 0
    found = {path.name for path in (tmp_path / "new").iterdir()}
    assert found == {"compare.png", "strokes-seed0-validation.png", "strokes-seed1-validation.png"}


def test_what_one_run_lacks_does_not_keep_the_others_from_being_drawn(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    metrics = (runs / "strokes-seed0" / "metrics.jsonl").read_text().splitlines(keepends=True)
    (bare / "metrics.jsonl").write_text("".join(line for line in metrics if '"validation"' not in line[:24]))
    capsys.readouterr()
    words = [str(bare), str(runs / "strokes-seed1"), "--kind", "adaptation", "--kind", "compare"]
    assert cli.run(["plot", *words, "-o", str(tmp_path / "new")]) == 0
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"strokes-seed1-adaptation.png", "compare.png"}
    err = capsys.readouterr().err
    assert "adaptation: not drawn, " in err
    assert f"compare: not drawn, {bare} is left out, because it has no validations" in err
    assert cli.run(["plot", str(bare), "--kind", "validation"]) == 1


def test_what_cannot_be_drawn_is_told_in_a_line(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(runs / "sinusoids")
    for words, message in (
        ([run, "--kind", "loss"], "unknown kind of figure 'loss'. Known: inner, "),
        ([run, "--kind", "compare"], "compare needs at least two runs, got 1"),
        ([str(tmp_path)], "is not a run directory: it is empty"),
    ):
        capsys.readouterr()
        assert cli.run(["plot", *words]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert message in err
        assert len(err.splitlines()) == 1
