"""The inner loop consists of values, and what its losses and rules may ask for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

import innerloop as il

# -- what inner losses and rules may ask for --------------------------------------------------------------------------


def test_an_inner_loss_is_given_what_it_asks_for(regression: Callable[..., il.Task]) -> None:
    seen: list[dict[str, Any]] = []

    def loss(output: Any, y: Any, *, params: Any, start: Any, step: int, query: Any, model: Any) -> Any:
        seen.append({"params": params, "start": start, "step": step, "query": query, "again": model(query)})
        return F.mse_loss(output, y)

    tasks = regression(2)
    learner = il.maml(il.models.mlp(2, 4, 1), lr=0.1, loss=F.mse_loss, inner_loss=loss, steps=2, vectorize=False)
    learner.meta_gradient(tasks)
    last = seen[-1]
    assert (seen[-2]["step"], last["step"]) == (0, 1)
    assert last["params"].keys() == last["start"].keys() == {*learner.adapted}
    assert torch.equal(last["query"], tasks.query.x[1])
    assert last["again"].shape == tasks.query.y[1].shape
    assert all(torch.equal(last["start"][n], p) for n, p in learner.model.named_parameters())
    assert not any(torch.equal(last["params"][n], last["start"][n]) for n in last["start"])


def test_an_inner_loss_that_looks_at_queries_needs_some(regression: Callable[..., il.Task]) -> None:
    def loss(output: Any, y: Any, *, query: Any) -> Any:
        return F.mse_loss(output, y) + 0 * query.sum()

    tasks = regression(2)
    learner = il.maml(il.models.mlp(2, 4, 1), lr=0.1, loss=F.mse_loss, inner_loss=loss)
    learner.predict(tasks)
    with pytest.raises(ValueError, match=r"reads the inputs of the query set.*use predict\(tasks\)"):
        learner.adapt(il.Batch(tasks.support.x[0], tasks.support.y[0]))
    with pytest.raises(ValueError, match=r"reads the inputs of the query set"):
        learner.adapt_all(tasks.support)


def test_an_inner_loss_that_asks_for_what_there_is_not_is_refused() -> None:
    def loss(output: Any, y: Any, *, weights: Any) -> Any:
        return F.mse_loss(output, y)

    with pytest.raises(ValueError, match="keyword-only parameter 'weights', but only params, start, step"):
        il.maml(il.models.mlp(2, 4, 1), inner_loss=loss)


def test_rules_that_ask_pass_the_checks_of_rules() -> None:
    class Lookahead(il.UpdateRule):
        def forward(self, grads: Any, params: Any, state: Any, step: int, *, inner: Any) -> Any:
            ahead = {name: p - 0.1 * grads[name] for name, p in params.items()}
            return {name: -0.1 * grad for name, grad in inner.gradient(ahead).items()}, state

    il.testing.check_rule(Lookahead())


def plain_step(model: nn.Module, loss: Callable[..., Any], batch: Any, lr: float) -> Any:
    """One inner step by hand: the parameters, attached to the model's."""
    start = dict(model.named_parameters())
    at = {name: p.detach().requires_grad_() for name, p in start.items()}
    grads = torch.autograd.grad(loss(functional_call(model, at, (batch.x,)), batch.y, at, start), list(at.values()))
    return {n: (p - lr * g).detach() for (n, p), g in zip(start.items(), grads, strict=True)}


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("memory", ["graph", "constant"])
@pytest.mark.parametrize("vectorize", [True, False])
def test_the_start_is_another_tensor_than_what_adapts(
    regression: Callable[..., il.Task], vectorize: bool, memory: Any
) -> None:
    """Before the first step they are equal, but the gradient is by what adapts alone."""

    def away(output: Any, y: Any, *, params: Any, start: Any) -> Any:
        return F.mse_loss(output, y) + 0.7 * sum((params[n] - 2 * start[n]).square().sum() for n in params)

    tasks, model = regression(2), nn.Linear(2, 1)
    options: Any = {"loss": F.mse_loss, "inner_loss": away, "vectorize": vectorize, "memory": memory}
    learner = il.maml(model, 0.05, **options)
    outcome = learner(tasks)
    for i in range(2):
        batch = il.Batch(tasks.support.x[i], tasks.support.y[i])
        after = plain_step(model, lambda o, y, p, s: away(o, y, params=p, start=s), batch, 0.05)
        output = functional_call(model, after, (tasks.query.x[i],))
        torch.testing.assert_close(outcome.output[i], output.detach())
    torch.testing.assert_close(outcome.output, learner.predict(tasks)[:, -1])


