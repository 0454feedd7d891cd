from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import innerloop as il
from innerloop.select import Selection


def net() -> nn.Module:
    return il.models.conv4(ways=3, width=2, image_size=16)


def _combine(parts: tuple[str, Selection, Selection]) -> Selection:
    operator, a, b = parts
    return a | b if operator == "|" else a - b if operator == "-" else a & b


NAMES = [name for name, _ in net().named_parameters()]
SELECTIONS = st.recursive(
    st.sampled_from([il.everything, il.head, il.body, il.norms, il.named("*.conv.*"), il.head_of("body.0")]),
    lambda inner: st.tuples(st.sampled_from("|-&"), inner, inner).map(_combine),
    max_leaves=5,
)


@given(SELECTIONS, SELECTIONS)
def test_selections_combine_like_sets(a: Selection, b: Selection) -> None:
    model = net()
    assert (a | b).match(model) == a.match(model) | b.match(model)
    assert (a - b).match(model) == a.match(model) - b.match(model)
    assert (a & b).match(model) == a.match(model) & b.match(model)


def test_published_selections() -> None:
    model = net()
    assert il.everything.names(model) == tuple(NAMES)
    assert il.head.names(model) == ("head.weight", "head.bias")
    assert set(il.body.names(model)) == set(NAMES) - {"head.weight", "head.bias"}
    assert set(il.norms.names(model)) == {n for n in NAMES if ".norm." in n}


def test_frozen_parameters_are_left_out_unless_named() -> None:
    model = net()
    model.body.requires_grad_(False)
    assert il.everything.names(model) == ("head.weight", "head.bias")
    assert il.named("body.0.conv.weight").names(model) == ("body.0.conv.weight",)


@pytest.mark.parametrize("adapt", [il.named("classifier.*"), il.head - il.everything, il.head_of("classifier")])
def test_a_selection_of_nothing_is_refused_with_what_there_is(adapt: Selection) -> None:
    with pytest.raises(ValueError, match=r"matches no parameter of Conv4; its parameters are: body\.0\.conv\.weight"):
        il.MetaLearner(net(), il.SGD(), adapt=adapt)


@pytest.mark.parametrize("adapt", [il.everything - il.named("*.nrom.*"), il.head | il.head_of("classifer")])
def test_a_misspelt_part_of_a_selection_is_refused(adapt: Selection) -> None:
    with pytest.raises(ValueError, match="matches no parameter of Conv4"):
        adapt.names(net())


def test_boil_with_a_misspelt_head_is_refused() -> None:
    with pytest.raises(ValueError, match=r"head_of\('haed'\) matches no parameter"):
        il.boil(net(), head="haed")


def test_a_model_without_parameters_has_no_head() -> None:
    with pytest.raises(ValueError, match="no submodule with parameters"):
        il.anil(nn.Sequential(nn.ReLU()))


@pytest.mark.parametrize(("preset", "moves"), [("anil", "head."), ("boil", "body.")])
def test_presets_move_what_they_say(preset: str, moves: str) -> None:
    model = net()
    adapted = il.presets.PRESETS[preset](model, lr=0.5).adapt(il.Batch(torch.randn(6, 1, 16, 16), torch.arange(6) % 3))
    for name, parameter in model.named_parameters():
        assert torch.equal(adapted.parameters[name], parameter) is not name.startswith(moves)


class _LowRank(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(5, 1)), nn.Parameter(torch.zeros(1, 4))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.a @ self.b


@pytest.mark.parametrize("kind", ["weight norm", "orthogonal", "low rank", "old weight norm"])
@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
def test_a_parametrized_head_is_whole(kind: str) -> None:
    last = nn.Linear(4, 5)
    {
        "weight norm": nn.utils.parametrizations.weight_norm,
        "orthogonal": nn.utils.parametrizations.orthogonal,
        "low rank": lambda layer: nn.utils.parametrize.register_parametrization(layer, "weight", _LowRank()),
        "old weight norm": nn.utils.weight_norm,
    }[kind](last)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), last)
    of_head = {name for name, _ in model.named_parameters() if name.startswith("2.")}
    assert set(il.head.names(model)) == set(il.anil(model).adapted) == of_head
    assert "2.bias" in of_head
    assert set(il.boil(model).adapted) == {"0.weight", "0.bias"}


def test_a_parametrized_head_is_not_made_of_class_means() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.utils.parametrizations.weight_norm(nn.Linear(4, 5)))
    with pytest.raises(ValueError, match=r"a plain nn\.Linear with a bias"):
        il.Prototypes(model)
    with pytest.raises(ValueError, match=r"a plain nn\.Linear with a bias"):
        il.use.with_classes(il.maml(model), 3)


class MyRMSNorm(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * x / x.square().mean(-1, keepdim=True).sqrt()


@pytest.mark.parametrize("norm", [nn.RMSNorm(4), nn.LayerNorm(4), nn.BatchNorm1d(4), MyRMSNorm(4)])
def test_norms_are_known_by_class_and_by_name(norm: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(3, 4), norm, nn.Linear(4, 2))
    assert set(il.norms.names(model)) == {f"1.{name}" for name, _ in norm.named_parameters()}
    assert not any(name.startswith("1.") for name in (il.everything - il.norms).names(model))
    assert il.maml_plus_plus(model).slots is not None


def test_freezing_after_the_learner_is_made_is_warned_of(episodes: Callable[..., il.Task]) -> None:
    tasks = episodes()
    learner = il.maml(net(), loss=F.cross_entropy)
    learner.meta_gradient(tasks)
    learner.model.body[0].requires_grad_(False)
    with pytest.warns(UserWarning, match=r"would not choose 'body\.0.* still adapts it"):
        learner.meta_gradient(tasks)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learner.meta_gradient(tasks)  # said once
        learner.model.requires_grad_(False)
        learner.predict(tasks)
    frozen = net()
    frozen.body.requires_grad_(False)
    late = il.maml(frozen, loss=F.cross_entropy)
    frozen.body[1].requires_grad_(True)
    with pytest.warns(UserWarning, match=r"would choose 'body\.1.* does not adapt it"):
        late.meta_gradient(tasks)

    copied = copy.deepcopy(late)
    copied.model.body[0].requires_grad_(True)
    with pytest.warns(UserWarning, match=r"would choose 'body\.0"):
        copied.meta_gradient(tasks)
