"""Imitation as tasks: what is shown, the preset beside MAML, and how attempts are judged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils import _pytree as pytree

import innerloop as il
from innerloop import imitation
from innerloop.imitation.table import EPISODES, PICTURES, Cases
from innerloop.losses import TemporalLoss
from innerloop.metrics import SUCCESS
from innerloop.task import InteractiveSource
from innerloop.train.evaluate import judged_by


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def world() -> imitation.Reach:
    return imitation.Reach(frames=4, horizon=3, moments=2, size=16)


def small(kind: type = imitation.Visuomotor) -> torch.nn.Module:
    torch.manual_seed(0)
    return kind(filters=4, hidden=(8,))


def test_a_demonstration_has_no_action_and_no_state() -> None:
    source = imitation.Imitation(world())
    assert isinstance(source, InteractiveSource)
    task = source.collect(imitation.daml(small()), 3, rng())
    assert list(task.support.x) == ["images"]
    assert task.support.x["images"].dtype == torch.uint8
    assert task.support.y.numel() == 0
    assert task.query.y.shape == (3, 1, 2, 2)
    assert sorted(task.query.x) == ["images", "state"]


def test_the_robots_own_demonstration_has_both() -> None:
    task = imitation.Imitation(world(), shown="robot").collect(imitation.mil(small()), 3, rng())
    assert sorted(task.support.x) == ["images", "state"]
    assert task.support.y.shape == (3, 1, 2, 2)
    assert not torch.equal(task.support.x["state"], task.query.x["state"])


def test_with_the_true_loss_of_actions_it_is_maml_to_the_bit() -> None:
    source, policy = imitation.Imitation(world(), shown="robot"), small()
    ours = imitation.daml(policy, lr=0.1, steps=2, inner_loss=imitation.cloning)
    maml = il.maml(policy, lr=0.1, steps=2, loss=imitation.cloning, compile=False)
    tasks = source.collect(ours, 3, rng())
    (grads, outcome), (expected, reference) = ours.meta_gradient(tasks), maml.meta_gradient(tasks)
    assert grads.keys() == expected.keys()
    assert all(torch.equal(grads[name], expected[name]) for name in expected)
    leaves, others = (pytree.tree_leaves(found) for found in (outcome, reference))
    assert all(torch.equal(a, b) for a, b in zip(leaves, others, strict=True))


@pytest.mark.parametrize("heads", [("seen",), ("points", "seen"), ("hidden",), ("points", "actions")])
def test_the_learned_loss_moves_what_is_before_what_it_looks_at(heads: tuple[str, ...]) -> None:
    learner = imitation.daml(small(), heads=heads)
    eye = {name for name, _ in learner.model.named_parameters() if name.startswith("eye.")}
    every = {name for name, _ in learner.model.named_parameters()}
    head = {name for name in every if name.startswith("head.")}
    expected = {("hidden",): every - head, ("points", "actions"): every}
    assert set(learner.adapted) == expected.get(heads, eye)
    grads, _ = learner.meta_gradient(imitation.Imitation(world()).collect(learner, 3, rng()))
    assert isinstance(learner.inner_loss, TemporalLoss)
    for name, _ in learner.inner_loss.named_parameters():
        assert grads[f"inner_loss.{name}"].abs().sum() > 0, name


def test_tasks_at_once_are_tasks_one_by_one() -> None:
    policy = small()
    at_once, one_by_one = (imitation.daml(policy, vectorize=number) for number in (True, False))
    at_once.inner_loss = one_by_one.inner_loss
    tasks = imitation.Imitation(world()).collect(at_once, 3, rng())
    grads, expected = (learner.meta_gradient(tasks)[0] for learner in (at_once, one_by_one))
    for name, grad in expected.items():
        torch.testing.assert_close(grads[name], grad, rtol=1e-4, atol=1e-6)


def test_success_is_counted_after_every_step_from_the_same_beginning() -> None:
    source = imitation.Imitation(world(), "test")
    learner = imitation.daml(small())
    found = il.evaluate(learner, source, num_tasks=6, steps=2, batch=4)
    assert found.scale == judged_by(learner, source) == SUCCESS
    assert found.higher_is_better
    assert found.mode == "acting"
    assert set(found.scores.unique().tolist()) <= {0.0, 100.0}
    assert found.scores.shape == (6, 3)
    assert str(found).startswith("success ")
    still = imitation.daml(small(), lr=0.0)
    scores = il.evaluate(still, source, num_tasks=6, steps=2).scores
    assert torch.equal(scores[:, 0], scores[:, 2])


class Knowing(torch.nn.Module):
    """A policy that is told where the object lies, and goes there."""

    def __init__(self, world: imitation.Reach, which: int) -> None:
        super().__init__()
        self.weight, self.world, self.which = torch.nn.Parameter(torch.zeros(())), world, which

    def forward(self, images: torch.Tensor, state: torch.Tensor) -> imitation.Behavior:
        return imitation.Behavior((self.weight + state), state, state, state)


def test_what_a_policy_does_is_what_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two policies are told where to go by their state: to the object that is meant, and to another."""
    for which, expected in ((0, 100.0), (1, 0.0)):
        wide = imitation.Reach(size=16)
        seen = wide._seen
        monkeypatch.setattr(
            wide, "_seen", lambda seen=seen, wide=wide, which=which: seen()._replace(
                state=(wide._lying[:, :, which] - wide._robot) / 0.3)
        )  # fmt: skip
        learner = imitation.cloned(Knowing(wide, which))
        assert il.evaluate(learner, imitation.Imitation(wide), num_tasks=20).mean == expected


