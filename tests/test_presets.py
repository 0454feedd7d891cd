"""Presets are open: each takes any part of a learner by name, in place of the paper's own."""

from __future__ import annotations

import inspect
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from torch import nn
from torch.nn import functional as F

import innerloop as il
from innerloop import imitation, rl, train
from innerloop.presets import Options
from innerloop.recipe import config
from tests.forked import python


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))


def policy() -> nn.Module:
    made: nn.Module = rl.gaussian_policy(2, 2, hidden=(8,), context=2)
    return made


MODELS: dict[str, Callable[[], nn.Module]] = {
    **dict.fromkeys(il.presets.PRESETS, network),
    "cavia": lambda: il.models.WithContext(il.models.mlp(4 + 2, 8, 3), size=2),
    **dict.fromkeys(rl.PRESETS, policy),
    **dict.fromkeys(imitation.PRESETS, lambda: imitation.visuomotor(state=2, actions=2, filters=4)),
}


class Start(il.Initialization):
    def __call__(self, episode: il.Episode) -> Any:
        return episode.start.params


PARTS: dict[str, Any] = {
    "rule": il.Adam(0.02),
    "objective": il.Unrolled(order=1),
    "loss": F.l1_loss,
    "inner_loss": F.smooth_l1_loss,
    "initial": Start(),
    "steps": 3,
    "batch_size": 7,
    "memory": "constant",
    "precision": "bfloat16",
}
"""Parts and options that a learner keeps under the names that they are given by."""


def test_the_option_list_is_that_of_the_learner() -> None:
    arguments = inspect.signature(il.MetaLearner).parameters.keys()
    assert {*Options.__annotations__} == {*arguments} - {"model", "citation"}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", MODELS)
def test_a_preset_takes_any_part_by_name(name: str, part: str) -> None:
    preset = config.PRESETS[name]
    if part == "steps" and part in preset.own:  # type: ignore[attr-defined]
        with pytest.raises(ValueError, match="inner steps, got steps=3"):
            preset(MODELS[name](), steps=3)
        return
    assert getattr(preset(MODELS[name](), **{part: PARTS[part]}), part) is PARTS[part]


