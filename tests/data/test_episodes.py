from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from innerloop.data import FewShot, VaryingFewShot
from innerloop.task import Task, TaskSource

from .stand_ins import numbered_images


@st.composite
def episodes(draw):
    """A sampler over classes of unequal sizes, with and without rotations, and a seed."""
    counts = draw(st.lists(st.integers(2, 9), min_size=2, max_size=5))
    rotations = draw(st.booleans())
    ways = draw(st.integers(2, len(counts) * (4 if rotations else 1)))
    shots = draw(st.integers(1, min(counts) - 1))
    queries = draw(st.integers(1, min(counts) - shots))
    source = FewShot(numbered_images(counts, rotations=rotations), ways, shots, queries)
    return source, draw(st.integers(1, 4)), draw(st.integers(0, 2**32 - 1))


@settings(max_examples=60)
@given(episodes())
def test_episodes_are_what_they_say(case):
    source, n, seed = case
    task = source.sample(n, torch.Generator().manual_seed(seed))
    for batch, amount in ((task.support, source.shots), (task.query, source.queries)):
        assert batch.x.shape == (n, source.ways * amount, 1, 2, 2)
        assert batch.x.dtype == torch.float32
        assert batch.y.dtype == torch.int64
        assert batch.y.tolist() == [list(range(source.ways)) * amount] * n
    for t in range(n):
        x, y = (torch.cat([task.support[i][t], task.query[i][t]]) for i in (0, 1))
        numbers = (255 * x[:, 0, 0, 0]).round().long()
        for label in range(source.ways):
            own = numbers[y == label]
            assert len(set((own // 50).tolist())) == 1, "a label is one class"
            assert len(set(own.tolist())) == len(own), "no image twice"
            assert (own % 50 < source.dataset.counts[own // 50]).all(), "no image of the next class"


@settings(max_examples=30)
@given(episodes())
def test_the_same_state_gives_the_same_tasks_on_any_device(case):
    source, n, seed = case
    used = [torch.Generator().manual_seed(seed) for _ in range(3)]
    first, again = source.sample(n, used[0]), source.sample(n, used[1])
    assert torch.equal(first.support.x, again.support.x)
    assert torch.equal(first.query.x, again.query.x)
    elsewhere = FewShot(source.dataset.to("meta"), source.ways, source.shots, source.queries).sample(n, used[2])
    assert elsewhere.query.x.device.type == elsewhere.query.y.device.type == "meta"
    assert torch.equal(used[0].get_state(), used[1].get_state())
    assert torch.equal(used[0].get_state(), used[2].get_state())


@given(seed=st.integers(0, 2**32 - 1))
def test_classes_do_not_repeat_in_a_task(seed):
    source = FewShot(numbered_images([2] * 5), ways=5, shots=1)
    numbers = (255 * source.sample(3, torch.Generator().manual_seed(seed)).support.x[..., 0, 0, 0]).round() // 50
    assert numbers.sort().values.tolist() == [[0, 1, 2, 3, 4]] * 3


def test_a_rotation_is_another_class_than_the_original(generator):
    source = FewShot(numbered_images([2, 2], rotations=True), ways=8, shots=1)
    classes = source._classes(6, generator)
    assert classes.sort().values.tolist() == [list(range(8))] * 6


def test_every_class_and_image_is_equally_likely(generator):
    source = FewShot(numbered_images([2, 5, 3]), ways=2, shots=1)
    x = source.sample(6000, generator).support.x[..., 0, 0, 0]
    numbers = (255 * x).round().long().flatten()
    for label, count in enumerate([2, 5, 3]):
        for i in range(count):
            share = (numbers == 50 * label + i).float().mean().item()
            assert share == pytest.approx(1 / 3 / count, abs=0.015)
    assert (numbers[::2] < numbers[1::2]).float().mean().item() == pytest.approx(0.5, abs=0.02), "labels are random"


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), rotations=st.booleans())
def test_within_groups_keeps_a_task_in_one_group(seed, rotations):
    groups = torch.tensor([0, 1, 0, 1, 2])
    source = FewShot(numbered_images([2] * 5, groups=groups, rotations=rotations), 2, 1, within_groups=True)
    classes = source._classes(50, torch.Generator().manual_seed(seed))
    drawn = groups[classes % 5]
    assert (drawn == drawn[:, :1]).all()
    assert (classes[:, 0] != classes[:, 1]).all()
    assert set(drawn.flatten().tolist()) == ({0, 1, 2} if rotations else {0, 1}), "groups of at least 2 classes"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ways": 1, "shots": 1}, "ways=1 must be at least 2"),
        ({"ways": 2, "shots": 0}, "shots=0 must be at least 1"),
        ({"ways": 2, "shots": 1, "queries": 0}, "queries=0 must be at least 1"),
        ({"ways": 4, "shots": 1}, "ways=4, but numbers has 3 classes"),
        ({"ways": 2, "shots": 2, "queries": 2}, "need 4 images per class, but class '1' of numbers has 3"),
        ({"ways": 2, "shots": 1, "within_groups": True}, "has no groups"),
    ],
)
def test_errors_come_at_construction_and_name_the_value(options, message):
    with pytest.raises(ValueError, match=message):
        FewShot(numbered_images([4, 3, 5]), **options)


def test_groups_that_are_too_small_are_an_error():
    with pytest.raises(ValueError, match=r"at least ways=3 classes, but numbers has at most 2"):
        FewShot(numbered_images([2] * 3, groups=torch.tensor([0, 0, 1])), 3, 1, within_groups=True)


def test_it_is_a_task_source():
    assert isinstance(FewShot(numbered_images([2, 2]), 2, 1), TaskSource)


def test_ways_and_shots_may_vary(generator):
    source = VaryingFewShot(numbered_images([8] * 3, rotations=True), (2, 4), (1, 3), queries=2)
    tasks = source.sample(2_000, generator)
    ways = [int(task.support.y.max()) + 1 for task in tasks]
    drawn = Counter((number, len(task.support.y) // number) for number, task in zip(ways, tasks, strict=True))
    assert {*drawn} == {(ways, shots) for ways in (2, 3, 4) for shots in (1, 2, 3)}
    deviation = (2_000 / 9 * 8 / 9) ** 0.5
    assert all(abs(number - 2_000 / 9) < 4 * deviation for number in drawn.values())
    assert all(task.query.y.bincount().tolist() == [2] * number for number, task in zip(ways, tasks, strict=True))


def test_what_varies_is_checked_at_construction():
    data = numbered_images([4] * 5)
    with pytest.raises(ValueError, match=r"ways=\(4, 2\): the fewest are more than the most"):
        VaryingFewShot(data, (4, 2), 1)
    with pytest.raises(ValueError, match="ways=6, but"):
        VaryingFewShot(data, (2, 6), 1)
    with pytest.raises(ValueError, match="ways=1 must be at least 2"):
        VaryingFewShot(data, (1, 5), 1)
    with pytest.raises(ValueError, match="shots=4 and queries=1 need 5 images"):
        VaryingFewShot(data, 5, (1, 4))
    equal = VaryingFewShot(data, 3, 1).sample(4, torch.Generator().manual_seed(0))
    assert isinstance(equal, Task)
