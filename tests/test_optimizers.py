"""Optimizers as inner rules: torch's own paths, and meta-gradients that are finite and right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import innerloop as il
from innerloop.recipe import schema
from innerloop.updates import root

OPTIMIZERS: dict[str, tuple[Callable[[], il.UpdateRule], Callable[[Any], torch.optim.Optimizer]]] = {
    "SGD": (lambda: il.SGD(0.005), lambda p: torch.optim.SGD(p, 0.005)),
    "momentum": (
        lambda: il.Chain(il.Momentum(0.9), il.SGD(0.005)),
        lambda p: torch.optim.SGD(p, 0.005, momentum=0.9),
    ),
    "Nesterov": (
        lambda: il.Chain(il.WeightDecay(0.1), il.Momentum(0.8, nesterov=True), il.SGD(0.005)),
        lambda p: torch.optim.SGD(p, 0.005, momentum=0.8, nesterov=True, weight_decay=0.1),
    ),
    "Adam": (lambda: il.Adam(0.005), lambda p: torch.optim.Adam(p, 0.005)),
    "Adam of Reptile": (
        lambda: il.Adam(0.005, betas=(0.0, 0.999)),
        lambda p: torch.optim.Adam(p, 0.005, betas=(0.0, 0.999)),
    ),
    "Adam with a penalty": (
        lambda: il.Adam(0.005, weight_decay=0.1, learned=True),
        lambda p: torch.optim.Adam(p, 0.005, weight_decay=0.1),
    ),
    "AdamW": (lambda: il.AdamW(0.005), lambda p: torch.optim.AdamW(p, 0.005)),
    "AdamW by hand": (
        lambda: il.Chain(il.ScaleByAdam((0.8, 0.9), 1e-3), il.WeightDecay(0.3), il.SGD(0.005)),
        lambda p: torch.optim.AdamW(p, 0.005, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.3),
    ),
    "RMSprop": (lambda: il.RMSprop(0.0005), lambda p: torch.optim.RMSprop(p, 0.0005)),
    "RMSprop with everything": (
        lambda: il.RMSprop(0.001, 0.99, 1e-2, weight_decay=0.1, momentum=0.5, centered=True),
        lambda p: torch.optim.RMSprop(p, 0.001, 0.99, 1e-2, weight_decay=0.1, momentum=0.5, centered=True),
    ),
    "groups": (
        lambda: il.PerGroup({"2.*": il.AdamW(0.003), "*.bias": il.SGD(0.002), "*": il.RMSprop(0.001)}),
        lambda p: Groups(list(p)),
    ),
}


class Groups(torch.optim.Optimizer):
    """Torch's own optimizers of three groups of a model's four parameters."""

    def __init__(self, p: list[nn.Parameter]) -> None:
        super().__init__(p, {})
        adam, sgd, rms = (
            torch.optim.AdamW(p[2:], 0.003),
            torch.optim.SGD(p[1:2], 0.002),
            torch.optim.RMSprop(p[:1], 0.001),
        )
        self.all: list[torch.optim.Optimizer] = [adam, sgd, rms]

    def step(self, closure: Any = None) -> None:
        for one in self.all:
            one.step()


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()


def clipped(model: nn.Module) -> None:
    nn.utils.clip_grad_norm_(model.parameters(), 0.05)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_path_is_that_of_torchs_optimizer(name: str, clip: bool) -> None:
    """Over 200 steps, to ten digits.

    The rates are small: at larger ones torch's own adaptive paths differ by more if one weight begins 1e-15 elsewhere.
    """
    rule, optimizer = OPTIMIZERS[name][0](), None
    x, y, model = torch.randn(60, 3).double(), torch.randn(60, 1).double(), network()
    if clip:
        rule = il.Chain(il.ClipNorm(0.05), *(rule if isinstance(rule, il.Chain) else [rule]))
    adapted = il.MetaLearner(model, rule, loss=F.mse_loss, steps=200).adapt(il.Batch(x, y))
    optimizer = OPTIMIZERS[name][1](model.parameters())
    for _ in range(200):
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        if clip:
            clipped(model)
        optimizer.step()
    torch.testing.assert_close(adapted.parameters, dict(model.named_parameters()), rtol=1e-10, atol=1e-10)


def differences(learner: il.MetaLearner, tasks: il.Task, epsilon: float = 1e-6) -> il.task.Params:
    """Central differences of the mean objective by every meta-parameter."""
    found = {}
    for name, parameter in learner.named_parameters():
        if parameter.requires_grad:
            slope = torch.zeros_like(parameter)
            flat, values = slope.view(-1), parameter.data.view(-1)
            for index in range(values.numel()):
                before, ends = values[index].item(), []
                for sign in (1, -1):
                    values[index] = before + sign * epsilon
                    ends.append(learner(tasks).objective.mean().item())
                values[index] = before
                flat[index] = (ends[0] - ends[1]) / (2 * epsilon)
            found[name] = slope
    return found


LEARNED: dict[str, Callable[[], il.UpdateRule]] = {
    "Adam": lambda: il.Adam(0.05, learned=True, weight_decay=0.1),
    "AdamW": lambda: il.AdamW(0.05, learned=True),
    "RMSprop": lambda: il.RMSprop(0.02, learned=True, centered=True, momentum=0.5),
    "rates of every step": lambda: il.Chain(il.ScaleByAdam(), il.PerStepSGD(0.05)),
    "a rate of every weight": lambda: il.Chain(il.ScaleByRMSprop(), il.WeightDecay(0.1), il.ElementwiseSGD(0.02)),
    "clipped": lambda: il.Chain(il.ClipNorm(0.1), il.Momentum(0.9, nesterov=True), il.SGD(0.1, learned=True)),
    "groups": lambda: il.PerGroup({"2.*": il.Adam(0.05, learned=True), "*": il.SGD(0.1, learned=True)}),
}


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("name", LEARNED)
def test_meta_gradients_are_those_of_differences(name: str, vectorize: bool) -> None:
    x, y = torch.randn(3, 8, 3).double(), torch.randn(3, 8, 1).double()
    tasks = il.Task(il.Batch(x[:, :4], y[:, :4]), il.Batch(x[:, 4:], y[:, 4:]))
    learner = il.MetaLearner(
        network(), LEARNED[name](), loss=F.mse_loss, steps=3, vectorize=vectorize, compile=False
    ).double()
    grads, _ = learner.meta_gradient(tasks)
    torch.testing.assert_close(grads, differences(learner, tasks), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", LEARNED)
def test_meta_gradients_are_finite_where_tasks_are_solved(name: str) -> None:
    """The first task has a gradient of zero at once; the others have a unit that is never active."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1))
    nn.init.zeros_(model[2].weight)
    nn.init.zeros_(model[2].bias)
    with torch.no_grad():
        model[0].bias[0] -= 100
    x, y = torch.randn(2, 6, 3), torch.stack([torch.zeros(6, 1), torch.randn(6, 1)])
    learner = il.MetaLearner(model, LEARNED[name](), loss=F.mse_loss, steps=3)
    grads, _ = learner.meta_gradient(il.Task(il.Batch(x, y), il.Batch(x, y)))
    assert all(bool(grad.isfinite().all()) for grad in grads.values())


