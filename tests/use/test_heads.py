"""Heads for another number of classes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import innerloop as il
from innerloop.use.heads import classes_of, with_classes

X, Y = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12)


def learner(preset: object = il.maml, **options: object) -> il.MetaLearner:
    torch.manual_seed(0)
    return preset(il.models.mlp(4, 8, 5), lr=0.1, steps=2, **options)  # type: ignore[operator,no-any-return]


def test_fewer_classes_take_the_first_outputs_and_their_path() -> None:
    """As if the outputs past them had been cut from the trained model by hand."""
    trained = learner()
    by_hand = learner()
    layer = by_hand.model[-1]
    layer.weight, layer.bias = nn.Parameter(layer.weight[:3].detach()), nn.Parameter(layer.bias[:3].detach())
    cut = with_classes(trained, 3)
    support = il.Batch(X, Y % 3)
    assert torch.equal(cut.adapt(support)(X), by_hand.adapt(support)(X))
    assert cut.adapt(support)(X).shape == (12, 3)
    assert trained.adapt(il.Batch(X, Y % 5))(X).shape == (12, 5)  # itself as it was


def test_as_many_classes_change_nothing() -> None:
    trained = learner()
    assert with_classes(trained, 5) is trained


def test_more_classes_need_a_start_to_be_chosen() -> None:
    with pytest.raises(ValueError, match=r"7 classes, but the head was trained for 5: .*drawn.*prototypes.*zero"):
        with_classes(learner(), 7)
    with pytest.raises(ValueError, match="trained for 5"):
        with_classes(learner(), 7, "trained")
    with pytest.raises(ValueError, match="trained, drawn, prototypes, zero, got 'random'"):
        with_classes(learner(), 7, "random")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 2 classes"):
        with_classes(learner(), 1)


@pytest.mark.parametrize("number", [2, 5, 7])
def test_a_head_at_zero(number: int) -> None:
    larger = with_classes(learner(), number, "zero")
    assert torch.equal(larger.adapt(il.Batch(X, Y % number), steps=0)(X), torch.zeros(12, number))


def test_a_head_at_prototypes_is_nearest_to_their_own_classes() -> None:
    larger = with_classes(learner(), 7, "prototypes")
    support = il.Batch(X[:7], Y[:7])
    features = larger.model[:-1](X)
    nearest = torch.cdist(features, features[:7]).argmin(1)
    assert torch.equal(larger.adapt(support, steps=0)(X).argmax(1), nearest)


@pytest.mark.parametrize("head", ["prototypes", None])
@pytest.mark.parametrize("number", [4, 5, 9])
def test_classes_without_examples_are_never_predicted(number: int, head: object) -> None:
    trained = learner() if head else learner(il.protomaml)
    other = with_classes(trained, number, head)  # type: ignore[arg-type]
    for steps in (0, 1, 20):
        output = other.adapt(il.Batch(X, 3 * (Y % 2)), steps=steps)(X)
        assert output.shape == (12, number)
        assert set(output.argmax(1).tolist()) <= {0, 3}
        assert output.isfinite().all()


def test_the_engine_knows_a_new_start() -> None:
    """By which it names what cannot be vectorized."""
    other = with_classes(learner(), 7, "prototypes")
    assert other.engine.parts["initialization"] is other.initial
    assert other.engine.parts["update rule"] is other.rule


def test_further_outputs_are_drawn_like_the_trained_ones() -> None:
    trained = learner()
    larger = with_classes(trained, 40, "drawn")
    before, after = trained.model[-1].weight, larger.model[-1].weight
    assert torch.equal(after[:5], before)
    spread = (before - before.mean(0)).norm(dim=1).mean()
    assert torch.allclose((after[5:] - before.mean(0)).norm(dim=1), spread.expand(35))
    assert len(torch.unique(after, dim=0)) == 40
    assert torch.equal(with_classes(trained, 40, "drawn").model[-1].weight, after)  # whenever it is made


def test_a_learner_that_starts_at_prototypes_takes_any_number() -> None:
    for number in (2, 9):
        assert with_classes(learner(il.protomaml), number).adapt(il.Batch(X, Y % number))(X).shape == (12, number)


def test_what_the_rule_has_learned_is_cut_or_averaged() -> None:
    trained = learner(il.meta_sgd)
    with torch.no_grad():
        for rate in trained.rule.lr.parameters():
            rate.uniform_(generator=torch.Generator().manual_seed(1))
    name = next(n for n, p in trained.model.named_parameters() if p.shape == (5, 8))
    for number, expected in (
        (3, trained.rule.lr[name][:3]),
        (7, torch.cat([trained.rule.lr[name], trained.rule.lr[name].mean(0).expand(2, -1)])),
    ):
        other = with_classes(trained, number, "zero")
        assert torch.equal(other.rule.lr[name], expected)
        assert torch.equal(other.rule.lr["0.weight"], trained.rule.lr["0.weight"])
    curved = with_classes(learner(il.meta_curvature), 3)
    assert curved.adapt(il.Batch(X, Y % 3))(X).isfinite().all()


def test_what_every_step_has_of_its_own_stays() -> None:
    torch.manual_seed(0)
    trained = il.maml_plus_plus(il.models.conv4(width=4, ways=5), steps=2)
    with torch.no_grad():
        for slot in trained.slots.parameters():  # type: ignore[union-attr]
            slot.normal_()
    pictures = torch.rand(6, 1, 28, 28)
    cut = with_classes(trained, 3)
    for (name, one), (_, other) in zip(trained.slots.named_parameters(), cut.slots.named_parameters(), strict=True):  # type: ignore[union-attr]
        assert torch.equal(one, other), name
    assert cut.adapt(il.Batch(pictures, torch.arange(6) % 3)).module()(pictures).shape == (6, 3)


def test_heads_that_are_none() -> None:
    assert classes_of(learner()) == 5
    with pytest.raises(ValueError, match="one output"):
        classes_of(il.maml(il.models.mlp(4, 8, 1), loss=F.mse_loss))
    with pytest.raises(ValueError, match=r"nn.Linear with a bias; '0' of Sequential is Conv1d"):
        classes_of(il.maml(nn.Sequential(nn.Conv1d(1, 2, 3))))


class StepwiseRates(il.UpdateRule):
    """A rate for each step and weight, ``[K, *shape]``."""

    def __init__(self, odd: bool = False) -> None:
        super().__init__()
        self.odd = odd

    def bind(self, params, steps):  # type: ignore[no-untyped-def]
        self.lr = nn.ParameterDict(
            {n.replace(".", "/"): torch.full((steps, *p.shape, *p.shape[: self.odd]), 0.1) for n, p in params.items()}
        )

    def forward(self, grads, params, state, step):  # type: ignore[no-untyped-def]
        rates = {n: self.lr[n.replace(".", "/")][step] for n in grads}
        return {n: -(rates[n].sum(-1) if self.odd else rates[n]) * g for n, g in grads.items()}, state


@pytest.mark.parametrize("number", [3, 7])
def test_rates_of_each_step_are_carried_over(number: int) -> None:
    trained = il.MetaLearner(il.models.mlp(4, 8, 5), StepwiseRates(), steps=2)
    with torch.no_grad():
        for rate in trained.rule.parameters():
            rate.copy_(torch.rand_like(rate))
    before, after = trained.rule.lr["2/weight"], with_classes(trained, number, "drawn").rule.lr["2/weight"]
    assert after.shape == (2, number, 8)
    kept = min(number, 5)
    torch.testing.assert_close(after[:, :kept], before[:, :kept])
    torch.testing.assert_close(after[:, kept:], before.mean(1, keepdim=True).expand(2, number - kept, 8))


def test_what_a_rule_learned_is_not_dropped_silently() -> None:
    with pytest.raises(ValueError, match=r"rule's lr\.2/\w+ has .* cannot be converted"):
        with_classes(il.MetaLearner(il.models.mlp(4, 8, 5), StepwiseRates(odd=True), steps=2), 3)
