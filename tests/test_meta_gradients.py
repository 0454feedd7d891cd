"""Are the meta-gradients right? Closed forms, finite differences, and an independent implementation say so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import innerloop as il

pytestmark = pytest.mark.usefixtures("double")
LOOPED_AND_VECTORIZED = pytest.mark.parametrize("vectorize", [False, True])


class Point(nn.Module):
    """The model whose output is its parameter, so that the loss below is a quadratic in it."""

    def __init__(self, size: int = 3) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.linspace(-1, 1, size))

    def forward(self, x: Tensor) -> Tensor:
        return self.theta.expand(len(x), -1)


class Quadratic:
    """``loss(theta) = 1/2 (theta - c)' A (theta - c)``, with a task's A and c as inputs and targets."""

    def __init__(self, number: int = 2, size: int = 3) -> None:
        root = torch.randn(number, 2, size, size)
        self.matrix = root @ root.mT + torch.eye(size)
        self.centre = torch.randn(number, 2, size)

    @property
    def tasks(self) -> il.Task:
        batches = [il.Batch(self.matrix[:, i, None], (self.matrix[:, i], self.centre[:, i])) for i in range(2)]
        return il.Task(*batches)

    @staticmethod
    def loss(output: Tensor, y: tuple[Tensor, Tensor]) -> Tensor:
        (matrix, centre), theta = y, output[0]
        return (theta - centre) @ matrix @ (theta - centre) / 2

    def adapted(self, theta: Tensor, lr: float, steps: int, strength: float = 0.0) -> Tensor:
        phi = theta.expand(len(self.matrix), -1)
        for _ in range(steps):
            slope = torch.einsum("tij,tj->ti", self.matrix[:, 0], phi - self.centre[:, 0])
            phi = phi - lr * (slope + strength * (phi - theta))
        return phi

    def query_slope(self, phi: Tensor) -> Tensor:
        return torch.einsum("tij,tj->ti", self.matrix[:, 1], phi - self.centre[:, 1])


def meta_gradient(learner: il.MetaLearner, tasks: il.Task) -> Tensor:
    return learner.meta_gradient(tasks)[0]["model.theta"]


@LOOPED_AND_VECTORIZED
@pytest.mark.parametrize("steps", [1, 4])
def test_second_order_on_a_quadratic(vectorize: bool, steps: int) -> None:
    problem, model, lr = Quadratic(), Point(), 0.05
    learner = il.maml(model, lr=lr, steps=steps, loss=problem.loss, vectorize=vectorize)
    shrink = torch.linalg.matrix_power(torch.eye(3) - lr * problem.matrix[:, 0], steps)
    slope = problem.query_slope(problem.adapted(model.theta.detach(), lr, steps))
    expected = torch.einsum("tij,tj->i", shrink, slope) / 2
    torch.testing.assert_close(meta_gradient(learner, problem.tasks), expected)


@LOOPED_AND_VECTORIZED
def test_first_order_on_a_quadratic(vectorize: bool) -> None:
    problem, model, lr = Quadratic(), Point(), 0.05
    learner = il.fomaml(model, lr=lr, steps=3, loss=problem.loss, vectorize=vectorize)
    expected = problem.query_slope(problem.adapted(model.theta.detach(), lr, 3)).mean(0)
    torch.testing.assert_close(meta_gradient(learner, problem.tasks), expected)


@LOOPED_AND_VECTORIZED
def test_reptile_on_a_quadratic(vectorize: bool) -> None:
    problem, model, lr = Quadratic(), Point(), 0.05
    learner = il.reptile(model, rule=il.SGD(lr), steps=3, loss=problem.loss, vectorize=vectorize)
    expected = model.theta.detach() - problem.adapted(model.theta.detach(), lr, 3).mean(0)
    torch.testing.assert_close(meta_gradient(learner, problem.tasks), expected)


@LOOPED_AND_VECTORIZED
def test_implicit_on_a_quadratic(vectorize: bool) -> None:
    problem, model, strength = Quadratic(), Point(), 2.0
    learner = il.imaml(
        model, lr=0.05, strength=strength, iterations=3, steps=400, loss=problem.loss, vectorize=vectorize
    )
    slope = problem.query_slope(problem.adapted(model.theta.detach(), 0.05, 400, strength))
    system = torch.eye(3) + problem.matrix[:, 0] / strength
    expected = torch.linalg.solve(system, slope).mean(0)
    torch.testing.assert_close(meta_gradient(learner, problem.tasks), expected)


def test_implicit_equals_a_long_proximal_unroll(regression: Callable[..., il.Task]) -> None:
    """Weights that are not adapted included."""
    tasks = regression(2)
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
    rule = lambda: il.Chain(il.Proximal(1.0), il.SGD(0.2))  # noqa: E731
    settings = {"adapt": il.head, "loss": F.mse_loss, "steps": 300}
    unrolled, _ = il.MetaLearner(model, rule(), **settings).meta_gradient(tasks)
    implicit, _ = il.MetaLearner(model, rule(), objective=il.Implicit(1.0, iterations=20), **settings).meta_gradient(
        tasks
    )
    assert set(unrolled) == set(implicit)
    for name in unrolled:
        torch.testing.assert_close(implicit[name], unrolled[name], rtol=1e-6, atol=1e-9)


class Pull(il.GradientTransform):
    """Somebody's own proximal term."""

    def __init__(self, strength: float | nn.Parameter) -> None:
        super().__init__()
        self.strength = strength

    def init(self, params: il.task.Params) -> Any:
        return dict(params)

    def forward(self, grads: Any, params: Any, state: Any, step: int) -> Any:
        return {n: grad + self.strength * (params[n] - state[n]) for n, grad in grads.items()}, state


