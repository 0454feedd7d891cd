"""Tasks that are given one by one, of any sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import innerloop as il


def sine(points: int, seed: int) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(points, 1, generator=generator) * 10 - 5
    return x, torch.sin(x + 3 * torch.rand(1, generator=generator))


def four(seed: int) -> tuple[Any, Any, Any, Any]:
    (x, y), shots = sine(12, seed), 3 + seed % 4
    return x[:shots], y[:shots], x[shots:], y[shots:]


@pytest.fixture
def learner() -> il.MetaLearner:
    return il.maml(il.models.mlp(1, 16, 1), lr=0.01, loss=F.mse_loss, steps=2)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_tasks_are_those_given() -> None:
    tasks = [four(seed) for seed in range(6)]
    source = il.data.from_tasks(tasks)
    assert len(source) == 6
    for index, (x, y, new, answers) in enumerate(tasks):
        (support, query) = source.task(index, rng())
        for found, given in ((support.x, x), (support.y, y), (query.x, new), (query.y, answers)):
            assert torch.equal(found, given)
    same = il.data.from_tasks([il.Task(il.Batch(a, b), il.Batch(c, d)) for a, b, c, d in tasks])
    assert all(torch.equal(same.task(index, rng()).query.x, source.task(index, rng()).query.x) for index in range(6))


def test_each_task_is_drawn_once_before_one_is_drawn_twice() -> None:
    source = il.data.from_tasks([four(seed) for seed in range(6)])
    assert isinstance(source, il.TaskSource)
    assert isinstance(source, il.FiniteSource)
    drawn = source.sample(6, rng())
    assert isinstance(drawn, list)
    assert sorted(float(task.query.x.sum()) for task in drawn) == sorted(
        float(source.task(index, rng()).query.x.sum()) for index in range(6)
    )
    assert len(source.sample(20, rng())) == 20
    again = source.sample(6, rng())
    assert all(torch.equal(one.support.x, other.support.x) for one, other in zip(drawn, again, strict=True))
    equal = il.data.from_tasks([four(4 * seed) for seed in range(3)]).sample(3, rng())
    assert isinstance(equal, il.Task)
    assert equal.support.x.shape == (3, 3, 1)


def test_examples_are_split_at_random() -> None:
    pairs = [sine(points, points) for points in (4, 9, 30)]
    source = il.data.from_tasks(pairs, shots=3)
    splits = set()
    for seed in range(20):
        for support, query in source.sample(3, rng(seed)):
            assert len(support.x) == 3
            x, y = next(pair for pair in pairs if len(pair[0]) == 3 + len(query.x))
            assert torch.equal(torch.cat([support.x, query.x]).sort(0)[0], x.sort(0)[0])
            both = {float(a): float(b) for a, b in zip(x, y, strict=True)}
            assert all(both[float(a)] == float(b) for part in (support, query) for a, b in zip(*part, strict=True))
            splits.add(tuple(support.x.flatten().tolist()))
    assert len(splits) > 30
    few = il.data.from_tasks(pairs, shots=2, queries=5).sample(3, rng())
    assert sorted(len(task.query.x) for task in few) == [2, 5, 5]


@pytest.mark.parametrize("convert", [np.asarray, np.ndarray.tolist, torch.from_numpy])
def test_arrays_and_lists_of_numbers_are_taken(convert: Any, learner: il.MetaLearner) -> None:
    tasks = [tuple(convert(part.double().numpy()) for part in four(seed)) for seed in range(4)]
    source = il.data.from_tasks(tasks)
    task = source.task(0, rng())
    if convert is torch.from_numpy:
        assert task.support.x.dtype == torch.float64  # a tensor is taken as it is
        return
    assert task.support.x.dtype == torch.float32
    assert torch.equal(task.support.x, four(0)[0])
    assert il.evaluate(learner, source).num_tasks == 4


def test_targets_may_be_none_and_inputs_several() -> None:
    x = {"a": np.zeros((5, 2)), "b": [1, 2, 3, 4, 5]}
    task = il.data.from_tasks([(x, None, x, None)]).task(0, rng())
    assert task.support.y is None
    assert task.support.x["a"].shape == (5, 2)
    assert task.query.x["b"].tolist() == [1, 2, 3, 4, 5]


def test_an_evaluation_takes_each_task_once(learner: il.MetaLearner) -> None:
    source = il.data.from_tasks([four(seed) for seed in range(9)])
    found = il.evaluate(learner, source, batch=4)
    expected = []
    for index in range(9):
        task = source.task(index, rng())
        expected.append(F.mse_loss(learner.adapt(task.support)(task.query.x), task.query.y).item())
    assert found.num_tasks == 9
    assert sorted(found.scores[:, -1].tolist()) == pytest.approx(sorted(expected), rel=1e-4)
    first = il.evaluate(learner, source, num_tasks=4)
    assert first.scores[:, -1].tolist() == pytest.approx(found.scores[:4, -1].tolist(), rel=1e-4)
    with pytest.raises(ValueError, match=r"at least 2 tasks .* the source has 1"):
        il.evaluate(learner, il.data.from_tasks([four(0)]))


@pytest.mark.parametrize(
    ("tasks", "options", "error", "says"),
    [
        ([], {}, ValueError, "at least one task, got none"),
        ([sine(5, 0)], {}, TypeError, r"task 0 is a Task or \(support x, .*got a tuple of 2; for pairs .* give shots="),
        ([four(0), 3], {}, TypeError, "task 1 is a Task or .*got a int"),
        ([four(0)], {"shots": 2}, TypeError, r"with shots=, task 0 is \(x, y\).* got a tuple of 4"),
        ([sine(9, 0), sine(5, 0)], {"shots": 5}, ValueError, "task 1 has 5 examples, and shots=5 leaves none"),
        ([sine(9, 0)], {"shots": 0}, ValueError, "shots"),
        ([four(0)], {"queries": 2}, ValueError, "queries=2 is for tasks that are split at random: give shots="),
        ([(np.zeros((3, 1)), np.zeros(2), *four(0)[2:])], {}, ValueError, r"task 0 need one first axis.*\(3, 1\), \(2"),
        ([(np.zeros((0, 1)), np.zeros(0), *four(0)[2:])], {}, ValueError, "support set of task 0 is empty"),
        ([(3.0, 2.0)], {"shots": 1}, ValueError, "task 0 need one first axis"),
    ],
)
def test_other_tasks_are_refused(tasks: Any, options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        il.data.from_tasks(tasks, **options)


def test_a_training_on_tasks_of_different_sizes_resumes_bit_for_bit(tmp_path: Any) -> None:
    def trainer(run: str, iterations: int) -> il.Trainer:
        torch.manual_seed(0)
        learner = il.maml(il.models.mlp(1, 16, 1), lr=0.01, loss=F.mse_loss, steps=2)
        train, val = (il.data.from_tasks([four(seed) for seed in range(a, a + 12)]) for a in (0, 12))
        options: dict[str, Any] = {"iterations": iterations, "tasks": 5, "validate_every": 5, "val_tasks": 50}
        return il.Trainer(learner, train, val, tmp_path / run, checkpoint_every=5, progress=False, **options)

    whole, first = trainer("whole", 10), trainer("parts", 5)
    result = whole.fit()
    first.fit()
    again = trainer("parts", 10)
    again.fit(resume=True)
    for name, tensor in whole.learner.state_dict().items():
        assert torch.equal(tensor, again.learner.state_dict()[name])
    assert result.validation is not None
    assert result.validation.num_tasks == 12


def test_another_seed_splits_anew(learner: il.MetaLearner) -> None:
    source = il.data.from_tasks([sine(9, seed) for seed in range(5)], shots=3)
    scores = [il.evaluate(learner, source, seed=seed).scores.sort(0)[0] for seed in (0, 0, 1)]
    assert torch.equal(scores[0], scores[1])
    assert not torch.allclose(scores[0], scores[2])


def test_a_source_with_a_length_of_its_own_is_not_taken_for_a_finite_one(learner: il.MetaLearner) -> None:
    class Measured(il.Sinusoid):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> float:
            return 0.5 * index

    assert il.evaluate(learner, Measured(5), num_tasks=8).num_tasks == 8
