from __future__ import annotations

import math

import pytest
import torch

from innerloop.rl import Bandit, Environment, Navigation, Tabular, best_arm

G = torch.Generator


@pytest.mark.parametrize("environment", [Navigation(5), Tabular(3, 2, 5), Bandit(4, 5)])
def test_shapes_and_repetition(environment):
    assert isinstance(environment, Environment)

    def live():
        g = G().manual_seed(3)
        seen = [environment.reset(environment.tasks(4, g), 6, g)]
        for _ in range(environment.horizon):
            if environment.discrete:
                action = torch.randint(environment.actions, (4, 6), generator=g)
            else:
                action = torch.randn(4, 6, environment.actions, generator=g)
            observation, reward, done = environment.step(action)
            assert reward.shape == done.shape == (4, 6)
            assert reward.dtype == torch.float32
            assert done.dtype == torch.bool
            seen += [observation, reward]
        assert all(o.shape == (4, 6, environment.observations) for o in (seen[0], *seen[1::2]))
        return seen

    assert all(torch.equal(a, b) for a, b in zip(live(), live(), strict=True))


def test_navigation():
    environment = Navigation()
    goals = environment.tasks(1000, G().manual_seed(0))
    assert goals.abs().max() <= 0.5
    assert goals.abs().max() > 0.49
    assert torch.equal(environment.reset(torch.tensor([[0.3, -0.2]]), 2, G()), torch.zeros(1, 2, 2))
    observation, reward, done = environment.step(torch.tensor([[[5.0, -5.0], [0.05, 0.0]]]))
    torch.testing.assert_close(observation, torch.tensor([[[0.1, -0.1], [0.05, 0.0]]]))
    torch.testing.assert_close(reward, torch.tensor([[-math.hypot(0.2, 0.1), -math.hypot(0.25, 0.2)]]))
    assert not done.any()
    environment.step(torch.tensor([[[0.1, -0.1], [0.1, -0.1]]]))
    *_, done = environment.step(torch.tensor([[[0.095, 0.0], [0.1, 0.0]]]))
    assert done.tolist() == [[True, False]]


def test_tabular_goes_by_its_probabilities():
    environment = Tabular(3, 2, 4)
    tasks = environment.tasks(2, G().manual_seed(0))
    torch.testing.assert_close(tasks.transition.sum(-1), torch.ones(2, 3, 2))
    assert (tasks.transition >= 0).all()
    environment.reset(tasks, 50_000, G().manual_seed(1))
    action = torch.tensor([[0], [1]]).expand(2, 50_000)
    observation, reward, _ = environment.step(action)
    for task, taken in enumerate((0, 1)):
        torch.testing.assert_close(observation[task].mean(0), tasks.transition[task, 0, taken], atol=0.01, rtol=0)
        assert (reward[task] == tasks.reward[task, 0, taken]).all()


def test_a_bandit_pays_by_its_means():
    environment = Bandit(3, 4, noise=0.5)
    means = environment.tasks(2, G().manual_seed(0))
    environment.reset(means, 50_000, G().manual_seed(1))
    _, reward, _ = environment.step(torch.full((2, 50_000), 2))
    torch.testing.assert_close(reward.mean(1), means[:, 2], atol=0.01, rtol=0)
    torch.testing.assert_close(reward.std(1), torch.full((2,), 0.5), atol=0.01, rtol=0)


def test_the_best_arm():
    drawn = torch.randn(200_000, 5, generator=G().manual_seed(0)).max(1).values.mean()
    assert best_arm(5) == pytest.approx(drawn.item(), abs=0.01)
    assert best_arm(1) == pytest.approx(0, abs=1e-6)
