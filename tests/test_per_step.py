"""MAML++ part by part: multi-step loss, learned rates, per-step norms, annealed order (Antoniou et al. 2019)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import innerloop as il

STEPS, WAYS = 3, 3
BARE = {"multi_step": 0, "first_order": 0, "learned_rates": False, "per_step_norms": False}


def network(running: bool = True) -> nn.Module:
    torch.manual_seed(0)
    model = il.models.conv4(ways=WAYS, width=4, image_size=16, running=running)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def episodes(number: int = 4, seed: int = 1) -> il.Task:
    generator = torch.Generator().manual_seed(seed)

    def draw(each: int) -> il.Batch:
        y = torch.arange(WAYS).repeat(each).expand(number, -1)
        noise = torch.randn(number, WAYS * each, 1, 16, 16, generator=generator)
        return il.Batch(noise + y[..., None, None, None] * torch.linspace(-1, 1, 16), y)

    return il.Task(draw(2), draw(2))


def plus_plus(running: bool = True, **options: object) -> il.MetaLearner:
    plain = {"lr": 0.3, "steps": STEPS, "multi_step": 0, "first_order": 0}
    return il.maml_plus_plus(network(running), **(plain | options))


# -- the whole --------------------------------------------------------------------------------------------------------


def naive(model: nn.Module, slots: dict[str, Tensor], tasks: il.Task, lr: float, weights: list[float]) -> Tensor:
    """MAML++ as its paper says it, one task after the other, in plain autograd."""
    start, total = dict(model.named_parameters()), []
    for index in range(len(tasks.support.y)):
        x, y, xq, yq = (t[index] for t in (*tasks.support, *tasks.query))
        fast = {n: p for n, p in start.items() if n not in slots}
        losses = []
        for step in range(STEPS):
            norms = {n: t[step] for n, t in slots.items()}
            loss = F.cross_entropy(functional_call(model, {**fast, **norms}, (x,)), y)
            grads = torch.autograd.grad(loss, list(fast.values()), create_graph=True)
            fast = {n: p - lr * g for (n, p), g in zip(fast.items(), grads, strict=True)}
            losses.append(F.cross_entropy(functional_call(model, {**fast, **norms}, (xq,)), yq))
        total.append(torch.stack([w * loss for w, loss in zip(weights, losses, strict=True)]).sum())
    return torch.stack(total).mean()


@pytest.mark.parametrize("vectorize", [True, False])
def test_the_meta_gradient_is_that_of_a_naive_loop(vectorize: bool) -> None:
    tasks, multi_step = episodes(), 1000
    learner = plus_plus(multi_step=multi_step, vectorize=vectorize)
    slots = learner.slots
    assert slots is not None
    with torch.no_grad():
        for parameter in slots.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    grads, outcome = learner.meta_gradient(tasks, iteration=500)

    copy = network(running=False)
    copy.load_state_dict(learner.model.state_dict(), strict=False)
    own = {n: slots.learned[n].detach().clone().requires_grad_() for n in slots.parameters_of}
    loss = naive(copy, own, tasks, 0.3, [1 / 6, 1 / 6, 2 / 3])
    loss.backward()
    torch.testing.assert_close(outcome.objective.mean(), loss.detach())
    for name, parameter in copy.named_parameters():
        expected = torch.zeros_like(parameter) if name in own else parameter.grad
        torch.testing.assert_close(grads[f"model.{name}"], expected, rtol=1e-3, atol=1e-5)
    for name, value in own.items():
        assert value.grad is not None
        torch.testing.assert_close(grads[f"slots.learned.{name.replace('.', '/')}"], value.grad, rtol=1e-3, atol=1e-5)


def test_with_everything_off_it_is_maml_to_the_bit() -> None:
    tasks = episodes()
    bare, maml = plus_plus(**BARE), il.maml(network(), lr=0.3, steps=STEPS)
    for _ in range(3):
        results = []
        for learner in (bare, maml):
            optimizer = torch.optim.Adam(learner.parameters(), 1e-2)
            grads, outcome = learner.meta_gradient(tasks)
            for name, parameter in learner.named_parameters():
                parameter.grad = grads.get(name)
            optimizer.step()
            results.append((grads, outcome.objective))
        assert torch.equal(results[0][1], results[1][1])
        assert results[0][0].keys() == results[1][0].keys()
        assert all(torch.equal(g, results[1][0][n]) for n, g in results[0][0].items())
    assert bare.adapted == maml.adapted


# -- multi-step loss --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("stages", [1, 7, 100])
def test_step_weights_are_equal_first_sum_to_one_and_end_on_the_last(steps: int, stages: int) -> None:
    weights = il.schedules.multi_step(steps, 500, stages)
    every = [weights(iteration) for iteration in range(600)]
    assert every[0] == pytest.approx([1 / steps] * steps)
    assert all(sum(w) == pytest.approx(1) and min(w) >= 0 for w in every)
    assert all(later[-1] >= earlier[-1] for earlier, later in pairwise(every))
    assert every[500:] == [(*[0.0] * (steps - 1), 1.0)] * 100
    assert len(set(every)) <= stages + 1


def test_step_weights_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="steps and stages must be at least 1"):
        il.schedules.multi_step(0, 10)
    with pytest.raises(ValueError, match="first_order and multi_step must be integers of at least 0, got -5 and 0"):
        plus_plus(first_order=-5)


def test_once_annealed_the_multi_step_loss_is_the_last_steps() -> None:
    tasks = episodes()
    annealed, last = plus_plus(multi_step=10), plus_plus()
    for iteration, same in ((0, False), (10, True)):
        found, expected = (learner.meta_gradient(tasks, iteration) for learner in (annealed, last))
        assert torch.equal(found[1].objective, expected[1].objective) == same


# -- learned rates ----------------------------------------------------------------------------------------------------


def test_learned_rates_start_as_sgd_and_every_one_gets_a_gradient() -> None:
    tasks = episodes()
    learned, plain = plus_plus(**BARE | {"learned_rates": True}), plus_plus(**BARE)
    grads, _ = learned.meta_gradient(tasks)
    for name, grad in plain.meta_gradient(tasks)[0].items():
        torch.testing.assert_close(grads[name], grad)
    rates = {n: g for n, g in grads.items() if n.startswith("rule.")}
    assert len(rates) == len(learned.adapted)
    assert all(rate.shape == (STEPS,) and (rate != 0).all() for rate in rates.values())
    assert learned.predict(tasks, steps=STEPS + 2).shape[1] == STEPS + 3


# -- per-step norms ---------------------------------------------------------------------------------------------------


def trained(**options: object) -> il.MetaLearner:
    learner = plus_plus(**options)
    optimizer = torch.optim.Adam(learner.parameters(), 1e-2)
    for seed in range(30):
        grads, _ = learner.meta_gradient(episodes(seed=seed))
        for name, parameter in learner.named_parameters():
            parameter.grad = grads.get(name)
        optimizer.step()
    return learner


def test_slots_come_to_hold_different_values_and_statistics() -> None:
    learner = trained()
    assert learner.slots is not None
    tensors = learner.slots.state_dict()
    kinds = {name.rpartition("/")[2] for name in tensors}
    assert kinds == {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
    for name, tensor in tensors.items():
        assert len(tensor) == STEPS
        if "num_batches" not in name:
            assert not torch.allclose(tensor[0], tensor[-1], rtol=1e-3), name
    before = network().state_dict()
    for name in (*learner.slots.parameters_of, *learner.slots.buffers_of):
        assert torch.equal(learner.model.state_dict()[name], before[name])  # the model's own stay


def test_the_kind_of_statistics_changes_predictions() -> None:
    learner, tasks = trained(), episodes(seed=99)
    found = []
    for statistics in ("batch", "running", "shared"):
        learner.statistics = statistics
        found.append(learner.predict(tasks))
        alone = il.Task(tasks.support, il.Batch(tasks.query.x[:, :2], tasks.query.y[:, :2]))
        independent = torch.allclose(learner.predict(alone)[:, -1], found[-1][:, -1, :2], atol=1e-5)
        assert independent == (statistics != "batch") == (not learner.depends_on_query_set)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not torch.allclose(found[one], found[other], rtol=1e-2)


def test_running_statistics_are_those_of_the_step() -> None:
    """Against a network in ``eval()`` that is given each step's slots by hand, past the last the last one's."""
    learner, tasks = trained(statistics="running"), episodes(1, seed=99)
    assert learner.slots is not None
    x, y, xq, _ = (t[0] for t in (*tasks.support, *tasks.query))
    stored, model = learner.slots.put({}, {}), network().eval()
    fast = {n: p.detach().requires_grad_() for n, p in learner.model.named_parameters() if n in learner.adapted}
    outputs = []
    for step in [*range(STEPS), STEPS - 1, STEPS - 1]:
        own = {n: t[step].detach() for part in stored for n, t in part.items()}
        if not outputs:
            outputs.append(functional_call(model, {**fast, **own}, (xq,)))
        # Steps go by the statistics of the support set, as in training, and leave the stored ones alone.
        copies = {n: t.clone() for n, t in own.items()}
        loss = F.cross_entropy(functional_call(model.train(), {**fast, **copies}, (x,)), y)
        model.eval()
        grads = torch.autograd.grad(loss, list(fast.values()))
        rates = learner.rule.lr
        fast = {n: p - rates[n][step] * g for (n, p), g in zip(fast.items(), grads, strict=True)}
        outputs.append(functional_call(model, {**fast, **own}, (xq,)))
    torch.testing.assert_close(learner.predict(tasks, STEPS + 2)[0], torch.stack(outputs), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(learner.predict(tasks)[0], torch.stack(outputs)[: STEPS + 1], rtol=1e-3, atol=1e-4)
    for steps in (0, STEPS, STEPS + 2):
        adapted = learner.adapt(il.Batch(x, y), steps)
        torch.testing.assert_close(adapted(xq), outputs[steps], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(adapted.module()(xq), outputs[steps], rtol=1e-3, atol=1e-4)


def test_what_was_adapted_stays_when_training_goes_on() -> None:
    learner, tasks = trained(statistics="running"), episodes(1, seed=99)
    adapted = [learner.adapt(il.Batch(tasks.support.x[0], tasks.support.y[0]), steps) for steps in (0, STEPS)]
    before = [each(tasks.query.x[0]) for each in adapted]
    learner.meta_gradient(episodes())
    for each, output in zip(adapted, before, strict=True):
        assert torch.equal(each(tasks.query.x[0]), output)


def test_without_inner_steps_there_is_one_slot() -> None:
    learner = plus_plus(steps=0, multi_step=10, learned_rates=False)
    assert learner.slots is not None
    assert {len(tensor) for tensor in learner.slots.state_dict().values()} == {1}
    grads, outcome = learner.meta_gradient(episodes())
    assert outcome.steps.shape == (4, 0)
    assert all(grads[f"slots.{name}"].any() for name, _ in learner.slots.named_parameters())


def test_slots_of_frozen_parameters_stay_frozen() -> None:
    model = network()
    frozen = {"body.0.norm.weight", "body.0.norm.bias"}
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    learner = il.maml_plus_plus(model, steps=STEPS)
    assert learner.slots is not None
    still = {name for name in learner.slots.parameters_of if not learner.slots.learned[name].requires_grad}
    assert still == frozen
    assert not any("body/0/norm" in name for name in learner.meta_gradient(episodes())[0])


def test_a_choice_of_ones_own_takes_the_place_of_the_norms() -> None:
    own = il.norms | il.head
    learner = il.maml_plus_plus(network(), per_step=own)
    assert learner.slots is not None
    assert set(learner.slots.parameters_of) == set(own.names(learner.model))
    assert not set(learner.adapted) & set(learner.slots.parameters_of)
    usual = il.maml_plus_plus(network(), per_step=None)
    assert usual.slots is not None
    assert set(usual.slots.parameters_of) == set(il.norms.names(usual.model))


def test_statistics_that_nothing_gathers_are_refused() -> None:
    options = {"loss": F.cross_entropy, "per_step": il.named("body.0.norm.*"), "steps": 2}
    adapt = il.everything - il.norms
    learner = il.MetaLearner(network(), il.SGD(), adapt, **options)
    assert learner.depends_on_query_set
    with pytest.raises(ValueError, match=r"body\.1\.norm, body\.2\.norm, body\.3\.norm: nothing updates"):
        il.MetaLearner(network(), il.SGD(), adapt, statistics="running", **options)


def test_norms_without_statistics_depend_on_the_query_set() -> None:
    """Whatever the setting, they can only go by the examples at hand."""
    learner, tasks = il.maml(network(running=False), statistics="running"), episodes()
    assert learner.depends_on_query_set
    transductive, inductive = (learner.predict(tasks, transductive=mode) for mode in (True, False))
    assert not torch.allclose(transductive, inductive, rtol=1e-2)


@pytest.mark.parametrize("make", [plus_plus, lambda: il.maml(network(), vectorize="auto")])
def test_a_learner_in_use_can_be_copied(make: Callable[[], il.MetaLearner]) -> None:
    learner, tasks = make(), episodes()
    learner.meta_gradient(tasks)
    twin = copy.deepcopy(learner)
    assert torch.equal(twin.predict(tasks), learner.predict(tasks))
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(0.5)
    twin.meta_gradient(tasks)
    assert not torch.allclose(twin.predict(tasks), learner.predict(tasks))


def test_statistics_that_are_not_finite_are_not_kept() -> None:
    learner, tasks = plus_plus(), episodes()
    tasks.support.x[0, 0] = torch.inf
    learner.meta_gradient(tasks)
    assert learner.slots is not None
    assert all(torch.isfinite(tensor).all() for tensor in learner.slots.state_dict().values())


def test_shared_statistics_are_those_of_all_values_together() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    learner = il.MetaLearner(
        model, il.SGD(), il.everything - il.norms, loss=F.mse_loss, per_step=il.norms, steps=2, statistics="shared"
    )
    assert learner.slots is not None
    values = torch.tensor([[1.0, 3.0], [10.0, 14.0]])
    learner.slots.renew({
        "1.running_mean": values.mean(1, keepdim=True),
        "1.running_var": values.var(1, correction=0, keepdim=True),
        "1.num_batches_tracked": torch.tensor([1, 1]),
    })  # fmt: skip
    buffers = learner.slots.put({}, {}, shared=True)[1]
    assert buffers["1.running_mean"].flatten().tolist() == [values.mean()] * 2
    torch.testing.assert_close(buffers["1.running_var"].flatten(), values.var(correction=0).expand(2))


@pytest.mark.parametrize("vectorize", [True, False, 2])
def test_statistics_move_to_the_mean_over_tasks(vectorize: bool | int) -> None:
    model, x = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1)), torch.randn(4, 6, 1)
    batch = il.Batch(x, x)
    learner = il.MetaLearner(
        model, il.SGD(0.0), il.everything - il.norms, il.Reptile(), F.mse_loss, per_step=il.norms, vectorize=vectorize
    )
    for _ in range(2):
        learner.meta_gradient(il.Task(batch, batch))
    assert learner.slots is not None
    mean, variance = (learner.slots.get_buffer(f"0/running_{kind}") for kind in ("mean", "var"))
    # Each iteration judges two sets, both of which move the statistics by a tenth.
    torch.testing.assert_close(mean, (1 - 0.9**4) * x.mean().reshape(1, 1))
    torch.testing.assert_close(variance, (0.9**4 + (1 - 0.9**4) * x.var(1).mean()).reshape(1, 1))
    learner.eval()
    before = mean.clone()
    learner.meta_gradient(il.Task(batch, batch))
    learner.predict(il.Task(batch, batch))
    assert torch.equal(before, mean)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"body\.0\.norm\.weight.*everything - il\.norms"):
        il.MetaLearner(network(), il.SGD(), per_step=il.norms)
    with pytest.raises(ValueError, match="track_running_stats=True"):
        plus_plus(running=False, statistics="running")
    with pytest.raises(ValueError, match="per_step="):
        il.maml(network(), statistics="shared")
    with pytest.raises(ValueError, match="statistics must be"):
        il.maml(network(), statistics="stored")
    with pytest.raises(ValueError, match="got 0 and True"):
        plus_plus(multi_step=True)
    with pytest.raises(ValueError, match="got 'no'"):
        plus_plus(learned_rates="no")


# -- annealed order ---------------------------------------------------------------------------------------------------


def flops(learner: il.MetaLearner, iteration: int) -> int:
    learner.meta_gradient(episodes())  # the first meta-batch is also checked
    with FlopCounterMode(display=False) as counter:
        learner.meta_gradient(episodes(), iteration)
    return int(counter.get_total_flops())


def test_the_order_switches_and_costs_what_first_order_costs_before() -> None:
    options = {"lr": 0.3, "steps": STEPS, "vectorize": True}
    annealed = plus_plus(**BARE | options | {"first_order": 7})
    orders = [il.maml(network(), order=order, **options) for order in (1, 2)]
    costs = [flops(learner, 0) for learner in orders]
    assert costs[0] < 0.8 * costs[1]
    for iteration, order in ((0, 0), (6, 0), (7, 1), (100, 1)):
        assert flops(annealed, iteration) == costs[order]
        expected = orders[order].meta_gradient(episodes())[0]
        for name, grad in annealed.meta_gradient(episodes(), iteration)[0].items():
            assert torch.equal(grad, expected[name])


@pytest.mark.filterwarnings("ignore:batch norm normalizes:UserWarning")
@pytest.mark.parametrize("vectorize", ["auto", False])
@pytest.mark.parametrize("statistics", ["batch", "running", "shared"])
def test_many_tasks_adapted_at_once_have_the_norms_of_the_last_step(statistics: str, vectorize: object) -> None:
    learner = plus_plus(statistics=statistics, learned_rates=False, per_step_norms=True, vectorize=vectorize)
    tasks = episodes()
    for _ in range(3):  # so that steps differ
        grads, _ = learner.meta_gradient(tasks)
        with torch.no_grad():
            for name, grad in grads.items():
                learner.get_parameter(name).sub_(grad.sign() * 0.1)
    every = learner.adapt_all(tasks.support)(tasks.query.x)
    expected = learner.predict(tasks)[:, -1]
    torch.testing.assert_close(every, expected, rtol=1e-4, atol=1e-4)
    one = learner.adapt(il.task.select(tasks.support, 1))(tasks.query.x[1])
    torch.testing.assert_close(every[1], one, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("vectorize", [True, False, 1])
def test_constant_memory_gives_the_same_gradients(vectorize: bool | int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2)).double()
    tasks = il.Task(
        il.Batch(torch.randn(3, 6, 3).double(), torch.randn(3, 6, 2).double()),
        il.Batch(torch.randn(3, 4, 3).double(), torch.randn(3, 4, 2).double()),
    )
    gradients = {}
    for memory in ("graph", "constant"):
        learner = il.maml_plus_plus(copy.deepcopy(model), loss=F.mse_loss, steps=3, memory=memory, vectorize=vectorize)
        gradients[memory] = learner.meta_gradient(tasks)[0]
        assert all(grad.abs().sum() > 0 for name, grad in gradients[memory].items() if name.startswith("slots."))
    torch.testing.assert_close(gradients["constant"], gradients["graph"], rtol=1e-10, atol=1e-12)
