"""Norms by what the support set tells."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

import innerloop as il
from innerloop.support_norm import SupportNorm2d, support_first


def test_at_first_it_is_batch_norm_by_the_support_set() -> None:
    x, norm, batch = torch.randn(7, 3, 4, 4) + 2, SupportNorm2d(3), nn.BatchNorm2d(3, momentum=None)
    with torch.no_grad():
        batch.weight.copy_(torch.rand(3))
        batch.bias.copy_(torch.rand(3))
        norm.weight.copy_(batch.weight)
        norm.bias.copy_(batch.bias)
    torch.testing.assert_close(norm(x), batch(x))
    batch.reset_running_stats()
    support = batch(x[:5])
    with support_first(5):
        found = norm(x)
    torch.testing.assert_close(found[:5], support)
    batch.running_var *= 79 / 80  # torch keeps the unbiased one
    torch.testing.assert_close(found[5:], batch.eval()(x[5:]))


def network() -> nn.Module:
    torch.manual_seed(0)
    model = il.models.conv4(ways=3, width=4, image_size=16, norm="support")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("vectorize", [True, False])
def test_the_meta_gradient_is_that_of_a_naive_loop(vectorize: bool, episodes: Callable[..., il.Task]) -> None:
    tasks, model = episodes(2, size=16), network()
    learner = il.maml(model, 0.1, steps=2, vectorize=vectorize)
    grads, outcome = learner.meta_gradient(tasks)
    start, losses = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}, []
    for index in range(2):
        x, y, xq, yq = (t[index] for t in (*tasks.support, *tasks.query))
        fast = dict(start)
        for _ in range(2):
            loss = F.cross_entropy(functional_call(model, fast, (x,)), y)
            moved = {n: p for n, p in fast.items() if ".infer." not in n}
            slopes = torch.autograd.grad(loss, list(moved.values()), create_graph=True)
            fast |= {n: p - 0.1 * g for (n, p), g in zip(moved.items(), slopes, strict=True)}
        with support_first(len(x)):
            output = functional_call(model, fast, (torch.cat([x, xq]),))[len(x) :]
        losses.append(F.cross_entropy(output, yq))
    torch.testing.assert_close(outcome.loss, torch.stack(losses).detach())
    expected = torch.autograd.grad(torch.stack(losses).mean(), list(start.values()))
    for name, grad in zip(start, expected, strict=True):
        torch.testing.assert_close(grads[f"model.{name}"], grad, rtol=1e-3, atol=1e-5)
        assert grad.any(), name


def test_what_it_infers_by_is_meta_learned_and_not_adapted_unless_named() -> None:
    model = network()
    inferring = {name for name, _ in model.named_parameters() if ".infer." in name}
    assert len(inferring) == 4 * 4
    every = {name for name, _ in model.named_parameters()}
    assert set(il.everything.names(model)) == every - inferring
    assert set(il.named("*.infer.*").names(model)) == inferring
    assert set(il.everything.names(SupportNorm2d(3))) == {"weight", "bias"}
    learner = il.maml_plus_plus(model, steps=2)  # its norms, what they infer by among them, are each step's own
    assert not inferring & set(learner.adapted)


@pytest.mark.parametrize("vectorize", [True, False])
def test_a_prediction_does_not_depend_on_the_other_queries(vectorize: bool, episodes: Callable[..., il.Task]) -> None:
    tasks = episodes(2, size=16)
    learner = il.maml(network(), 0.1, steps=2, vectorize=vectorize)
    assert not learner.depends_on_query_set
    whole = learner.predict(tasks)
    alone = learner.predict(il.Task(tasks.support, il.Batch(tasks.query.x[:, :1], tasks.query.y[:, :1])))
    torch.testing.assert_close(alone, whole[:, :, :1])
    torch.testing.assert_close(learner.predict(tasks, transductive=False), whole)
    adapted = learner.adapt(il.task.select(tasks.support, 0))
    torch.testing.assert_close(adapted(tasks.query.x[0]), whole[0, -1])


def test_a_plain_module_of_it_knows_the_support_set_no_longer(episodes: Callable[..., il.Task]) -> None:
    adapted = il.maml(network(), 0.1).adapt(il.task.select(episodes(1, size=16).support, 0))
    with pytest.raises(ValueError, match="SupportNorm2d"):
        adapted.module()


def test_statistics_that_it_does_not_keep_are_refused() -> None:
    with pytest.raises(ValueError, match='running=True needs norm="batch"'):
        il.models.conv4(norm="support", running=True)
    with pytest.raises(ValueError, match='norm must be "batch" or "support", got \'layer\''):
        il.models.conv4(norm="layer")  # type: ignore[arg-type]
