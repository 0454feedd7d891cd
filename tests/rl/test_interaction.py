"""Tasks that are lived through."""

from __future__ import annotations

import json

import pytest
import torch

import innerloop as il
from innerloop import rl
from innerloop.recipe import experiment
from innerloop.train.record import MACHINE_FIELDS

G = torch.Generator


def learner(name: str = "maml-trpo", **options):
    torch.manual_seed(0)
    policy = rl.gaussian_policy(2, 2, hidden=(8,), context=3 if name.startswith("cavia") else 0)
    return rl.PRESETS[name](policy, episodes=4, **{"vectorize": True, **options})


def leaves(tasks):
    return torch.utils._pytree.tree_leaves(tasks)


def test_support_sets_are_lived_step_by_step():
    own = learner(steps=2, lr=0.5)
    tasks = rl.Interaction(rl.Navigation(7)).collect(own, 3, G().manual_seed(0))
    assert tasks.support.x.shape == (3, 8, 7, 2)
    assert tasks.query.x.shape == (3, 4, 7, 2)
    for step in range(3):  # each by the policy that its predecessors adapt
        support = torch.utils._pytree.tree_map(lambda leaf: leaf[:, : 4 * step], tasks.support)  # noqa: B023
        lived = tasks.query if step == 2 else torch.utils._pytree.tree_map(
            lambda leaf: leaf[:, 4 * step : 4 * step + 4], tasks.support  # noqa: B023
        )  # fmt: skip
        policy = own.adapt_all(support if step else il.Batch(torch.zeros(3, 1), torch.zeros(3, 1)), step)
        torch.testing.assert_close(policy(lived.x).mean, lived.y.behaviour.mean, atol=1e-5, rtol=1e-4)
    outcome = own(tasks)  # and the whole adaptation, replayed, comes to the policies that acted at last
    torch.testing.assert_close(outcome.output.mean, tasks.query.y.behaviour.mean, atol=1e-5, rtol=1e-4)


