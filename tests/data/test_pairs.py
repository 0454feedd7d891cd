from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from innerloop.data import Pairs
from innerloop.task import TaskSource

from .stand_ins import numbered_images

GROUPS = torch.tensor([0, 0, 0, 1, 1, 2])  # three pairs, one, and none


def pairs(shots: int = 3, queries: int = 2, counts: tuple[int, ...] = (5, 6, 7, 5, 9, 5)) -> Pairs:
    return Pairs(replace(numbered_images(list(counts)), groups=GROUPS), shots, queries)


def test_problems_are_balanced_pairs_of_one_group() -> None:
    source = pairs()
    assert isinstance(source, TaskSource)
    task = source.sample(40, torch.Generator().manual_seed(0))
    for batch, amount in ((task.support, 3), (task.query, 2)):
        assert batch.x.shape == (40, 2 * amount, 1, 2, 2)
        assert batch.y.dtype == torch.float32
        assert batch.y.tolist() == [[0.0, 1.0] * amount] * 40
    numbers = (255 * torch.cat([task.support.x, task.query.x], 1)[:, :, 0, 0, 0]).round().long()
    for problem in numbers.tolist():
        assert len(set(problem)) == 10, "no image twice"
        first, second = {n // 50 for n in problem[::2]}, {n // 50 for n in problem[1::2]}
        assert len(first) == len(second) == 1
        assert first != second
        assert GROUPS[first.pop()] == GROUPS[second.pop()]


def test_every_pair_is_a_problem_and_equally_likely_in_either_order() -> None:
    source = pairs()
    assert source.num_problems == 4
    task = source.sample(8_000, torch.Generator().manual_seed(1))
    classes = (255 * task.support.x[:, :2, 0, 0, 0]).round().long() // 50
    kinds, times = classes.unique(dim=0, return_counts=True)
    assert kinds.tolist() == [[0, 1], [0, 2], [1, 0], [1, 2], [2, 0], [2, 1], [3, 4], [4, 3]]
    assert (times - 1_000).abs().max() < 150


def test_the_same_state_draws_the_same_problems() -> None:
    one, other = (pairs().sample(5, torch.Generator().manual_seed(3)).support.x for _ in range(2))
    assert torch.equal(one, other)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="shots=0"):
        pairs(shots=0)
    with pytest.raises(ValueError, match=r"need 6 images per class, but .* has only 5"):
        pairs(shots=4)
    with pytest.raises(ValueError, match="data set with groups"):
        Pairs(numbered_images([5, 5]), 1, 1)
    with pytest.raises(ValueError, match="no group with two classes"):
        Pairs(replace(numbered_images([5, 5]), groups=torch.tensor([0, 1])), 1, 1)
