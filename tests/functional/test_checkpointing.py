"""What is computed again in the backward pass is computed with a task's parameters, not with the model's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import innerloop as il
from innerloop.functional.checkpointing import task_contexts

from ..torches import AT_ONCE_AND_ONE_BY_ONE, checkpoints_at_once


class Net(nn.Module):
    """Its middle is checkpointed, if there are options for that, with another checkpoint within."""

    def __init__(self, options: dict[str, Any] | None, drop: float = 0.0) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 6), nn.Linear(6, 1)
        self.outer, self.inner = nn.Sequential(nn.Linear(6, 6), nn.Dropout(drop)), nn.Linear(6, 6)
        self.register_buffer("calls", torch.zeros(()))
        self.options = options

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self._run(self._middle, torch.tanh(self.first(x))))  # type: ignore[no-any-return]

    def _middle(self, x: Tensor) -> Tensor:
        self.calls += 0.1
        return torch.tanh(self._run(self._within, torch.tanh(self.outer(x)))) * self.calls

    def _within(self, x: Tensor) -> Tensor:
        return torch.tanh(self.inner(x)).square()

    def _run(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return function(x) if self.options is None else checkpoint(function, x, **self.options)


RIGHT: dict[str, Any] = {"use_reentrant": False, "context_fn": task_contexts}


def learner(options: dict[str, Any] | None, drop: float = 0.0, **rest: Any) -> il.MetaLearner:
    torch.manual_seed(1)
    return il.maml(Net(options, drop), 0.3, loss=F.mse_loss, steps=2, **rest)


@pytest.fixture
def two_threads() -> Iterator[None]:
    number = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(number)


class NotAtOnce(torch.autograd.Function):
    """The identity, without a rule for `vmap`. Torch 2.6 passes what it checkpoints through such a function."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class NetOfOldTorch(Net):
    """Its checkpoints do not run under `vmap`, whichever torch is installed."""

    def _run(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return super()._run(function, x if self.options is None else NotAtOnce.apply(x))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("order", [1, 2])
def test_tasks_run_one_by_one_where_torch_cannot_checkpoint_at_once(
    order: int, regression: Callable[..., il.Task]
) -> None:
    tasks, options = regression(4), {"loss": F.mse_loss, "steps": 2, "order": order}
    torch.manual_seed(1)
    expected = il.maml(Net(None), 0.3, vectorize=False, **options).meta_gradient(tasks)
    torch.manual_seed(1)
    kept = il.maml(NetOfOldTorch(RIGHT), 0.3, **options)
    with pytest.warns(UserWarning, match="one by one"):
        found = kept.meta_gradient(tasks)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    kept = il.maml(NetOfOldTorch(RIGHT), 0.3, vectorize=True, **options)
    with pytest.raises(ValueError, match="vectorize=True does not allow running tasks one by one"):
        kept.meta_gradient(tasks)


@pytest.mark.usefixtures("double", "two_threads")
@pytest.mark.parametrize("memory", ["graph", "constant"])
@pytest.mark.parametrize(
    "vectorize", [*AT_ONCE_AND_ONE_BY_ONE, *(pytest.param(some, marks=checkpoints_at_once) for some in (2, (1, 2)))]
)
@pytest.mark.parametrize("order", [1, 2])
def test_gradients_are_those_without(
    order: int, vectorize: Any, memory: Any, regression: Callable[..., il.Task]
) -> None:
    tasks = regression(4)
    expected = learner(None, order=order, vectorize=False).meta_gradient(tasks)
    kept = learner(RIGHT, order=order, vectorize=vectorize, memory=memory, compile=False)
    torch.testing.assert_close(kept.meta_gradient(tasks), expected, rtol=0, atol=1e-14)
    kept(tasks).objective.mean().backward()  # long after the model had its own parameters back
    for name, gradient in expected[0].items():
        torch.testing.assert_close(kept.get_parameter(name).grad, gradient, rtol=0, atol=1e-14)
    assert not kept.model.calls


@pytest.mark.parametrize("vectorize", AT_ONCE_AND_ONE_BY_ONE)
def test_random_numbers_are_drawn_again(vectorize: bool, regression: Callable[..., il.Task]) -> None:
    tasks, grads = regression(3), []
    for options in (None, RIGHT):
        kept = learner(options, drop=0.5, vectorize=vectorize)
        torch.manual_seed(2)
        grads.append(kept.meta_gradient(tasks)[0])
    torch.testing.assert_close(grads[1], grads[0])


@checkpoints_at_once
def test_modes_are_those_of_the_first_run(regression: Callable[..., il.Task]) -> None:
    tasks, grads = regression(3), []
    for options in (None, RIGHT):
        kept = learner(options, drop=0.5, vectorize=True)
        torch.manual_seed(2)
        objective = kept(tasks).objective.mean()
        kept.eval()
        grads.append(torch.autograd.grad(objective, list(kept.model.parameters())))
    torch.testing.assert_close(grads[1], grads[0])


def test_out_of_place_is_refused(regression: Callable[..., il.Task]) -> None:
    kept = learner({"use_reentrant": False})
    with pytest.raises(ValueError, match=r"Sequential is recomputed .*context_fn=innerloop\.task_contexts"):
        kept.meta_gradient(regression())


@pytest.mark.parametrize("memory", ["graph", "constant"])
@pytest.mark.parametrize("vectorize", ["auto", False])
@pytest.mark.parametrize("within", ["first", "last"])
def test_the_reentrant_variant_is_refused(
    within: str, vectorize: Any, memory: Any, regression: Callable[..., il.Task]
) -> None:
    """Torch gives a first layer no gradient by it, without an error, and no layer one by `torch.autograd.grad`."""

    class Reentrant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(2, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            for name in ("first", "last"):
                part = getattr(self, name)
                x = checkpoint(part, x, use_reentrant=True) if name == within else part(x)
            return x

    kept = il.maml(Reentrant(), loss=F.mse_loss, memory=memory, vectorize=vectorize)
    for use in (kept.meta_gradient, kept.predict, lambda tasks: kept.adapt(il.task.select(tasks, 0).support)):
        with pytest.raises(ValueError, match=r"Reentrant checkpoints with use_reentrant=True"):
            use(regression())


def test_the_reentrant_variant_does_no_harm_where_nothing_is_learned(regression: Callable[..., il.Task]) -> None:
    class Frozen(nn.Module):
        def __init__(self, how: str) -> None:
            super().__init__()
            self.body, self.head, self.how = nn.Linear(2, 3), nn.Linear(3, 1), how
            self.body.requires_grad_(how == "under no_grad")

        def forward(self, x: Tensor) -> Tensor:
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.how != "under no_grad"):
                x = self.body(x) if self.how == "plain" else checkpoint(self.body, x, use_reentrant=True)
            output: Tensor = self.head(x)
            return output

    tasks, found = regression(), {}
    for how in ("plain", "under no_grad", "frozen"):
        torch.manual_seed(0)
        found[how] = il.anil(Frozen(how), loss=F.mse_loss, compile=False).meta_gradient(tasks)[0]
    for how in ("under no_grad", "frozen"):
        for name in ("model.head.weight", "model.head.bias"):
            torch.testing.assert_close(found[how][name], found["plain"][name])
    outer = nn.Linear(2, 2)
    learner = il.maml(nn.Linear(2, 1), loss=F.mse_loss)
    x = torch.ones(1, 2, requires_grad=True)
    checkpoint(lambda x: outer(x) + learner.predict(tasks).mean(), x, use_reentrant=True).sum().backward()


def test_without_a_learner_it_is_torchs_own() -> None:
    x, grads = torch.randn(5, 2), []
    for options in ({"use_reentrant": False}, RIGHT):
        torch.manual_seed(1)
        model = Net(options)
        model(x).sum().backward()
        grads.append(model.first.weight.grad)
    assert torch.equal(*grads)


def test_it_is_not_compiled(regression: Callable[..., il.Task]) -> None:
    with pytest.raises(ValueError, match="compile=True, but the step cannot be compiled"):
        learner(RIGHT, vectorize=True, compile=True).meta_gradient(regression())


def test_implicit_gradients_refuse_it(regression: Callable[..., il.Task]) -> None:
    with pytest.raises(ValueError, match=r"torch\.func\.grad, which iMAML uses, does not support checkpointing"):
        il.imaml(Net(RIGHT), 0.3, loss=F.mse_loss).meta_gradient(regression())
