"""Recipes may name code of the user; runs and saved models may do so only if they are trusted."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import innerloop as il
from innerloop import cli
from innerloop.recipe import config
from innerloop.recipe.imports import is_reference, references

PARTS = '''
"""A user's own parts. Importing this module creates a file, so that a test can see it."""

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import innerloop as il

Path("imported").touch()


class Residual(nn.Module):
    def __init__(self, width=8, depth: int = 2, inputs=1, **rest):
        super().__init__()
        self.first, self.last = nn.Linear(inputs, width), nn.Linear(width, 1)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        return self.last(x)


class Signed(il.UpdateRule):
    def __init__(self, lr: float = 0.01) -> None:
        super().__init__()
        self.lr = lr

    def init(self, params):
        return ()

    def forward(self, grads, params, state, step):
        return {name: -self.lr * grad.sign() for name, grad in grads.items()}, state


def logcosh(output, y):
    return (output - y).cosh().log().mean()


class Halved(nn.Module):
    def forward(self, output, y):
        return F.mse_loss(output, y) / 2


worst = il.Metric(lambda output, y: (output - y).abs().max(), higher_is_better=False, name="worst")


def lines(shots: int, steep: float = 2.0) -> il.data.Sources:
    return il.data.Sources(*(il.data.Linear(shots, slope=(-steep, steep)) for _ in range(3)))


