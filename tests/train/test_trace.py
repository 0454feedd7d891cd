"""The record of what happens within tasks is that of adapting to them by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import innerloop as il
from innerloop.train.trace import epochs, trace


@pytest.mark.parametrize(("batch_size", "every"), [(None, 1), (None, 2), (2, 3)])
def test_a_trace_is_that_of_adapting_by_hand(
    episodes: Callable[..., il.Task], batch_size: int | None, every: int
) -> None:
    tasks = episodes(2)
    learner = il.maml(il.models.conv4(ways=3, width=4, image_size=16), lr=0.2, steps=5, batch_size=batch_size)
    before = {name: tensor.clone() for name, tensor in learner.state_dict().items()}
    told = trace(learner, tasks, learner(tasks).steps, every)
    assert told["after"] == sorted({0, *range(0, 5, every), 5})
    for index in range(2):
        task = il.task.select(tasks, index)
        for row, after in enumerate(told["after"]):
            adapted = learner.adapt(task.support, steps=after)
            for name, part in (("support", task.support), ("query", task.query)):
                output = adapted(part.x)
                assert told[f"{name}_loss"][index][row] == pytest.approx(
                    F.cross_entropy(output, part.y).item(), rel=1e-3
                )
                right = 100 * (output.argmax(-1) == part.y).float().mean().item()
                assert told[f"{name}_accuracy"][index][row] == pytest.approx(right)
        flat = [loss for epoch in told["steps"][index] for loss in epoch]
        assert flat == pytest.approx(learner.adapt(task.support).losses[:-1].tolist(), rel=1e-3)
    assert [len(epoch) for epoch in told["steps"][0]] == ([1] * 5 if batch_size is None else [3, 2])
    for name, tensor in learner.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_regression_has_losses_alone(regression: Callable[..., il.Task]) -> None:
    tasks, learner = regression(3), il.maml(il.models.mlp(2, 8, 1), steps=2, loss=F.mse_loss)
    told = trace(learner, tasks, learner(tasks).steps)
    assert set(told) == {"steps", "after", "support_loss", "query_loss"}
    torch.testing.assert_close(torch.tensor(told["query_loss"])[:, -1], learner(tasks).loss)


def test_positions_have_accuracies_as_well() -> None:
    """Of a sequence, say, whose logits are ``[N, classes, length]``, as torch's cross-entropy takes them."""
    batch = il.Batch(torch.randn(2, 5, 4), torch.randint(3, (2, 5, 7)))
    model = nn.Sequential(nn.Linear(4, 21), nn.Unflatten(-1, (3, 7)))
    learner = il.maml(model, steps=2)
    tasks = il.Task(batch, batch)
    told = trace(learner, tasks, learner(tasks).steps)
    right = 100 * (learner.predict(tasks).argmax(3) == batch.y[:, None]).float().mean((2, 3))
    torch.testing.assert_close(torch.tensor(told["query_accuracy"]), right)
    assert told["support_accuracy"] == told["query_accuracy"]


def test_accuracy_is_told_where_it_is_the_default_metric() -> None:
    """Not of a weighted loss, say, which is judged by itself."""
    batch = il.Batch(torch.randn(2, 5, 4), torch.randint(3, (2, 5)))
    tasks, losses = il.Task(batch, batch), ("support_loss", "query_loss")
    for loss in (nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0])), nn.CrossEntropyLoss(label_smoothing=0.1)):
        learner = il.maml(nn.Linear(4, 3), loss=loss)
        assert set(trace(learner, tasks, learner(tasks).steps)) == {"steps", "after", *losses}
    learner = il.maml(nn.Linear(4, 3), loss=nn.CrossEntropyLoss())
    assert "query_accuracy" in trace(learner, tasks, learner(tasks).steps)


class Noisy(nn.Linear):
    """Draws random numbers in every mode."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x + 0.1 * torch.randn_like(x))


def test_the_random_state_stays_as_it_was(regression: Callable[..., il.Task]) -> None:
    learner, tasks = il.maml(Noisy(2, 1), loss=F.mse_loss), regression(2)
    steps, before = learner(tasks).steps, torch.get_rng_state()
    trace(learner, tasks, steps)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_inner_steps_there_is_one_judgement(episodes: Callable[..., il.Task]) -> None:
    learner, tasks = il.prototypical(il.models.conv4(ways=3, width=4, image_size=16)), episodes(2)
    told = trace(learner, tasks, learner(tasks).steps)
    assert (told["steps"], told["after"]) == ([[], []], [0])
    assert [len(task) for task in told["query_accuracy"]] == [1, 1]


@pytest.mark.parametrize(
    ("steps", "examples", "batch_size", "expected"),
    [
        (4, 6, None, [1, 1, 1, 1]),
        (4, 6, 9, [1, 1, 1, 1]),
        (7, 60, 8, [7]),
        (16, 60, 8, [8, 7, 1]),
        (0, 6, 2, []),
    ],
)
def test_steps_are_told_by_passes(steps: int, examples: int, batch_size: int | None, expected: list[int]) -> None:
    values = torch.arange(2.0 * steps).reshape(2, steps)
    told = epochs(values, examples, batch_size)
    assert [[len(epoch) for epoch in task] for task in told] == [expected, expected]
    assert [loss for task in told for epoch in task for loss in epoch] == values.flatten().tolist()


@pytest.mark.parametrize("batch_size", [None, 3])
def test_tasks_of_different_sizes_are_traced_each_by_itself(batch_size: int | None) -> None:
    tasks = [il.Task(il.Batch(torch.randn(n, 2), torch.arange(n) % 3), il.Batch(torch.randn(3, 2), torch.arange(3)))
             for n in (3, 7, 4)]  # fmt: skip
    learner = il.maml(il.models.mlp(2, 8, 3), lr=0.2, steps=3, batch_size=batch_size)
    steps = learner(tasks).steps
    told = trace(learner, tasks, steps)
    for index, task in enumerate(tasks):
        alone = trace(learner, il.task.stack([task]), steps[index : index + 1])
        for name in ("support_loss", "query_loss", "support_accuracy", "query_accuracy"):
            assert told[name][index] == pytest.approx(alone[name][0], rel=1e-4)
        assert told["steps"][index] == alone["steps"][0]
    assert told["after"] == [0, 1, 2, 3]
