"""What cannot be vectorized is named, with its cause and its fix, wherever in a learner it is."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import innerloop as il
from innerloop.initializations import Initialization
from innerloop.operations import normalization as normalization

pytestmark = pytest.mark.usefixtures("own_plans")


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"gru": nn.GRU(4, 3, batch_first=True)})

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder["gru"](x)[0]


class Layer(nn.Module):
    """A linear layer, and something after it."""

    def __init__(self, then: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.then = nn.Linear(4, 3), then

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self.linear(x))


class Identity(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


def into_zeros(x: Tensor) -> Tensor:
    total = torch.zeros(5, 3)
    total += x
    return total


LAYERS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "in place": (into_zeros, r"writes in place into a tensor that all tasks share .*new_zeros"),
    "boolean index": (lambda x: x[x > -99].view(5, 3), r"shape of a result depends on values .*torch\.where"),
    "nonzero": (lambda x: x + 0 * x.nonzero().sum(), r"shape of a result depends on values"),
    "numpy": (lambda x: x * float(x.detach().numpy().size), r"reads values outside of torch"),
    "unique": (lambda x: x + 0 * torch.unique(x.detach()).sum(), r"shape of a result depends on values"),
    "random": (lambda x: x + 0 * torch.zeros(5, 3).normal_(), r"random numbers, in place.*torch\.randn"),
    "function": (Identity.apply, r"autograd\.Function that does not support torch\.func.*generate_vmap_rule"),
    "no rule": (lambda x: x if torch.equal(x, x) else 2 * x, r"no batching rule for an operation"),
    ".data": (lambda x: x + 0 * x.data, r"reads `\.data`.*detach"),
}


def tasks(number: int = 3) -> il.Task:
    batch = il.Batch(torch.randn(number, 5, 4), torch.randint(3, (number, 5)))
    return il.Task(batch, batch)


def differ() -> il.Task:
    """Tasks of which the first is far from the others."""
    batch = tasks()
    batch.support.x[0] += 99
    return batch


def message(learner: Callable[..., il.MetaLearner], batch: il.Task) -> str:
    """The one warning, which shows a line of this file; the numbers are those of the loop, and with
    ``vectorize=True`` the same is an error."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = learner(vectorize="auto")
        grads = found.meta_gradient(batch)[0]
        found.meta_gradient(batch)
    (only,) = (w for w in caught if "one by one" in str(w.message))
    assert Path(only.filename) == Path(__file__)
    torch.testing.assert_close(grads, learner(vectorize=False).meta_gradient(batch)[0])
    text = str(only.message)
    with pytest.raises(ValueError, match="and vectorize=True does not allow running tasks one by one") as refused:
        learner(vectorize=True).meta_gradient(batch)
    assert str(refused.value).partition(",")[0] == text.partition(",")[0]
    return text


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_named_with_the_cause_and_the_fix(name: str) -> None:
    then, why = LAYERS[name]
    model = nn.Sequential(Layer(then), nn.Identity())
    text = message(partial(il.maml, model, 0.1, compile=False), tasks())
    _matches(text, rf"^Layer \(0\) cannot be vectorized over tasks, so tasks run one by one: .*{why}")
    _matches(text, rf"{Path(__file__).name}, line \d+")


def _matches(text: str, pattern: str) -> None:
    assert re.search(pattern, text, re.DOTALL), text


def test_a_layer_of_torchs_is_named_by_its_qualified_name() -> None:
    text = message(partial(il.maml, Encoder(), 0.1, compile=False), tasks())
    _matches(text, r"^GRU \(encoder\.gru\) cannot be vectorized over tasks.*recurrent layers have no batching rule")


def test_a_layer_that_works_in_place_is_to_work_out_of_place() -> None:
    class InPlace(nn.Module):
        inplace = True

        def forward(self, x: Tensor) -> Tensor:
            return into_zeros(x)

    text = message(partial(il.maml, nn.Sequential(nn.Linear(4, 3), InPlace()), 0.1, compile=False), tasks())
    _matches(text, r"^InPlace \(1\) .*make the layer with inplace=False")


