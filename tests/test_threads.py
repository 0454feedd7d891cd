"""Threads with tasks of their own: the same numbers, and none where they could be wrong."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import innerloop as il
from innerloop import threads


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


def test_results_come_in_order_from_threads_with_their_share() -> None:
    def work(item: int) -> tuple[int, int, bool, bool]:
        return item, torch.get_num_threads(), torch.is_grad_enabled(), threads.mine(model) is model

    model = nn.Linear(2, 1)
    with torch.no_grad():
        found = list(threads.side_by_side(work, range(20), 2, model))
    assert found == [(item, 1, False, False) for item in range(20)]
    assert torch.get_num_threads() == 2
    assert threads.mine(model) is model


def test_errors_come_out_and_the_rest_is_not_begun() -> None:
    begun = []

    def work(item: int) -> None:
        begun.append(item)
        time.sleep(1e-3)
        if item == 1:
            raise KeyError(item)

    with pytest.raises(KeyError):
        list(threads.side_by_side(work, range(1000), 2, nn.Linear(2, 1)))
    assert len(begun) < 1000


def test_a_copy_shares_parameters_and_buffers() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    copy = threads.replica(model)
    assert copy[0] is not model[0]
    assert copy[0].weight is model[0].weight
    assert copy[1].running_mean is model[1].running_mean


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
