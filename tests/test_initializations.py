"""Heads made from class means, also for classes that a task does not show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import innerloop as il
from innerloop.initializations import Prototypes

RULES: dict[str, Any] = {
    "SGD": lambda: il.SGD(0.5),
    "Meta-SGD": lambda: il.ElementwiseSGD(0.5),
    "per step": lambda: il.PerStepSGD(0.5),
    "Adam": lambda: il.Adam(0.1, eps=1e-4),
    "proximal": lambda: il.Chain(il.Proximal(1.0), il.SGD(0.5)),
    "momentum": lambda: il.Chain(il.Momentum(), il.Clip(1.0), il.SGD(0.5)),
    "curvature": lambda: il.Chain(il.KroneckerCurvature(), il.SGD(0.5)),
}
OBJECTIVES: dict[str, Any] = {
    "second order": il.Unrolled(),
    "first order": il.Unrolled(1),
    "Reptile": il.Reptile(),
    "implicit": il.Implicit(1.0),
}


def net(outputs: int = 5, dtype: torch.dtype = torch.float32) -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, outputs)).to(dtype)


def tasks(shown: int = 3, scale: float = 1.0, dtype: torch.dtype = torch.float32, number: int = 3) -> il.Task:
    """Of the first so many classes, far from the origin for a large scale and near it for a small one."""
    centres = torch.randn(number, shown, 8)

    def draw(each: int) -> il.Batch:
        y = torch.arange(shown).repeat(each)
        x = centres[:, y] + 0.5 * torch.randn(number, len(y), 8)
        return il.Batch((scale * x).to(dtype), y.expand(number, -1))

    return il.Task(draw(2), draw(4))


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("shown", [1, 3, 4])
def test_prototypes_of_some_classes_are_those_of_a_smaller_head(shown: int, scale: float) -> None:
    """The other outputs change nothing: neither predictions nor probabilities."""
    batch, found = tasks(shown, scale), []
    for outputs in (shown, 7):
        torch.manual_seed(1)
        found.append(il.prototypical(net(outputs)).predict(batch)[:, -1])
    assert (found[1].argmax(-1) < shown).all()
    torch.testing.assert_close(found[1].softmax(-1)[..., :shown], found[0].softmax(-1))
    assert not found[1].softmax(-1)[..., shown:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("rule", RULES)
def test_absent_classes_stay_absent_through_inner_steps(rule: str, objective: str, dtype: torch.dtype) -> None:
    model, batch = net(dtype=dtype), tasks(scale=3.0, dtype=dtype)
    pull = [il.Proximal(1.0)] if objective == "implicit" and rule != "proximal" else []
    inner = il.Chain(*pull, RULES[rule]())
    learner = il.MetaLearner(
        model, inner, objective=OBJECTIVES[objective], steps=4, initial=Prototypes(model), compile=False
    )
    grads, outcome = learner.meta_gradient(batch)
    assert all(g.isfinite().all() for g in grads.values())
    assert outcome.loss.isfinite().all()
    assert (learner.predict(batch, steps=8).argmax(-1) < 3).all()
    assert (learner.adapt(il.task.select(batch.support, 0))(batch.query.x[0]).argmax(-1) < 3).all()


def test_steps_on_absent_classes_are_those_of_a_smaller_head() -> None:
    batch, found = tasks(), []
    for outputs in (3, 5):
        torch.manual_seed(1)
        model = net(5)
        model[2] = nn.Linear(16, outputs)
        found.append(il.protomaml(model, 0.5, steps=3, compile=False).meta_gradient(batch))
    for name in ("model.0.weight", "model.0.bias"):
        torch.testing.assert_close(found[1][0][name], found[0][0][name])
    torch.testing.assert_close(found[1][1].loss, found[0][1].loss)


def smoothed(output: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(output, y, label_smoothing=0.1)


@pytest.mark.parametrize("loss", [F.cross_entropy, smoothed])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_query_example_of_an_absent_class_counts_as_wrong(dtype: torch.dtype, loss: Any) -> None:
    """Very, but not so that anything were infinite."""
    batch = tasks(dtype=dtype)
    batch.query.y.data = torch.full_like(batch.query.y, 4)
    grads, outcome = il.protomaml(net(dtype=dtype), 0.5, loss=loss, steps=2, compile=False).meta_gradient(batch)
    assert outcome.loss.isfinite().all()
    assert (outcome.loss > 1e3).all()
    assert all(g.isfinite().all() for g in grads.values())


def test_a_head_starts_in_its_own_type() -> None:
    """Features are bfloat16 under that precision."""
    adapted = il.protomaml(net(), 0.5, steps=2, precision="bfloat16").adapt(il.task.select(tasks().support, 0))
    assert {p.dtype for p in adapted.parameters.values()} == {torch.float32}


@pytest.mark.parametrize("vectorize", [True, False, 2, (1, 2)])
@pytest.mark.parametrize("label", [-1, 5, 99])
def test_labels_that_the_head_has_no_output_for_are_refused(label: int, vectorize: Any) -> None:
    batch = tasks()
    batch.support.y.data = batch.support.y.clone()
    batch.support.y[1, 2] = label
    learner = il.prototypical(net(), vectorize=vectorize, compile=False)
    for use in (learner.predict, learner, learner.meta_gradient):
        with pytest.raises(ValueError, match=rf"has the label {label}, but the head '2' has 5 outputs.*0 to 4"):
            use(batch)
    with pytest.raises(ValueError, match=f"has the label {label}"):
        learner.adapt(il.task.select(batch.support, 1))


def test_an_example_that_cross_entropy_ignores_belongs_to_no_class() -> None:
    batch = il.task.select(tasks(), 0)
    x, y = torch.cat([batch.support.x, torch.full((1, 8), 99.0)]), torch.cat([batch.support.y, torch.tensor([-100])])
    learner = il.protomaml(net(), 0.5, steps=2)
    torch.testing.assert_close(learner.adapt(il.Batch(x, y)).parameters, learner.adapt(batch.support).parameters)


@pytest.mark.parametrize("wrong", [lambda y: y.float(), lambda y: F.one_hot(y, 5), lambda y: None])
def test_targets_that_are_no_class_indices_are_refused(wrong: Any) -> None:
    support = il.task.select(tasks().support, 0)
    with pytest.raises(ValueError, match=r"prototypes need class indices \(integers \[S\]\)"):
        il.prototypical(net()).adapt(il.Batch(support.x, wrong(support.y)))


def test_threads_make_prototypes_of_their_own() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        batch, learner = tasks(number=6), il.protomaml(net(), 0.5, steps=2, vectorize=(2, 2), compile=False)
        expected = il.protomaml(learner.model, 0.5, steps=2, vectorize=False, compile=False)
        for _ in range(2):
            torch.testing.assert_close(learner.meta_gradient(batch), expected.meta_gradient(batch))
        assert learner.engine.separable
    finally:
        torch.set_num_threads(before)


class Starts(il.Initialization):
    """Makes something of a task's start."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self.make = make

    def __call__(self, episode: Any) -> Any:
        return self.make(episode)