@pytest.mark.usefixtures("double")
def test_a_gradient_that_a_rule_asks_for_is_by_the_parameters_alone(regression: Callable[..., il.Task]) -> None:
    class Tied(il.UpdateRule):
        def forward(self, grads: Any, params: Any, state: Any, step: int, *, inner: Any) -> Any:
            weight = params["weight"] + 0.3
            found = inner.gradient({"weight": weight, "bias": params["bias"] + weight.mean()})
            return {name: -0.1 * grad for name, grad in found.items()}, state

    tasks, found = regression(2), []
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    for memory in ("graph", "constant"):
        learner = il.maml(model, rule=Tied(), loss=F.mse_loss, memory=memory)
        torch.testing.assert_close(learner(tasks).output, learner.predict(tasks)[:, -1])
        found.append(learner.meta_gradient(tasks)[0])
    torch.testing.assert_close(*found)


def test_in_first_order_a_loss_that_a_rule_asks_for_is_a_constant(regression: Callable[..., il.Task]) -> None:
    seen: list[bool] = []

    class ByLoss(il.UpdateRule):
        def forward(self, grads: Any, params: Any, state: Any, step: int, *, inner: Any) -> Any:
            seen.append((loss := inner.loss(params)).requires_grad)
            return {name: -0.1 * (1 + loss) * grad for name, grad in grads.items()}, state

    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    for order in (1, 2):
        options: Any = {"objective": il.Unrolled(order), "loss": F.mse_loss, "vectorize": False}
        learner = il.anil(model, rule=ByLoss(), **options)
        learner.meta_gradient(tasks := regression(2))
        seen.clear()
        learner.meta_gradient(tasks)
        assert seen == [order == 2] * 2


def test_what_a_partial_fixes_is_not_asked_for(regression: Callable[..., il.Task]) -> None:
    def weighted(output: Any, y: Any, step: int) -> Any:
        return F.mse_loss(output, y) * step

    def distilled(output: Any, y: Any, *, model: Any, query: Any) -> Any:
        return F.mse_loss(output, y) + F.mse_loss(output, model(y.new_zeros(len(y), 2))) + 0 * query.sum()

    teacher, tasks = nn.Linear(2, 1), regression(2)
    fixed = il.maml(model := nn.Linear(2, 1), loss=F.mse_loss, inner_loss=partial(weighted, step=3))
    plain = il.maml(model, loss=F.mse_loss)
    torch.testing.assert_close(fixed(tasks).steps, 3 * plain(tasks).steps)
    learner = il.maml(model, loss=F.mse_loss, inner_loss=partial(distilled, model=teacher))
    target = teacher(torch.zeros(2))
    output = torch.stack([model(x) for x in tasks.support.x])
    expected = (output - tasks.support.y).square().mean((1, 2)) + (output - target).square().mean((1, 2))
    torch.testing.assert_close(learner(tasks).steps[:, 0], expected.detach())


def test_an_outer_loss_that_asks_is_refused() -> None:
    def loss(output: Any, y: Any, *, params: Any = None) -> Any:
        return F.mse_loss(output, y)

    with pytest.raises(ValueError, match="the outer loss has the parameters params, which only an inner loss gets"):
        il.maml(nn.Linear(2, 1), loss=loss)


def test_rules_that_ask_work_with_imaml_and_say_what_they_need(regression: Callable[..., il.Task]) -> None:
    class Ahead(il.GradientTransform):
        def forward(self, grads: Any, params: Any, state: Any, step: int, *, inner: Any) -> Any:
            return inner.gradient(params), state

    rule = il.Chain(Ahead(), il.Proximal(2.0), il.SGD(0.1))
    learner = il.imaml(il.models.mlp(2, 4, 1), rule=rule, steps=3, loss=F.mse_loss)
    usual = il.imaml(learner.model, steps=3, loss=F.mse_loss)
    torch.testing.assert_close(learner.meta_gradient(tasks := regression(2))[0], usual.meta_gradient(tasks)[0])
    with pytest.raises(ValueError, match=r"Ahead needs the inner loss, but did not get it"):
        Ahead()({"w": torch.ones(2)}, {"w": torch.ones(2)}, (), 0)


def test_the_place_of_an_inner_loss_is_that_of_its_step(regression: Callable[..., il.Task]) -> None:
    def loss(output: Any, y: Any, *, step: int) -> Any:
        return F.mse_loss(output, y) * (step + 1)

    class Compares(il.Unrolled):
        def __call__(self, episode: il.Episode) -> il.Judgement:
            step = episode.start
            for after in episode.path():
                found = episode.inner(step, step.index).loss(step.params)
                torch.testing.assert_close(found, after.loss)
                step = after
            return super().__call__(episode)

    options: Any = {"loss": F.mse_loss, "inner_loss": loss, "objective": Compares(), "steps": 3, "batch_size": 2}
    il.maml(nn.Linear(2, 1), vectorize=False, **options).meta_gradient(regression(2))


