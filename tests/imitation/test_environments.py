"""Where somebody demonstrates and a robot imitates: what is shown, what is kept apart, and that it can be done."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import pytest
import torch

from innerloop.imitation import Reach
from innerloop.imitation.drawing import from_shape, grid, paint
from innerloop.imitation.environments import (
    ALIKE,
    ARCS,
    DEMONSTRATORS,
    MOST,
    OBJECTS,
    SPLITS,
    demonstrators_of,
    hues,
    objects_of,
)
from innerloop.imitation.plane import RADIUS, arms


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("of", "number"), [(objects_of, OBJECTS), (demonstrators_of, DEMONSTRATORS)])
def test_splits_share_nothing_and_leave_nothing_out(of: Callable[[str], torch.Tensor], number: int) -> None:
    parts = {split: set(of(split).tolist()) for split in SPLITS}
    assert all(not a & b for a, b in combinations(parts.values(), 2))
    assert set.union(*parts.values()) == set(range(number))
    assert len(parts["train"]) > number / 2
    assert of("test").tolist() == of("test").tolist()


def test_objects_of_a_split_have_colours_that_no_other_has() -> None:
    """Apart from the edges of the arcs, the nearest hue of another split is an arc's half or more away."""
    for one, other in combinations(SPLITS, 2):
        difference = (hues(objects_of(one))[:, None] - hues(objects_of(other))).abs()
        nearest = torch.minimum(difference, 1 - difference).min(1).values
        assert nearest.min() > 0
        assert nearest.max() > 0.5 / len(ARCS)


def test_tasks_of_different_splits_have_neither_objects_nor_demonstrators_in_common() -> None:
    drawn = {split: Reach().tasks(2_000, split, rng()) for split in SPLITS}
    for one, other in combinations(drawn.values(), 2):
        assert not set(one.objects.flatten().tolist()) & set(other.objects.flatten().tolist())
        assert not set(one.demonstrators.tolist()) & set(other.demonstrators.tolist())
        looks, others = (arms(scenes.demonstrators) for scenes in (one, other))
        assert torch.cdist(looks.colour, others.colour).min() > 0


@pytest.mark.parametrize("split", SPLITS)
def test_objects_of_a_scene_can_be_told_apart(split: str) -> None:
    objects = Reach(objects=MOST).tasks(500, split, rng()).objects
    for a, b in combinations(hues(objects).unbind(1), 2):
        difference = (a - b).abs()
        assert torch.minimum(difference, 1 - difference).min() >= ALIKE


class Plain(Reach):
    """Whose camera, places and light are known: what differs between pictures is the arm."""

    def _camera(self, n: int, generator: torch.Generator) -> torch.Tensor:
        return grid(self.size).expand(n, 1, self.size, self.size, 2)

    def _places(self, n: int, generator: torch.Generator) -> torch.Tensor:
        self.lying = super()._places(n, generator)
        return self.lying


def test_a_video_shows_the_hand_arrive_at_the_object_that_is_meant() -> None:
    """Around it the last picture is not the first, and around the others it mostly is."""
    world = Plain(size=64)
    video = world.video(world.tasks(100, "train", rng()), rng(1))[:, 0].float()
    assert video.shape == (100, 8, 3, 64, 64)
    changed = (video[:, -1] - video[:, 0]).abs().mean(1)
    near = (grid(64) - world.lying[:, :, None, None]).norm(dim=-1) < RADIUS / 2
    each = (changed[:, None] * near).sum((2, 3)) / near.sum((2, 3))
    assert (each.argmax(1) == 0).float().mean() > 0.85
    steps = (video[:, 1:] - video[:, :-1]).abs().mean((0, 2, 3, 4))
    assert steps[0] < steps[3]  # at rest at both ends
    assert steps[-1] < steps[3]


def test_the_same_generator_gives_the_same_pictures() -> None:
    world = Reach()
    tasks = world.tasks(3, "val", rng())
    assert torch.equal(world.video(tasks, rng(1)), world.video(tasks, rng(1)))
    assert not torch.equal(world.video(tasks, rng(1)), world.video(tasks, rng(2)))
    for one, other in zip(world.demonstration(tasks, 1, rng(1)), world.demonstration(tasks, 1, rng(1)), strict=True):
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
    images, state, actions = world.demonstration(tasks, 1, rng(1))
    assert images.shape == (40, 1, 5, 3, 32, 32)
    assert actions.norm(dim=-1).max() <= 1 + 1e-5
    # Of one scene, all the ways end at the same place: states that are less than a stride from it say where.
    near = actions.norm(dim=-1) < 0.999
    ends = state + 0.3 * actions
    for scene in range(40):
        at = ends[scene][near[scene]]
        assert len(at) < 2 or (at - at[0]).norm(dim=-1).max() < 1e-5


def test_demonstrations_of_a_task_are_in_order_of_time_and_of_other_places() -> None:
    world = Reach(moments=5)
    _, state, actions = world.demonstration(world.tasks(200, "train", rng()), 2, rng(1))
    assert state.shape == (200, 2, 5, 2)
    ends = (state + 0.3 * actions)[:, :, -1]
    assert ((ends[:, 0] - ends[:, 1]).norm(dim=-1) > 0.01).all()
    left = actions.norm(dim=-1)
    assert (left[..., 0] >= left[..., -1] - 0.8).all()
    assert left[..., 0].mean() > left[..., -1].mean() + 0.3


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
    ("changes", "message"), [({"objects": 4}, "at most 3"), ({"objects": 1}, "objects"), ({"size": 8}, "size")]
)
def test_impossible_worlds_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Reach(**changes)
