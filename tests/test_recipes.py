"""Every shipped recipe runs from its command, on the real data where it needs them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from innerloop import cli, config

SMALL = {"iterations": 2, "tasks": 2, "val_tasks": 2, "validate_every": 2}


def own_pictures(folder: Path) -> Path:
    for number in range(30):
        (folder / f"class {number}").mkdir(parents=True)
        for index in range(6):
            colour = (8 * number, 40 * index, 255 - 8 * number)
            Image.new("RGB", (20 + index, 30), colour).save(folder / f"class {number}" / f"{index}.png")
    return folder


@pytest.mark.parametrize("recipe", config.recipes())
def test_the_first_comment_has_command_hardware_and_score(recipe: str) -> None:
    lines = config.recipes()[recipe].read_text().splitlines()
    comment = " ".join(line.lstrip("# ") for line in lines[: next(i for i, x in enumerate(lines) if x[:1] != "#")])
    assert lines[0] == f"# innerloop train {recipe}"
    assert re.search(r"CPU cores|GPU|[Hh]ardware", comment)
    assert re.search(r"expected|measured|accuracy|MSE", comment)


def test_a_measured_score_is_that_of_the_result_file() -> None:
    for path in (Path(__file__).parents[1] / "experiments" / "results").glob("*.json"):
        result = json.loads(path.read_text())
        if path.stem in config.recipes():
            test = result["tests"][0]
            score = (
                f"{test['mean']:.2f} +- {test['ci95']:.2f} %" if test["metric"] == "accuracy" else f"{test['mean']:.3f}"
            )
            text = config.recipes()[path.stem].read_text()
            assert score in text, f"{path.stem} should say {score}"
            assert f"{result['seconds'] / 60:.1f} minutes" in text


@pytest.mark.slow
@pytest.mark.parametrize("recipe", config.recipes())
def test_every_recipe_trains_and_evaluates(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    settings = config.load_recipe(recipe)
    changes = {f"train.{key}": value for key, value in SMALL.items()} | {"evaluate.num_tasks": 3}
    if "width" in settings["model"]:
        changes["model.width"] = 4
    words = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
    if settings["tasks"]["name"] in ("omniglot", "mini-imagenet"):
        words += ["--data", str(request.getfixturevalue(f"{settings['tasks']['name'].replace('-', '_')}_root"))]
    if settings["tasks"]["name"] == "image-folder":
        words += ["--data", str(own_pictures(tmp_path / "pictures"))]
    code = cli.run(["train", recipe, *words, "--run", str(tmp_path / "run"), "--quiet"])
    assert code == 0, capsys.readouterr().err
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["iterations"] == 2
    assert len(results["test"]["steps"]) == settings["evaluate"].get("steps", settings["learner"]["steps"]) + 1


@pytest.mark.slow
def test_strokes_are_learned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["train", "strokes-5w1s-maml", "--run", str(tmp_path / "run"), "--quiet"]) == 0
    test = json.loads((tmp_path / "run" / "results.json").read_text())["test"]
    assert test["mean"] - test["ci95"] > 80
    assert test["steps"][0] < 25
