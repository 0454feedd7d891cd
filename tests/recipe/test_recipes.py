"""Every shipped recipe runs from its command, on the real data where it needs them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils import _pytree as pytree

import innerloop as il
from innerloop import cli
from innerloop.recipe import config
from innerloop.train.checkpoint import Checkpoints

ROOT = Path(__file__).parents[2]
FULL_LENGTH = config.parse((ROOT / "experiments" / "families.toml").read_text())["full-length"]["seeds"]
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
    assert re.search(r"CPU cores?|GPU|[Hh]ardware", comment)
    assert re.search(r"expected|measured|accuracy|MSE|returns|success", comment)


def test_a_measured_score_is_that_of_the_result_file() -> None:
    for path in (ROOT / "experiments" / "results").glob("*.json"):
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
    if "episodes" in settings["learner"]:
        pytest.importorskip("mujoco")
        changes |= {"learner.episodes": 2, "tasks.eval_episodes": 2, "tasks.horizon": 5}
    words = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
    data = settings["tasks"]["name"].removesuffix("-pairs")
    if data in ("omniglot", "mini-imagenet"):
        words += ["--data", str(request.getfixturevalue(f"{data.replace('-', '_')}_root"))]
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


class GoneError(Exception):
    """The machine went away."""


class Until:
    """A task source that ends the training at its n-th draw."""

    def __init__(self, source: il.TaskSource, draws: int) -> None:
        self.source, self.draws = source, draws

    def sample(self, n: int, generator: torch.Generator) -> il.Task:
        self.draws -= 1
        if self.draws < 0:
            raise GoneError
        return self.source.sample(n, generator)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", FULL_LENGTH)
def test_full_length_recipes_resume_exactly(
    recipe: str, tmp_path: Path, omniglot_root: Path, mini_imagenet_root: Path
) -> None:
    """At full size, killed after some iterations and gone on with: the state is that of an undisturbed run."""
    changes = ["checkpoint_every=2", "validate_every=2", "val_tasks=2", "log_every=1"]
    settings = config.load_recipe(recipe, [f"train.{change}" for change in changes] + ["learner.vectorize=2"])
    assert settings["train"]["iterations"] >= 50_000

    def train(run: Path, draws: int) -> None:
        learner, sources = config.build(settings, omniglot_root)
        options = config.arguments(settings, "train")
        trainer = il.Trainer(learner, Until(sources.train, draws), sources.val, run, progress=False, **options)
        with pytest.raises(GoneError):
            trainer.fit(resume=True)

    train(tmp_path / "whole", 4)
    train(tmp_path / "killed", 3)  # the third iteration is lost
    train(tmp_path / "killed", 2)
    states: list[dict[str, Any]] = [Checkpoints(tmp_path / name).newest() for name in ("whole", "killed")]
    assert [state["iteration"] for state in states] == [4, 4]
    for part in ("learner", "optimizer", "tasks", "random", "best", "config"):
        first, second = (pytree.tree_flatten(state[part]) for state in states)
        assert first[1] == second[1]
        for one, other in zip(first[0], second[0], strict=True):
            assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other, part


@pytest.mark.slow
def test_mini_imagenet_is_learned_from(tmp_path: Path, mini_imagenet_root: Path) -> None:
    """200 iterations of the full-size network on real images: the query loss falls, from that of a guess."""
    words = ["--set", "train.iterations=200", "--set", "evaluate.num_tasks=100", "--set", "train.log_every=1"]
    words += ["--set", "train.val_tasks=20", "--data", str(mini_imagenet_root), "--run", str(tmp_path / "run")]
    assert cli.run(["train", "mini-imagenet-5w1s-maml++", *words, "--quiet"]) == 0
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    losses = torch.tensor([line["loss"] for line in lines if line["kind"] == "train"])
    assert len(losses) == 200
    assert losses[-50:].mean() < losses[:50].mean() - 0.05
    test = json.loads((tmp_path / "run" / "results.json").read_text())["test"]
    assert test["mean"] - test["ci95"] > 25


@pytest.mark.parametrize("shots", [1, 5])
@pytest.mark.parametrize("preset", ["maml", "anil"])
def test_mini_imagenet_clips_as_the_authors_code_does(preset: str, shots: int) -> None:
    """Finn et al. clamp at 10 the gradient of a sum over all query images, divided by the shots. What comes out must be
    ours but for one factor, which Adam does not see."""
    resolved = config.load_recipe(f"mini-imagenet-5w{shots}s-{preset}")
    limit = config.arguments(resolved, "train")["clip"]
    images = resolved["tasks"]["ways"] * resolved["tasks"]["queries"]
    features = 3 * shots * torch.randn(images, 5, dtype=torch.double)
    classes, weights = torch.randint(5, (images,)), torch.randn(5, 5, dtype=torch.double)

    def gradient(reduction: str) -> torch.Tensor:
        leaf = weights.clone().requires_grad_()
        loss = torch.nn.functional.cross_entropy(features @ leaf, classes, reduction=reduction)
        return torch.autograd.grad(loss, leaf)[0]

    theirs, ours = (gradient("sum") / shots).clamp(-10, 10), gradient("mean").clamp(-limit, limit)
    assert 0 < (theirs.abs() == 10).sum() < theirs.numel()
    torch.testing.assert_close(ours / limit, theirs / 10, rtol=1e-6, atol=0)