@pytest.mark.parametrize("name", MODELS)
def test_a_preset_takes_a_selection(name: str) -> None:
    model = MODELS[name]()
    first = next(n for n, p in model.named_parameters() if p.requires_grad)
    learner = config.PRESETS[name](model, adapt=il.named(first))
    assert list(learner.adapted) == [first]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: il.maml(network(), lr=0.1, rule=il.SGD(0.2)), r"maml: lr=0\.1 has no effect, because rule="),
        (lambda: il.maml(network(), 0.1, rule=il.SGD(0.2)), r"maml: lr=0\.1 has no effect, because rule="),
        (lambda: il.anil(network(), order=1, objective=il.Unrolled()), "anil: order=1 has no effect, because "),
        (lambda: il.anil(network(), head="2", adapt=il.everything), "anil: head='2' has no effect, because adapt="),
        (
            lambda: rl.maml_trpo(policy(), inner="ratio", inner_loss=rl.score),
            "inner='ratio' has no effect, because inner_loss=",
        ),
        (
            lambda: il.imaml(network(), strength=5.0, rule=il.SGD(0.1), objective=il.Unrolled()),
            r"imaml: strength=5\.0 has no effect, because rule and objective=",
        ),
        (lambda: il.prototypical(network(), steps=2), "no inner steps, got steps=2"),
    ],
)
def test_an_argument_whose_part_is_replaced_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_rule_in_a_recipe() -> None:
    found = config.load_recipe("sinusoid-maml", ['learner.rule=[{name="clip", limit=1.0}, {name="adam", lr=0.1}]'])
    assert "lr" not in found["learner"]  # which the recipe gives for its own rule
    clip, adam = config.build_learner(found).rule
    assert (clip.limit, float(adam.lr)) == (1.0, pytest.approx(0.1))
    again = config.parse(config.dumps(found))
    assert config.resolve(again)["learner"] == found["learner"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            'learner.rule={name="sgdd"}',
            r"unknown learner\.rule\.name 'sgdd'; did you mean 'sgd'\? Known: adam, adamw, clip, clip-norm",
        ),
        (
            'learner.rule={name="sgd", rate=1.0}',
            r"unknown key learner\.rule\.rate.*Keys of \[learner\.rule\]: learned, lr",
        ),
        (
            'learner.rule=[{name="sgd"}, {name="clip"}]',
            r"learner\.rule: a Chain takes gradient transforms followed by one",
        ),
        ("learner.rule=sgd", r'learner\.rule = \'sgd\' is a string; expected a table \{name = "sgd", \.\.\.\}'),
    ],
)
def test_wrong_rules_in_recipes(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config.load_recipe("sinusoid-maml", [override])


@pytest.mark.parametrize(("optimizer", "rule"), [("adam", il.Adam), ("sgd", il.SGD)])
def test_recipes_of_reptile_of_version_0_1(optimizer: str, rule: type) -> None:
    found = config.load_recipe("sinusoid-reptile", [f"learner.optimizer={optimizer}", "learner.lr=0.03"])
    made = config.build_learner(found).rule
    assert type(made) is rule
    assert float(made.lr) == pytest.approx(0.03)


@pytest.mark.parametrize(("optimizer", "rule"), [("adam", il.Adam), ("sgd", il.SGD)])
def test_the_optimizer_of_reptile_is_now_a_rule(optimizer: str, rule: type) -> None:
    with pytest.warns(FutureWarning, match=r"reptile takes rule= instead of optimizer=.*rule=il\.SGD\(lr\)") as told:
        made = il.reptile(network(), lr=0.03, optimizer=optimizer).rule  # type: ignore[call-arg]
    assert told[0].filename == __file__
    assert type(made) is rule
    assert float(made.lr) == pytest.approx(0.03)


@pytest.mark.parametrize(
    ("name", "new"), [("config", "innerloop.recipe.config"), ("checkpointing", "innerloop.task_contexts")]
)
def test_modules_that_moved_are_found_under_their_old_names(name: str, new: str) -> None:
    code = f"import warnings; warnings.simplefilter('error'); import innerloop.{name}"
    done = subprocess.run(python("-c", code), capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == (
        f"FutureWarning: innerloop.{name} is now {new}, and version 0.4 will remove the old name"
    )
    first = {"config": "load_recipe", "checkpointing": "task_contexts"}[name]
    code = f"import innerloop as il; now = il.{name}.{first}; import innerloop.{name} as old; print(old.{first} is now)"
    done = subprocess.run(python("-c", code), capture_output=True, text=True)
    assert done.stdout.split() == ["True"], done.stderr


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        (il, "Initialisation", "Initialization"),
        (rl, "Penalised", "rl.Penalized"),
        (rl, "generalised", "rl.generalized"),
        (rl, "Episodes", "rl.Rollout"),
        (rl, "Lived", "rl.Experience"),
        (imitation, "Behaviour", "imitation.Behavior"),
        (imitation, "Eye", "imitation.Encoder"),
        (imitation, "Look", "imitation.SpatialSoftmax"),
        (imitation, "Seen", "imitation.Observation"),
        (imitation, "World", "imitation.Environment"),
        (train.World(), "told", "train.World.broadcast"),
        (train.World(), "everybody", "train.World.all_gather"),
    ],
)
def test_names_of_version_0_2(module: Any, old: str, new: str) -> None:
    with pytest.warns(FutureWarning, match=rf"{old} is now innerloop\.{new}, and version 0\.4") as told:
        found = getattr(module, old)
    assert told[0].filename == __file__
    assert found == getattr(module, new.rpartition(".")[2])


def test_a_part_that_is_none_is_not_given() -> None:
    learner = il.fomaml(network(), objective=None, rule=None, adapt=None)  # type: ignore[arg-type]
    assert learner.objective.order == 1  # type: ignore[attr-defined]
    assert isinstance(il.reptile(network(), objective=None).objective, il.Reptile)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"optimizer": "sgd", "rule": {"name": "adam"}}, "learner.optimizer = 'sgd': in version 0.1 Reptile's inner"),
        ({"optimizer": "SGD"}, "learner.optimizer = 'SGD': in version 0.1 Reptile's inner optimizer was adam or sgd"),
    ],
)
def test_an_old_optimizer_that_makes_no_sense_is_refused(given: dict[str, Any], message: str) -> None:
    learner = {"preset": "reptile", **given}
    with pytest.raises(ValueError, match=message):
        config.resolve({"tasks": {"name": "sinusoid"}, "model": {"name": "mlp", "sizes": [1, 1]}, "learner": learner})
