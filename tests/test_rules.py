from __future__ import annotations

import inspect
import types
from collections.abc import Callable

import pytest
import torch
from torch import nn

import innerloop as il
from innerloop import rules
from innerloop.testing import check_rule

STEPS = [rules.SGD, rules.PerStepSGD, rules.ElementwiseSGD, rules.Adam]
TRANSFORMS = [rules.Momentum, rules.Clip, rules.Proximal, rules.KroneckerCurvature]


def test_every_rule_of_the_library_is_tested_here() -> None:
    classes = [c for _, c in inspect.getmembers(rules) if isinstance(c, type) and not isinstance(c, types.GenericAlias)]
    concrete = {c for c in classes if issubclass(c, rules.UpdateRule)}
    assert concrete == {rules.UpdateRule, rules.GradientTransform, rules.Chain, *STEPS, *TRANSFORMS}


@pytest.mark.parametrize("make", [*STEPS, *TRANSFORMS])
def test_rules_keep_the_contract(make: Callable[[], il.UpdateRule]) -> None:
    check_rule(make())
    if issubclass(make, il.GradientTransform):  # type: ignore[arg-type]
        check_rule(il.Chain(make(), il.SGD(0.1)))


class Broken(il.UpdateRule):
    """A rule that breaks one clause of the contract at a time."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.calls = how, 0

    def forward(self, grads, params, state, step):  # type: ignore[no-untyped-def]
        self.calls += 1
        updates = {name: -0.1 * grad for name, grad in grads.items()}
        if self.how == "shape":
            updates = {name: update[None] for name, update in updates.items()}
        if self.how == "missing":
            updates.popitem()
        if self.how == "uphill":
            updates = {name: -update for name, update in updates.items()}
        if self.how == "random":
            updates = {name: update * self.calls for name, update in updates.items()}
        if self.how == "in place":
            next(iter(params.values())).add_(1)
        if self.how == "state":
            state = (state,)
        if self.how == "steps" and step > 1:
            raise IndexError(step)
        return updates, state


@pytest.mark.parametrize("how", ["shape", "missing", "uphill", "random", "in place", "state", "steps"])
def test_the_checker_finds_broken_rules(how: str) -> None:
    with pytest.raises((AssertionError, IndexError)):
        check_rule(Broken(how))
    check_rule(Broken("not at all"))


EQUAL_TO_SGD_AT_FIRST = {
    "per step": lambda: il.PerStepSGD(0.1),
    "elementwise": lambda: il.ElementwiseSGD(0.1),
    "curvature": lambda: il.Chain(il.KroneckerCurvature(), il.SGD(0.1)),
    "momentum of zero": lambda: il.Chain(il.Momentum(0.0), il.SGD(0.1)),
    "wide clip": lambda: il.Chain(il.Clip(1e9), il.SGD(0.1)),
    "weak pull": lambda: il.Chain(il.Proximal(0.0), il.SGD(0.1)),
    "learned": lambda: il.SGD(0.1, learned=True),
}


@pytest.mark.parametrize("name", EQUAL_TO_SGD_AT_FIRST)
def test_equal_to_sgd_at_initialisation(name: str, episodes: Callable[..., il.Task]) -> None:
    tasks, model = episodes(), il.models.conv4(ways=3, width=4, image_size=16)
    for rule in (il.SGD(0.1), EQUAL_TO_SGD_AT_FIRST[name]()):
        learner = il.MetaLearner(model, rule, steps=3)
        predictions = learner.predict(tasks, steps=4)
        if isinstance(rule, il.SGD) and not rule.lr.requires_grad:
            expected = predictions
    torch.testing.assert_close(predictions, expected)


@pytest.mark.parametrize(
    ("rule", "optimiser"),
    [
        (lambda: il.SGD(0.05), lambda p: torch.optim.SGD(p, 0.05)),
        (lambda: il.Chain(il.Momentum(0.9), il.SGD(0.05)), lambda p: torch.optim.SGD(p, 0.05, momentum=0.9)),
        (lambda: il.Adam(0.05), lambda p: torch.optim.Adam(p, 0.05)),
        (lambda: il.Adam(0.05, betas=(0.0, 0.999)), lambda p: torch.optim.Adam(p, 0.05, betas=(0.0, 0.999))),
    ],
)
@pytest.mark.usefixtures("double")
def test_the_same_path_as_torchs_optimiser(rule: Callable, optimiser: Callable) -> None:  # type: ignore[type-arg]
    x, y, model = torch.randn(5, 3), torch.randn(5, 1), nn.Linear(3, 1)
    adapted = il.MetaLearner(model, rule(), loss=nn.functional.mse_loss, steps=7).adapt(il.Batch(x, y))
    optimizer = optimiser(model.parameters())
    for _ in range(7):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
    torch.testing.assert_close(adapted.parameters, dict(model.named_parameters()), rtol=1e-6, atol=1e-9)


def test_adam_keeps_meta_gradients_finite_at_zero_gradients() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    model[0].bias.data -= 100  # dead units: gradients of exactly zero
    x, y = torch.randn(2, 4, 2), torch.randn(2, 4, 1)
    learner = il.MetaLearner(model, il.Adam(0.01), loss=nn.functional.mse_loss, steps=3)
    grads, _ = learner.meta_gradient(il.Task(il.Batch(x, y), il.Batch(x, y)))
    assert all(grad.isfinite().all() for grad in grads.values())


def test_per_step_rates_repeat_the_last_step_beyond_training() -> None:
    rule, params = il.PerStepSGD(0.1), {"w": torch.ones(2)}
    rule.bind(params, steps=2)
    with torch.no_grad():
        rule.lr["w"].copy_(torch.tensor([0.1, -0.3]))
    updates = [rule(params, params, (), step)[0]["w"][0].item() for step in range(4)]
    assert updates == pytest.approx([-0.1, 0.3, 0.3, 0.3])


def test_clip_and_proximal_do_what_they_say() -> None:
    params, start = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([0.5, 2.0])}
    grads = {"w": torch.tensor([30.0, -0.5])}
    assert il.Clip(10.0)(grads, params, (), 0)[0]["w"].tolist() == [10.0, -0.5]
    assert il.Proximal(2.0)(grads, params, start, 1)[0]["w"].tolist() == [31.0, -0.5]
    with pytest.raises(ValueError, match="above 0, got -1"):
        il.Clip(-1)


def test_curvature_matches_its_matrix_form() -> None:
    rule, weight = il.KroneckerCurvature(), torch.randn(4, 3, 2, 2)
    rule.bind({"w": weight}, 1)
    factors = [rule.factors[f"w:{axis}"] for axis in range(3)]
    for factor in factors:
        factor.data = torch.randn_like(factor)
    dense = torch.kron(factors[0], torch.kron(factors[1], factors[2]))
    got = rule({"w": weight}, {"w": weight}, (), 0)[0]["w"]
    torch.testing.assert_close(got.flatten(), dense @ weight.flatten(), rtol=1e-4, atol=1e-5)


def test_chains_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="gradient transforms followed by one rule"):
        il.Chain(il.SGD(0.1), il.Clip(1.0))
    with pytest.raises(ValueError, match="write Chain"):
        il.Chain(il.Clip(1.0))
    with pytest.raises(ValueError, match="Momentum transforms gradients and takes no step"):
        il.MetaLearner(nn.Linear(1, 1), il.Momentum())
