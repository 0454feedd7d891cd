"""What a robot that imitates saw and did, drawn and filmed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

import innerloop as il
from innerloop import cli, imitation
from innerloop.report import strips
from innerloop.report.series import NothingToDrawError

SMALL = (
    "tasks.size=16", "tasks.frames=4", "tasks.horizon=3", "model.filters=4", "model.hidden=[8]", "train.iterations=2",
    "train.tasks=2", "train.val_tasks=2", "train.validate_every=2", "evaluate.num_tasks=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that adapts by a learned loss, and one that does not adapt."""
    folder = tmp_path_factory.mktemp("runs")
    for recipe in ("daml-2d", "daml-2d-cloned"):
        words = [word for setting in SMALL for word in ("--set", setting)]
        assert cli.run(["train", recipe, "--run", str(folder / recipe), "--quiet", *words]) == 0
    return folder


def test_strips_and_gaze_are_drawn(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert cli.run(["plot", str(runs / "daml-2d")]) == 0
    out, err = capsys.readouterr()
    drawn = [Path(line).stem for line in out.split()]
    assert {"strips", "gaze", "adaptation", "validation"} <= {*drawn}
    assert {line.split(":")[0] for line in err.splitlines()} <= {
        "functions",
        "episodes",
        "paths",
        "rates",
        "final-support",
    }
    assert all(Image.open(line).convert("L").getextrema()[0] < 100 for line in out.split())
    assert cli.run(["plot", str(runs / "daml-2d-cloned"), "--kind", "strips", "--kind", "gaze"]) == 0
    assert "gaze: not drawn, the run has no learned loss" in capsys.readouterr().err


def test_a_film_has_the_demonstration_and_the_robot_before_and_after(runs: Path, tmp_path: Path) -> None:
    for recipe, parts in (("daml-2d", 3), ("daml-2d-cloned", 2)):
        assert cli.run(["film", str(runs / recipe), "-o", str(tmp_path / "film.gif")]) == 0
        film = Image.open(tmp_path / "film.gif")
        assert film.size == (parts * 16 * 6, 4 * 16 * 6)
        assert film.n_frames >= 4


def test_the_report_shows_them(runs: Path, tmp_path: Path) -> None:
    assert (
        cli.run(["report", str(runs / "daml-2d"), str(runs / "daml-2d-cloned"), "-o", str(tmp_path / "page.html")]) == 0
    )
    page = (tmp_path / "page.html").read_text()
    assert page.count("Unseen tasks: ") >= 2
    assert "What the learned loss looks at: daml-2d" in page
    assert "success (%)" in page


def test_attempts_begin_alike_and_are_the_evaluations() -> None:
    torch.manual_seed(0)
    learner = imitation.daml(imitation.Visuomotor(filters=4, hidden=(8,)))
    source = imitation.Imitation(imitation.Reach(frames=4, horizon=3, size=16), "test")
    found = strips.attempt(learner, source, 2, tasks=5, seed=3)
    assert len(found.pictures) == 3
    assert all(torch.equal(pictures[:, 0], found.pictures[0][:, 0]) for pictures in found.pictures)
    scores = source.returns(learner, 5, 2, torch.Generator().manual_seed(3))
    assert torch.equal(scores, 100.0 * found.success.T)


def test_where_nothing_is_learned_there_is_no_gaze() -> None:
    learner = il.maml(imitation.Visuomotor(filters=4, hidden=(8,)), loss=imitation.cloning)
    with pytest.raises(NothingToDrawError, match="no learned loss"):
        strips.gaze(learner, imitation.Imitation(imitation.Reach()))
