from __future__ import annotations

import inspect
import types
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import innerloop as il
from innerloop import optimizers, rules
from innerloop.testing import check_rule

STEPS = [rules.SGD, rules.PerStepSGD, rules.ElementwiseSGD, optimizers.Adam, optimizers.AdamW, optimizers.RMSprop]
TRANSFORMS = [
    *(optimizers.Momentum, optimizers.Clip, optimizers.ClipNorm, optimizers.WeightDecay, optimizers.ScaleByAdam),
    *(optimizers.ScaleByRMSprop, optimizers.Proximal, optimizers.KroneckerCurvature),
]


def test_every_rule_of_the_library_is_tested_here() -> None:
    members = [*inspect.getmembers(rules), *inspect.getmembers(optimizers)]
    classes = [c for _, c in members if isinstance(c, type) and not isinstance(c, types.GenericAlias)]
    concrete = {c for c in classes if issubclass(c, rules.UpdateRule) and not c.__name__.startswith("_")}
    contract = {rules.UpdateRule, rules.GradientTransform, rules.OneRate}
    contract |= {rules.Composed, rules.Chain, rules.PerGroup}
    assert concrete == {*contract, *STEPS, *TRANSFORMS}


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("make", [*STEPS, *TRANSFORMS])
def test_rules_keep_the_contract(make: Callable[[], il.UpdateRule]) -> None:
    check_rule(make())
    if issubclass(make, il.GradientTransform):  # type: ignore[arg-type]
        check_rule(il.Chain(make(), il.SGD(0.1)))


class Cell(il.UpdateRule):
    """A recurrent rule, which cannot be vectorized, and may walk uphill."""

    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        self.cell, self.lr = nn.LSTMCell(1, 4), lr

    def init(self, params: il.task.Params) -> Any:
        return {name: (torch.zeros(p.numel(), 4), torch.zeros(p.numel(), 4)) for name, p in params.items()}

    def forward(self, grads: Any, params: Any, state: Any, step: int) -> Any:
        state = {n: self.cell(g.reshape(-1, 1), state[n]) for n, g in grads.items()}
        return {n: 1e-3 * state[n][0].mean(1).view_as(g) - self.lr * g for n, g in grads.items()}, state


@pytest.mark.filterwarnings("ignore:the rule is not for models in bfloat16")
def test_the_checker_survives_a_rule_that_cannot_be_vectorized_and_checks_the_rest() -> None:
    named = r"The update rule Cell, in its LSTMCell \(cell\), cannot be vectorized over tasks, so tasks run one by one"
    with pytest.warns(UserWarning, match=named):
        check_rule(Cell())
    with pytest.warns(UserWarning, match=named), pytest.raises(AssertionError, match="raise a quadratic loss"):
        check_rule(Cell(lr=-0.1))


class Unit(il.UpdateRule):
    """Steps of one length, whatever the gradient's."""

    def __init__(self, eps: float, root: bool = False) -> None:
        super().__init__()
        self.eps, self.root = eps, root

    def forward(self, grads: Any, params: Any, state: Any, step: int) -> Any:
        if self.root:
            return {n: -0.1 * g.sign() * (g.abs() + self.eps).sqrt() for n, g in grads.items()}, state
        return {n: -0.1 * g / (g.square().sum() + self.eps).sqrt() for n, g in grads.items()}, state


@pytest.mark.parametrize("root", [True, False])
def test_the_checker_tells_of_derivatives_at_a_gradient_of_zero(root: bool) -> None:
    with pytest.warns(UserWarning, match=r"not finite where the gradient is zero.*an epsilon under the root") as caught:
        check_rule(Unit(0.0, root))
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_rule(Unit(1e-8, root))


def test_the_checker_refuses_derivatives_that_are_not_finite() -> None:
    class Kink(il.UpdateRule):
        def forward(self, grads: Any, params: Any, state: Any, step: int) -> Any:
            return {n: -0.1 * g + (0 * params[n]).square().sum().sqrt() for n, g in grads.items()}, state

    with pytest.raises(AssertionError, match=r"the derivative of the updates by layer\.weight is not finite"):
        check_rule(Kink())


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