@pytest.mark.parametrize("world", [imitation.Reach(), None], ids=["plane", "table"])
def test_the_robots_demonstrations_of_a_task_are_of_other_places(
    world: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    if world is None:
        world = made_up_table(monkeypatch)
    task = imitation.Imitation(world, shown="robot").collect(imitation.mil(small()), 50, rng())
    support, query = (part.x["images"] for part in task)
    assert not any(
        torch.equal(a, b) for one, other in zip(support, query, strict=True) for a in one[0] for b in other[0]
    )


def made_up_table(monkeypatch: pytest.MonkeyPatch) -> imitation.Table:
    """One whose cases are of numbers that tell which they are."""
    table = imitation.Table(cases=5)

    def demonstrated(split: str) -> Cases:
        number = torch.arange(5 * EPISODES * PICTURES).view(5, EPISODES, PICTURES)
        images = number[..., None, None, None].expand(-1, -1, -1, 3, 16, 16).clone()
        return Cases(
            torch.zeros(5, 2), torch.zeros(5), torch.zeros(5, 3, 3, 16, 16), images,
            number[..., None].expand(-1, -1, -1, 4).clone(), number[..., None].expand(-1, -1, -1, 2).clone(),
        )  # fmt: skip

    monkeypatch.setattr(table, "demonstrated", demonstrated)
    return table


def test_moments_of_the_table_are_in_order_and_of_one_episode(monkeypatch: pytest.MonkeyPatch) -> None:
    table = made_up_table(monkeypatch)
    tasks = table.tasks(40, "train", rng())
    found = table.demonstration(tasks, 2, rng())
    number = found.state[..., 0]
    assert number.shape == (40, 2, 4)
    assert (number.diff(dim=-1) > 0).all()
    assert torch.equal(number // (EPISODES * PICTURES), tasks[1][:, None, None].expand_as(number))
    episode = number // PICTURES
    assert (episode == episode[..., :1]).all()
    assert (episode[:, 0] != episode[:, 1]).all()


def test_papers_are_those_of_the_parts() -> None:
    assert "1802.01557" in " ".join(imitation.daml(small()).citations)
    assert "1709.04905" in " ".join(imitation.mil(small()).citations)


def test_what_cannot_adapt_is_refused_before_anything_is_done() -> None:
    video = imitation.Imitation(world())
    with pytest.raises(ValueError, match='a video has no actions to clone: use the preset "daml"'):
        video.require(imitation.mil(small()))
    with pytest.raises(ValueError, match=r'Contextual reads the demonstration .* use the preset "cloned"'):
        video.require(imitation.daml(small(imitation.Contextual)))
    video.require(imitation.daml(small()))
    video.require(imitation.cloned(small(imitation.Watching)))
    imitation.Imitation(world(), shown="robot").require(imitation.mil(small()))


@pytest.mark.parametrize("kind", [imitation.Contextual, imitation.Watching])
def test_policies_that_read_the_demonstration(kind: type) -> None:
    source, learner = imitation.Imitation(world()), imitation.cloned(small(kind))
    tasks = source.collect(learner, 3, rng())
    assert tasks.query.x["demonstration"].shape == (3, 1, 4, 3, 16, 16)
    grads, _ = learner.meta_gradient(tasks)
    assert grads["model.eye.filters.0.weight"].abs().sum() > 0
    other = pytree.tree_map(lambda leaf: leaf, tasks)
    other.query.x["demonstration"] = other.query.x["demonstration"].flip(0)
    with torch.no_grad():
        assert not torch.equal(learner(tasks).output.actions, learner(other).output.actions)
    assert il.evaluate(learner, source, num_tasks=4, steps=3).scores.shape == (4, 1)  # it was trained to take none


def test_a_policy_of_another_robot_is_refused() -> None:
    learner = imitation.daml(imitation.Visuomotor(state=3, filters=4, hidden=(8,)))
    with pytest.raises(ValueError, match=r"model.state = 3, but the robot of Reach has 2"):
        imitation.Imitation(world()).require(learner)


def test_wrong_words_are_refused() -> None:
    with pytest.raises(ValueError, match="heads must be among actions, points, seen, hidden, got pixels"):
        imitation.daml(small(), heads=("pixels",))
    with pytest.raises(ValueError, match='shown must be "video" or "robot", got \'film\''):
        imitation.Imitation(world(), shown="film")


def test_a_resumed_training_comes_to_what_an_undisturbed_one_does(tmp_path: Path) -> None:
    def trainer(run: str, iterations: int) -> il.Trainer:
        learner, train, val = imitation.daml(small()), *(imitation.Imitation(world(), s) for s in ("train", "val"))
        return il.Trainer(
            learner, train, val, tmp_path / run, iterations=iterations, tasks=2, val_tasks=2, validate_every=2
        )

    torch.manual_seed(0)
    whole = trainer("whole", 4)
    whole.fit()
    torch.manual_seed(0)
    trainer("parts", 2).fit()
    parts = trainer("parts", 4)
    parts.fit(resume=True)
    for (name, one), other in zip(whole.learner.named_parameters(), parts.learner.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_the_environment_is_taken_by_its_old_name_with_a_warning() -> None:
    reach = world()
    with pytest.warns(FutureWarning, match=r"argument world= of Imitation is now environment=, and version 0\.4"):
        source = imitation.Imitation(world=reach)  # type: ignore[call-arg]
    with pytest.warns(FutureWarning, match=r"imitation\.Imitation\.world is now innerloop\.imitation\.Imitation\.env"):
        assert source.world is reach
    with pytest.raises(TypeError, match="multiple values for argument"):
        imitation.Imitation(reach, environment=reach, world=reach)  # type: ignore[call-arg, misc]
