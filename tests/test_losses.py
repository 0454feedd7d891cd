"""Learned losses: what they look at, that meta-gradients find them, and what is said where none can."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import innerloop as il
from innerloop.losses import OutputLoss, TemporalLoss


class Output(NamedTuple):
    actions: torch.Tensor
    hidden: torch.Tensor


class Watcher(nn.Module):
    """Sequences ``[S, H, 2]`` -> actions and hidden units."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(2, 3), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> Output:
        hidden = torch.tanh(self.body(x))
        return Output(self.head(hidden), hidden)


def cloning(output: Output, y: torch.Tensor) -> torch.Tensor:
    return F.mse_loss(output.actions, y)


@pytest.fixture
def watched() -> il.Task:
    """Two tasks: a sequence of 6 steps without targets to adapt on, one of 4 with targets."""
    return il.Task(
        il.Batch(torch.randn(2, 1, 6, 2), torch.zeros(2, 1, 0)),
        il.Batch(torch.randn(2, 1, 4, 2), torch.randn(2, 1, 4, 2)),
    )


@pytest.mark.parametrize("heads", [{"hidden": 3}, {"hidden": 3, "actions": 2}])
def test_a_temporal_loss_looks_at_what_it_is_told_over_time(heads: dict[str, int]) -> None:
    loss, output = TemporalLoss(heads, channels=4, kernel=3), Watcher()(torch.randn(2, 6, 2))
    over_time = loss.over_time(output)
    assert {name: value.shape for name, value in over_time.items()} == dict.fromkeys(heads, (2, 6))
    assert loss(output).item() == pytest.approx(sum(value.mean().item() for value in over_time.values()))
    changed = output._replace(hidden=output.hidden.clone().index_fill_(1, torch.tensor([3]), 5.0))
    moved = (loss.over_time(changed)["hidden"] != over_time["hidden"]).any(0)
    assert moved.tolist() == [False, True, True, True, True, True]  # two convolutions of 3 steps see 2 steps away


def learned(model: nn.Module, loss: nn.Module, outer: Callable[..., torch.Tensor] = cloning) -> il.MetaLearner:
    return il.maml(model, 0.3, loss=outer, inner_loss=loss, steps=2, compile=False)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("heads", [{"hidden": 3}, {"hidden": 3, "actions": 2}])
def test_meta_gradients_of_a_temporal_loss_are_those_of_finite_differences(
    heads: dict[str, int], watched: il.Task
) -> None:
    tasks = torch.utils._pytree.tree_map(torch.Tensor.double, watched)
    assert_finite_differences(learned(Watcher(), TemporalLoss(heads, channels=4, kernel=3)), tasks)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("targets", [0, 1])
def test_meta_gradients_of_an_output_loss_are_those_of_finite_differences(
    targets: int, regression: Callable[..., il.Task]
) -> None:
    learner = learned(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)), OutputLoss(1, targets, 4), F.mse_loss)
    assert_finite_differences(learner, regression())


def assert_finite_differences(learner: il.MetaLearner, tasks: il.Task, width: float = 1e-6) -> None:
    """Along a random direction for every parameter of the loss."""
    grads, _ = learner.meta_gradient(tasks)
    for name, parameter in learner.inner_loss.named_parameters():  # type: ignore[union-attr]
        direction, values = torch.randn_like(parameter), []
        for side in (width, -width):
            with torch.no_grad():
                parameter += side * direction
                values.append(learner(tasks).objective.mean().item())
                parameter -= side * direction
        found = (grads[f"inner_loss.{name}"] * direction).sum().item()
        assert found != 0
        assert found == pytest.approx((values[0] - values[1]) / (2 * width), rel=1e-4, abs=1e-9), name


def test_a_learned_loss_learns(regression: Callable[..., il.Task]) -> None:
    """Without being told targets: to pull outputs to where they are in all tasks, which are sines about 1."""
    torch.manual_seed(1)
    learner = learned(il.models.mlp(2, 16, 1), OutputLoss(1), F.mse_loss)
    optimizer = torch.optim.Adam(learner.inner_loss.parameters(), 1e-2)  # type: ignore[union-attr]

    def tasks() -> il.Task:
        return torch.utils._pytree.tree_map(lambda leaf: leaf + (leaf.shape[-1] == 1), regression(8))

    before = learner(tasks()).loss.mean()
    for _ in range(150):
        optimizer.zero_grad()
        learner(tasks()).objective.mean().backward()
        optimizer.step()
    assert learner(tasks()).loss.mean() < 0.7 * before


class Shifted(nn.Module):
    """A loss with a term that no gradient by a model's parameters has."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(())), nn.Parameter(torch.zeros(()))

    def forward(self, output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.scale * F.mse_loss(output, y) + self.shift


def test_what_of_a_learned_loss_no_meta_gradient_reaches_is_named(regression: Callable[..., il.Task]) -> None:
    learner = learned(nn.Linear(2, 1), Shifted(), F.mse_loss)
    with pytest.warns(UserWarning, match="does not depend on its shift, so these get no meta-gradient"):
        grads, _ = learner.meta_gradient(regression())
    assert grads["inner_loss.shift"] == 0
    assert grads["inner_loss.scale"] != 0


def test_the_parts_of_losses_are_all_reached(watched: il.Task, regression: Callable[..., il.Task]) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        learned(Watcher(), TemporalLoss({"hidden": 3, "actions": 2})).meta_gradient(watched)
        learned(nn.Linear(2, 1), OutputLoss(1), F.mse_loss).meta_gradient(regression())
    assert [str(warning.message) for warning in said] == []


def test_first_order_cannot_learn_a_loss(regression: Callable[..., il.Task]) -> None:
    learner = il.fomaml(nn.Linear(2, 1), loss=F.mse_loss, inner_loss=Shifted())
    with pytest.raises(ValueError, match=r"a learned inner loss \(scale, shift\) needs order=2"):
        learner.meta_gradient(regression())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": {}}, "heads"),
        ({"heads": {"hidden": 3}, "kernel": 4}, "kernel must be odd"),
        ({"heads": {"hidden": 3}, "layers": 0}, "layers"),
    ],
)
def test_wrong_losses_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TemporalLoss(**arguments)
