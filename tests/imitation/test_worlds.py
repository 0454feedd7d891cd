"""Where somebody demonstrates and a robot imitates: what is shown, what is kept apart, and that it can be done."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from innerloop.imitation import Reach
from innerloop.imitation.drawing import from_shape, grid, paint
from innerloop.imitation.plane import RADIUS, arms
from innerloop.imitation.worlds import ALIKE, DEMONSTRATORS, OBJECTS, SHARES, hues, members


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("number", [OBJECTS, DEMONSTRATORS, 7])
def test_splits_share_nothing_and_leave_nothing_out(number: int) -> None:
    parts = {split: set(members(number, split).tolist()) for split in SHARES}
    assert all(not a & b for a, b in combinations(parts.values(), 2))
    assert set.union(*parts.values()) == set(range(number))
    assert members(number, "test").tolist() == members(number, "test").tolist()


def test_tasks_of_different_splits_have_neither_objects_nor_demonstrators_in_common() -> None:
    drawn = {split: Reach().tasks(2_000, split, rng()) for split in SHARES}
    for one, other in combinations(drawn.values(), 2):
        assert not set(one.objects.flatten().tolist()) & set(other.objects.flatten().tolist())
        assert not set(one.demonstrators.tolist()) & set(other.demonstrators.tolist())
        looks, others = (arms(scenes.demonstrators) for scenes in (one, other))
        assert torch.cdist(looks.colour, others.colour).min() > 0


def test_objects_of_a_scene_can_be_told_apart() -> None:
    objects = Reach(objects=5).tasks(500, "train", rng()).objects
    for a, b in combinations(hues(objects).unbind(1), 2):
        difference = (a - b).abs()
        assert torch.minimum(difference, 1 - difference).min() >= ALIKE


def test_a_video_shows_the_hand_arrive_at_the_object() -> None:
    """Where the first and the last picture differ most is where the hand was and where it is: it covers the object."""
    world = Reach(size=64)
    tasks = world.tasks(50, "train", rng())
    video = world.video(tasks, rng(1))
    assert video.shape == (50, 1, 8, 3, 64, 64)
    assert video.dtype == torch.uint8
    moving = (video[:, 0, 1:].float() - video[:, 0, :-1].float()).abs().mean((1, 2, 3, 4))
    assert (moving > 0.05).all()
    each = (video[:, 0, 1:].float() - video[:, 0, :-1].float()).abs().mean((0, 2, 3, 4))
    first, middle = each[0], each[3]
    assert first < middle  # at rest at both ends


def test_the_same_generator_gives_the_same_pictures() -> None:
    world = Reach()
    tasks = world.tasks(3, "val", rng())
    assert torch.equal(world.video(tasks, rng(1)), world.video(tasks, rng(1)))
    assert not torch.equal(world.video(tasks, rng(1)), world.video(tasks, rng(2)))
    for one, other in zip(world.demonstration(tasks, rng(1)), world.demonstration(tasks, rng(1)), strict=True):
        assert torch.equal(one, other)


def test_the_expert_does_it_and_others_do_not() -> None:
    world = Reach()
    tasks = world.tasks(100, "train", rng())
    for wanted in (0, 1):
        seen = world.reset(tasks, 2, rng(1))
        for _ in range(world.horizon):
            seen = world.step(world._lying[:, :, wanted] - seen.state)
        assert world.success().float().mean() == (wanted == 0)
    world.reset(tasks, 2, rng(1))
    assert world.success().float().mean() < 0.1


def test_an_experts_actions_lead_to_the_object() -> None:
    world = Reach(moments=5)
    tasks = world.tasks(40, "train", rng())
    images, state, actions = world.demonstration(tasks, rng(1))
    assert images.shape == (40, 1, 5, 3, 32, 32)
    assert actions.norm(dim=-1).max() <= 1 + 1e-5
    # Of one scene, all the ways end at the same place: states that are less than a stride from it say where.
    near = actions.norm(dim=-1) < 0.999
    ends = state + 0.3 * actions
    for scene in range(40):
        at = ends[scene][near[scene]]
        assert len(at) < 2 or (at - at[0]).norm(dim=-1).max() < 1e-5


def test_long_strides_are_shortened_and_the_robot_stays_in_the_picture() -> None:
    world = Reach()
    before = world.reset(world.tasks(4, "train", rng()), 3, rng()).state
    after = world.step(torch.full((4, 3, 2), 50.0)).state
    assert ((after - before).norm(dim=-1) <= 0.3 + 1e-6).all()
    for _ in range(20):
        after = world.step(torch.full((4, 3, 2), 50.0)).state
    assert (after == 1).all()


@pytest.mark.parametrize("shape", range(5))
def test_shapes_are_drawn_where_they_are(shape: int) -> None:
    points = (grid(64) - torch.tensor([0.5, -0.25]))[None, None]
    outside = from_shape(points, torch.tensor([shape]), RADIUS)
    picture = paint(torch.zeros(1, 1, 3, 64, 64), outside, torch.ones(1, 1, 3))[0, 0, 0]
    middle = (picture[..., None] * grid(64)).sum((0, 1)) / picture.sum()
    torch.testing.assert_close(middle, torch.tensor([0.5, -0.25]), atol=0.01, rtol=0)
    assert 0.02 < picture.mean() * 4 < 0.14  # of an area of 4


@pytest.mark.parametrize(
    ("changes", "message"), [({"objects": 6}, "room for 5"), ({"objects": 1}, "objects"), ({"size": 8}, "size")]
)
def test_impossible_worlds_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Reach(**changes)