class Wide(il.UpdateRule):
    """Rates of another type or shape than the parameters'."""

    def __init__(self, rate: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, grads: Any, params: Any, state: Any, step: int) -> Any:
        return {n: -self.rate(g) * g for n, g in grads.items()}, state


@pytest.mark.parametrize(
    ("rate", "message"),
    [
        (
            lambda g: torch.full_like(g, 0.1, dtype=torch.float64),
            r"update of weight by Wide is torch.float64, .*\.to\(",
        ),
        (lambda g: torch.full_like(g, 0.1, dtype=torch.complex64), r"update of weight by Wide is torch.complex64"),
        (lambda g: torch.full((2, *g.shape), 0.1), r"update of weight by Wide has the shape \(2, 1, 2\).*\(1, 2\)"),
    ],
)
@pytest.mark.parametrize("vectorize", [True, False])
def test_updates_that_would_change_a_parameters_type_or_shape_are_refused(
    rate: Any, message: str, vectorize: bool, regression: Callable[..., il.Task]
) -> None:
    rule = il.Chain(il.Clip(1.0), Wide(rate))
    learner = il.MetaLearner(nn.Linear(2, 1), rule, loss=nn.functional.mse_loss, vectorize=vectorize)
    with pytest.raises(ValueError, match=message):
        learner.meta_gradient(regression())


def test_rules_that_draw_random_numbers_are_known_to(regression: Callable[..., il.Task]) -> None:
    """So that draws do not depend on which plan was measured to be the quickest."""
    for result, random in ((lambda g: -0.1 * g, False), (lambda g: -0.1 * (g + torch.randn_like(g)), True)):
        rule = Returns(lambda grads, result=result: ({name: result(g) for name, g in grads.items()}, ()))
        learner = il.MetaLearner(nn.Linear(2, 1), rule, loss=nn.functional.mse_loss)
        learner.meta_gradient(regression())
        assert learner.engine.random is random


class Returns(il.UpdateRule):
    """Returns whatever a function makes of the gradients."""

    def __init__(self, result: Callable[[il.task.Params], Any]) -> None:
        super().__init__()
        self.result = result

    def forward(self, grads: Any, params: Any, state: Any, step: int) -> Any:
        return self.result(grads)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda grads: None, "forward of Returns returned a NoneType, not a pair"),
        (dict, "forward of Returns returned a dict, not a pair"),
        (lambda grads: ({"weight": -grads["weight"]}, ()), "returns no update of 'bias': .*zeros_like"),
        (
            lambda grads: ({**grads, "wieght": grads["weight"]}, ()),
            "update of 'wieght', .* return updates of 'weight', 'bias' only",
        ),
        (lambda grads: ({**grads, "bias": None}, ()), "update of bias by Returns is a NoneType, not a tensor"),
    ],
)
@pytest.mark.parametrize("vectorize", ["auto", True, False])
def test_what_a_rule_returns_is_checked(
    result: Any, message: str, vectorize: Any, regression: Callable[..., il.Task]
) -> None:
    learner = il.MetaLearner(nn.Linear(2, 1), Returns(result), loss=nn.functional.mse_loss, vectorize=vectorize)
    with pytest.raises(ValueError, match=message):
        learner.meta_gradient(regression())


def test_sparse_gradients_are_refused() -> None:
    rule, grad = il.SGD(0.1), torch.eye(3).to_sparse()
    with pytest.raises(ValueError, match=r"gradient of weight is sparse .* build its layer with sparse=False"):
        rule({"weight": grad}, {"weight": torch.zeros(3, 3)}, (), 0)


@pytest.mark.parametrize("vectorize", ["auto", False])
def test_embeddings_have_dense_gradients_here(vectorize: Any) -> None:
    batch = il.Batch(torch.randint(5, (2, 6, 3)), torch.randint(3, (2, 6)))
    found = []
    for sparse in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(5, 4, sparse=sparse), nn.Flatten(), nn.Linear(12, 3))
        learner = il.maml(model, 0.1, vectorize=vectorize, compile=False)
        found.append(learner.meta_gradient(il.Task(batch, batch)))
    torch.testing.assert_close(*found)


