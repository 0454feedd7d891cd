"""Trust regions and proximal steps, against what they promise."""

from __future__ import annotations

import copy

import pytest
import torch

import innerloop as il
from innerloop import rl

PRESETS = {name: preset for name, preset in rl.PRESETS.items() if name != "promp"}


def collected(name: str = "maml-trpo", tasks: int = 3, double: bool = True, **options):
    torch.manual_seed(0)
    policy = rl.gaussian_policy(2, 2, hidden=(4,), context=2 if name.startswith("cavia") else 0)
    learner = rl.PRESETS[name](policy, episodes=3, vectorize=True, **options)
    source = rl.Interaction(rl.Navigation(6))
    found = source.collect(learner, tasks, torch.Generator().manual_seed(1))
    if double:
        learner = learner.double()
        found = torch.utils._pytree.tree_map(lambda leaf: leaf.double(), found)
    learner.outer.bind(learner)
    return learner, found


def flat(params) -> torch.Tensor:
    return torch.cat([p.flatten() for p in params.values()])


def shaped(vector: torch.Tensor, like) -> dict[str, torch.Tensor]:
    parts = vector.split([p.numel() for p in like.values()])
    return {name: part.view_as(p) for (name, p), part in zip(like.items(), parts, strict=True)}


def mean_divergence(learner, tasks) -> torch.Tensor:
    """Its slope by the meta-parameters, in one vector."""
    judged = learner(tasks, objective=rl.Judging(rl.divergence, learner.objective)).objective.mean()
    params = list(learner.outer.parameters.values())
    return torch.cat([g.flatten() for g in torch.autograd.grad(judged, params, allow_unused=True,
                                                               materialize_grads=True)])  # fmt: skip


@pytest.mark.parametrize("name", ["maml-trpo", "fomaml-trpo", "cavia-trpo", "meta-sgd-trpo"])
def test_fisher_products_are_those_of_the_dense_matrix(name):
    learner, tasks = collected(name)
    outer, params = learner.outer, learner.outer.parameters
    size = len(flat(params))
    product = outer.fisher(tasks, 0)
    columns = [flat(product(shaped(row, params))) for row in torch.eye(size, dtype=torch.float64)]
    found = torch.stack(columns) - outer.damping * torch.eye(size, dtype=torch.float64)
    torch.testing.assert_close(found, found.T, atol=1e-10, rtol=1e-6)
    assert torch.linalg.eigvalsh(found).min() > -1e-8
    if learner.objective.order == 1:  # whose slopes are not those of what they are said to be of
        return
    for index in range(0, size, max(1, size // 6)):  # against differences of slopes
        slopes = []
        for sign in (1, -1):
            moved = copy.deepcopy(learner)
            moved.outer.bind(moved)
            with torch.no_grad():
                step = shaped(sign * 1e-5 * torch.eye(size, dtype=torch.float64)[index], params)
                for parameter_name, parameter in moved.outer.parameters.items():
                    parameter += step[parameter_name]
            slopes.append(mean_divergence(moved, tasks))
        torch.testing.assert_close((slopes[0] - slopes[1]) / 2e-5, found[index], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("max_kl", [0.001, 0.05])
def test_a_trust_region_step_keeps_its_bound_and_improves(name, max_kl):
    learner, tasks = collected(name, max_kl=max_kl, tasks=4)
    before = learner(tasks).objective.mean().item()
    grads, _ = learner.meta_gradient(tasks)
    part = learner.outer(grads, tasks, 0)
    outcome = learner(tasks)
    y = tasks.query.y
    kl = (y.behaviour.kl(outcome.output) * y.weights).sum() / y.weights.sum()
    assert 0 < part <= 1
    assert outcome.objective.mean().item() < before
    assert 0 < kl.item() <= max_kl
    assert learner.outer.told["kl"] == pytest.approx(kl.item())
    assert learner.outer.told["improvement"] == pytest.approx(before - outcome.objective.mean().item())


def test_the_bound_is_that_of_all_policies_that_are_judged():
    learner, tasks = collected("maml-trpo", steps=2, weights=(1, 1, 2), max_kl=0.002)
    learner.outer(learner.meta_gradient(tasks)[0], tasks, 0)
    every = rl.Judging(rl.divergence, rl.Along(weights=(1, 1, 2)))
    assert 0 < learner(tasks, objective=every).objective.mean().item() <= 0.002


def test_a_step_that_improves_nothing_is_not_taken():
    learner, tasks = collected()
    before = copy.deepcopy(learner.state_dict())
    grads, _ = learner.meta_gradient(tasks)
    assert learner.outer({name: -g for name, g in grads.items()}, tasks, 0) == 0
    assert learner.outer({name: torch.zeros_like(g) for name, g in grads.items()}, tasks, 0) == 0
    assert all(torch.equal(p, before[name]) for name, p in learner.state_dict().items())


def test_proximal_steps_improve_and_adapt_their_penalty():
    learner, tasks = collected("promp", target_kl=None, outer_lr=1e-2)
    before = learner(tasks, objective=il.Unrolled()).objective.mean().item()
    learner.outer(learner.meta_gradient(tasks)[0], tasks, 0)
    assert learner(tasks, objective=il.Unrolled()).objective.mean().item() < before
    told, strength = learner.outer.told, learner.objective.strength
    assert told["inner_kl"] > 0
    assert told["penalty"] == strength == 5e-4
    for target, factor in ((told["inner_kl"] / 10, 2), (told["inner_kl"] * 10, 0.5)):
        learner, tasks = collected("promp", target_kl=target, outer_lr=1e-2)
        learner.outer(learner.meta_gradient(tasks)[0], tasks, 0)
        assert learner.objective.strength == pytest.approx(factor * strength)


def test_a_large_penalty_holds_the_policies_before_adapting():
    kl = {}
    for penalty in (0.0, 100.0):
        learner, tasks = collected("promp", target_kl=None, outer_lr=1e-2, penalty=penalty, epochs=20)
        learner.outer(learner.meta_gradient(tasks)[0], tasks, 0)
        kl[penalty] = learner.outer.told["inner_kl"]
    assert kl[100.0] < 0.2 * kl[0.0]


@pytest.mark.parametrize("options", [{"max_kl": 0}, {"shrink": 1}, {"backtracks": 0}, {"damping": -1}])
def test_settings_that_make_no_sense_are_refused(options):
    with pytest.raises(ValueError, match="TRPO needs"):
        rl.TRPO(**options)
    with pytest.raises(ValueError, match="PPO needs"):
        rl.PPO(lr=0)
