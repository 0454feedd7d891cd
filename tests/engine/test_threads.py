"""Threads with tasks of their own: the same numbers, and none where they could be wrong."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import innerloop as il
from innerloop.engine import engine, search, threads
from innerloop.functional import stand_ins

pytestmark = pytest.mark.usefixtures("own_plans")


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class Closure(nn.Module):
    """Keeps a function that holds on to the module itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.function = lambda x: self.layer(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Uncopyable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.file = open(os.devnull)  # noqa: SIM115, PTH123 - what cannot be copied

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class InThreadsOnly(nn.Module):
    """Fails where it stands in for another."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.original: list[int] = [id(self)]

    def forward(self, x: Tensor) -> Tensor:
        if id(self) not in self.original and torch.get_num_threads() == 1:
            raise RuntimeError("not here")
        return self.layer(x)


class Counting(nn.Module):
    """A loss that counts its calls."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.calls, self.log = how, 0, [0]
        self.register_buffer("number", torch.zeros(()))

    def forward(self, output: Tensor, y: Tensor) -> Tensor:
        if self.how == "attribute":
            self.calls += 1
        elif self.how == "list":
            self.log.append(1)
        elif self.how == "class":
            Counting.total += 1
        else:
            self.number += 1
        return F.mse_loss(output, y)

    total = 0


def counting_function() -> Callable[[Tensor, Tensor], Tensor]:
    calls = 0

    def loss(output: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return F.mse_loss(output, y)

    return loss


class CountingObject:
    calls = 0

    def __call__(self, output: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        return F.mse_loss(output, y)


class CountingRule(il.UpdateRule):
    calls = 0

    def forward(self, grads: Any, params: Any, state: Any, step: int) -> Any:
        self.calls += 1
        return {name: -0.1 * grad for name, grad in grads.items()}, state


class CountingObjective(il.Unrolled):
    calls = 0

    def __call__(self, episode: Any) -> Any:
        self.calls += 1
        return super().__call__(episode)


class CountingModel(nn.Module):
    """Of which every thread would have a copy, whose count is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(2, 1), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layer(x)


CHANGING: dict[str, Callable[[], dict[str, Any]]] = {
    "attribute": lambda: {"loss": Counting("attribute")},
    "buffer": lambda: {"loss": Counting("buffer")},
    "list": lambda: {"loss": Counting("list")},
    "class": lambda: {"loss": Counting("class")},
    "function": lambda: {"loss": counting_function()},
    "object": lambda: {"loss": CountingObject()},
    "method": lambda: {"loss": CountingObject().__call__},
    "inner loss": lambda: {"inner_loss": Counting("attribute")},
    "rule": lambda: {"rule": il.Chain(il.Clip(1.0), CountingRule())},
    "objective": lambda: {"objective": CountingObjective()},
    "model": lambda: {"model": CountingModel()},
}


@pytest.mark.parametrize("part", CHANGING)
def test_what_changes_when_it_is_called_stays_in_one_thread(part: str, regression: Callable[..., il.Task]) -> None:
    parts = {"model": nn.Linear(2, 1), "rule": il.SGD(0.1), "loss": F.mse_loss, **CHANGING[part]()}
    learner = il.MetaLearner(**parts, vectorize=(2, 2), compile=False)
    tasks = regression(6)
    expected = il.maml(parts["model"], 0.1, loss=F.mse_loss, vectorize=False, compile=False).meta_gradient(tasks)
    if part != "rule":
        torch.testing.assert_close(learner.meta_gradient(tasks), expected)
    else:
        learner.meta_gradient(tasks)
    assert not learner.engine.separable
    who = part if part in ("inner loss", "objective", "model") else "update rule" if part == "rule" else "loss"
    assert learner.choices[0].startswith(f"no threads, since the {who} ")
    assert "when it is called" in learner.choices[0]


@pytest.mark.parametrize("part", ["attribute", "buffer", "list", "class", "inner loss", "rule", "model"])
def test_what_changes_when_it_is_called_is_no_matter_of_speed(part: str, regression: Callable[..., il.Task]) -> None:
    """How often it is called depends on how many tasks run at once."""
    parts = {"model": nn.Linear(2, 1), "rule": il.SGD(0.1), "loss": F.mse_loss, **CHANGING[part]()}
    learner, tasks = il.MetaLearner(**parts, compile=False), regression(12)
    for _ in range(20):
        learner.meta_gradient(tasks)
    assert learner.engine.changing
    assert not learner.engine.plans.made


def test_what_counts_its_calls_is_not_measured(
    regression: Callable[..., il.Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "QUICK", 0.0)
    tasks, used = regression(12), list[Any]()
    monkeypatch.setattr(engine, "side_by_side", lambda *arguments: used.append(arguments))
    objective, other = CountingObjective(), CountingObjective()
    for counting, vectorize in ((objective, "auto"), (other, True)):
        learner = il.MetaLearner(
            nn.Linear(2, 1), il.SGD(0.1), objective=counting, loss=F.mse_loss, compile=False, vectorize=vectorize
        )
        for _ in range(3):
            learner.meta_gradient(tasks)
    assert not used
    assert vars(objective) == vars(other)  # as often as if nothing could be measured
    assert vars(objective)


def test_results_come_in_order_from_threads_with_their_share() -> None:
    def work(item: int) -> tuple[int, int, bool, bool]:
        return item, torch.get_num_threads(), torch.is_grad_enabled(), stand_ins.mine(model) is model

    model = nn.Linear(2, 1)
    with torch.no_grad():
        found = list(threads.side_by_side(work, range(20), 2, model))
    assert found == [(item, 1, False, False) for item in range(20)]
    assert torch.get_num_threads() == 2
    assert stand_ins.mine(model) is model


def test_errors_come_out_and_the_rest_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, cancelled, wait = [], threading.Event(), threads.wait

    def work(item: int) -> None:
        begun.append(item)
        if item == 1:
            raise KeyError(item)
        if item > 1:  # which each of the two threads may begin before the error is seen
            assert cancelled.wait(600)

    def wait_for_the_rest(futures: Any) -> None:
        cancelled.set()
        wait(futures)

    monkeypatch.setattr(threads, "wait", wait_for_the_rest)
    with pytest.raises(KeyError):
        list(threads.side_by_side(work, range(1000), 2, nn.Linear(2, 1)))
    assert set(begun) <= {0, 1, 2, 3}


def test_modes_of_one_thread_forbid_others() -> None:
    assert threads.available() == 2
    with TorchFunctionMode():
        assert threads.available() == 1
    with torch.autocast("cpu"):
        assert threads.available() == 1
    with torch.inference_mode():
        assert threads.available() == 1
    found = []
    torch.vmap(lambda x: (x, found.append(threads.available()))[0])(torch.zeros(3))
    assert found == [1]


@pytest.mark.parametrize("module", [Closure, Uncopyable])
def test_modules_that_are_more_than_their_copies_stay_in_one_thread(
    module: Callable[[], nn.Module], regression: Callable[..., il.Task]
) -> None:
    tasks, model = regression(6), module()
    learner = il.maml(model, 0.1, loss=F.mse_loss, vectorize=(2, 2))
    expected = il.maml(model, 0.1, loss=F.mse_loss, vectorize=False)
    torch.testing.assert_close(learner.meta_gradient(tasks), expected.meta_gradient(tasks))
    assert not learner.engine.separable


def test_ordinary_modules_are_separable(regression: Callable[..., il.Task]) -> None:
    learner = il.maml(il.models.mlp(2, 8, 1), 0.1, loss=F.mse_loss, vectorize=(2, 2))
    learner.meta_gradient(regression(6))
    assert learner.engine.separable


def test_what_fails_in_threads_goes_on_without(regression: Callable[..., il.Task]) -> None:
    tasks, model = regression(6), InThreadsOnly()
    learner = il.maml(model, 0.1, loss=F.mse_loss, vectorize=(2, 2))
    expected = il.maml(model, 0.1, loss=F.mse_loss, vectorize=False)
    torch.testing.assert_close(learner.meta_gradient(tasks), expected.meta_gradient(tasks))
    assert "no threads" in learner.choices[0]
    assert "not here" in learner.choices[0]


def test_a_mistake_is_told_in_its_own_words(regression: Callable[..., il.Task]) -> None:
    tasks = regression(6)
    wrong = il.Task(tasks.support, il.Batch(tasks.query.x, tasks.query.y[:, :, :0]))
    with pytest.raises(ValueError, match=r"targets of shape \[4, 0\]"):
        il.maml(il.models.mlp(2, 8, 1), 0.1, loss=F.mse_loss, vectorize=(2, 2)).meta_gradient(wrong)


def test_forward_and_predict_run_side_by_side_too(regression: Callable[..., il.Task]) -> None:
    tasks, model = regression(7), nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 1))
    found = []
    for vectorize in (False, (2, 2)):
        learner = il.maml(model, 0.1, loss=F.mse_loss, steps=2, memory="constant", vectorize=vectorize)
        outcome = learner(tasks)
        outcome.objective.mean().backward()
        found.append((outcome, learner.predict(tasks), [p.grad for p in learner.parameters()]))
        learner.zero_grad()
        assert model.training
    torch.testing.assert_close(found[1], found[0])
