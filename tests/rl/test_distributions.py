from __future__ import annotations

import pytest
import torch

from innerloop.rl import Categorical, Gaussian


def random(kind: str, seed: int, shape=(4, 3)):
    g = torch.Generator().manual_seed(seed)
    draw = [torch.randn(*shape, generator=g, dtype=torch.float64) for _ in range(2)]
    return Gaussian(draw[0], 0.3 * draw[1]) if kind == "gaussian" else Categorical(draw[0])


def oracle(own):
    if isinstance(own, Gaussian):
        return torch.distributions.Independent(torch.distributions.Normal(own.mean, own.log_std.exp()), 1)
    return torch.distributions.Categorical(logits=own.logits)


@pytest.mark.parametrize("kind", ["gaussian", "categorical"])
def test_they_agree_with_torch(kind):
    one, other = random(kind, 0), random(kind, 1)
    action = oracle(one).sample()
    torch.testing.assert_close(one.log_prob(action), oracle(one).log_prob(action))
    torch.testing.assert_close(one.entropy(), oracle(one).entropy())
    torch.testing.assert_close(one.kl(other), torch.distributions.kl_divergence(oracle(one), oracle(other)))
    assert one.kl(one).abs().max() < 1e-12


@pytest.mark.parametrize("kind", ["gaussian", "categorical"])
def test_samples_are_of_the_distribution_and_of_the_generator(kind):
    own = type(random(kind, 0))(*(leaf[:1].expand(40_000, -1) for leaf in random(kind, 0)))
    drawn = own.sample(torch.Generator().manual_seed(0))
    assert torch.equal(drawn, own.sample(torch.Generator().manual_seed(0)))
    if kind == "gaussian":
        torch.testing.assert_close(drawn.mean(0), own.mean[0], atol=0.03, rtol=0)
        torch.testing.assert_close(drawn.std(0), own.log_std[0].exp(), atol=0.03, rtol=0)
    else:
        found = torch.bincount(drawn, minlength=3) / len(drawn)
        torch.testing.assert_close(found.double(), own.logits[0].softmax(-1), atol=0.01, rtol=0)


@pytest.mark.parametrize("kind", ["gaussian", "categorical"])
def test_the_mode_is_the_likeliest(kind):
    own = random(kind, 0)
    best = own.log_prob(own.mode())
    for seed in range(20):
        assert (own.log_prob(own.sample(torch.Generator().manual_seed(seed))) <= best).all()