class CellRule(il.UpdateRule):
    """Steps by an LSTM cell's output beside the gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(1, 2)

    def init(self, params: il.task.Params) -> Any:
        return {n: (p.new_zeros(p.numel(), 2),) * 2 for n, p in params.items()}

    def forward(self, grads: Any, params: Any, state: Any, step: int) -> Any:
        state = {n: self.cell(g.reshape(-1, 1), state[n]) for n, g in grads.items()}
        return {n: 1e-3 * state[n][0].mean(1).view_as(g) - 0.1 * g for n, g in grads.items()}, state


class Bold(il.UpdateRule):
    """Goes by a value that tasks differ in."""

    def forward(self, grads: Any, params: Any, state: Any, step: int) -> Any:
        return {n: -0.1 * g if g.norm() > 10 else -0.2 * g for n, g in grads.items()}, state


def weighted(output: Tensor, y: Tensor, power: int = 1) -> Tensor:
    return F.cross_entropy(output[y > -1], y[y > -1]) * power


class Weighted(nn.Module):
    def forward(self, output: Tensor, y: Tensor) -> Tensor:
        return weighted(output, y)


class Called:
    def __call__(self, output: Tensor, y: Tensor) -> Tensor:
        return weighted(output, y)


class Picky(il.Unrolled):
    def __call__(self, episode: Any) -> Any:
        judgement = super().__call__(episode)
        return judgement._replace(objective=judgement.objective + 0 * judgement.query.output.nonzero().sum())


class Near(Initialization):
    def __call__(self, episode: Any) -> Any:
        return {n: p + 0 * episode.task.support.x.nonzero().sum() for n, p in episode.start.params.items()}


PARTS: dict[str, tuple[dict[str, Any], str]] = {
    "rule": ({"rule": CellRule()}, r"The update rule CellRule, in its LSTMCell \(cell\), cannot be vectorized"),
    "chain": (
        {"rule": il.Chain(il.Clip(1.0), CellRule())},
        r"The update rule Chain, in its LSTMCell \(rules\.1\.cell\), cannot be vectorized",
    ),
    "lambda": ({"loss": lambda o, y: weighted(o, y)}, r"The loss <lambda> \(test_diagnosis\.py:\d+\) cannot"),
    "function": ({"loss": weighted}, r"The loss weighted \(test_diagnosis\.py:\d+\) cannot"),
    "partial": ({"loss": partial(weighted, power=2)}, r"The loss weighted \(test_diagnosis\.py:\d+\) cannot"),
    "module": ({"loss": Weighted()}, r"The loss Weighted cannot"),
    "callable": ({"loss": Called()}, r"The loss Called cannot"),
    "inner loss": ({"inner_loss": weighted}, r"The inner loss weighted .* cannot"),
    "outer loss": ({"inner_loss": F.cross_entropy, "loss": weighted}, r"The loss weighted .* cannot"),
    "objective": ({"objective": Picky()}, r"The objective Picky cannot"),
    "initialization": ({"initial": Near()}, r"The initialization Near cannot"),
}


@pytest.mark.parametrize("part", PARTS)
def test_other_parts_than_the_model_are_named(part: str) -> None:
    options, who = PARTS[part]
    make = partial(il.MetaLearner, nn.Sequential(nn.Linear(4, 3)), compile=False, **{"rule": il.SGD(0.1), **options})
    _matches(message(make, tasks()), f"^{who}")


def test_rules_that_read_values_run_one_by_one_where_tasks_differ() -> None:
    make = partial(il.MetaLearner, nn.Linear(4, 3), Bold(), compile=False)
    _matches(
        message(make, differ()), r"^The update rule Bold cannot run these tasks at once.*`if tensor:`.*torch\.where"
    )


@pytest.mark.parametrize("name", ["layer_norm", "batch_norm"])
def test_the_librarys_own_replacement_is_not_blamed_on_a_layer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(x: Tensor, axes: list[int], eps: float) -> Any:
        x.nonzero()
        return working(x, axes, eps)

    working = normalization._standardise
    broken.__code__ = broken.__code__.replace(co_filename=normalization.__file__)
    monkeypatch.setattr(normalization, "_standardise", broken)
    norm = nn.LayerNorm(3) if name == "layer_norm" else nn.BatchNorm1d(3)
    with pytest.warns(UserWarning, match=rf"^The norm replacement of innerloop .* in {type(norm).__name__} \(1\)"):
        il.maml(nn.Sequential(nn.Linear(4, 3), norm), 0.1, compile=False).meta_gradient(tasks())


@pytest.mark.parametrize("vectorize", ["auto", True, 2, (1, 2), False])
def test_what_fails_for_one_task_too_is_told_in_its_own_words(vectorize: Any) -> None:
    def loss(output: Tensor, y: Tensor) -> Tensor:
        raise KeyError("my own mistake")

    def first_order_only(output: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(output, y) + torch.cdist(output, output, p=3.0).mean()

    with pytest.raises(KeyError, match="my own mistake"):
        il.maml(nn.Linear(4, 3), 0.1, loss=loss, vectorize=vectorize).meta_gradient(tasks())
    learner = il.maml(nn.Linear(4, 3), 0.1, loss=first_order_only, vectorize=vectorize, compile=False)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"second derivatives.*'_cdist_backward' is not implemented.*order=1"):
            learner.meta_gradient(tasks())
    assert learner.engine.vectorized == (vectorize is not False)


@pytest.mark.parametrize("kind", ["module", "tensor"])
def test_hooks_are_told_with_their_module(kind: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), Layer(lambda x: x if kind == "module" else _hooked(x)))
    if kind == "module":
        model[1].linear.register_full_backward_hook(lambda *_: None)
    text = message(partial(il.maml, model, 0.1, compile=False), tasks())
    who = r"Linear \(1\.linear\)" if kind == "module" else r"Layer \(1\)"
    _matches(text, rf"^{who} cannot be vectorized .* hooks of .*s do not run while tasks run at once.*remove the hook")


def _hooked(x: Tensor) -> Tensor:
    x.register_hook(lambda g: g)
    return x


def test_the_line_of_the_user_is_shown_whatever_is_called() -> None:
    batch, make = tasks(), partial(il.maml, Encoder(), 0.1, compile=False)
    for use in (
        lambda learner: learner.predict(batch),
        lambda learner: learner(batch),
        lambda learner: learner.adapt_all(batch.support),
    ):
        with pytest.warns(UserWarning, match="cannot be vectorized") as caught:
            use(make())
        assert caught[0].filename == __file__