RESTING: dict[str, Callable[[], il.UpdateRule]] = {
    "proximal": lambda: il.Chain(il.Proximal(2.0), il.SGD(0.1)),
    "own": lambda: il.Chain(Pull(2.0), il.SGD(0.1)),
    "momentum": lambda: il.Chain(il.Proximal(2.0), il.Momentum(), il.SGD(0.1)),
    "Adam": lambda: il.Chain(il.Proximal(2.0), il.Adam(0.1)),
    "curvature": lambda: il.Chain(il.Proximal(2.0), il.KroneckerCurvature(), il.SGD(0.1)),
    "learned rates": lambda: il.Chain(il.Proximal(2.0), il.ElementwiseSGD(0.1)),
    "clip": lambda: il.Chain(il.Proximal(2.0), il.Clip(1.0), il.SGD(0.1)),
}
RESTLESS: dict[str, Callable[[], il.UpdateRule]] = {
    "no pull": lambda: il.SGD(0.1),
    "Adam without": lambda: il.Adam(0.1),
    "weaker": lambda: il.Chain(il.Proximal(1.0), il.SGD(0.1)),
    "stronger": lambda: il.Chain(Pull(2.1), il.SGD(0.1)),
    "twice": lambda: il.Chain(il.Proximal(2.0), il.Proximal(2.0), il.SGD(0.1)),
    "after clipping": lambda: il.Chain(il.Clip(1e-4), il.Proximal(2.0), il.SGD(0.1)),
    "learned": lambda: il.Chain(Pull(nn.Parameter(torch.tensor(2.0))), il.SGD(0.1)),
}


@pytest.mark.parametrize("name", [*RESTING, *RESTLESS])
def test_implicit_refuses_rules_that_rest_elsewhere(name: str, regression: Callable[..., il.Task]) -> None:
    rule = {**RESTING, **RESTLESS}[name]()
    learner = il.MetaLearner(nn.Linear(2, 1), rule, objective=il.Implicit(2.0), loss=F.mse_loss, steps=2)
    if name in RESTING:
        learner.meta_gradient(regression(2))
        return
    told = "changes the point that inner steps converge to" if name == "learned" else "does not converge there"
    with pytest.raises(ValueError, match=rf"{told}.*il\.Proximal\(2\) first"):
        learner.meta_gradient(regression(2))


def naive_maml(model: nn.Module, task: il.Task, lr: float, steps: int) -> tuple[list[Tensor], Tensor]:
    """MAML on one task, in plain autograd: the oracle. Parameters are swapped in by hand."""
    parameters = list(model.parameters())
    owners = [(m, n) for m in model.modules() for n, _ in m.named_parameters(recurse=False)]

    def run(weights: list[Tensor], x: Tensor) -> Tensor:
        for (module, name), weight in zip(owners, weights, strict=True):
            del module._parameters[name]
            setattr(module, name, weight)
        output = model(x)
        for (module, name), parameter in zip(owners, parameters, strict=True):
            delattr(module, name)
            module._parameters[name] = parameter
        return output

    weights = parameters
    for _ in range(steps):
        loss = F.cross_entropy(run(weights, task.support.x), task.support.y)
        grads = torch.autograd.grad(loss, weights, create_graph=True)
        weights = [w - lr * g for w, g in zip(weights, grads, strict=True)]
    loss = F.cross_entropy(run(weights, task.query.x), task.query.y)
    return list(torch.autograd.grad(loss, parameters)), loss.detach()