def test_the_root_has_a_finite_slope_everywhere() -> None:
    square = torch.tensor([0.0, 4.0, -1e-20, 1e-300], dtype=torch.float64, requires_grad=True)
    found = root(square)
    torch.testing.assert_close(found, torch.tensor([0.0, 2.0, 0.0, 1e-150], dtype=torch.float64))
    (slope,) = torch.autograd.grad(found.sum(), square, create_graph=True)
    assert slope.tolist()[:3] == [0.0, 0.25, 0.0]
    assert all(torch.isfinite(torch.autograd.grad(slope.sum(), square)[0][:3]))


def test_a_norm_below_the_limit_is_left_alone() -> None:
    grads = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([4.0])}
    torch.testing.assert_close(il.ClipNorm(10.0)(grads, grads, (), 0)[0], grads)
    halved = il.ClipNorm(2.5)(grads, grads, (), 0)[0]
    torch.testing.assert_close(halved, {"a": torch.tensor([1.5, 0.0]), "b": torch.tensor([2.0])})


@pytest.mark.parametrize("limit", [0.0, -1.0])
def test_a_limit_that_is_none_is_refused(limit: float) -> None:
    with pytest.raises(ValueError, match=f"ClipNorm needs a limit above 0, got {limit}"):
        il.ClipNorm(limit)


def test_groups_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one pattern of names with a rule"):
        il.PerGroup({})
    with pytest.raises(ValueError, match="ClipNorm only transforms gradients and takes no step"):
        il.PerGroup({"*": il.ClipNorm()})
    with pytest.raises(ValueError, match=r"no rule for '0\.weight': its patterns are '2\.\*'; add a last"):
        il.MetaLearner(network(), il.PerGroup({"2.*": il.SGD()}))
    with pytest.raises(ValueError, match=r"a rule for 'haed\.\*', but no adapted parameter is left for it"):
        il.MetaLearner(network(), il.PerGroup({"haed.*": il.SGD(), "*": il.SGD()}))


