from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

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