@LOOPED_AND_VECTORIZED
@pytest.mark.parametrize("pooling", ["max", "stride"])
def test_maml_equals_a_naive_implementation(
    episodes: Callable[..., il.Task], vectorize: bool, pooling: il.models.Pooling
) -> None:
    tasks, model = episodes(), il.models.conv4(ways=3, width=4, image_size=16, pooling=pooling)
    learner = il.maml(model, lr=0.1, steps=2, vectorize=vectorize)
    grads, outcome = learner.meta_gradient(tasks)
    results = [naive_maml(model, il.task.select(tasks, i), 0.1, 2) for i in range(3)]
    torch.testing.assert_close(outcome.loss, torch.stack([loss for _, loss in results]))
    for index, name in enumerate(dict(model.named_parameters())):
        expected = torch.stack([g[index] for g, _ in results]).mean(0)
        torch.testing.assert_close(grads[f"model.{name}"], expected)


def small_learner(preset: str, vectorize: bool | str = "auto") -> il.MetaLearner:
    """Any preset on a classification network smooth enough for finite differences."""
    inputs = 6 if preset == "cavia" else 4
    model: nn.Module = nn.Sequential(nn.Linear(inputs, 5), nn.Tanh(), nn.Linear(5, 3))
    if preset == "cavia":
        model = il.models.WithContext(model, 2)
    if preset == "maml-plus-plus":
        model = nn.Sequential(nn.Linear(inputs, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))
    options = {"vectorize": vectorize} | ({} if preset == "prototypical" else {"lr": 0.1, "steps": 2})
    options |= {"first_order": 0} if preset == "maml-plus-plus" else {}
    return il.presets.PRESETS[preset](model, **options)


def classification(number: int = 2) -> il.Task:
    def draw(each: int) -> il.Batch:
        y = torch.arange(3).repeat(each).expand(number, -1)
        return il.Batch(F.one_hot(y, 4) * 1.5 + 0.3 * torch.randn(number, 3 * each, 4), y)

    return il.Task(draw(2), draw(1))


# The others' meta-gradient is by definition not that of their objective's value; they have closed forms above.
EXACT = sorted(set(il.presets.PRESETS) - {"fomaml", "reptile", "imaml"})


@pytest.mark.parametrize("preset", EXACT)
def test_gradcheck_of_every_exact_preset(preset: str) -> None:
    learner, tasks = small_learner(preset), classification()
    names, values = zip(*((n, p) for n, p in learner.named_parameters() if p.requires_grad), strict=True)

    def objective(*tensors: Tensor) -> Tensor:
        named = dict(zip(names, tensors, strict=True))
        return torch.func.functional_call(learner, named, (tasks,)).objective.mean()

    assert torch.autograd.gradcheck(objective, [v.detach().requires_grad_() for v in values])


@pytest.mark.parametrize("preset", sorted(il.presets.PRESETS))
def test_both_ways_to_the_meta_gradient_agree(preset: str) -> None:
    """`meta_gradient`, looped and vectorized, and ``backward()`` through the learner."""
    tasks = classification(3)
    results = []
    for vectorize in (False, True):
        torch.manual_seed(1)
        results.append(small_learner(preset, vectorize).meta_gradient(tasks))
    torch.manual_seed(1)
    learner = small_learner(preset)
    learner(tasks).objective.mean().backward()
    results.append(({n: p.grad for n, p in learner.named_parameters() if p.grad is not None}, results[0][1]))
    for grads, outcome in results[1:]:
        torch.testing.assert_close(outcome, results[0][1])
        for name, grad in grads.items():
            torch.testing.assert_close(grad, results[0][0][name])


@pytest.mark.parametrize("preset", ["maml", "anil", "meta-sgd"])
def test_first_and_second_order_differ(preset: str) -> None:
    tasks, grads = classification(), []
    for order in (1, 2):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
        grads.append(il.presets.PRESETS[preset](model, lr=0.5, order=order).meta_gradient(tasks)[0])
    assert not torch.allclose(grads[0]["model.0.weight"], grads[1]["model.0.weight"], rtol=1e-2)


def test_learned_rates_get_gradients_in_first_order_too() -> None:
    """First order takes the updates as constants of the parameters, not of the rates."""
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    grads, _ = il.meta_sgd(model, lr=0.1, order=1).meta_gradient(classification())
    assert all(grad.abs().sum() > 0 for name, grad in grads.items() if name.startswith("rule."))