NUMBER = 3
'''
RECIPE = """
[model]
name = "own_parts:Residual"
width = 6
[learner]
preset = "maml"
rule = {name = "own_parts:Signed", lr = 0.02}
loss = "own_parts:logcosh"
[tasks]
name = "own_parts:lines"
shots = 5
[train]
iterations = 4
tasks = 2
validate_every = 2
checkpoint_every = 2
val_tasks = 4
metric = "own_parts:worst"
[evaluate]
num_tasks = 4
metric = "own_parts:worst"
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make a current directory with a user's own module, which is removed from `sys.modules` afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "own_parts.py").write_text(PARTS)
    (tmp_path / "own.toml").write_text(RECIPE)
    yield tmp_path
    forget()


def forget() -> None:
    """As another process begins."""
    sys.modules.pop("own_parts", None)
    Path("imported").unlink(missing_ok=True)


def settings(*overrides: str) -> config.Config:
    return config.load_recipe("own.toml", overrides)


def test_every_part_can_be_ones_own() -> None:
    learner, sources = config.build(settings())
    parts = sys.modules["own_parts"]
    assert isinstance(learner.model, parts.Residual)
    assert (learner.model.first.out_features, len(learner.model.blocks)) == (6, 2)
    assert isinstance(learner.rule, parts.Signed)
    assert learner.rule.lr == 0.02
    assert learner.loss is parts.logcosh
    assert sources.train.slope == (-2.0, 2.0)
    options = config.arguments(settings(), "evaluate")
    assert options["metric"] is parts.worst
    halved = config.build_learner(settings("learner.loss=own_parts:Halved"))
    assert isinstance(halved.loss, parts.Halved)


def test_its_defaults_are_written_out_and_its_arguments_checked() -> None:
    assert settings()["model"] == {"name": "own_parts:Residual", "width": 6, "depth": 2, "inputs": 1}
    with pytest.raises(ValueError, match=r"unknown key model\.widht; did you mean 'width'\?.* depth, inputs, width"):
        settings("model.widht=3")
    with pytest.raises(ValueError, match=r"model\.depth = 'two' is a string; expected an integer"):
        settings('model.depth="two"')


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model.name=own_parts:Residul", r"model\.name = own_parts:Residul: there is no Residul in it; .*Residual"),
        ("model.name=own_prats:Residual", r"model\.name = .*: there is no module own_prats in .* or among"),
        ("model.name=own_parts.nets:Net", r"there is no module own_parts\.nets"),
        ("model.name=own_parts:NUMBER", r"model\.name = own_parts:NUMBER is a int, not a function"),
        ("model.name=broken:Net", r"importing broken failed with ZeroDivisionError: division by zero"),
        ("model.name=needing:Net", r"importing needing failed with ModuleNotFoundError: No module"),
        ("learner.loss=own_parts:nothing", r"learner\.loss = own_parts:nothing: there is no nothing in it"),
        ("model.name=conv5", "unknown model.name"),
    ],
)  # fmt: skip
def test_what_cannot_be_imported_is_said(folder: Path, override: str, says: str) -> None:
    (folder / "broken.py").write_text("1 / 0")
    (folder / "needing.py").write_text("import missing_package")
    with pytest.raises(ValueError, match=says):
        settings(override)


def test_names_that_are_no_references() -> None:
    for name in ("conv4", "a:", ":b", "a b:c", "a:b:c", "a/b:c", "C:\\\\x", "3a:b", "a.:b", 3, None):
        assert not is_reference(name)
    assert references({"a": {"b": ["x.y:z", "w"], "c": {"name": "p:q.r"}}, "d": 3}) == {"x.y:z", "p:q.r"}


def run(*words: str) -> int:
    return cli.run([*words])


def test_a_run_is_used_by_all_commands_if_it_is_trusted(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "own.toml", "--run", "run", "--quiet") == 0
    assert json.loads(Path("run/results.json").read_text())["test"]["metric"] == "worst"
    forget()
    assert run("train", "own.toml", "--run", "run", "--quiet", "--resume", "--set", "train.iterations=4") == 0
    for words in (["evaluate", "run"], ["report", "run", "-o", "page.html"], ["plot", "run", "--kind", "functions"]):
        forget()
        code, _ = run(*words), capsys.readouterr()
        assert not Path("imported").exists(), words
        assert code == (words[0] != "report"), words  # which leaves out what needs the model, and says so
        forget()
        assert run(*words, "--trust") == 0, words
        assert Path("imported").exists(), words
    capsys.readouterr()
    forget()
    assert run("evaluate", "run") == 1
    assert "tasks.name = own_parts:lines names code of own_parts" in (said := capsys.readouterr().err)
    assert "give --trust" in said


def test_in_python_it_is_trusted_by_an_argument(folder: Path) -> None:
    assert run("train", "own.toml", "--run", "run", "--quiet") == 0
    x = torch.randn(5, 1)
    expected = il.load_run("run", trust=True)[0].adapt(il.Batch(x, 2 * x))(x)
    saved = il.Pretrained.load("run", trust=True).save_pretrained(folder / "saved")
    for load in (il.load_run, il.Pretrained.load, lambda path, **rest: il.load_ensemble(path, 2, **rest)):
        forget()
        with pytest.raises(ValueError, match=r"names code of own_parts.* \(in Python, trust=True\)"):
            load("run")
        assert not Path("imported").exists()
        assert load("run", trust=True)
    forget()
    with pytest.raises(ValueError, match="names code of own_parts"):
        il.Pretrained.load(saved)
    assert not Path("imported").exists()
    again = il.Pretrained.load(saved, trust=True).learner
    assert torch.equal(again.adapt(il.Batch(x, 2 * x))(x), expected)


def test_resuming_imports_nothing_that_the_users_recipe_does_not_name(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", "own.toml", "--run", "run", "--quiet") == 0
    (folder / "foreign.py").write_text(
        "from pathlib import Path\nPath('foreign').touch()\nfrom own_parts import Residual"
    )
    saved = folder / "run" / "config.toml"
    saved.write_text(saved.read_text().replace("own_parts:Residual", "foreign:Residual"))
    assert run("train", "own.toml", "--run", "run", "--quiet", "--resume") == 1
    assert "was started with another model.name" in capsys.readouterr().err
    assert not (folder / "foreign").exists()


def test_a_sweep_over_parts_of_ones_own(folder: Path) -> None:
    pytest.importorskip("optuna")
    (folder / "space.toml").write_text("model.width = {choices = [4, 6]}\n")
    assert run("sweep", "own.toml", "--space", "space.toml", "--trials", "2", "--folder", "sweep") == 0
    found = json.loads((folder / "sweep" / "sweep.json").read_text())
    assert [trial["state"] for trial in found["trials"]] == ["complete"] * 2


NETS = """
from pathlib import Path

from torch import nn

Path("imported").touch()


class Small(nn.Module):
    def __init__(self, ways: int, width: int = 4):
        super().__init__()
        self.body, self.head = nn.Conv2d(1, width, 3, stride=2), nn.Linear(width, ways)

    def forward(self, x):
        return self.head(self.body(x).relu().mean((2, 3)))
"""


def test_a_saved_classifier_of_ones_own_network_is_trusted_too(folder: Path) -> None:
    from tests.use.photographs import write

    pytest.importorskip("scipy")
    (folder / "own_parts.py").write_text(NETS)
    write("mine", "new")
    overrides = ("model.name=own_parts:Small", "train.iterations=1", "train.tasks=2", "train.val_tasks=2")
    words = [word for override in (*overrides, "evaluate.num_tasks=2") for word in ("--set", override)]
    text = '[model]\nname = "own_parts:Small"\n[learner]\npreset = "maml"\n[tasks]\nname = "strokes"\n'
    (folder / "drawn.toml").write_text(text)
    assert run("train", "drawn.toml", "--run", "run", "--quiet", *words) == 0
    forget()
    assert run("adapt", "run", "--support", "mine", "--save", "mine.safetensors", "--trust") == 0
    forget()
    with pytest.raises(ValueError, match="own_parts:Small names code of own_parts"):
        il.use.Classifier.load("mine.safetensors")
    assert run("adapt", "mine.safetensors", "--query", "new") == 1
    assert not Path("imported").exists()
    assert run("adapt", "mine.safetensors", "--query", "new", "--trust") == 0
