"""Probabilities that mean what they say."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

import innerloop as il
from innerloop.train.calibration import plain, temperature, temperature_on


def drawn(number: int, sharpness: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that are so many times too large, and classes drawn by the right ones."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(number, 4, generator=generator)
    return sharpness * logits, torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 4.0])
def test_the_temperature_undoes_what_logits_are_too_large_by(sharpness: float) -> None:
    assert temperature(*drawn(5_000, sharpness)) == pytest.approx(sharpness, rel=0.08)


def test_it_is_the_best_there_is() -> None:
    logits, y = drawn(300, 3.0)
    found = temperature(logits, y)
    for other in (found / 1.1, found * 1.1):
        assert F.cross_entropy(logits / found, y) < F.cross_entropy(logits / other, y)


def test_few_examples_move_a_belief_little_and_many_all_the_way() -> None:
    few, many = (temperature(*drawn(number, 4.0), around=1.0) for number in (4, 5_000))
    assert 1.0 <= few < 3.0
    assert many == pytest.approx(4.0, rel=0.08)
    one = torch.tensor([[5.0, 0.0]]), torch.tensor([0])
    assert temperature(*one) == pytest.approx(0.01)  # without one, a single right answer is certainty
    assert temperature(*one, around=1.0) > 0.3


def test_unseen_tasks_are_better_calibrated_with_it() -> None:
    torch.manual_seed(0)
    learner = il.protomaml(il.models.conv4(width=8, ways=5), lr=0.01)
    source = il.Strokes(split="val", queries=2)
    found = temperature_on(learner, source, 30)
    assert found is not None
    logits, y = [], []
    for seed in range(30):
        task = il.Strokes(split="test", queries=2).sample(1, torch.Generator().manual_seed(seed))
        support, query = (il.Batch(part.x[0], part.y[0]) for part in task)
        with torch.no_grad():
            logits.append(plain(learner.adapt(support, transductive=False))(query.x))
        y.append(query.y)
    before, after = (F.cross_entropy(torch.cat(logits) / t, torch.cat(y)).item() for t in (1.0, found))
    assert after < before - 0.05
    assert after < math.log(5)


def test_there_are_none_without_classes() -> None:
    assert temperature_on(il.maml(il.models.mlp(1, 4, 1), loss=F.mse_loss), il.Sinusoid(), 2) is None


def test_pixels_are_calibrated_as_well() -> None:
    class Pixels:
        def sample(self, n: int, generator: torch.Generator) -> il.Task:
            x = torch.randn(n, 4, 1, 5, 5, generator=generator)
            y = (x[:, :, 0] > 0).long()
            y[:, :, 0] = -100  # left out
            return il.Task(il.Batch(x, y), il.Batch(x, y))

    torch.manual_seed(0)
    learner = il.maml(torch.nn.Conv2d(1, 3, 3, padding=1), lr=0.1)
    logits, y = [], []
    stream = torch.Generator().manual_seed(0)
    for _ in range(5):
        support, query = il.task.select(Pixels().sample(1, stream), 0)
        logits.append(learner.adapt(support)(query.x).permute(0, 2, 3, 1)[query.y != -100])
        y.append(query.y[query.y != -100])
    assert temperature_on(learner, Pixels(), 5) == temperature(torch.cat(logits), torch.cat(y))


def test_there_is_none_where_outputs_are_no_numbers() -> None:
    class Broken(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.flatten(1)) * math.nan

    assert temperature_on(il.maml(Broken(28 * 28, 5), steps=0), il.Strokes(), 3) is None