def test_what_a_rule_keeps_is_finite_and_moves_once_a_meta_gradient(regression: Callable[..., il.Task]) -> None:
    class Counts(il.SGD):
        def bind(self, params: Any, steps: int) -> None:
            super().bind(params, steps)
            self.register_buffer("seen", torch.zeros(()))
            self.register_buffer("poison", torch.zeros(()))

        def init(self, params: Any) -> Any:
            return self.seen + 1 + self.poison

        def kept(self, state: Any) -> Any:
            return {"seen": state}

        def keep(self, mean: Any) -> None:
            self.seen.copy_(mean["seen"])

    learner, tasks = il.maml(nn.Linear(2, 1), rule=Counts(0.1), loss=F.mse_loss), regression(2)
    learner(tasks).objective.mean().backward()
    assert float(learner.rule.seen) == 0  # a trust region looks several times at one meta-batch
    learner.meta_gradient(tasks)
    assert float(learner.rule.seen) == 1
    learner.rule.poison.fill_(float("nan"))
    learner.meta_gradient(tasks)
    assert float(learner.rule.seen) == 1
    mean = il.per_step.average({"a": torch.tensor([1 + 1j, 3 + 3j])})
    assert mean["a"] == 2 + 2j


def test_a_keep_that_fails_halfway_leaves_the_buffers_as_they_were(regression: Callable[..., il.Task]) -> None:
    class Halfway(il.SGD):
        def bind(self, params: Any, steps: int) -> None:
            super().bind(params, steps)
            self.register_buffer("first", torch.zeros(()))

        def kept(self, state: Any) -> Any:
            return {"first": torch.ones(())}

        def keep(self, mean: Any) -> None:
            self.first.copy_(mean["first"])
            raise ArithmeticError

    for rule in (Halfway(0.1), il.Chain(il.Clip(), Halfway(0.1))):
        learner = il.maml(nn.Linear(2, 1), rule=rule, loss=F.mse_loss)
        with pytest.raises(ArithmeticError):
            learner.meta_gradient(regression(2))
        assert [float(buffer) for buffer in rule.buffers()] == [0.0]
        assert [*learner.carried.values()] == [*rule.buffers()]


@pytest.mark.parametrize("kept", [None, [torch.ones(())], {"a": 1.0}])
def test_what_a_rule_keeps_is_tensors_by_name(kept: Any, regression: Callable[..., il.Task]) -> None:
    class Keeps(il.SGD):
        def kept(self, state: Any) -> Any:
            return kept

    for rule in (Keeps(0.1), il.Chain(il.Clip(), Keeps(0.1))):
        learner = il.maml(nn.Linear(2, 1), rule=rule, loss=F.mse_loss)
        message = rf"kept of Keeps returned a {type(kept).__name__}, not a dict of tensors by name"
        with pytest.raises(ValueError, match=message):
            learner.meta_gradient(regression(2))


# -- episodes are values ----------------------------------------------------------------------------------------------


def test_an_episode_and_its_steps_cannot_be_written_to(regression: Callable[..., il.Task]) -> None:
    class Writes(il.Unrolled):
        def __call__(self, episode: il.Episode) -> il.Judgement:
            with pytest.raises(AttributeError):
                episode.steps = 3  # type: ignore[misc]
            with pytest.raises(AttributeError):
                episode.start.params = {}  # type: ignore[misc]
            return super().__call__(episode)

    il.maml(il.models.mlp(2, 4, 1), loss=F.mse_loss, objective=Writes()).meta_gradient(regression(2))


@pytest.mark.parametrize("vectorize", [True, False])
def test_walking_a_path_twice_changes_nothing(episodes: Callable[..., il.Task], vectorize: bool) -> None:
    class Twice(il.Unrolled):
        def __call__(self, episode: il.Episode) -> il.Judgement:
            episode.query(episode.last(order=1))
            return super().__call__(episode)

    tasks, found = episodes(2), []
    for objective in (il.Unrolled(), Twice()):
        torch.manual_seed(0)
        model = il.models.conv4(1, 3, width=4, running=True, image_size=16)
        learner = il.maml_plus_plus(model, steps=3, objective=objective, vectorize=vectorize)
        grads, outcome = learner.meta_gradient(tasks)
        found.append((grads, outcome._asdict(), dict(learner.slots.named_buffers())))
    torch.testing.assert_close(*found, rtol=0, atol=0)
