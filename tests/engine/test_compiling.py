"""Compiled steps: the same numbers, and compiled only where that pays."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import innerloop as il
from innerloop.engine import compiling, recording
from innerloop.functional import twins
from tests.locks import Noting

pytestmark = pytest.mark.usefixtures("own_plans")

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="TorchInductor needs a C++ compiler"
)


def learner(compile: compiling.Compile = "auto", **options: object) -> il.MetaLearner:
    torch.manual_seed(0)
    return il.maml(il.models.mlp(2, 8, 1), 0.1, loss=F.mse_loss, compile=compile, **options)  # type: ignore[arg-type]


@needs_compiler
def test_compiled_equals_eager_at_other_weights_and_tasks(regression: Callable[..., il.Task]) -> None:
    eager, compiled = learner(False), learner(True, steps=1)
    compiled.meta_gradient(regression())
    assert "compiled in" in compiled.choices[0]
    for _ in range(3):
        tasks = regression()
        grads, outcome = compiled.meta_gradient(tasks)
        expected, reference = eager.meta_gradient(tasks)
        torch.testing.assert_close(grads, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(outcome, reference, rtol=1e-5, atol=1e-6)
        assert isinstance(outcome, il.Outcome)
        assert not outcome.objective.requires_grad
        for maml in (eager, compiled):
            with torch.no_grad():
                for p, g in zip(maml.model.parameters(), expected.values(), strict=True):
                    p -= 0.1 * g


def test_short_runs_stay_eager(regression: Callable[..., il.Task], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("compiled")

    monkeypatch.setattr(recording.Recorded, "compile", refuse)
    monkeypatch.setattr(compiling, "SECONDS_PER_OPERATION", 10.0)
    monkeypatch.setattr(compiling, "OTHERS", 0.0)
    monkeypatch.setattr(compiling, "_eagerly", lambda step: 1e-3)  # seconds, whatever else the machine does
    maml = learner()
    maml.compiler.steps_to_come = 300_000
    for _ in range(11):
        maml.meta_gradient(regression())
    assert ["less than 3 times as long" in reason for reason in maml.compiler.reasons.values()] == [True]


def test_a_few_steps_are_not_even_tried(regression: Callable[..., il.Task], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "Trial", None)
    maml = learner()
    maml.compiler.steps_to_come = 1199
    maml.meta_gradient(regression())
    assert list(maml.compiler.reasons.values()) == ["eager, since 1199 steps to come do not make up for compiling"]


@pytest.mark.parametrize("operations", [1, 100, 10_000])
@pytest.mark.parametrize("eager", [10.0**power for power in range(-6, 3)])
def test_fewer_than_the_fewest_steps_never_pay(operations: int, eager: float) -> None:
    count, compiler = compiling._Count(), compiling.Compiler()
    count.operations, compiler.steps_to_come = operations, round(compiling.fewest_steps()) - 1
    with pytest.raises(recording.UnsuitableError):
        compiler._require_worth(count, eager)


def test_steps_of_arithmetic_stay_eager(regression: Callable[..., il.Task], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "START", 1e-9)
    maml = learner()
    maml.compiler.steps_to_come = 10**9
    for _ in range(11):
        maml.meta_gradient(regression())
    (reason,) = maml.compiler.reasons.values()
    assert reason.startswith("eager, since starting its")


def test_huge_steps_stay_eager(regression: Callable[..., il.Task], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "MOST_OPERATIONS", 10)
    maml = learner()
    maml.compiler.steps_to_come = 10**9
    for _ in range(11):
        maml.meta_gradient(regression())
    (reason,) = maml.compiler.reasons.values()
    assert "more than 10" in reason


def test_constant_memory_is_not_compiled(regression: Callable[..., il.Task]) -> None:
    with pytest.raises(ValueError, match="compile=True needs"):
        il.maml(nn.Linear(2, 1), memory="constant", compile=True)
    maml = il.maml(il.models.mlp(2, 8, 1), 0.1, loss=F.mse_loss, memory="constant")
    maml.compiler.steps_to_come = 10**9
    for _ in range(12):
        maml.meta_gradient(regression())
    assert not maml.compiler.reasons


def test_what_draws_random_numbers_stays_eager(regression: Callable[..., il.Task]) -> None:
    model = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    maml = il.maml(model, 0.1, loss=F.mse_loss)
    maml.compiler.steps_to_come = 10**9
    for _ in range(11):
        maml.meta_gradient(regression())
    assert not maml.choices


def test_a_step_that_cannot_be_recorded(regression: Callable[..., il.Task]) -> None:
    def loss(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.mse_loss(output, y) * (1.0 if float(output.detach().sum()) > -1e9 else 2.0)

    maml = il.maml(il.models.mlp(2, 8, 1), 0.1, loss=loss, vectorize=False)
    maml.meta_gradient(regression())  # looped steps are never compiled
    assert not maml.choices
    with pytest.raises(recording.UnsuitableError, match="cannot be recorded"):
        recording.Recorded(lambda x: x * float(x.sum()), [torch.ones(3)])
    with pytest.raises(recording.UnsuitableError, match="draws random numbers"):
        recording.Recorded(lambda x: x + torch.randn(3), [torch.ones(3)])


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("alike", [True, False])
def test_what_was_decided_once_is_not_measured_again(
    alike: bool, regression: Callable[..., il.Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a learner that is alike, or by one that takes over the plans of its run, with other steps to come."""
    monkeypatch.setattr(compiling, "SECONDS_PER_OPERATION", 0.0)
    monkeypatch.setattr(compiling, "OTHERS", 0.0)
    monkeypatch.setattr(compiling, "_seconds", lambda call: 0.0)
    tasks, maml = [regression(), regression()], learner()
    maml.compiler.steps_to_come = 10**9
    first = [maml.meta_gradient(task)[0] for task in tasks]
    assert "compiled in" in maml.choices[-1]
    monkeypatch.setattr(compiling, "_eagerly", None)
    other = learner()
    other.compiler.steps_to_come = 10**9 if alike else 7
    if not alike:
        other.engine.plans.take(maml.engine.plans.made)
    for task, expected in zip(tasks, first, strict=True):
        found = other.meta_gradient(task)[0]
        assert all(torch.equal(found[name], grad) for name, grad in expected.items())
    assert "compiled in" in other.choices[-1]


