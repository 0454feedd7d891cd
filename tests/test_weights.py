"""Weights from a file are loaded completely or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import innerloop as il
from innerloop.recipe import config
from innerloop.recipe.experiment import Place, conduct
from innerloop.weights import fill, load_weights, read_weights


def net(seed: int = 0, outputs: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return nn.ModuleDict({"body": nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4)), "head": nn.Linear(4, outputs)})


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_weights_are_read_from_files_of_all_kinds(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    state = net().state_dict()
    torch.save(state, tmp_path / "plain.pt")
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": t for name, t in state.items()}}, tmp_path / "deep.pt")
    safetensors.save_file(state, tmp_path / "weights.safetensors")
    options: tuple[tuple[Any, dict[str, Any]], ...] = (
        (state, {}), (tmp_path / "plain.pt", {}), (tmp_path / "deep.pt", {"prefix": "module."}),
        (str(tmp_path / "weights.safetensors"), {}),
    )  # fmt: skip
    for weights, rest in options:
        other = net(1)
        load_weights(other, weights, **rest)
        assert same(other.state_dict(), state)


def test_what_does_not_fit_is_named_and_nothing_is_loaded() -> None:
    state = net(outputs=5).state_dict()
    state["extra"] = state.pop("body.0.bias")
    state["body.1.num_batches_tracked"] = torch.tensor(1.0)
    other = net(1)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(ValueError, match="do not fit ModuleDict") as caught:
        load_weights(other, state)
    assert str(caught.value) == (
        "the weights given do not fit ModuleDict: missing: body.0.bias; superfluous: extra; of another shape: "
        "head.weight ((5, 4), and (3, 4) in the model), head.bias ((5,), and (3,) in the model); of another kind: "
        "body.1.num_batches_tracked (torch.float32, and torch.int64 in the model)"
    )
    assert same(other.state_dict(), before)


def test_a_new_head_keeps_its_values() -> None:
    state, other = net(outputs=5).state_dict(), net(1)
    head = other["head"].weight.clone()  # type: ignore[index]
    load_weights(other, state, fresh=["head.*"])
    assert torch.equal(other["head"].weight, head)  # type: ignore[index]
    assert torch.equal(other["body"][0].weight, state["body.0.weight"])  # type: ignore[index]
    without = {name: tensor for name, tensor in state.items() if not name.startswith("head")}
    load_weights(net(2), without, fresh=["head.*"])
    with pytest.raises(ValueError, match=r"fresh='haed\.\*' matches none of the names of ModuleDict: body\.0\.weight"):
        load_weights(other, state, fresh=["haed.*"])


def test_other_numbers_of_the_same_kind_are_converted() -> None:
    state = {
        name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in net().state_dict().items()
    }
    other = net(1)
    load_weights(other, state)
    assert same(other.state_dict(), net().state_dict())


class Hostile:
    def __reduce__(self) -> Any:
        return print, ("run",)


def test_files_that_hold_no_weights_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, content in (
        ("list", [1, 2]),
        ("empty", {}),
        ("mixed", {"a": torch.zeros(1), "b": 3}),
        ("code", Hostile()),
    ):
        torch.save(content, tmp_path / name)
    (tmp_path / "text").write_text("no archive")
    (tmp_path / "text.safetensors").write_text("no archive")
    for name in ("list", "empty", "mixed"):
        with pytest.raises(ValueError, match="holds no state dictionary"):
            read_weights(tmp_path / name)
    for name in ("code", "text", "text.safetensors"):
        with pytest.raises(ValueError, match="cannot be read as weights"):
            read_weights(tmp_path / name)
    assert "run" not in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="no file with weights at"):
        read_weights(tmp_path / "none.pt")


def test_a_learner_is_filled_whole() -> None:
    one, other = (il.maml(net(seed), 0.1) for seed in (0, 1))
    fill(other, one.state_dict(), "these weights")
    assert same(other.state_dict(), one.state_dict())
    with pytest.raises(ValueError, match=r"these weights do not fit MetaLearner: missing: rule\.lr"):
        fill(other, {name: tensor for name, tensor in one.state_dict().items() if name != "rule.lr"}, "these weights")


RECIPE = """
[model]
name = "mlp"
sizes = [1, 8, 1]
weights = "weights.pt"
[learner]
preset = "maml"
loss = "mse"
[tasks]
name = "sinusoid"
[train]
iterations = 2
tasks = 2
val_tasks = 2
[evaluate]
num_tasks = 2
"""


def test_a_recipe_begins_with_weights_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(5)
    model = il.models.mlp(1, 8, 1)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    (tmp_path / "own.toml").write_text(RECIPE)
    (tmp_path / "longer.toml").write_text('extends = "own.toml"\n[model]\nfresh = ["2.*"]\n')
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    settings = config.load_recipe(tmp_path / "own.toml")
    assert same(config.build_learner(settings).model.state_dict(), model.state_dict())
    longer = config.build_learner(config.load_recipe(tmp_path / "longer.toml")).model
    assert torch.equal(longer[0].weight, model[0].weight)
    assert not torch.equal(longer[2].weight, model[2].weight)
    with pytest.raises(ValueError, match=r"\[model\] the weights in .*weights.pt do not fit .*of another shape"):
        config.build_learner(config.load_recipe(tmp_path / "own.toml", ["model.sizes=[1, 9, 1]"]))
    with pytest.raises(ValueError, match=r"model.weights = 3 is an integer; expected a string"):
        config.load_recipe(tmp_path / "own.toml", ["model.weights=3"])
    with pytest.raises(ValueError, match=r"model.fresh says which weights of model.weights are left out"):
        config.load_recipe("sinusoid-maml", ['model.fresh=["2.*"]'])
    conduct(settings, tmp_path / "run", Place(), progress=False)
    (tmp_path / "weights.pt").unlink()  # which a run that was trained no longer needs
    assert config.load_learner(tmp_path / "run")[0].steps == 1
    with pytest.raises(FileNotFoundError, match=r"no file with weights at .*weights\.pt"):
        config.build_learner(settings)