EVERY: dict[str, Callable[[], il.UpdateRule]] = {
    "SGD": lambda: il.SGD(0.1, learned=True),
    "per step": lambda: il.PerStepSGD(0.1),
    "elementwise": lambda: il.ElementwiseSGD(0.1),
    "Adam": lambda: il.Adam(0.1),
    "momentum": lambda: il.Chain(il.Momentum(), il.SGD(0.1)),
    "clip": lambda: il.Chain(il.Clip(0.3), il.SGD(0.1)),
    "proximal": lambda: il.Chain(il.Proximal(0.5), il.SGD(0.1)),
    "curvature": lambda: il.Chain(il.KroneckerCurvature(), il.SGD(0.1)),
    "AdamW": lambda: il.AdamW(0.1, learned=True),
    "RMSprop": lambda: il.RMSprop(0.1, momentum=0.5, centered=True),
    "clip norm": lambda: il.Chain(il.ClipNorm(0.3), il.SGD(0.1)),
    "Nesterov": lambda: il.Chain(il.Momentum(nesterov=True), il.SGD(0.1)),
    "groups": lambda: il.PerGroup({"[cl]*": il.Adam(0.1), "*": il.PerStepSGD(0.1)}),
}
OBJECTIVES: dict[str, il.Objective] = {
    "second order": il.Unrolled(),
    "first order": il.Unrolled(1),
    "Reptile": il.Reptile(),
    "implicit": il.Implicit(0.5, 10),
}


class Two(nn.Module):
    """Layers of two types."""

    def __init__(self, first: torch.dtype, last: torch.dtype) -> None:
        super().__init__()
        self.first, self.last, self.types = nn.Linear(4, 6).to(first), nn.Linear(6, 3).to(last), (first, last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.first(x.to(self.types[0]))).to(self.types[1]))


TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@pytest.mark.parametrize(
    "types", [*((t, t) for t in TYPES), TYPES[:2], TYPES[1::-1], TYPES[::2], TYPES[2::-2]], ids=str
)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("rule", EVERY)
def test_every_rule_leaves_parameters_in_their_types(rule: str, objective: str, types: Any) -> None:
    batch = il.Batch(torch.randn(3, 6, 4), torch.randint(3, (3, 6)))
    model = Two(*types)
    pull = [il.Proximal(0.5)] if objective == "implicit" and rule != "proximal" else []
    if objective == "implicit" and rule == "AdamW":
        with pytest.raises(ValueError, match="without another pull such as weight decay"):
            il.MetaLearner(model, il.AdamW(), objective=OBJECTIVES[objective]).meta_gradient(il.Task(batch, batch))
        return
    for vectorize in (True, False):
        inner = il.Chain(*pull, EVERY[rule]())
        learner = il.MetaLearner(
            model, inner, objective=OBJECTIVES[objective], steps=3, vectorize=vectorize, compile=False
        )
        grads, _ = learner.meta_gradient(il.Task(batch, batch))
        learned = {name: p for name, p in learner.named_parameters() if p.requires_grad}
        assert {n: g.dtype for n, g in grads.items()} == {n: p.dtype for n, p in learned.items()}
        assert all(g.isfinite().all() for g in grads.values())
        adapted = learner.adapt(il.task.select(batch, 0)).parameters
        assert {n: p.dtype for n, p in adapted.items()} == {n: p.dtype for n, p in model.named_parameters()}


class Fit(nn.Module):
    """A linear map of complex numbers, whose real and imaginary parts are weighted by real ones."""

    def __init__(self, inputs: int = 4, outputs: int = 2) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(inputs, outputs, dtype=torch.complex128))
        self.c = nn.Parameter(torch.randn(outputs).double())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.c) * (x @ self.w)


