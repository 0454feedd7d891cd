"""Adapted models go on from where they are, are saved and restored, and tell their path."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import innerloop as il

MAKERS = {
    "maml": lambda: il.maml(net(), 0.1, steps=5),
    "with norms": lambda: il.maml(net(nn.BatchNorm1d(8)), 0.1, steps=5),
    "stored statistics": lambda: il.maml(net(nn.BatchNorm1d(8)), 0.1, steps=5, statistics="running"),
    "mini-batches": lambda: il.maml(net(), 0.1, steps=5, batch_size=4),
    "Adam": lambda: il.maml(net(), rule=il.Adam(0.01), steps=5),
    "chain": lambda: il.maml(net(), rule=il.Chain(il.Clip(1.0), il.Momentum(), il.SGD(0.1)), steps=5),
    "groups": lambda: il.maml(net(), rule=il.PerGroup({"0.*": il.Adam(0.01), "*": il.SGD(0.1)}), steps=5),
    "learned rates": lambda: il.meta_sgd(net(), 0.1, steps=5),
    "maml++": lambda: il.maml_plus_plus(net(nn.BatchNorm1d(8)), 0.1, steps=5),
    "head": lambda: il.anil(net(), 0.1, steps=5),
    "prototypes": lambda: il.protomaml(net(), 0.1, steps=5),
}


def net(*norm: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 8), *norm, nn.Tanh(), nn.Linear(8, 3))


def support(seed: int = 0, number: int = 9) -> il.Batch:
    generator = torch.Generator().manual_seed(seed)
    return il.Batch(torch.randn(number, 4, generator=generator), torch.arange(number) % 3)


X = support(5, 12).x


def saved(state: Any) -> Any:
    """The same after `torch.save` and a `torch.load` that runs no code."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("name", MAKERS)
def test_two_steps_and_three_are_five(name: str) -> None:
    learner = MAKERS[name]()
    first = learner.adapt(support(), steps=2)
    whole = learner.adapt(support(), steps=5)
    restored = learner.restore(saved(first.state_dict()))
    for begin in (first, restored):
        assert torch.equal(begin(X), first(X))
        assert torch.equal(begin.losses, first.losses)
        longer = learner.adapt(support(), steps=3, after=begin)
        assert torch.equal(longer(X), whole(X))
        assert torch.equal(longer.losses, whole.losses)
        assert all(torch.equal(longer.parameters[n], whole.parameters[n]) for n in whole.parameters)
    again = learner.adapt(support(), steps=0, after=first)
    assert torch.equal(again(X), first(X))


@pytest.mark.parametrize("name", ["maml", "Adam"])
def test_the_path_is_that_of_shorter_adaptations(name: str) -> None:
    learner = MAKERS[name]()
    adapted = learner.adapt(support(), path=True)
    assert len(adapted.path) == 6
    for steps, params in enumerate(adapted.path):
        shorter = learner.adapt(support(), steps=steps)
        assert all(torch.equal(params[n], shorter.parameters[n]) for n in params)
    assert learner.adapt(support()).path == ()
    more = learner.adapt(support(), steps=2, after=adapted, path=True)
    assert len(more.path) == 3
    assert all(torch.equal(more.path[0][n], adapted.path[-1][n]) for n in more.path[0])


def test_it_goes_on_with_other_examples() -> None:
    """As a loop by hand does, with the moments of Adam kept."""
    learner = MAKERS["Adam"]()
    adapted = learner.adapt(support(1, 6), steps=2, after=learner.adapt(support(), steps=3))
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for batch in (*[support()] * 3, *[support(1, 6)] * 2):
        optimizer.zero_grad()
        F.cross_entropy(model(batch.x), batch.y).backward()
        optimizer.step()
    torch.testing.assert_close(adapted(X), model(X).detach())


@pytest.mark.parametrize("name", ["maml", "maml++"])
def test_what_was_restored_does_not_change_with_the_learner(name: str) -> None:
    learner = MAKERS[name]()
    adapted = learner.adapt(support())
    state, expected = saved(adapted.state_dict()), adapted(X)
    with torch.no_grad():
        for parameter in learner.model.parameters():
            parameter.add_(1.0)
    restored = learner.restore(state)
    assert torch.equal(restored(X), expected)
    for tensor in _tensors(state):
        tensor.zero_()
    assert torch.equal(restored(X), expected)


def _tensors(state: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(state) if isinstance(leaf, Tensor)]


class Growing(il.UpdateRule):
    """Its state has another structure than it begins with."""

    def init(self, params: il.Params) -> Any:
        return ()

    def forward(self, grads: il.Params, params: il.Params, state: Any, step: int) -> Any:
        return {name: -0.1 * grad for name, grad in grads.items()}, (*state, torch.zeros(()))


def test_states_that_do_not_fit_are_refused() -> None:
    learner, state = MAKERS["maml"](), MAKERS["Adam"]().adapt(support(), steps=2).state_dict()
    with pytest.raises(ValueError, match=r"another update rule than SGD: it kept \d+ values, and this one keeps 0"):
        learner.restore(state)
    other = il.maml(nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 3)), 0.1)
    with pytest.raises(ValueError, match=r"that of another learner: 0\.bias is \(8,\) there and \(9,\) here"):
        other.restore(learner.adapt(support()).state_dict())
    with pytest.raises(ValueError, match=r"of another learner: 0\.bias is \(8,\) there and missing here"):
        il.anil(net()).restore(learner.adapt(support()).state_dict())
    with pytest.raises(ValueError, match=r"adapted by another one: give learner\.restore"):
        learner.adapt(support(), after=MAKERS["Adam"]().adapt(support()))
    with pytest.raises(ValueError, match=r"that of another learner: 1\.running_mean is \(8,\) there and missing here"):
        learner.restore({**state, "buffers": {"1.running_mean": torch.zeros(8)}})
    for strange in ({}, {"format": 2}, 3, learner.state_dict()):
        with pytest.raises(ValueError, match=r"not the state of an adapted model: .* state_dict\(\)"):
            learner.restore(strange)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"state of Growing has another structure than its init\(\) returns"):
        il.maml(net(), rule=Growing()).adapt(support(), steps=2).state_dict()
