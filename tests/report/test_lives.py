"""Policies at work, drawn and filmed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from innerloop import cli, rl
from innerloop.report import read_run, write_report
from innerloop.report.lives import film, interactive, live, paths
from innerloop.report.plots import Options, plots

TINY = {
    "learner.episodes": 4, "tasks.eval_episodes": 4, "tasks.horizon": 6, "train.iterations": 3, "train.tasks": 3,
    "train.validate_every": 2, "train.val_tasks": 3, "evaluate.num_tasks": 4, "evaluate.steps": 2,
}  # fmt: skip


def run(folder: Path, recipe: str) -> Path:
    words = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]
    assert cli.run(["train", recipe, "--run", str(folder / recipe), "--quiet", *words]) == 0
    return folder / recipe


@pytest.fixture(scope="module")
def navigation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("lives"), "navigation-maml-trpo")


@pytest.fixture(scope="module")
def cheetah(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mujoco")
    return run(tmp_path_factory.mktemp("lives"), "half-cheetah-direction-quick")


def learner() -> tuple:
    torch.manual_seed(0)
    return rl.maml_trpo(rl.gaussian_policy(2, 2, hidden=(8,)), episodes=5, vectorize=True), rl.Interaction(
        rl.Navigation(6)
    )


def test_a_run_of_policies_tells_its_returns(navigation: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = json.loads((navigation / "results.json").read_text())
    assert results["test"]["metric"] == "return"
    assert len(results["test"]["steps"]) == 3
    assert cli.run(["evaluate", str(navigation), "--tasks", "4", "--steps", "2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["mean"] == results["test"]["mean"]


def test_paths_go_from_the_start_and_show_the_goal() -> None:
    own, source = learner()
    figure = paths(own, source, 2)
    panels = figure.axes
    assert len(panels) == 6
    found = live(own, source, 2)
    for task, axes in enumerate(panels):
        lines = {line.get_label(): line for line in axes.lines}
        assert lines["goal"].get_xdata()[0] == pytest.approx(found.tasks[task, 0].item())
        before, after = lines["before adaptation"], lines["after 2 steps"]
        assert before.get_xdata()[0] == after.get_xdata()[0] == 0
        x = found.episodes[2].observations[task, 0, :, 0][found.episodes[2].alive[task, 0] > 0]
        assert list(after.get_xdata()) == pytest.approx(x.tolist())


def test_the_interactive_figure_has_a_place_for_every_step() -> None:
    pytest.importorskip("plotly")
    own, source = learner()
    found = interactive("mine", own, source, 3)
    assert [frame.name for frame in found.figure.frames] == [f"after {k} step{'s' * (k != 1)}" for k in range(4)]
    assert "mean returns after 0, 1, ... steps" in found.about


def test_figures_of_a_run(navigation: Path, cheetah: Path) -> None:
    for path in (navigation, cheetah):
        found = {kind: figure for kind, _, figure in plots([read_run(path)], ["paths", "episodes"], Options())}
        assert not isinstance(found["paths"], str)
        assert "do not have pictures" in found["episodes"]


def test_the_report_shows_them(navigation: Path, cheetah: Path, tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    left_out = write_report([navigation], tmp_path / "navigation.html")
    assert not [line for line in left_out if "navigation" in line]
    assert "The path of the point in four unseen tasks" in (tmp_path / "navigation.html").read_text()
    write_report([cheetah], tmp_path / "cheetah.html")
    assert "Mean rewards over an episode in four unseen tasks" in (tmp_path / "cheetah.html").read_text()


def test_a_film(cheetah: Path, navigation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = pytest.importorskip("PIL.Image")
    environment = rl.Locomotion("half-cheetah", "direction", 6)
    try:
        with environment.camera(32, 32):
            pass
    except RuntimeError as error:
        pytest.skip(str(error))
    assert cli.run(["film", str(cheetah), "-o", str(tmp_path / "film.gif"), "--steps", "1"]) == 0
    with image.open(tmp_path / "film.gif") as gif:
        assert gif.n_frames > 3
        assert gif.size == (640, 480)
    capsys.readouterr()
    assert cli.run(["film", str(navigation)]) == 1
    assert "films need a locomotion" in capsys.readouterr().err


def test_films_of_something_else_are_refused(tmp_path: Path) -> None:
    own, source = learner()
    with pytest.raises(Exception, match="films need a locomotion"):
        film(own, source, tmp_path / "film.gif", 1)
