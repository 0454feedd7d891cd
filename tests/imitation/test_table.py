"""The table in MuJoCo: what is demonstrated there, that experts can do it, and what the cache keeps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import innerloop as il
from innerloop import imitation
from innerloop.imitation import Table
from innerloop.imitation.environments import scenes
from innerloop.imitation.simulation import Simulation, robots, somebodys, stage

pytest.importorskip("mujoco")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def renders() -> None:
    try:
        body(Table()).picture(16)
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Table:
    """With two training cases, and two of the others."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("innerloop.imitation.table.FEWEST", 2)
    return Table(cases=2, frames=3, moments=2, size=16)


def body(table: Table, seed: int = 0, demonstrator: int | None = None) -> Simulation:
    generator = rng(seed)
    return table._body(scenes(1, table.objects, "train", generator).objects[0], generator, demonstrator)


@pytest.mark.parametrize("goal", ["push", "reach"])
@pytest.mark.parametrize("demonstrator", [None, 5])
def test_experts_do_it(goal: str, demonstrator: int | None) -> None:
    table, done = Table(goal), 0
    for seed in range(20):
        situation = body(table, seed, demonstrator)
        assert not table._done(situation)
        for _ in range(table.horizon):
            situation.move(table._plan(situation))
        done += table._done(situation)
    assert done >= 19


def test_to_push_another_object_or_none_is_no_success() -> None:
    table = Table()
    for seed in range(5):
        situation = body(table, seed)
        for _ in range(table.horizon):
            situation.move(torch.zeros(2))
        assert not table._done(situation)
        torch.testing.assert_close(situation.places, situation.begun, atol=1e-3, rtol=0)
    other = body(table, 1)
    swapped = other.places[[1, 0]]
    other.data.qpos[:4] = swapped.flatten().numpy()  # so that the expert pushes what is not meant
    other.begun = other.places
    for _ in range(table.horizon):
        other.move(table._plan(other))
    pushed = other.places[:, 1] - other.begun[:, 1]
    assert pushed[0] > 0.25
    other.data.qpos[:4] = other.places[[1, 0]].flatten().numpy()
    other.begun = other.begun[[1, 0]]
    assert not table._done(other)


def test_the_finger_goes_where_it_is_told() -> None:
    for demonstrator in (None, 3):
        situation = body(Table("reach"), 2, demonstrator)
        for action in (torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.5]), torch.tensor([30.0, 0.0])):
            before = situation.tip
            situation.move(action)
            wanted = 0.08 * action / action.norm().clamp_min(1)
            torch.testing.assert_close(situation.tip - before, wanted, atol=0.012, rtol=0)  # it has to get going first


def test_shapes_are_touched_as_they_are_seen() -> None:
    """Objects are moved by a finger, whatever their shape, unless it is to pass over them."""
    kind = stage(1, False)
    for identity, parts in ((0, [1, 0, 0, 0]), (1, [0, 1, 0, 0]), (2, [0, 0, 1, 1])):
        situation = Simulation(kind, torch.tensor([identity]), torch.zeros(1, 2), torch.tensor([0.0, -0.3]), robots())
        kind.touch(situation)
        assert kind.model.geom_contype[25:29].tolist() == parts
        assert situation.present[0].tolist() == parts
        for _ in range(6):
            situation.move(torch.tensor([0.0, 1.0]))
        assert situation.places[0, 1] > 0.1
    over = Simulation(kind, torch.tensor([0]), torch.zeros(1, 2), torch.tensor([0.0, -0.3]), robots(), solid=False)
    for _ in range(6):
        over.move(torch.tensor([0.0, 1.0]))
    assert over.places.abs().max() < 1e-6


@pytest.mark.usefixtures("renders")
def test_videos_are_of_another_arm_camera_light_and_table() -> None:
    table = Table(frames=4, size=32)
    objects = scenes(1, 2, "train", rng()).objects[0]
    one, again, other = (table._watch(objects, who, rng(seed)) for who, seed in ((3, 1), (3, 1), (8, 2)))
    assert one.shape == (4, 3, 32, 32)
    assert torch.equal(one, again)
    assert (one.float() - other.float()).abs().mean() > 10
    own = table._show(objects, rng(1))[0]
    assert (own[0].float() - one[0].float()).abs().mean() > 10
    looks, others = (somebodys(who, rng(who)) for who in (3, 8))
    assert not torch.equal(looks.tiles, others.tiles)
    assert looks.azimuth != others.azimuth
    assert looks.lamp != others.lamp


@pytest.mark.usefixtures("renders")
def test_demonstrations_are_made_once_and_kept(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    first = table.demonstrated("train")
    assert first.videos.shape == (2, 3, 3, 16, 16)
    assert first.state.shape == (2, 2, 10, 4)
    again = Table(cases=2, frames=3, moments=2, size=16)
    monkeypatch.setattr(Table, "_demonstrate", None)
    for part, other in zip(again.demonstrated("train"), first, strict=True):
        assert torch.equal(part, other)


@pytest.mark.usefixtures("renders")
def test_splits_are_of_other_objects_and_demonstrators(table: Table) -> None:
    made = {split: table.demonstrated(split) for split in ("train", "val", "test")}
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        assert not set(made[one].objects.flatten().tolist()) & set(made[other].objects.flatten().tolist())
        assert not set(made[one].demonstrators.tolist()) & set(made[other].demonstrators.tolist())


@pytest.mark.usefixtures("renders")
def test_a_robot_learns_and_is_judged_there(table: Table) -> None:
    source = imitation.Imitation(table)
    torch.manual_seed(0)
    learner = imitation.daml(imitation.Visuomotor(state=4, filters=4, hidden=(8,)))
    source.require(learner)
    tasks = source.collect(learner, 3, rng())
    assert tasks.support.x["images"].shape == (3, 1, 3, 3, 16, 16)
    assert list(tasks.support.x) == ["images"]
    assert tasks.query.x["state"].shape == (3, 1, 2, 4)
    grads, outcome = learner.meta_gradient(tasks)
    assert outcome.loss.isfinite().all()
    assert any(name.startswith("inner_loss.") and grad.abs().sum() > 0 for name, grad in grads.items())
    one, other = (il.evaluate(learner, source, num_tasks=3).scores for _ in range(2))
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"goal": "throw"}, 'goal must be "push" or "reach"'),
        ({"objects": 4}, "objects must be at most 3"),
        ({"moments": 20}, "moments must be at most 10"),
    ],
)
def test_impossible_tables_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Table(**changes)
