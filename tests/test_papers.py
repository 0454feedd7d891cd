"""The papers of docs/papers.md: at most 15 lines each, and the meta-gradients of plain loops in double precision."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

import innerloop as il

PAGE = Path(__file__).parents[1] / "docs" / "papers.md"
MOST_LINES = 15
T, S = 3, 6
pytestmark = [
    pytest.mark.usefixtures("double"),
    pytest.mark.filterwarnings("ignore:the gradient of the learned inner loss does not depend on its last.bias"),
    pytest.mark.filterwarnings("ignore:There is a performance drop"),
]

Params = dict[str, Tensor]


def blocks() -> list[tuple[str, str]]:
    """The Python blocks of the page, with the headings above them."""
    sections = re.split(r"^## ", PAGE.read_text(), flags=re.M)
    return [
        (part.splitlines()[0], code) for part in sections for code in re.findall(r"```python\n(.*?)```", part, re.S)
    ]


def lines(code: str) -> int:
    """Of code: empty ones apart, and docstrings and comments."""
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in code.splitlines())


@pytest.fixture
def page() -> Callable[..., Any]:
    """``(heading, number, **options) -> learner, names``: what the code under a heading makes, in double precision."""

    def made(heading: str, number: int = 0, **options: Any) -> tuple[il.MetaLearner, dict[str, Any]]:
        torch.manual_seed(0)
        names: dict[str, Any] = {"options": options}
        known = blocks()
        exec(known[0][1], names)
        learners = []
        for code in [code for title, code in known[1:] if title == heading]:
            exec(re.sub(r"^(learner = .*)\)$", r"\1, **options)", code, flags=re.M), names)
            learners += [names["learner"]] if "learner = " in code else []
        return learners[number].double(), names

    return made


@pytest.fixture
def tasks() -> il.Task:
    generator = torch.Generator().manual_seed(0)

    def batch() -> il.Batch:
        return il.Batch(torch.randn(T, S, 1, generator=generator), torch.randint(0, 3, (T, S), generator=generator))

    return il.Task(batch(), batch())


def each(tasks: il.Task) -> Iterator[il.Task]:
    """The tasks, one by one."""
    for i in range(T):
        yield il.Task(il.Batch(tasks.support.x[i], tasks.support.y[i]), il.Batch(tasks.query.x[i], tasks.query.y[i]))


class Plain:
    """One task of a learner as a loop by hand has it: functions of the adapted parameters."""

    def __init__(self, learner: il.MetaLearner, task: il.Task) -> None:
        every = dict(learner.model.named_parameters())
        self.model, self.task = learner.model, task
        self.start = {name: every[name] for name in learner.adapted}
        self.fixed = {name: p for name, p in every.items() if name not in self.start}

    def output(self, params: Params, x: Tensor) -> Tensor:
        result: Tensor = functional_call(self.model, {**self.fixed, **params}, (x,))
        return result

    def support(self, params: Params, chosen: slice = slice(None)) -> Tensor:
        return F.cross_entropy(self.output(params, self.task.support.x[chosen]), self.task.support.y[chosen])

    def query(self, params: Params) -> Tensor:
        return F.cross_entropy(self.output(params, self.task.query.x), self.task.query.y)


def slope(loss: Tensor, params: Params) -> Params:
    """The gradient, with its graph."""
    return dict(zip(params, torch.autograd.grad(loss, list(params.values()), create_graph=True), strict=True))


def descended(params: Params, grads: Params, rate: Any) -> Params:
    return {name: p - rate * grads[name] for name, p in params.items()}


def constant(params: Params) -> Params:
    """Constants that gradients can be taken by."""
    return {name: p.detach().requires_grad_() for name, p in params.items()}


# -- the papers as loops by hand: (learner, one task) -> its objective ------------------------------------------------


def sharp_maml(learner: Any, task: il.Task) -> Tensor:
    plain = Plain(learner, task)
    params = plain.start
    for _ in range(2):
        grads = slope(plain.support(params), params)
        norm = sum(g.square().sum() for g in grads.values()) ** 0.5
        worse = {n: p + 0.05 * grads[n] / norm for n, p in params.items()}
        params = descended(params, slope(plain.support(worse), worse), 0.1)
    return plain.query(params)


def alfa(learner: Any, task: il.Task) -> Tensor:
    plain, rule = Plain(learner, task), learner.rule
    params, number = plain.start, len(plain.start)
    for step in range(2):
        grads = slope(plain.support(params), params)
        state = torch.stack([t.mean() for t in list(params.values()) + list(grads.values())])
        found = rule.generate(state) * rule.scale[step]
        params = {n: found[number + i] * params[n] - found[i] * grads[n] for i, n in enumerate(params)}  # Eq. 5
    return plain.query(params)


def l2f(learner: Any, task: il.Task) -> Tensor:
    plain = Plain(learner, task)
    grads = slope(plain.support(plain.start), plain.start)
    gates = learner.initial.gates(torch.stack([g.mean() for g in grads.values()]))
    params = {n: gates[i] * p for i, (n, p) in enumerate(plain.start.items())}
    for _ in range(2):
        params = descended(params, slope(plain.support(params), params), 0.1)
    return plain.query(params)


def unicorn(learner: Any, task: il.Task) -> Tensor:
    plain, first = Plain(learner, task), learner.initial
    params = {**plain.start, "0.4.weight": torch.stack([first.weight] * 3), "0.4.bias": torch.stack([first.bias] * 3)}
    for _ in range(2):
        params = descended(params, slope(plain.support(params), params), 0.1)
    return plain.query(params)


def metal(learner: Any, task: il.Task) -> Tensor:
    plain, net = Plain(learner, task), learner.inner_loss
    params = plain.start
    for _ in range(2):
        output, guess = plain.output(params, task.support.x), plain.output(params, task.query.x)
        supervised = F.cross_entropy(output, task.support.y)
        state = torch.stack([supervised, *(p.mean() for p in params.values()), output.mean(), guess.mean()])
        a, b, c, d = net.adapt(state)
        hidden = torch.tanh(((1 + a) * net.first.weight + b) @ state + net.first.bias)
        loss = supervised + (((1 + c) * net.last.weight + d) @ hidden + net.last.bias).sum()
        params = descended(params, slope(loss, params), 0.1)
    return plain.query(params)


def warp_maml(learner: Any, task: il.Task) -> Tensor:
    plain = Plain(learner, task)
    assert sorted(plain.fixed) == ["2.bias", "2.weight"]
    params = plain.start
    for _ in range(3):
        params = descended(params, slope(plain.support(params), params), 0.1)
    return plain.query(params)


def warp_grad(learner: Any, task: il.Task) -> Tensor:
    plain = Plain(learner, task)
    params, losses = constant(plain.start), []
    for _ in range(3):
        after = descended(params, slope(plain.support(params), params), 0.1)
        losses.append(plain.query(after))
        params = constant(after)
    zero = sum(0 * p.sum() for p in plain.start.values())
    return torch.stack(losses).mean() + zero


def bootstrapped(learner: Any, task: il.Task) -> Tensor:
    plain = Plain(learner, task)
    params = plain.start
    for _ in range(2):
        params = descended(params, slope(plain.support(params), params), 0.1)
    target = constant(params)
    for _ in range(3):
        target = constant(descended(target, slope(plain.support(target), target), 0.1))
    teacher = plain.output(target, task.query.x).softmax(-1).detach()
    student = plain.output(params, task.query.x).softmax(-1)
    return (teacher * (teacher.log() - student.log())).sum(-1).mean()


def truncated(learner: Any, task: il.Task) -> Tensor:
    plain = Plain(learner, task)
    params = plain.start
    for step in range(4):
        grads = slope(plain.support(params), params)
        grads = grads if step >= 2 else {n: g.detach() for n, g in grads.items()}
        params = descended(params, grads, 0.1)
    return plain.query(params)


def online(learner: Any, task: il.Task) -> Tensor:
    plain = Plain(learner, task)
    params, losses = plain.start, []
    for step in range(3):
        losses.append(plain.support(params, slice(2 * step, 2 * step + 2)))
        params = descended(params, slope(losses[-1], params), 0.1)
    return sum(losses) / 3


def line_search(learner: Any, task: il.Task) -> Tensor:
    plain = Plain(learner, task)
    params = plain.start
    for _ in range(2):
        grads = slope(plain.support(params), params)
        losses = {rate: float(plain.support(descended(params, grads, rate)).detach()) for rate in (0.01, 0.1, 1.0)}
        params = descended(params, grads, min(losses, key=losses.__getitem__))
    return plain.query(params)


def _root(square: Tensor) -> Tensor:
    """The square root, whose slope at zero counts as zero."""
    return torch.where(square > 0, square.where(square > 0, torch.ones_like(square)).sqrt(), 0.0)


def curved_adam(learner: Any, task: il.Task) -> Tensor:
    plain, curvature = Plain(learner, task), next(iter(learner.rule))
    params = plain.start
    first, second = ({n: torch.zeros_like(p) for n, p in params.items()} for _ in range(2))
    for step in range(2):
        grads, _ = curvature(slope(plain.support(params), params), params, (), step)
        first = {n: 0.9 * first[n] + 0.1 * g for n, g in grads.items()}
        second = {n: 0.999 * second[n] + 0.001 * g**2 for n, g in grads.items()}
        scale = {n: _root(v / (1 - 0.999 ** (step + 1))) + 1e-8 for n, v in second.items()}
        params = {n: p - 0.01 * first[n] / (1 - 0.9 ** (step + 1)) / scale[n] for n, p in params.items()}
    return plain.query(params)


ORACLES: dict[tuple[str, int], Callable[[Any, il.Task], Tensor]] = {
    ("Sharp-MAML", 0): sharp_maml,
    ("ALFA", 0): alfa,
    ("L2F", 0): l2f,
    ("UNICORN-MAML", 0): unicorn,
    ("MeTAL", 0): metal,
    ("Warp-MAML and WarpGrad", 0): warp_maml,
    ("Warp-MAML and WarpGrad", 1): warp_grad,
    ("Bootstrapped meta-learning", 0): bootstrapped,
    ("Truncated unrolling", 0): truncated,
    ("The loss at every step counts", 0): online,
    ("A line search", 0): line_search,
    ("Meta-Curvature with Adam behind it", 0): curved_adam,
}


def by_hand(oracle: Callable[[Any, il.Task], Tensor], learner: il.MetaLearner, tasks: il.Task) -> Params:
    objective = torch.stack([oracle(learner, task) for task in each(tasks)]).mean()
    learned = {name: p for name, p in learner.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad(objective, list(learned.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(learned, grads, strict=True))


def assert_close(found: Params, expected: Params) -> None:
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")


def test_each_paper_takes_few_lines() -> None:
    assert {title: lines(code) for title, code in blocks() if lines(code) > MOST_LINES} == {}


def test_every_paper_has_an_oracle() -> None:
    titles = [title for title, code in blocks()[1:] if "learner = " in code]
    assert sorted(titles) == sorted([*(title for title, _ in ORACLES), "Reptile whose Adam remembers"])


@pytest.mark.parametrize("memory", ["graph", "constant"])
@pytest.mark.parametrize("vectorize", [True, False, 2])
@pytest.mark.parametrize("which", ORACLES, ids=lambda which: f"{which[0]} {which[1]}")
def test_meta_gradients_are_those_of_a_loop_by_hand(
    page: Any, tasks: il.Task, which: tuple[str, int], vectorize: Any, memory: Any
) -> None:
    learner, _ = page(*which, vectorize=vectorize, memory=memory)
    expected = by_hand(ORACLES[which], learner, tasks)
    assert sum(grad.abs().sum() for grad in expected.values()) > 1e-3
    assert_close(learner.meta_gradient(tasks)[0], expected)


def test_the_outer_level_of_sharp_maml(page: Any, tasks: il.Task) -> None:
    learner, names = page("Sharp-MAML")
    before = {name: p.detach().clone() for name, p in learner.named_parameters()}
    grads, _ = names["sharp_meta_gradient"](learner, tasks, 0.1)
    here = by_hand(sharp_maml, learner, tasks)
    norm = sum(g.square().sum() for g in here.values()) ** 0.5
    with torch.no_grad():
        for name, parameter in learner.named_parameters():
            torch.testing.assert_close(parameter, before[name])
            parameter += 0.1 * here[name] / norm if name in here else 0
    assert_close(grads, by_hand(sharp_maml, learner, tasks))


def test_online_objectives_call_the_model_once_a_step(page: Any, tasks: il.Task) -> None:
    calls: list[None] = []

    class Counted(nn.Identity):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(None)
            return x

    _, names = page("The loss at every step counts")
    model = nn.Sequential(nn.Linear(1, 3), Counted())
    learner = il.maml(model, lr=0.1, objective=names["Online"](), batch_size=2, steps=3, vectorize=True).double()
    learner.meta_gradient(tasks)  # the first task is looked at by further calls
    calls.clear()
    learner.meta_gradient(tasks)
    assert len(calls) == learner.steps


@pytest.mark.parametrize("vectorize", [True, False, 2])
def test_reptile_whose_adam_remembers(page: Any, tasks: il.Task, vectorize: Any) -> None:
    learner, _ = page("Reptile whose Adam remembers", vectorize=vectorize)
    moments = {name: torch.zeros_like(p) for name, p in learner.model.named_parameters()}
    for _ in range(3):
        grads, left = [], []
        for task in each(tasks):
            plain = Plain(learner, task)
            params, second = constant(plain.start), dict(moments)
            for step in range(3):
                slopes = slope(plain.support(params), params)
                second = {n: 0.999 * second[n] + 0.001 * g.detach() ** 2 for n, g in slopes.items()}
                scale = {n: _root(v / (1 - 0.999 ** (step + 1))) + 1e-8 for n, v in second.items()}
                params = constant({n: p - 0.01 * slopes[n] / scale[n] for n, p in params.items()})
            grads.append({n: (plain.start[n] - params[n]).detach() for n in params})
            left.append(second)
        expected = {f"model.{n}": torch.stack([g[n] for g in grads]).mean(0) for n in moments}
        moments = {n: torch.stack([state[n] for state in left]).mean(0) for n in moments}
        assert_close(learner.meta_gradient(tasks)[0], expected)


@pytest.mark.parametrize("order", [[1], [1, 2, 2, 2, 2], []])
def test_there_is_one_order_for_each_step(tasks: il.Task, order: list[int]) -> None:
    class Ordered(il.Objective):
        def __call__(self, episode: il.Episode) -> il.Judgement:
            query = episode.query(episode.last(order))
            return il.Judgement(query.loss, query)

    learner = il.maml(nn.Linear(1, 3), lr=0.1, objective=Ordered(), steps=4).double()
    with pytest.raises(ValueError, match="4 inner steps need one order, or one for each step; got "):
        learner.meta_gradient(tasks)


def test_what_a_rule_keeps_is_not_kept_by_predictions(page: Any, tasks: il.Task) -> None:
    learner, _ = page("Reptile whose Adam remembers")
    before = {name: b.clone() for name, b in learner.rule.named_buffers()}
    learner.predict(tasks)
    learner.adapt(next(each(tasks)).support)
    for name, buffer in learner.rule.named_buffers():
        assert torch.equal(buffer, before[name])