def zeroed(episode: Any, data: bool = False) -> Any:
    weight = start(episode)["weight"]
    with torch.no_grad():
        (weight.data if data else weight).zero_()
    return start(episode)


def start(episode: Any) -> Any:
    return episode.start.params


@pytest.mark.parametrize("vectorize", ["auto", True, False])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (zeroed, r"changes the learner's 'model\.weight' in place"),
        (lambda e: zeroed(e, data=True), r"changes the learner's 'model\.weight' in place"),
        (lambda e: None, "must return the start of the adapted parameters by name, got NoneType"),
        (lambda e: {"weight": start(e)["weight"]}, r"returns a start without 'bias'.*return these"),
        (lambda e: {**start(e), "other": start(e)["bias"]}, r"returns a start with 'other', but .* 'weight', 'bias'"),
        (lambda e: {**start(e), "bias": start(e)["bias"].sum()}, r"start of bias by Starts has the shape \(\).*\(1,\)"),
        (lambda e: {**start(e), "bias": start(e)["bias"].double()}, r"start of bias by Starts is torch\.float64"),
    ],
)
def test_starts_that_are_none_are_refused(
    make: Any, message: str, vectorize: Any, regression: Callable[..., il.Task]
) -> None:
    model = nn.Linear(2, 1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    learner = il.MetaLearner(model, il.SGD(0.1), loss=F.mse_loss, initial=Starts(make), vectorize=vectorize)
    for call in (learner.meta_gradient, learner.predict):
        with pytest.raises(ValueError, match=message):
            call(regression())
    torch.testing.assert_close(dict(model.named_parameters()), before, rtol=0, atol=0)
