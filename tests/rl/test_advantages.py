from __future__ import annotations

import copy

import pytest
import torch

from innerloop.rl import Gaussian, LinearBaseline, Rollout, ValueFunction, discounted, generalized
from innerloop.rl.advantages import normalized


def episodes(seed: int = 0, tasks: int = 3, number: int = 5, horizon: int = 7, ends: bool = True) -> Rollout:
    g = torch.Generator().manual_seed(seed)
    shape = (tasks, number, horizon)
    last = torch.randint(1, horizon + 1, (tasks, number, 1), generator=g) if ends else horizon
    alive = (torch.arange(horizon) < last).float().expand(shape)
    behaviour = Gaussian(torch.zeros(*shape, 1), torch.zeros(*shape, 1))
    observations = torch.randn(*shape, 2, generator=g)
    return Rollout(observations, torch.zeros(*shape, 1), torch.randn(shape, generator=g) * alive, alive, behaviour)


def test_returns_against_a_naive_loop():
    rewards = episodes().rewards.double()
    found = discounted(rewards, 0.9)
    for t in range(rewards.shape[-1]):
        naive = sum(0.9**later * rewards[..., t + later] for later in range(rewards.shape[-1] - t))
        torch.testing.assert_close(found[..., t], naive)


@pytest.mark.parametrize("trace", [0.0, 0.7, 1.0])
def test_gae_against_a_naive_loop(trace):
    lived = episodes()
    rewards, alive = lived.rewards.double(), lived.alive.double()
    values = torch.randn(rewards.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * alive
    found = generalized(rewards, values, alive, 0.9, trace)
    for task in range(rewards.shape[0]):
        for episode in range(rewards.shape[1]):
            length = int(alive[task, episode].sum())
            r, v = rewards[task, episode].tolist(), [*values[task, episode, :length].tolist(), 0.0]
            for t in range(rewards.shape[2]):
                naive = sum((0.9 * trace) ** (k - t) * (r[k] + 0.9 * v[k + 1] - v[k]) for k in range(t, length))
                assert found[task, episode, t].item() == pytest.approx(naive, abs=1e-12)


def test_with_lambda_1_advantages_are_returns_minus_values():
    lived = episodes()
    values = torch.randn(lived.rewards.shape) * lived.alive
    expected = (discounted(lived.rewards, 0.9) - values) * lived.alive
    torch.testing.assert_close(generalized(lived.rewards, values, lived.alive, 0.9, 1.0), expected)


def test_normalized_over_the_steps_that_happened():
    lived = episodes()
    plain = 5 + 3 * torch.randn(lived.rewards.shape)
    found, spread = normalized(plain, lived.alive)
    for task in range(3):
        happened = found[task][lived.alive[task] > 0]
        assert happened.mean().abs() < 1e-5
        assert happened.std(correction=0).item() == pytest.approx(1, abs=1e-4)
        assert not found[task][lived.alive[task] == 0].any()
        assert spread[task].item() == pytest.approx(
            plain[task][lived.alive[task] > 0].std(correction=0).item(), abs=1e-4
        )


def test_the_linear_baseline_is_least_squares_of_each_task():
    lived = episodes(horizon=30)
    returns = discounted(lived.rewards, 0.9)
    found = LinearBaseline(1e-10)(lived, returns)
    for task in range(3):
        happened = lived.alive[task] > 0
        features = LinearBaseline._features(lived.observations)[task][happened]
        solution = torch.linalg.lstsq(features, returns[task][happened].double()[:, None]).solution
        torch.testing.assert_close(found[task][happened].double(), (features @ solution)[:, 0], atol=2e-3, rtol=1e-3)
        assert not found[task][~happened].any()


def test_the_value_function_learns_and_is_taken_up():
    lived = episodes(tasks=6, number=40, ends=False)
    returns = 3 + 2 * lived.observations[..., 0] - 0.5 * torch.arange(7)
    one, other = ValueFunction(2, 7), ValueFunction(2, 7)
    before = (one(lived, returns) - returns).square().mean()
    for _ in range(10):
        one.learn(lived, returns)
    after = one(lived, returns)
    assert (after - returns).square().mean() < 0.02 * before
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    assert torch.equal(other(lived, returns), after)
    one.learn(lived, returns)
    other.learn(lived, returns)
    assert torch.equal(other(lived, returns), one(lived, returns))