def distance(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (output - y).abs().square().mean()


def complex_task(inputs: int = 4, outputs: int = 2) -> il.Task:
    x = torch.randn(3, 8, inputs, dtype=torch.complex128)
    y = x @ torch.randn(3, inputs, outputs, dtype=torch.complex128) + torch.randn(3, 8, outputs) / 10
    return il.Task(il.Batch(x[:, :4], y[:, :4]), il.Batch(x[:, 4:], y[:, 4:]))


def differences(learner: il.MetaLearner, tasks: il.Task, of: Callable[[], torch.Tensor]) -> il.task.Params:
    """Central differences by real and imaginary parts, as gradients of complex parameters are."""
    found = {}
    for name, parameter in learner.named_parameters():
        if parameter.requires_grad:
            reals = torch.view_as_real(parameter.data) if parameter.is_complex() else parameter.data
            slope = torch.zeros_like(reals)
            for index in range(reals.numel()):
                values = []
                for shift in (1e-6, -1e-6):
                    reals.view(-1)[index] += shift
                    values.append(of().item())
                    reals.view(-1)[index] -= shift
                slope.view(-1)[index] = (values[0] - values[1]) / 2e-6
            found[name] = torch.view_as_complex(slope) if parameter.is_complex() else slope
    return found


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("rule", EVERY)
def test_meta_gradients_of_complex_parameters_are_those_of_differences(rule: str, vectorize: bool) -> None:
    tasks = complex_task()
    learner = il.MetaLearner(Fit(), EVERY[rule](), loss=distance, steps=3, vectorize=vectorize, compile=False)
    grads, _ = learner.meta_gradient(tasks)
    expected = differences(learner, tasks, lambda: learner(tasks).objective.mean())
    torch.testing.assert_close(grads, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("vectorize", [True, False])
def test_implicit_gradients_of_complex_parameters_are_those_of_differences(vectorize: bool) -> None:
    tasks, rule = complex_task(2, 1), il.Chain(il.Proximal(2.0), il.SGD(0.1))
    learner = il.MetaLearner(
        Fit(2, 1), rule, objective=il.Implicit(2.0, 20), loss=distance, steps=100, vectorize=vectorize, compile=False
    )
    grads, _ = learner.meta_gradient(tasks)
    with torch.no_grad():
        expected = differences(learner, tasks, lambda: learner(tasks, objective=il.Unrolled(1)).loss.mean())
    torch.testing.assert_close(grads, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("vectorize", [True, False])
def test_reptile_moves_complex_parameters_to_the_adapted_ones(vectorize: bool) -> None:
    tasks = complex_task()
    learner = il.MetaLearner(
        Fit(), il.SGD(0.1), objective=il.Reptile(), loss=distance, steps=3, vectorize=vectorize, compile=False
    )
    grads, outcome = learner.meta_gradient(tasks)
    adapted = learner.adapt_all(tasks.support).parameters
    for name, parameter in learner.model.named_parameters():
        torch.testing.assert_close(grads[f"model.{name}"], (parameter - adapted[name]).mean(0))
    away = [(p - adapted[n]).abs().square().flatten(1).sum(1) for n, p in learner.model.named_parameters()]
    torch.testing.assert_close(outcome.objective, torch.stack(away).sum(0) / 2)


@pytest.mark.parametrize(
    ("rule", "optimizer"),
    [
        (lambda: il.SGD(0.05), lambda p: torch.optim.SGD(p, 0.05)),
        (lambda: il.Chain(il.Momentum(0.9), il.SGD(0.05)), lambda p: torch.optim.SGD(p, 0.05, momentum=0.9)),
        (lambda: il.Adam(0.05), lambda p: torch.optim.Adam(p, 0.05)),
        (lambda: il.AdamW(0.05, weight_decay=0.1), lambda p: torch.optim.AdamW(p, 0.05, weight_decay=0.1)),
    ],
)
def test_the_same_path_for_complex_parameters_as_torchs_optimizer(rule: Any, optimizer: Any) -> None:
    """To all digits of float64, which rates have, too, though the default type is float32."""
    model, batch = Fit(), il.task.select(complex_task().query, 0)
    adapted = il.MetaLearner(model, rule(), loss=distance, steps=200).adapt(batch)
    optimizer = optimizer(model.parameters())
    for _ in range(200):
        optimizer.zero_grad()
        distance(model(batch.x), batch.y).backward()
        optimizer.step()
    torch.testing.assert_close(adapted.parameters, dict(model.named_parameters()), rtol=1e-10, atol=1e-12)


def test_complex_gradients_are_clipped_by_their_parts() -> None:
    grads = {"w": torch.tensor([3 - 0.2j, 0.1 + 5j])}
    clipped = il.Clip(1.0)(grads, grads, (), 0)[0]["w"]
    torch.testing.assert_close(clipped, torch.tensor([1 - 0.2j, 0.1 + 1j]))


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
def test_equal_to_sgd_at_initialization(name: str, episodes: Callable[..., il.Task]) -> None:
    tasks, model = episodes(), il.models.conv4(ways=3, width=4, image_size=16)
    for rule in (il.SGD(0.1), EQUAL_TO_SGD_AT_FIRST[name]()):
        learner = il.MetaLearner(model, rule, steps=3)
        predictions = learner.predict(tasks, steps=4)
        if isinstance(rule, il.SGD) and not rule.lr.requires_grad:
            expected = predictions
    torch.testing.assert_close(predictions, expected)


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
    with pytest.raises(ValueError, match="Momentum only transforms gradients and takes no step"):
        il.MetaLearner(nn.Linear(1, 1), il.Momentum())


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("rule", [il.SGD, il.PerStepSGD, il.ElementwiseSGD, il.Adam])
def test_rates_of_learners_that_become_double_have_all_their_digits(rule: Any, learned: bool) -> None:
    options = {} if rule is il.Adam else {"learned": learned}
    for first in (0.1, (0.1, 0.3)) if rule is il.PerStepSGD else (0.1,):
        after, before = (il.MetaLearner(nn.Linear(2, 1).to(dtype), rule(first, **options), loss=nn.functional.mse_loss)
                         for dtype in (torch.float32, torch.float64))  # fmt: skip
        after.double()
        torch.testing.assert_close(
            dict(after.rule.named_parameters()), dict(before.rule.named_parameters()), rtol=0, atol=0
        )
        with torch.no_grad():
            for rate in after.rule.parameters():
                rate.fill_(0.2)
        after.float().double()
        assert all((rate == torch.tensor(0.2)).all() for rate in after.rule.parameters())


@pytest.mark.parametrize("move", ["learner", "model", "learner twice", "model twice"])
@pytest.mark.parametrize("first", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("rule", [il.SGD, il.PerStepSGD, il.ElementwiseSGD, il.Adam, il.KroneckerCurvature])
def test_rates_follow_a_model_that_gets_more_digits(rule: Any, first: torch.dtype, move: str) -> None:
    """Whether it is moved by itself or with its learner, before the learner was used or afterwards."""

    def learner(dtype: torch.dtype) -> il.MetaLearner:
        torch.manual_seed(0)
        inner = il.Chain(rule(), il.PerStepSGD(0.1)) if rule is il.KroneckerCurvature else rule(0.1)
        return il.MetaLearner(nn.Linear(2, 1).to(dtype), inner, loss=nn.functional.mse_loss, compile=False)

    tasks = il.Task(*(il.Batch(torch.randn(3, 4, 2), torch.randn(3, 4, 1)) for _ in range(2)))

    def as_type(dtype: torch.dtype) -> il.Task:
        return il.Task(*(il.Batch(x.to(dtype), y.to(dtype)) for x, y in tasks))

    moved, made = learner(first), learner(torch.float64)
    if first == torch.float32:
        moved.meta_gradient(as_type(first))
    for dtype in (torch.float32, torch.float64) if move.endswith("twice") else (torch.float64,):
        (moved if move.startswith("learner") else moved.model).to(dtype)
    made.model.load_state_dict(moved.model.state_dict())
    found, expected = (one.meta_gradient(as_type(torch.float64))[0] for one in (moved, made))
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-15)