def test_what_was_decided_to_stay_eager_stays_so(
    regression: Callable[..., il.Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    maml = learner()
    maml.compiler.steps_to_come = 10
    maml.meta_gradient(regression())
    monkeypatch.setattr(compiling, "_eagerly", None)
    other = learner()
    other.compiler.steps_to_come = 10
    other.meta_gradient(regression())
    assert other.choices == maml.choices


def test_what_another_process_decided_meanwhile_counts(
    regression: Callable[..., il.Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling.Compiler, "_require_worth", lambda *_: None)
    monkeypatch.setattr(compiling, "_seconds", lambda call: 0.0)
    monkeypatch.setattr(recording.Recorded, "compile", lambda self: lambda tensors: self.graph)
    monkeypatch.setattr(recording.Trial, "require_agreement", lambda *_: None)
    monkeypatch.setattr(
        "innerloop.engine.plans.Plans.put", lambda *_, **__: {"compiled": False, "enough": 0, "why": "eager, as others"}
    )
    maml, tasks = learner(vectorize=True), regression()
    maml.compiler.steps_to_come = 10**9
    torch.testing.assert_close(maml.meta_gradient(tasks), learner(False, vectorize=True).meta_gradient(tasks))
    assert list(maml.compiler.reasons.values()) == ["eager, as others"]


def test_what_is_another_one_every_iteration_is_not_measured(regression: Callable[..., il.Task]) -> None:
    class Annealed(il.Unrolled):
        def constants(self, iteration: int) -> Any:
            return iteration

    maml = il.maml(il.models.mlp(2, 8, 1), 0.1, loss=F.mse_loss)
    maml.objective = Annealed()
    maml.compiler.steps_to_come = 10**9
    for iteration in range(3):
        maml.meta_gradient(regression(), iteration)
    assert not maml.compiler.reasons


def test_compile_has_three_settings() -> None:
    for other in ("always", 1):
        with pytest.raises(ValueError, match='compile must be "auto", True or False'):
            learner(other)  # type: ignore[arg-type]


def test_what_cannot_be_compiled_is_refused_if_it_has_to_be(regression: Callable[..., il.Task]) -> None:
    with pytest.raises(ValueError, match="tasks run one by one"):
        learner(True, vectorize=False).meta_gradient(regression())
    model = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    with pytest.raises(ValueError, match="it draws random numbers"):
        il.maml(model, 0.1, loss=F.mse_loss, compile=True).meta_gradient(regression())


@pytest.mark.filterwarnings("ignore:adapt= would not choose 'bias'")
@pytest.mark.slow
@needs_compiler
def test_a_change_of_mode_steps_or_learned_parameters_compiles_anew(regression: Callable[..., il.Task]) -> None:
    class Doubled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * (1 if self.training else 2)

    tasks, model = regression(), Doubled(2, 1)
    compiled, eager = (il.maml(model, 0.1, loss=F.mse_loss, compile=c) for c in (True, False))
    changes = (
        lambda maml: maml.train(),
        lambda maml: maml.eval(),
        lambda maml: setattr(maml, "steps", 2),
        lambda maml: maml.model.bias.requires_grad_(False),
    )
    for number, change in enumerate(changes):
        for maml in (compiled, eager):
            change(maml)
        (grads, outcome), (expected, reference) = (maml.meta_gradient(tasks) for maml in (compiled, eager))
        torch.testing.assert_close(grads, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(outcome, reference, rtol=1e-5, atol=1e-6)
        assert len(compiled.compiler.reasons) == number + 1
    compiled.meta_gradient(regression(5))
    assert len(compiled.compiler.reasons) == len(changes) + 1


@pytest.mark.slow
@needs_compiler
def test_a_compiled_run_that_goes_on_repeats_to_the_bit(regression: Callable[..., il.Task]) -> None:
    tasks = [regression() for _ in range(3)]
    undisturbed, first, second = (learner(True) for _ in range(3))
    expected = [undisturbed.meta_gradient(task)[0] for task in tasks]
    first.meta_gradient(tasks[0])
    second.engine.plans.take(first.engine.plans.made)
    for task, grads in zip(tasks[1:], expected[1:], strict=True):
        found = second.meta_gradient(task)[0]
        assert all(torch.equal(found[name], grad) for name, grad in grads.items())


def test_what_cannot_be_recorded_still_runs_at_once(regression: Callable[..., il.Task]) -> None:
    def loss(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None:
            raise RuntimeError("not while recording")
        return F.mse_loss(output, y)

    maml = il.maml(il.models.mlp(2, 8, 1), 0.1, loss=loss, compile=True)
    with pytest.raises(ValueError, match="cannot be recorded: not while recording"):
        maml.meta_gradient(regression())
    assert maml.engine.vectorized


def test_an_error_of_compiled_code_is_told_in_plain_words() -> None:
    def broken(tensors: object) -> None:
        raise RuntimeError("kernel, /somewhere/generated.cpp:191")

    def plain() -> None:
        raise IndexError("Target 7 is out of bounds.")

    compiled = compiling.Compiled(broken, lambda: None, 1)
    with pytest.raises(IndexError, match="Target 7 is out of bounds"):
        compiled([], plain)
    with pytest.raises(RuntimeError, match=r"generated\.cpp:191"):
        compiled([], lambda: None)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("bad", [7, -1])
@pytest.mark.parametrize(
    "loss",
    [
        F.cross_entropy,
        nn.CrossEntropyLoss(label_smoothing=0.1),
        lambda output, y: -(F.one_hot(y, 5) * output.log_softmax(-1)).sum(-1).mean(),
        lambda output, y: torch.zeros(5, 5).index_add(0, y, output).square().mean(),
        lambda output, y: -output.log_softmax(-1).gather(1, y[:, None]).mean(),
    ],
)
def test_compiled_code_refuses_targets_out_of_range(loss: Callable[..., torch.Tensor], bad: int) -> None:
    compiled, x, y = il.maml(nn.Linear(3, 5), 0.1, loss=loss, compile=True), torch.randn(4, 6, 3), torch.arange(6) % 5
    tasks = il.Task(*(il.Batch(x, y.repeat(4, 1)) for _ in range(2)))
    compiled.meta_gradient(tasks)
    tasks.query.y[2, 3] = bad
    with pytest.raises((IndexError, RuntimeError), match=r"out of|Class values"):
        compiled.meta_gradient(tasks)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("bad", [7, -1])
def test_compiled_code_refuses_tokens_out_of_range(bad: int) -> None:
    net = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 1))
    compiled, x, y = il.maml(net, 0.1, loss=F.mse_loss, compile=True), torch.randint(5, (4, 6, 2)), torch.randn(4, 6, 1)
    tasks = il.Task(*(il.Batch(x.clone(), y) for _ in range(2)))
    compiled.meta_gradient(tasks)
    tasks.query.x[2, 3, 1] = bad
    with pytest.raises(IndexError, match="index out of range"):
        compiled.meta_gradient(tasks)


@needs_compiler
def test_compiled_steps_wait_for_who_works_on_the_modules(
    regression: Callable[..., il.Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else they would read a task's parameters, which stand in the model for a while."""
    tasks, inside, go, found, lock = regression(), threading.Event(), threading.Event(), [], Noting(2)

    def waits(output: Tensor, y: Tensor) -> Tensor:
        inside.set()
        go.wait(600)
        return F.mse_loss(output, y)

    model = nn.Linear(2, 1)
    compiled = il.maml(model, loss=F.mse_loss, compile=True)
    expected = [compiled.meta_gradient(tasks) for _ in range(2)][1][0]
    reasons = dict(compiled.compiler.reasons)
    monkeypatch.setitem(twins._locks, model, lock)
    first = threading.Thread(target=lambda: il.maml(model, loss=waits, vectorize=False)(tasks))
    second = threading.Thread(target=lambda: found.append(compiled.meta_gradient(tasks)[0]))
    first.start()
    assert inside.wait(600)
    second.start()
    assert lock.complete.wait(600)
    assert not found
    go.set()
    first.join()
    second.join()
    torch.testing.assert_close(found[0], expected)
    assert compiled.compiler.reasons == reasons


@needs_compiler
def test_hooks_are_refused_by_compiled_steps(regression: Callable[..., il.Task]) -> None:
    tasks, learner = regression(), il.maml(nn.Linear(2, 1), loss=F.mse_loss, compile=True)
    for _ in range(2):
        learner.meta_gradient(tasks)
    hook = learner.model.weight.register_hook(lambda grad: 2 * grad)
    with pytest.raises(ValueError, match="the parameter 'weight' has a hook"):
        learner.meta_gradient(tasks)
    hook.remove()
    learner.meta_gradient(tasks)


def test_that_compiling_is_given_up_is_said_of_the_users_line(regression: Callable[..., il.Task]) -> None:
    tasks, learner = regression(), il.maml(nn.Linear(2, 1), loss=F.mse_loss, vectorize=True)
    learner.compiler.steps_to_come = 5
    expected = learner.meta_gradient(tasks)
    (key,) = learner.compiler._compiled
    learner.compiler._changes[key] = ["a counter"] * (compiling.WASTED - 1)
    learner.compiler._compiled[key] = compiling.Compiled(lambda values: None, lambda: "a counter", enough=10)
    with pytest.warns(UserWarning, match="steps are no longer compiled") as caught:
        found = learner.meta_gradient(tasks)
    assert [warning.filename for warning in caught] == [__file__]
    torch.testing.assert_close(found, expected)