def test_step_weights_average_the_losses_along_the_path() -> None:
    tasks, model = classification(), nn.Sequential(nn.Linear(4, 3))
    each = [il.maml(model, lr=0.3, steps=k).meta_gradient(tasks)[0]["model.0.weight"] for k in (1, 2, 3)]
    learner = il.MetaLearner(model, il.SGD(0.3), objective=il.Unrolled(step_weights=[0.2, 0.3, 0.5]), steps=3)
    torch.testing.assert_close(
        learner.meta_gradient(tasks)[0]["model.0.weight"], 0.2 * each[0] + 0.3 * each[1] + 0.5 * each[2]
    )


def test_scheduled_order_switches() -> None:
    tasks, model = classification(), nn.Sequential(nn.Linear(4, 3))
    objective = il.Unrolled(order=il.schedules.switch(1, 2, at=5))
    learner = il.MetaLearner(model, il.SGD(0.5), objective=objective)
    for iteration, order in ((4, 1), (5, 2)):
        expected = il.maml(model, lr=0.5, order=order).meta_gradient(tasks)[0]
        torch.testing.assert_close(
            learner.meta_gradient(tasks, iteration)[0]["model.0.weight"], expected["model.0.weight"]
        )


def test_a_schedule_of_impossible_orders_is_refused() -> None:
    learner = il.MetaLearner(nn.Linear(4, 3), il.SGD(0.5), objective=il.Unrolled(order=lambda iteration: iteration))
    with pytest.raises(ValueError, match="order must be 1 or 2, got 3 at iteration 3"):
        learner.meta_gradient(classification(), 3)


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("preset", sorted(il.presets.PRESETS))
def test_training_and_predicting_walk_the_same_path(preset: str, vectorize: bool) -> None:
    learner, tasks = small_learner(preset, vectorize), classification(3)
    _, outcome = learner.meta_gradient(tasks)
    torch.testing.assert_close(outcome.output, learner.predict(tasks)[:, -1])


def test_the_gradient_of_a_body_does_not_run_through_a_head_made_from_it() -> None:
    """ProtoMAML against a hand-written inner step."""
    learner, tasks = small_learner("protomaml"), classification(1)
    (x, y), (xq, yq) = (tuple(t[0] for t in batch) for batch in tasks)
    own = {n: p.detach().clone().requires_grad_() for n, p in learner.model.named_parameters()}
    body = {n: p for n, p in own.items() if n.startswith("0.")}

    def features(body: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.tanh(F.linear(x, body["0.weight"], body["0.bias"]))

    centres = torch.stack([features(body, x)[y == k].mean(0) for k in range(3)])
    head = [2 * centres, -centres.square().sum(1)]
    for _ in range(learner.steps):
        body, head = {n: p.view_as(p) for n, p in body.items()}, [p.view_as(p) for p in head]
        loss = F.cross_entropy(F.linear(features(body, x), *head), y)
        grads = torch.autograd.grad(loss, [*body.values(), *head], create_graph=True)
        body = {n: p - 0.1 * g for (n, p), g in zip(body.items(), grads, strict=False)}
        head = [p - 0.1 * g for p, g in zip(head, grads[2:], strict=True)]
    loss = F.cross_entropy(F.linear(features(body, xq), *head), yq)
    expected = torch.autograd.grad(loss, [own["0.weight"], own["0.bias"]])
    grads, outcome = learner.meta_gradient(tasks)
    torch.testing.assert_close(outcome.loss[0], loss.detach())
    for name, grad in zip(("0.weight", "0.bias"), expected, strict=True):
        torch.testing.assert_close(grads[f"model.{name}"], grad)


@LOOPED_AND_VECTORIZED
def test_an_implicit_meta_gradient_is_not_differentiated_once_more(vectorize: bool) -> None:
    """Its second derivative would be that of a graph that takes the minimum as a constant."""
    problem, model = Quadratic(), Point()
    learner = il.imaml(model, 0.05, strength=1.0, steps=5, loss=problem.loss, vectorize=vectorize)
    objective = learner(problem.tasks).objective.mean()
    with pytest.raises(NotImplementedError, match=r"cannot be differentiated again .*Unrolled"):
        torch.autograd.grad(objective, model.theta, create_graph=True)
    learner(problem.tasks).objective.mean().backward()
    torch.testing.assert_close(model.theta.grad, meta_gradient(learner, problem.tasks))