def test_learned_rates_of_groups_have_names() -> None:
    rule = il.PerGroup({"2.*": il.Adam(learned=True), "*": il.PerStepSGD()})
    il.MetaLearner(network(), rule, steps=2)
    assert sorted(rule.rates()) == ["0.bias", "0.weight", "2.*"]


def test_a_group_may_ask_for_the_inner_loss() -> None:
    """A line search on the head alone, while the body takes plain steps."""

    class Search(il.UpdateRule):
        def forward(self, grads: Any, params: Any, state: Any, step: int, *, inner: Any) -> Any:
            tried = [{n: -rate * g for n, g in grads.items()} for rate in (0.01, 0.1)]
            losses = torch.stack([inner.loss({n: params[n] + u[n] for n in u}) for u in tried])
            first = losses[0] < losses[1]
            return {n: torch.where(first, tried[0][n], tried[1][n]) for n in grads}, state

    x, y, model = torch.randn(6, 3).double(), torch.randn(6, 1).double(), network()
    rule = il.PerGroup({"2.*": Search(), "*": il.SGD(0.01)})
    adapted = il.MetaLearner(model, rule, loss=F.mse_loss, steps=1).adapt(il.Batch(x, y)).parameters
    grads = dict(zip(adapted, torch.autograd.grad(F.mse_loss(model(x), y), list(model.parameters())), strict=True))
    own = dict(model.named_parameters())

    def moved(rate: float) -> il.task.Params:
        return {n: p - (rate if n.startswith("2") else 0.01) * grads[n] for n, p in own.items()}

    def loss(rate: float) -> float:
        kept = {n: p if n.startswith("2") else own[n] for n, p in moved(rate).items()}
        return F.mse_loss(torch.func.functional_call(model, kept, x), y).item()

    torch.testing.assert_close(adapted, moved(min((0.01, 0.1), key=loss)))


class Counting(il.SGD):
    """Keeps how far its tasks went, and has another buffer, which it leaves alone."""

    def __init__(self) -> None:
        super().__init__(0.1)
        self.register_buffer("way", torch.zeros((), dtype=torch.float64))
        self.register_buffer("fixed", torch.ones(2))

    def init(self, params: Any) -> Any:
        return self.way

    def forward(self, grads: Any, params: Any, state: Any, step: int) -> Any:
        updates, _ = super().forward(grads, params, state, step)
        return updates, state + torch.stack([update.abs().sum() for update in updates.values()]).sum()

    def kept(self, state: Any) -> Any:
        return {"way": state.detach()}

    def keep(self, mean: Any) -> None:
        self.way.copy_(mean["way"])


@pytest.mark.parametrize("groups", [lambda rule: il.PerGroup({"*": rule}), lambda rule: il.Chain(rule)])
def test_rules_within_others_keep_what_is_theirs(groups: Callable[[il.UpdateRule], il.UpdateRule]) -> None:
    x, y = torch.randn(3, 4, 3).double(), torch.randn(3, 4, 1).double()
    tasks, found = il.Task(il.Batch(x, y), il.Batch(x, y)), []
    for wrap in (lambda rule: rule, groups):
        torch.manual_seed(0)
        rule = Counting()
        learner = il.MetaLearner(network(), wrap(rule), loss=F.mse_loss, steps=2)
        learner.meta_gradient(tasks)
        assert rule.way > 0
        found.append((rule.way, [tuple(buffer.shape) for buffer in learner.carried.values()]))
    assert found[0] == found[1]


def test_a_rule_in_a_group_that_keeps_nothing_carries_nothing() -> None:
    class Fixed(il.SGD):
        def __init__(self) -> None:
            super().__init__(0.1)
            self.register_buffer("fixed", torch.ones(2))

    assert il.MetaLearner(network(), il.PerGroup({"*": Fixed()}), loss=F.mse_loss).carried == {}


def test_recipes_can_name_them() -> None:
    given = {
        "name": "per-group",
        "groups": {"head.*": {"name": "adamw", "lr": 0.1}, "*": [{"name": "clip-norm"}, {"name": "sgd"}]},
    }
    rule = schema.convert(given, il.UpdateRule, "learner.rule")
    assert rule.patterns == ("head.*", "*")
    assert [type(one) for one in rule.rules] == [il.AdamW, il.Chain]
    with pytest.raises(ValueError, match=r"learner\.rule\.groups\.\*\.lr = 'a' is a string; expected a number"):
        schema.convert({**given, "groups": {"*": {"name": "sgd", "lr": "a"}}}, il.UpdateRule, "learner.rule")