def test_the_same_generator_gives_the_same_lives():
    one, other = (rl.Interaction(rl.Navigation(5)).collect(learner(), 3, G().manual_seed(0)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(leaves(one), leaves(other), strict=True))


@pytest.mark.parametrize("name", rl.PRESETS)
def test_vectorized_is_looped(name):
    found = []
    for vectorize in (True, False):
        own = learner(name, vectorize=vectorize)
        tasks = rl.Interaction(rl.Navigation(5)).collect(own, 3, G().manual_seed(0))
        found.append((tasks, *own.meta_gradient(tasks)))
    for one, other in zip(leaves(found[0]), leaves(found[1]), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("environment", [rl.Tabular(3, 2, 4), rl.Bandit(4, 5)])
def test_discrete_actions(environment):
    torch.manual_seed(0)
    policy = rl.categorical_policy(environment.observations, environment.actions, hidden=(8,))
    own = rl.maml_trpo(policy, episodes=4, vectorize=True)
    source = rl.Interaction(environment)
    tasks = source.collect(own, 3, G().manual_seed(0))
    assert tasks.query.y.actions.dtype == torch.long
    own.outer.bind(own)
    own.outer(own.meta_gradient(tasks)[0], tasks, 0)


def test_all_at_once_is_one_episode_after_the_other():
    """By the likeliest actions, so that nothing random sets them apart."""
    own = learner()
    policy = own.adapt_all(il.Batch(torch.zeros(3, 1), torch.zeros(3, 1)), 0)
    goals = rl.Navigation().tasks(3, G().manual_seed(0))
    found = rl.rollout(rl.Navigation(6), policy, goals, 2, G().manual_seed(0), greedy=True)
    for task in range(3):
        place, earned = torch.zeros(2), 0.0
        for _ in range(6):
            move = own.model(place).mean.clamp(-0.1, 0.1)
            place = (place + move).detach()
            earned -= (place - goals[task]).norm().item()
        torch.testing.assert_close(found.returns[task], torch.full((2,), earned), atol=1e-4, rtol=1e-4)


def test_episodes_that_end_early_have_the_shape_of_all():
    class Near(rl.Navigation):
        def tasks(self, n, generator):
            return torch.zeros(n, 2) + 0.004  # so near that the first steps may reach it

    torch.manual_seed(0)
    own = rl.maml_trpo(rl.gaussian_policy(2, 2, hidden=(4,), std=0.003), episodes=4, vectorize=True)
    lived = rl.rollout(Near(9), own.adapt_all(il.Batch(torch.zeros(2, 1), torch.zeros(2, 1)), 0),
                       torch.zeros(2, 2) + 0.004, 4, G().manual_seed(0))  # fmt: skip
    assert lived.rewards.shape == (2, 4, 9)
    assert lived.steps < 2 * 4 * 9
    assert not lived.rewards[lived.alive == 0].any()
    assert (lived.alive[..., 1:] <= lived.alive[..., :-1]).all()
    assert not lived.observations[lived.alive == 0].any()


def test_a_learner_that_cannot_act_is_refused():
    source = rl.Interaction(rl.Navigation())
    with pytest.raises(ValueError, match=r"model.observations = 3, but Navigation has 2"):
        source.require(rl.maml_trpo(rl.gaussian_policy(3, 2)))
    with pytest.raises(ValueError, match=r"model.discrete = True, but Navigation has False"):
        source.require(rl.maml_trpo(rl.categorical_policy(2, 2)))
    with pytest.raises(ValueError, match="horizon must be at least 1"):
        rl.Navigation(0)
    with pytest.raises(ValueError, match="needs batch_size="):
        source.require(il.maml(rl.gaussian_policy(2, 2)))
    with pytest.raises(ValueError, match="discount must be in"):
        rl.Interaction(rl.Navigation(), discount=0)


def test_evaluation_is_of_returns_after_each_step():
    own, source = learner(), rl.Interaction(rl.Navigation(5))
    found = il.evaluate(own, source, 6, steps=2, seed=3, batch=3)
    assert found.metric == "return"
    assert found.higher_is_better
    assert found.scores.shape == (6, 3)
    assert il.evaluate(own, source, 6, steps=2, seed=3, batch=3) == found
    assert torch.equal(il.evaluate(own, source, 3, steps=2, seed=3, batch=3).scores, found.scores[:3])
    assert not torch.isclose(found.scores[:3], found.scores[3:]).any()  # other batches are other tasks
    assert source.environment_steps == 0


# -- training ---------------------------------------------------------------------------------------------------------


def trainer(run, name, baseline=None, iterations=6, **options):
    source = rl.Interaction(rl.Navigation(5), baseline=baseline and baseline())
    options = {"validate_every": 3, "val_tasks": 4, "checkpoint_every": 2, "log_every": 1, "progress": False, **options}
    return il.Trainer(
        learner(name, vectorize=True), source, rl.Interaction(rl.Navigation(5)), run, iterations=iterations, tasks=3,
        **options,
    )  # fmt: skip


def lines(run):
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in MACHINE_FIELDS} for line in found]


@pytest.mark.parametrize("name", ["maml-trpo", "promp"])
def test_a_resumed_run_is_the_undisturbed_one(tmp_path, name):
    def network():
        return rl.ValueFunction(2, 5, hidden=(8,), epochs=2)

    whole, halves = trainer(tmp_path / "whole", name, network), trainer(tmp_path / "halves", name, network, 3)
    whole.fit()
    halves.fit()
    rest = trainer(tmp_path / "halves", name, network)
    rest.fit(resume=True)
    assert lines(tmp_path / "whole")[-1] == lines(tmp_path / "halves")[-1]
    assert [x for x in lines(tmp_path / "whole") if x["kind"] == "train"] == [
        x for x in lines(tmp_path / "halves") if x["kind"] == "train"
    ]
    for (key, one), other in zip(whole.learner.state_dict().items(), rest.learner.state_dict().values(), strict=True):
        assert torch.equal(one, other), key
    assert rest.train.environment_steps == whole.train.environment_steps


