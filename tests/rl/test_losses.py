"""Meta-gradients of policies against everything that can happen in a small decision process, added up."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as F

import innerloop as il
from innerloop import rl
from innerloop.task import select

S, A, H, RATE = 2, 2, 2, 0.75
G = torch.Generator().manual_seed(5)
TRANSITION = torch.rand(S, A, S, generator=G, dtype=torch.float64)
TRANSITION = TRANSITION / TRANSITION.sum(-1, keepdim=True)
REWARD = torch.randn(S, A, generator=G, dtype=torch.float64)

PATHS = [((0, a0), (s1, a1)) for a0, s1, a1 in itertools.product(range(A), range(S), range(A))]
"""Every episode: state and action, twice."""


def likelihoods(params, chances: bool = True):
    """``log pi`` of each step of every episode ``[8, 2]``, and the probability of every episode ``[8]``."""
    logits = F.log_softmax(params["head.weight"].T + params["head.bias"], -1)  # [S, A]
    logp = torch.stack([torch.stack([logits[s, a] for s, a in path]) for path in PATHS])
    world = torch.stack([TRANSITION[0, first[1], second[0]] for first, second in PATHS])
    return logp, logp.sum(1).exp() * world


def rewards():
    return torch.stack([torch.stack([REWARD[s, a] for s, a in path]) for path in PATHS])


def value(params):
    """The expected reward a step."""
    return (likelihoods(params)[1] * rewards().sum(1)).sum() / H


def advantages():
    return rl.discounted(rewards(), 1.0)


def adapted(params, path: int, graph: bool = True):
    """After a step on one episode, written out."""
    logp, _ = likelihoods(params)
    inner = -(logp[path] * advantages()[path]).mean()
    grads = torch.autograd.grad(inner, list(params.values()), create_graph=graph)
    return {name: p - RATE * g for (name, p), g in zip(params.items(), grads, strict=True)}


def learner(objective):
    torch.manual_seed(0)
    policy = rl.categorical_policy(S, A, hidden=()).double()
    torch.nn.init.normal_(policy.head.weight)
    made = il.MetaLearner(policy, il.SGD(RATE), objective=objective, loss=rl.ratio, inner_loss=rl.score, batch_size=1)
    return made.double()


def everything(params) -> il.Task:
    """A task for every episode to adapt to, judged by all episodes that can come then."""
    observations = F.one_hot(torch.tensor([[s for s, _ in path] for path in PATHS]), S).double()
    actions = torch.tensor([[a for _, a in path] for path in PATHS])
    number, parts = len(PATHS), []
    for path in range(number):
        after = {name: p.detach() for name, p in adapted(params, path, graph=False).items()}
        _, probability = likelihoods(after)
        weighted = (number * probability * rewards().sum(1))[:, None].expand(-1, H)
        logits = observations @ after["head.weight"].T + after["head.bias"]
        worth = value(after).expand(number, 1)
        ones = torch.ones(number, H, dtype=torch.float64)
        query = rl.Decisions(actions, weighted, ones, rl.Categorical(logits), worth)
        before = observations[path : path + 1] @ params["head.weight"].T + params["head.bias"]
        own = slice(path, path + 1)
        support = rl.Decisions(actions[own], advantages()[own], ones[:1], rl.Categorical(before.detach()), worth[:1])
        parts.append(il.Task(il.Batch(observations[own], support), il.Batch(observations, query)))
    return torch.utils._pytree.tree_map(lambda *leaves: torch.stack(leaves), *parts)


@pytest.mark.parametrize("correction", [False, True])
def test_the_meta_gradient_is_that_of_all_that_can_happen(correction):
    own = learner(rl.Sampling() if correction else il.Unrolled())
    params = dict(own.model.named_parameters())
    chances = likelihoods(params)[1]
    fixed = chances if correction else chances.detach()
    exact = sum(fixed[path] * value(adapted(params, path)) for path in range(len(PATHS)))
    expected = torch.autograd.grad(exact, list(params.values()))
    found = own(everything(params)).objective
    grads = torch.autograd.grad((chances.detach() * found).sum(), list(params.values()))
    for grad, right in zip(grads, expected, strict=True):
        torch.testing.assert_close(-grad, right, atol=1e-10, rtol=1e-8)


def test_the_correction_matters():
    found = []
    for objective in (rl.Sampling(), il.Unrolled()):
        own = learner(objective)
        params = list(own.model.parameters())
        judged = own(everything(dict(own.model.named_parameters()))).objective
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(judged.sum(), params)]))
    assert (found[0] - found[1]).norm() > 0.1 * found[1].norm()


def test_score_and_ratio_have_the_same_gradient_where_the_policy_acted():
    own = learner(il.Unrolled())
    tasks = everything(dict(own.model.named_parameters()))
    x, y = select(tasks.support, 0)
    grads = [torch.autograd.grad(loss(own.model(x), y), list(own.model.parameters())) for loss in (rl.score, rl.ratio)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def decisions(advantage: float) -> rl.Decisions:
    behaviour = rl.Categorical(torch.zeros(1, 1, 2))
    ones = torch.ones(1, 1)
    return rl.Decisions(torch.zeros(1, 1, dtype=torch.long), advantage * ones, ones, behaviour, ones)


def test_clipping_gives_nothing_for_going_far():
    loss = rl.Clipped(0.2)
    for advantage, logits, moves in ((1.0, 2.0, False), (1.0, -2.0, True), (-1.0, -2.0, False), (-1.0, 2.0, True)):
        output = torch.tensor([[[logits, 0.0]]], requires_grad=True)
        (grad,) = torch.autograd.grad(loss(rl.Categorical(output), decisions(advantage)), output)
        assert bool(grad.any()) is moves
    with pytest.raises(ValueError, match="clip must be above 0"):
        rl.Clipped(0)


def test_steps_after_the_end_count_for_nothing():
    y = decisions(1.0)
    both = rl.Decisions(
        torch.tensor([[0, 1]]), torch.tensor([[1.0, 99.0]]), torch.tensor([[1.0, 0.0]]),
        rl.Categorical(torch.zeros(1, 2, 2)), torch.ones(1, 1),
    )  # fmt: skip
    logits = torch.tensor([[[0.3, -0.1], [5.0, 2.0]]])
    for loss in (rl.score, rl.ratio, rl.Clipped(), rl.divergence):
        torch.testing.assert_close(loss(rl.Categorical(logits), both), loss(rl.Categorical(logits[:, :1]), y))


def lived(**options):
    torch.manual_seed(0)
    own = rl.maml_trpo(rl.gaussian_policy(2, 2, hidden=(4,)), episodes=3, steps=2, vectorize=True, **options)
    return own, rl.Interaction(rl.Navigation(6)).collect(own, 3, torch.Generator().manual_seed(1))


def test_all_policies_of_an_adaptation_are_judged_by_their_own_episodes():
    own, tasks = lived(weights=(1, 0, 3))
    last = own(tasks, objective=il.Unrolled()).objective
    first = torch.stack([
        rl.ratio(own.model(support.x[:3]), select(support.y, slice(0, 3)))
        for support in (select(tasks.support, task) for task in range(3))
    ])  # fmt: skip
    torch.testing.assert_close(own(tasks).objective, 0.25 * first + 0.75 * last)
    torch.testing.assert_close(own(tasks, objective=rl.Along(weights=(0, 0, 1))).objective, last)


def test_weights_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="not all 0"):
        rl.Along(weights=(0, 0))
    with pytest.raises(
        ValueError, match=r"weights needs a number for each policy after 0, 1, ..., 2 steps, got \(1, 1\)"
    ):
        lived(weights=(1, 1))
    own, tasks = lived()
    with pytest.raises(ValueError, match="2 inner steps have 3 policies"):
        own(tasks, objective=rl.Along(weights=(1, 1)))


def test_the_correction_is_nothing_where_the_policies_are_those_that_acted():
    own, tasks = lived()
    torch.testing.assert_close(own(tasks, objective=rl.Sampling()).objective, own(tasks).objective, atol=1e-4, rtol=0)


@pytest.mark.parametrize("loss", [rl.score, rl.ratio, rl.Clipped(), rl.divergence])
def test_infinities_after_the_end_do_no_harm(loss):
    y = rl.Decisions(
        torch.tensor([[0, 1]]), torch.tensor([[1.0, float("inf")]]), torch.tensor([[1.0, 0.0]]),
        rl.Categorical(torch.tensor([[[0.0, 0.0], [float("nan"), 0.0]]])), torch.ones(1, 1),
    )  # fmt: skip
    assert loss(rl.Categorical(torch.zeros(1, 2, 2)), y).isfinite()