def test_the_record_tells_of_returns_and_of_the_outer_step(tmp_path, capsys):
    trainer(tmp_path, "maml-trpo", progress=True).fit()
    last = [line for line in lines(tmp_path) if line["kind"] == "train"][-1]
    assert len(last["returns"]) == 2
    assert 0 < last["environment_steps"] <= 6 * 3 * 4 * 5 * 2
    assert 0 <= last["kl"] <= 0.01
    assert "environment steps/s" in capsys.readouterr().err
    validation = [line for line in lines(tmp_path) if line["kind"] == "validation"][-1]
    assert validation["metric"] == "return"


def test_a_checkpoint_of_another_outer_step_is_refused(tmp_path):
    trainer(tmp_path, "promp", iterations=2).fit()
    with pytest.raises(ValueError, match="are from another learner or optimizer"):
        trainer(tmp_path, "maml-trpo").fit(resume=True, accept_changes=True)


def test_a_run_is_evaluated_with_the_baseline_that_it_learned(tmp_path):
    settings = il.config.load_recipe("navigation-maml-trpo", [
        'tasks.baseline="network"', "tasks.horizon=5", "learner.vectorize=true", "learner.episodes=3",
        "tasks.eval_episodes=3",
        "train.iterations=2", "train.tasks=3", "train.val_tasks=2", "evaluate.num_tasks=4",
    ])  # fmt: skip
    place = experiment.Place()
    _, tested = experiment.conduct(settings, tmp_path / "run", place, progress=False)
    own, sources, loaded = il.load_run(tmp_path / "run")
    assert sources.test.baseline is sources.train.baseline
    assert sources.test.baseline.spread > 0
    again = il.evaluate(own, sources.test, **il.config.arguments(loaded, "evaluate"))
    assert again.steps == pytest.approx(tested.steps, abs=1e-4)


def test_policies_without_inner_steps(tmp_path):
    for name, options in (("trpo", {}), ("promp", {"steps": 0})):
        torch.manual_seed(0)
        own = rl.PRESETS[name](rl.gaussian_policy(2, 2, hidden=(8,)), episodes=4, vectorize=True, **options)
        source = rl.Interaction(rl.Navigation(5))
        il.Trainer(own, source, source, tmp_path / name, iterations=2, tasks=3, val_tasks=2, progress=False).fit()
        tasks = [line for line in lines(tmp_path / name) if line["kind"] == "tasks"][-1]
        assert all(isinstance(loss, float) for row in tasks["support_loss"] for loss in row)


def test_an_optimizer_beside_the_outer_step_is_refused(tmp_path):
    with pytest.raises(ValueError, match="moves its meta-parameters by TRPO"):
        trainer(tmp_path / "run", "maml-trpo", lr=0.1)
    assert not (tmp_path / "run").exists()


def test_a_bandit_is_learned():
    """To pull what paid: no policy that does not adapt earns anything on average."""
    torch.manual_seed(0)
    environment = rl.Bandit(3, 10, noise=0.1)
    own = rl.maml_trpo(rl.categorical_policy(1, 3, hidden=()), lr=5.0, episodes=10, vectorize=True)
    source = rl.Interaction(environment)
    il.Trainer(own, source, iterations=15, tasks=20, progress=False).fit()
    found = il.evaluate(own, source, 100, steps=3, seed=1)
    assert abs(found.steps[0]) < 1.5
    assert found.steps[3] > 0.8 * 10 * rl.best_arm(3)


def test_returns_may_be_of_more_episodes_than_training():
    seen = []

    class Counting(rl.Navigation):
        def reset(self, tasks, episodes, generator):
            seen.append(episodes)
            return super().reset(tasks, episodes, generator)

    source = rl.Interaction(Counting(5), eval_episodes=7)
    source.returns(learner(), 2, 2, G().manual_seed(0))
    source.collect(learner(), 2, G().manual_seed(0))
    assert seen == [7, 7, 7, 4, 4]
    with pytest.raises(ValueError, match="eval_episodes must be at least 1"):
        rl.Interaction(rl.Navigation(), eval_episodes=0)
