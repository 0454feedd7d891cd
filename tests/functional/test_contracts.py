"""What would be wrong without an error is right, or refused: targets that broadcast, models that write to themselves or
keep tensors, inference mode, and few inputs for batch norm."""

from __future__ import annotations

import copy
import warnings
from collections import deque
from collections.abc import Callable
from functools import partial
from types import MethodType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import innerloop as il

VECTORIZE = pytest.mark.parametrize("vectorize", [True, False, (1, 2)])


def regression(outputs: int = 1, number: int = 3) -> il.Task:
    """Targets ``[T, N]`` for one output, ``[T, N, outputs]`` for more."""
    x = torch.randn(number, 12, 3)
    y = torch.tanh(x.sum(-1, keepdim=True) * torch.arange(1, outputs + 1))
    y = y.squeeze(-1) if outputs == 1 else y
    return il.Task(il.Batch(x[:, :8], y[:, :8]), il.Batch(x[:, 8:], y[:, 8:]))


def column(tasks: il.Task) -> il.Task:
    return il.Task(*(il.Batch(part.x, part.y[..., None]) for part in tasks))


def by_hand(model: nn.Module, loss: Callable[[Any, Any], Tensor], tasks: il.Task, lr: float = 0.1) -> dict[str, Tensor]:
    """The meta-gradient of one inner step, in plain autograd."""
    start, call = dict(model.named_parameters()), torch.func.functional_call
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}

    def one(index: int) -> Tensor:
        support, query = il.task.select(tasks, index)
        grads = torch.autograd.grad(
            loss(call(model, (start, buffers), (support.x,)), support.y), list(start.values()), create_graph=True
        )
        params = {name: p - lr * grad for (name, p), grad in zip(start.items(), grads, strict=True)}
        return loss(call(model, (params, buffers), (query.x,)), query.y)

    mean = torch.stack([one(index) for index in range(len(tasks.support.x))]).mean()
    return dict(zip(start, torch.autograd.grad(mean, list(start.values())), strict=True))


def require_right(model: nn.Module, loss: Callable[[Any, Any], Tensor], tasks: il.Task) -> None:
    """That a learner's meta-gradient is that of a loop by hand."""
    found = il.maml(model, 0.1, loss=loss).meta_gradient(tasks)[0]
    expected = {f"model.{name}": grad for name, grad in by_hand(model, loss, tasks).items()}
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


# -- targets that broadcast -------------------------------------------------------------------------------------------


def gaussian(output: Tensor, y: Tensor) -> Tensor:
    mean, log_variance = output.chunk(2, -1)
    return ((mean - y).square() / log_variance.exp() + log_variance).mean()


BROADCASTING: dict[str, tuple[int, Callable[[Tensor, Tensor], Tensor]]] = {
    "mse": (1, F.mse_loss),
    "nn.MSELoss": (1, nn.MSELoss()),
    "l1": (1, nn.L1Loss()),
    "smooth l1": (1, F.smooth_l1_loss),
    "huber": (1, nn.HuberLoss()),
    "poisson": (1, nn.PoissonNLLLoss()),
    "kl": (1, lambda output, y: F.kl_div(output, y.abs(), reduction="batchmean")),
    "soft margin": (1, lambda output, y: F.soft_margin_loss(output, y.sign())),
    "logits": (1, lambda output, y: F.binary_cross_entropy_with_logits(output, (y > 0).float())),
    "by hand": (1, lambda output, y: (output - y).square().mean()),
    "by hand, absolute": (1, lambda output, y: torch.abs(y - output).mean()),
    "by hand, of a function": (1, lambda output, y: (torch.sigmoid(output) * y.double().float()).mean()),
    "by hand, sliced": (2, lambda output, y: (output[:, :1] - y).square().mean()),
    "by hand, chunks": (2, gaussian),
    "distance": (1, lambda output, y: torch.dist(output, y)),
    "distance of each": (1, lambda output, y: F.pairwise_distance(output, y).mean()),
    "a distribution": (
        1,
        lambda output, y: -torch.distributions.Bernoulli(logits=output).log_prob((y > 0) * 1.0).mean(),
    ),
    "squeezed targets": (1, lambda output, y: (output - y.squeeze()).square().mean()),
}


@pytest.mark.parametrize("name", BROADCASTING)
@pytest.mark.parametrize("call", ["forward", "meta_gradient", "adapt", "adapt_all", "predict"])
def test_targets_that_broadcast_are_refused(name: str, call: str) -> None:
    outputs, loss = BROADCASTING[name]
    learner, tasks = il.maml(nn.Linear(3, outputs), 0.01, loss=loss), regression()
    with pytest.raises(ValueError, match=r"outputs of shape \[8, 1\] with targets of shape \[8\]"):
        {
            "forward": lambda: learner(tasks),
            "meta_gradient": lambda: learner.meta_gradient(tasks),
            "adapt": lambda: learner.adapt(il.task.select(tasks.support, 0)),
            "adapt_all": lambda: learner.adapt_all(tasks.support),
            "predict": lambda: learner.predict(tasks),
        }[call]()


def test_the_query_set_is_looked_at_too() -> None:
    tasks = regression()
    mixed = il.Task(column(tasks).support, tasks.query)
    with pytest.raises(ValueError, match=r"\[4, 1\] with targets of shape \[4\]"):
        il.maml(nn.Linear(3, 1), loss=F.mse_loss).meta_gradient(mixed)


def test_later_tasks_of_other_shapes_are_looked_at_too() -> None:
    learner, tasks = il.maml(nn.Linear(3, 1), loss=F.mse_loss), regression()
    learner.meta_gradient(column(tasks))
    with pytest.raises(ValueError, match="targets of shape"):
        learner.meta_gradient(tasks)


def test_the_message_has_the_fix() -> None:
    tasks = regression()
    with pytest.raises(ValueError, match=r"reshape the targets to \[8, 1\], e.g. y.unsqueeze\(-1\)"):
        il.maml(nn.Linear(3, 1), loss=F.mse_loss)(tasks)
    wide = il.maml(nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)), loss=F.mse_loss)
    with pytest.raises(ValueError, match=r"reshape the targets to \[8\], e.g. y.squeeze\(-1\)"):
        wide(column(tasks))


def test_examples_and_outputs_of_equal_number_do_not_hide_it() -> None:
    x, y = torch.randn(2, 5, 3), torch.randn(2, 5)  # [5, 5] - [5] aligns outputs with examples
    tasks = il.Task(il.Batch(x, y), il.Batch(x, y))
    with pytest.raises(ValueError, match=r"\[5, 5\] with targets of shape \[5\]"):
        il.maml(nn.Linear(3, 5), loss=lambda output, y: (output - y).square().mean())(tasks)


MEANT: dict[str, tuple[int, Callable[[Tensor, Tensor], Tensor]]] = {
    "squeezed": (1, lambda output, y: F.mse_loss(output.squeeze(-1), y)),
    "expanded": (1, lambda output, y: F.mse_loss(output, y[:, None])),
    "a view": (1, lambda output, y: (output.view(-1) - y).square().mean()),
    "all pairs": (1, lambda output, y: (output - y[None]).square().mean()),
    "a constant": (1, lambda output, y: (output - y.mean()).square().mean() + y.square().mean()),
    "classes": (8, lambda output, y: F.cross_entropy(output, (y > 0).long())),
    "picked": (4, lambda output, y: -output.log_softmax(-1).gather(1, (y > 0).long()[:, None]).mean()),
    "a gaussian": (2, lambda output, y: F.gaussian_nll_loss(output[:, 0], y, output[:, 1].exp())),
    "a distribution": (
        3,
        lambda output, y: -torch.distributions.Categorical(logits=output).log_prob((y > 0) * 1).mean(),
    ),
    "squared distances": (
        3,
        lambda output, y: (output.square().sum(1, keepdim=True) + y.square() - 2 * output @ output.T).mean(),
    ),
    "without targets": (3, lambda output, y: output.square().mean()),
    "ranks": (1, lambda output, y: F.relu(1 - (output - output.T) * (y[:, None] - y[None]).sign()).mean()),
}


@pytest.mark.parametrize("name", MEANT)
def test_what_is_meant_is_not_refused(name: str) -> None:
    outputs, loss = MEANT[name]
    model, tasks = nn.Linear(3, outputs), regression()
    require_right(model, loss, tasks)
    losses = il.maml(model, 0.01, loss=loss).adapt(il.task.select(tasks.support, 0)).losses
    torch.testing.assert_close(losses[0], loss(model(tasks.support.x[0]), tasks.support.y[0]).detach())


def test_every_output_may_have_the_same_target() -> None:
    loss = lambda output, y: (output - y).square().mean()  # noqa: E731 - several heads, one target each example
    require_right(nn.Linear(3, 4), loss, column(regression()))


@pytest.mark.parametrize("call", ["adapt", "learner", "meta_gradient", "predict"])
def test_losses_that_write_to_their_targets_are_refused(call: str) -> None:
    tasks = column(regression())
    learner = il.maml(nn.Linear(3, 1), 0.01, loss=lambda output, y: F.mse_loss(output, y.mul_(0.9)))
    before = copy.deepcopy(tasks)
    calls: dict[str, Callable[[], Any]] = {
        "adapt": lambda: learner.adapt(il.task.select(tasks.support, 0)),
        "learner": lambda: learner(tasks),
        "meta_gradient": lambda: learner.meta_gradient(tasks),
        "predict": lambda: learner.predict(tasks),
    }
    with pytest.raises(ValueError, match=r"writes to its targets in place.*y.clone\(\)"):
        calls[call]()
    torch.testing.assert_close(tasks, before, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_one_number_is_no_target() -> None:
    loss = lambda output, y: F.mse_loss(output, y) + F.l1_loss(output, torch.zeros(()))  # noqa: E731
    require_right(nn.Linear(3, 1), loss, column(regression()))


def test_a_single_example_broadcasts_to_what_it_is() -> None:
    x, y = torch.randn(2, 1, 3), torch.randn(2, 1)
    batch = il.Batch(x, y)
    require_right(nn.Linear(3, 1), lambda output, y: (output - y).square().mean(), il.Task(batch, batch))


def test_pytrees_of_outputs_and_targets() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 1), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"a": self.a(x), "b": self.b(x)}

    def loss(output: dict[str, Tensor], y: dict[str, Tensor]) -> Tensor:
        return F.mse_loss(output["b"], y["b"]) + (output["a"] - y["a"]).square().mean()

    x, y = torch.randn(2, 6, 3), {"a": torch.randn(2, 6), "b": torch.randn(2, 6, 2)}
    tasks = il.Task(il.Batch(x, y), il.Batch(x, y))
    with pytest.raises(ValueError, match=r"\[6, 1\] with targets of shape \[6\]"):
        il.maml(Two(), loss=loss)(tasks)


# -- models that write to themselves ----------------------------------------------------------------------------------


class Writes(nn.Module):
    """A model that keeps its weights in bounds, in one of many ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.layer, self.how = nn.Linear(3, 2), how
        self.scale = torch.ones(1)
        self.embed = nn.Embedding(4, 3, max_norm=0.1 if how == "max_norm" else None)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.layer.weight
        with torch.no_grad():
            if self.how == "data":
                weight.data.clamp_(-9, 9)  # which does nothing at first
            elif self.how == "no_grad":
                weight.mul_(0.9)
            elif self.how == "copy":
                weight.copy_(weight / weight.norm())
            elif self.how == "item":
                weight[0] = 0.0
            elif self.how == "row":
                weight.data[0].zero_()
            elif self.how == "operator":
                weight *= 0.9
            elif self.how == "init":
                nn.init.zeros_(self.layer.bias)
            elif self.how == "out":
                torch.clamp(weight, -1, 1, out=weight.data)
            elif self.how == "attribute":
                self.scale.mul_(0.5)
            elif self.how == "foreach":
                torch._foreach_mul_([self.layer.weight], 0.5)
        if self.how == "assign":
            self.layer.weight = nn.Parameter(weight.clamp(-0.1, 0.1))
        return self.layer(x + self.embed(torch.zeros(len(x), dtype=torch.long))) * self.scale


WAYS = (
    "data",
    "no_grad",
    "copy",
    "item",
    "row",
    "operator",
    "init",
    "out",
    "attribute",
    "foreach",
    "assign",
    "max_norm",
)


@VECTORIZE
@pytest.mark.parametrize("call", ["adapt", "predict", "meta_gradient"])
@pytest.mark.parametrize("how", WAYS)
def test_models_that_write_to_their_parameters_are_refused(how: str, call: str, vectorize: Any) -> None:
    model = Writes(how)
    before = copy.deepcopy(model.state_dict())
    tasks, learner = column(regression()), il.maml(model, 0.1, loss=F.mse_loss, vectorize=vectorize)
    tasks = il.Task(*(il.Batch(part.x, part.y.expand(-1, -1, 2)) for part in tasks))
    names = r"layer\.(weight|bias)|scale|embed\.weight"
    refusal = f"(writes to|assigns a new tensor to) its own .*({names})|max_norm=0.1 rescales its weights in place"
    with pytest.raises(ValueError, match=refusal):
        {
            "adapt": lambda: learner.adapt(il.task.select(tasks.support, 0)),
            "predict": lambda: learner.predict(tasks),
            "meta_gradient": lambda: learner.meta_gradient(tasks),
        }[call]()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model.scale, torch.ones(1))


class Centers(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x -= x.mean(0)
        return x


@pytest.mark.parametrize("first", [nn.ReLU(inplace=True), nn.LeakyReLU(inplace=True), Centers()])
def test_models_that_write_to_their_inputs_are_refused(first: nn.Module) -> None:
    tasks = column(regression())
    before = tasks.support.x.clone()
    with pytest.raises(ValueError, match=r"writes to its input in place.*inplace=False"):
        il.maml(nn.Sequential(first, nn.Linear(3, 1)), loss=F.mse_loss).meta_gradient(tasks)
    assert torch.equal(tasks.support.x, before)


@VECTORIZE
def test_predictions_after_no_steps_write_to_no_inputs(vectorize: Any) -> None:
    tasks = column(regression())
    net = nn.Sequential(nn.Flatten(), nn.ReLU(inplace=True), nn.Linear(3, 1))
    learner = il.maml(net, 0.1, loss=F.mse_loss, vectorize=vectorize)
    before = copy.deepcopy(tasks)
    with pytest.raises(ValueError, match="writes to its input in place"):
        learner.predict(tasks, steps=0)
    torch.testing.assert_close(tasks, before, rtol=0, atol=0)


@VECTORIZE
def test_adapting_by_no_steps_runs_nothing(vectorize: Any) -> None:
    """So that there need not be examples."""
    learner, nothing = il.maml(nn.Linear(3, 1), 0.1, loss=F.mse_loss, vectorize=vectorize), torch.zeros(2, 1, 1)
    adapted = learner.adapt_all(il.Batch(nothing, nothing), steps=0)
    torch.testing.assert_close(adapted(x := torch.randn(2, 5, 3)), learner.model(x))


def test_writing_to_buffers_and_to_new_tensors_is_fine() -> None:
    class Fine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 1)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            x = x.clone()
            x[:, 0] = 0
            x.mul_(2)
            return self.layer(x).relu_()

    require_right(Fine(), F.mse_loss, column(regression()))


# -- tensors that modules keep ----------------------------------------------------------------------------------------


class Keeps(nn.Module):
    """A model that keeps what it computes, in some place."""

    shared: Any = None
    named: ClassVar[dict[str, Any]] = {}

    def __init__(self, where: str) -> None:
        super().__init__()
        self.first, self.last, self.where = nn.Linear(3, 8), nn.Linear(8, 1), where
        self.hidden: Any = None
        self.all: list[Any] = []
        self.by_name: dict[str, Any] = {"deeper": {}}
        self.bag: set[Any] = set()
        self.last_two: deque[Any] = deque(maxlen=2)
        self.record = SimpleNamespace()
        self.register_buffer("late", None)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x))
        self.calls += 1
        if self.where == "attribute":
            self.hidden = hidden
        elif self.where == "new":
            self.new = (hidden, 1)
        elif self.where == "list":
            self.all.append(hidden)
        elif self.where == "dict":
            self.by_name["hidden"] = hidden
        elif self.where == "deeper":
            self.by_name["deeper"]["hidden"] = [hidden]
        elif self.where == "submodule":
            self.first.output = hidden
        elif self.where == "set":
            self.bag.add(hidden)
        elif self.where == "deque":
            self.last_two.append(hidden)
        elif self.where == "object":
            self.record.hidden = hidden
        elif self.where == "new object":
            self.hidden = torch.distributions.Normal(hidden, 1.0)
        elif self.where == "empty buffer":
            self.late = hidden.mean(0)
        elif self.where == "class":
            Keeps.shared = hidden
        elif self.where == "new in class":
            Keeps.added = hidden  # type: ignore[attr-defined]
        elif self.where == "dict of class":
            Keeps.named["hidden"] = hidden
        return self.last(hidden)


@VECTORIZE
@pytest.mark.parametrize("memory", ["graph", "constant"])
@pytest.mark.parametrize(
    "where",
    [
        "attribute", "new", "list", "dict", "deeper", "submodule", "set", "deque", "object", "new object",
        "empty buffer", "class", "new in class", "dict of class",
    ],
)  # fmt: skip
def test_what_a_model_keeps_is_dropped(where: str, memory: Any, vectorize: Any) -> None:
    model, tasks = Keeps(where), column(regression())
    learner = il.maml(model, 0.1, loss=F.mse_loss, vectorize=vectorize, memory=memory)
    for _ in range(2):
        learner.meta_gradient(tasks)
        learner(tasks).objective.mean().backward()
        learner.predict(tasks)
        learner.adapt(il.task.select(tasks.support, 0))(tasks.query.x[0])
        learner.adapt_all(tasks.support)(tasks.query.x)
    copy.deepcopy(learner)
    assert model.hidden is None
    assert not hasattr(model, "new")
    assert not hasattr(model.first, "output")
    assert model.all == []
    assert model.by_name == {"deeper": {}}
    assert not model.bag
    assert not model.last_two
    assert not vars(model.record)
    assert model.late is None
    assert Keeps.shared is None
    assert not hasattr(Keeps, "added")
    assert not Keeps.named
    assert model.calls > 0  # what is no tensor stays as the model sets it


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_recurrent_layers_compute_by_the_parameters_of_each_call(kind: Any) -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.recurrent, self.head = kind(3, 5, batch_first=True), nn.Linear(5, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.recurrent(x)[0][:, -1])

    x, y = torch.randn(2, 6, 4, 3), torch.randn(2, 6, 1)
    batch, model = il.Batch(x, y), Last()
    learner = il.maml(model, 0.5, loss=F.mse_loss, steps=3, vectorize=False)
    adapted = learner.adapt(il.task.select(batch, 0))
    once = adapted(x[0])
    torch.testing.assert_close(adapted(x[0]), once)
    torch.testing.assert_close(adapted.module()(x[0]), once)
    objective = learner(il.Task(batch, batch)).objective
    torch.func.functional_call(model, {n: 2 * p for n, p in model.named_parameters()}, (x[0],))  # of the caller's
    torch.testing.assert_close(learner(il.Task(batch, batch)).objective, objective)
    torch.testing.assert_close(adapted(x[0]), once)


@pytest.mark.parametrize("call", ["adapt", "meta_gradient"])
def test_models_that_remember_functions_of_their_parameters_are_refused(call: str) -> None:
    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head, self.doubled = nn.Linear(3, 4), nn.Linear(4, 1), None

        def forward(self, x: Tensor) -> Tensor:
            if self.doubled is None:
                self.doubled = 2 * self.layer.weight
            return self.head(F.linear(x, self.doubled, self.layer.bias))

    learner, tasks = il.maml(Remembers(), 0.1, loss=F.mse_loss, steps=2), column(regression())
    with pytest.raises(ValueError, match=r"Remembers keeps what it computed from 'layer.weight'.*in every forward"):
        learner.meta_gradient(tasks) if call == "meta_gradient" else learner.adapt(il.task.select(tasks.support, 0))


def test_a_loss_sees_what_the_model_kept_of_the_same_task() -> None:
    tasks, found = column(regression()), []
    for vectorize in (True, False):
        torch.manual_seed(0)
        model = Keeps("attribute")
        loss = lambda output, y: F.mse_loss(output, y) + model.hidden.abs().mean()  # noqa: B023, E731
        found.append(il.maml(model, 0.1, loss=loss, vectorize=vectorize, compile=False).meta_gradient(tasks)[0])
    torch.testing.assert_close(*found)


class Running(nn.Module):
    """A running mean that is a plain attribute, or a buffer, and has a part in the gradient."""

    def __init__(self, buffer: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)
        if buffer:
            self.register_buffer("mean", torch.zeros(1))
        else:
            self.mean = torch.zeros(1)

    def forward(self, x: Tensor) -> Tensor:
        output = self.layer(x)
        self.mean = 0.9 * self.mean + 0.1 * output.mean(0)
        return torch.tanh(output - self.mean)


@VECTORIZE
@pytest.mark.parametrize("call", ["adapt", "predict", "meta_gradient"])
def test_models_that_compute_with_what_they_kept_are_refused(call: str, vectorize: Any) -> None:
    tasks = column(regression())
    learner = il.maml(Running(buffer=False), 0.1, loss=F.mse_loss, vectorize=vectorize)
    with pytest.raises(ValueError, match=r"Running computes with tensors that it keeps in attributes.*register_buffer"):
        {
            "adapt": lambda: learner.adapt(il.task.select(tasks.support, 0)),
            "predict": lambda: learner.predict(tasks),
            "meta_gradient": lambda: learner.meta_gradient(tasks),
        }[call]()


@pytest.mark.usefixtures("double")
@VECTORIZE
@pytest.mark.parametrize("memory", ["graph", "constant"])
def test_gradients_flow_through_buffers(memory: Any, vectorize: Any) -> None:
    """As in a loop written by hand, in which a step goes on from the buffer that the step before left."""
    model, tasks = Running(buffer=True), column(regression())
    objective = torch.zeros(())
    for index in range(3):
        (x, y), (query, target) = il.task.select(tasks, index)
        weight, bias, mean = model.layer.weight, model.layer.bias, model.mean
        for _ in range(3):
            output = F.linear(x, weight, bias)
            mean = 0.9 * mean + 0.1 * output.mean(0)
            loss = F.mse_loss(torch.tanh(output - mean), y)
            slopes = torch.autograd.grad(loss, (weight, bias), create_graph=True)
            weight, bias = weight - 0.5 * slopes[0], bias - 0.5 * slopes[1]
        output = F.linear(query, weight, bias)
        mean = 0.9 * mean + 0.1 * output.mean(0)
        objective = objective + F.mse_loss(torch.tanh(output - mean), target) / 3
    expected = torch.autograd.grad(objective, tuple(model.parameters()))
    learner = il.maml(model, 0.5, steps=3, loss=F.mse_loss, memory=memory, vectorize=vectorize, compile=False)
    grads, outcome = learner.meta_gradient(tasks)
    torch.testing.assert_close(tuple(grads.values()), expected)
    torch.testing.assert_close(outcome.objective.mean(), objective.detach())
    assert not model.mean.any()
    learner.adapt(il.task.select(tasks.support, 0))(tasks.query.x[0])


@VECTORIZE
def test_inner_losses_that_use_the_models_own_parameters_are_refused(vectorize: Any) -> None:
    """Those are the meta-parameters, and in a loop over tasks also the first step's: whichever way tasks run, it is not
    what is adapted that they would see."""
    model, tasks = nn.Linear(3, 1), column(regression())

    def decayed(output: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(output, y) + 0.1 * sum(p.square().sum() for p in model.parameters())

    def consistent(output: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(output, y) + model(torch.ones(1, 3)).square().mean()

    for loss in (decayed, consistent):
        with pytest.raises(ValueError, match="uses the model's own 'weight', which is the meta-parameter"):
            il.maml(model, loss=loss, vectorize=vectorize).meta_gradient(tasks)
    learner = il.maml(model, loss=decayed, inner_loss=F.mse_loss, vectorize=vectorize, compile=False)
    plain = il.maml(model, loss=F.mse_loss, vectorize=vectorize, compile=False).meta_gradient(tasks)[0]
    grads = learner.meta_gradient(tasks)[0]
    torch.testing.assert_close(grads["model.weight"], plain["model.weight"] + 0.2 * model.weight.detach())


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * ctx.saved_tensors[0].cos()


class OnlyOnce(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(Once.apply(self.first(x)))


@pytest.mark.filterwarnings("ignore:.*cannot be vectorized")
@pytest.mark.parametrize("memory", ["graph", "constant"])
@pytest.mark.parametrize("vectorize", ["auto", False])
def test_functions_that_are_differentiable_once_are_refused_in_second_order(memory: Any, vectorize: Any) -> None:
    tasks = column(regression())
    with pytest.raises(ValueError, match=r"once_differentiable.*order=1"):
        il.maml(OnlyOnce(), loss=F.mse_loss, memory=memory, vectorize=vectorize).meta_gradient(tasks)
    with pytest.raises(ValueError, match=r"once_differentiable.*order=1"):
        il.fomaml(OnlyOnce(), loss=F.mse_loss, memory=memory, vectorize=vectorize)(
            tasks, objective=il.Unrolled(order=2)
        )
    used_first = il.maml(OnlyOnce(), loss=F.mse_loss, memory=memory, vectorize=vectorize)
    used_first.predict(tasks)  # which takes no second derivatives
    used_first.adapt(il.task.select(tasks.support, 0))
    used_first.adapt_all(tasks.support)
    with pytest.raises(ValueError, match=r"once_differentiable.*order=1"):
        used_first.meta_gradient(tasks)
    il.fomaml(OnlyOnce(), loss=F.mse_loss, vectorize=False).meta_gradient(tasks)
    il.reptile(OnlyOnce(), loss=F.mse_loss, vectorize=False).meta_gradient(tasks)


# -- inference mode, and no gradients ---------------------------------------------------------------------------------


@VECTORIZE
def test_a_learner_works_in_inference_mode(vectorize: Any) -> None:
    tasks = column(regression())
    learner = il.maml(il.models.mlp(3, 8, 1), 0.1, loss=F.mse_loss, vectorize=vectorize)
    one = il.task.select(tasks, 0)
    expected = learner.predict(tasks), learner.adapt(one.support)(one.query.x), learner.meta_gradient(tasks)[0]
    together = learner.adapt_all(tasks.support)(tasks.query.x)
    with torch.inference_mode():
        inside = il.task.select(column(regression()), slice(None))
        copies = il.Task(*(il.Batch(*(t.clone() for t in part)) for part in tasks))  # made in inference mode
        mine = il.task.select(copies, 0)
        found = learner.predict(copies), learner.adapt(mine.support)(mine.query.x), learner.meta_gradient(copies)[0]
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(learner.adapt_all(copies.support)(copies.query.x), together)
        assert not learner(copies).objective.requires_grad
        assert torch.is_inference_mode_enabled()
    learner.meta_gradient(inside)  # tensors of inference mode, outside of it
    learner(inside).objective.mean().backward()


def test_a_learner_is_evaluated_in_inference_mode() -> None:
    learner = il.maml(il.models.mlp(1, 8, 1), 0.1, loss=F.mse_loss)
    expected = il.evaluate(learner, il.Sinusoid(5), 4).mean
    with torch.inference_mode():
        assert il.evaluate(learner, il.Sinusoid(5), 4).mean == expected


def test_models_made_in_inference_mode_are_refused() -> None:
    with torch.inference_mode():
        net = nn.Linear(3, 1)
    with pytest.raises(ValueError, match=r"weight was made inside torch.inference_mode\(\).*outside"):
        il.maml(net)
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode"):
        il.maml(nn.Linear(3, 1))


@pytest.mark.parametrize("vectorize", [True, False])
def test_the_first_call_may_be_without_gradients(vectorize: bool) -> None:
    tasks = column(regression())
    learner = il.maml(nn.Linear(3, 1), 0.1, loss=F.mse_loss, vectorize=vectorize)
    with torch.no_grad():
        outcome = learner(tasks)
    assert not outcome.objective.requires_grad
    torch.testing.assert_close(outcome.objective, learner(tasks).objective.detach())


# -- few inputs and batch norm ----------------------------------------------------------------------------------------


def adapted(transductive: bool = True) -> tuple[il.Adapted, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten(), nn.Linear(64, 3)
    )
    x, y = torch.randn(6, 1, 6, 6), torch.arange(3).repeat(2)
    return il.maml(model, 0.1).adapt(il.Batch(x, y), transductive=transductive), torch.randn(7, 1, 6, 6)


def test_a_single_input_is_judged_beside_the_support_set() -> None:
    (together, x), (alone, _) = adapted(), adapted(transductive=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one_by_one = torch.cat([together(one[None]) for one in x])
    torch.testing.assert_close(one_by_one, alone(x))


def test_few_inputs_give_a_warning_once() -> None:
    model, x = adapted()
    with pytest.warns(UserWarning, match="normalizes these 2 inputs by their own statistics.*transductive=False"):
        model(x[:2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(x[:2])
        model(x)
        adapted(transductive=False)[0](x[:2])


def test_a_module_that_depends_on_its_batch_gives_a_warning() -> None:
    with pytest.warns(UserWarning, match="transductive=False"):
        adapted()[0].module()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapted(transductive=False)[0].module()


def test_the_shipped_model_is_as_good_for_one_picture_at_a_time() -> None:
    learner = il.Pretrained.load("strokes").learner
    tasks, right = il.Strokes(5, 1, 4, split="test").sample(20, torch.Generator().manual_seed(0)), [0.0, 0.0]
    for index in range(20):
        support, query = il.task.select(tasks, index)
        model = learner.adapt(support)
        for way, output in enumerate((model(query.x), torch.cat([model(x[None]) for x in query.x]))):
            right[way] += (output.argmax(-1) == query.y).float().mean().item() / 20
    assert min(right) > 0.93, right


@VECTORIZE
@pytest.mark.parametrize("state", ["counter", "loss"])
def test_constant_memory_refuses_what_changes_when_it_is_computed_again(state: str, vectorize: Any) -> None:
    class Changes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.calls = nn.Linear(3, 1), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.layer(x) + (float(self.calls) if state == "counter" else 0.0)

    model, tasks = Changes(), column(regression())
    own = lambda output, y: F.mse_loss(output, y) * (1 + 0.1 * model.calls)  # noqa: E731
    loss = own if state == "loss" else F.mse_loss
    learner = il.maml(model, 0.1, steps=2, loss=loss, memory="constant", vectorize=vectorize)
    with pytest.raises(ValueError, match=r"(model|loss) gives another result when it is called again.*register_buffer"):
        learner.meta_gradient(tasks)


def test_hooks_of_adapted_parameters_are_refused() -> None:
    """Such as a mask of the gradient, which inner steps would ignore."""
    model = nn.Linear(3, 1)
    model.weight.register_hook(lambda grad: 0 * grad)
    with pytest.raises(ValueError, match=r"'weight' has a hook.*GradientTransform"):
        il.maml(model, loss=F.mse_loss).meta_gradient(column(regression()))
    il.MetaLearner(model, il.SGD(0.1), il.named("bias"), loss=F.mse_loss).predict(column(regression()))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("of", ["output", "parameter"])
def test_code_that_asks_whether_gradients_are_wanted(of: str) -> None:
    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            output = self.layer(x)
            asked = output if of == "output" else self.layer.weight
            return 2 * output if asked.requires_grad else output

    model, tasks = Asks(), column(regression())
    found = [
        il.maml(model, 0.1, steps=2, loss=F.mse_loss, vectorize=v, compile=False).meta_gradient(tasks)
        for v in (True, False)
    ]
    torch.testing.assert_close(*found)


def test_what_has_no_second_derivative_is_refused_with_the_fix() -> None:
    class Distances(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.centers = nn.Parameter(torch.randn(4, 3))

        def forward(self, x: Tensor) -> Tensor:
            return torch.cdist(x, self.centers)

    x, y = torch.randn(2, 6, 3), torch.randint(4, (2, 6))
    tasks = il.Task(il.Batch(x, y), il.Batch(x, y))
    with pytest.raises(ValueError, match=r"second derivatives.*cdist.*order=1"):
        il.maml(Distances(), vectorize=False).meta_gradient(tasks)
    il.maml(Distances(), vectorize=False).predict(tasks)
    il.fomaml(Distances(), vectorize=False).meta_gradient(tasks)


class WritingRule(il.UpdateRule):
    """Gradient descent that writes to what it should not."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.register_buffer("seen", torch.zeros(()))
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, grads: Any, params: Any, state: Any, step: int) -> Any:
        updates = {name: -0.1 * grad for name, grad in grads.items()}
        first = next(iter(params.values()))
        if self.how == "data":
            first.data.sub_(0.5)
        elif self.how == "detached":
            first.detach().mul_(0.9)
        elif self.how == "no_grad":
            with torch.no_grad():
                first.copy_(first * 0.9)
        elif self.how == "foreach":
            torch._foreach_mul_([p.detach() for p in params.values()], 0.9)
        elif self.how == "out":
            torch.mul(first.detach(), 0.9, out=first.data)
        elif self.how == "buffer":
            self.seen += 1
        elif self.how == "own parameter":
            self.scale.data.mul_(0.9)
        return updates, state


@pytest.mark.parametrize("call", ["meta_gradient", "forward", "predict", "adapt", "adapt_all"])
@pytest.mark.parametrize("how", ["data", "detached", "no_grad", "foreach", "out", "buffer", "own parameter"])
@VECTORIZE
def test_rules_that_write_in_place_are_refused(how: str, call: str, vectorize: Any) -> None:
    model, tasks = nn.Linear(3, 1), column(regression())
    learner = il.MetaLearner(model, WritingRule(how), loss=F.mse_loss, vectorize=vectorize)
    before = copy.deepcopy(learner.state_dict())
    one = il.Batch(tasks.support.x[0], tasks.support.y[0])
    calls: dict[str, Callable[[], Any]] = {
        "meta_gradient": lambda: learner.meta_gradient(tasks),
        "forward": lambda: learner(tasks),
        "predict": lambda: learner.predict(tasks),
        "adapt": lambda: learner.adapt(one),
        "adapt_all": lambda: learner.adapt_all(tasks.support),
    }
    with pytest.raises(ValueError, match=r"WritingRule writes to (the parameter 'weight'|its own '(seen|scale)')"):
        calls[call]()
    torch.testing.assert_close(learner.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("call", ["meta_gradient", "predict"])
def test_a_model_that_changed_after_the_learner_was_made_is_refused(call: str) -> None:
    net, tasks = nn.Sequential(nn.Linear(3, 1)), column(regression())
    learner = il.maml(net, 0.1, loss=F.mse_loss)
    learner.meta_gradient(tasks)
    net.append(nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"has got the parameter '1\.bias' since the learner was made"):
        getattr(learner, call)(tasks)
    net[0], net[1] = nn.Linear(3, 1, bias=False), nn.Identity()
    with pytest.raises(ValueError, match=r"has lost the parameter '0\.bias'"):
        getattr(learner, call)(tasks)


@pytest.mark.filterwarnings("ignore:batch norm normalizes these 4 inputs:UserWarning")
@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("vectorize", ["auto", True, False])
def test_what_was_adapted_stays_when_training_goes_on(vectorize: Any, steps: int) -> None:
    net, tasks = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)), column(regression())
    learner = il.anil(net, 0.1, head="2", loss=F.mse_loss, steps=steps, vectorize=vectorize)
    every, one = learner.adapt_all(tasks.support), learner.adapt(il.Batch(tasks.support.x[0], tasks.support.y[0]))
    before = every(tasks.query.x), one(tasks.query.x[0])
    with torch.no_grad():
        for tensor in (*net.parameters(), *net.buffers()):
            tensor.add_(1)
    torch.testing.assert_close((every(tasks.query.x), one(tasks.query.x[0])), before, rtol=0, atol=0)


def test_looped_models_of_many_tasks_keep_to_the_contract() -> None:
    """What cannot be vectorized runs in a loop, where the same is refused, and the same replaced."""
    net = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 1))
    tasks = il.Batch(torch.randint(5, (2, 4, 2)), torch.randn(2, 4, 1))
    adapted = il.maml(net, 0.1, loss=F.mse_loss).adapt_all(tasks)
    net[0].max_norm = 0.1
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=r"max_norm=0\.1"):
        adapted(tasks.x)
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_modules_with_the_old_weight_norm_are_copied() -> None:
    net, tasks = nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 1)), nn.Tanh()), column(regression())
    learner = il.maml(net, 0.1, loss=F.mse_loss)
    adapted = learner.adapt(il.Batch(tasks.support.x[0], tasks.support.y[0]))
    torch.testing.assert_close(adapted.module()(tasks.query.x[0]), adapted(tasks.query.x[0]))


# -- gradients in the model or the loss -------------------------------------------------------------------------------


def by_vjp(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return torch.autograd.functional.vjp(f, x, torch.ones(len(x), 1), create_graph=True)[1]


def by_jvp(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return torch.autograd.functional.jvp(f, x, torch.ones_like(x), create_graph=True)[1]


def by_jacobian(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return torch.autograd.functional.jacobian(lambda x: f(x).sum(), x, create_graph=True)


def by_hvp(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return torch.autograd.functional.hvp(lambda x: f(x).sum(), x, torch.ones_like(x), create_graph=True)[1]


def by_grad(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(f(x).sum(), x, create_graph=True)[0]


def by_grad_or_zero(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    (found,) = torch.autograd.grad(f(x).sum(), x, create_graph=True, allow_unused=True)
    return torch.zeros_like(x) if found is None else found


def by_leaf(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x.requires_grad_()
    return torch.autograd.grad(f(x).sum(), x, create_graph=True)[0]


def by_func(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return torch.func.grad(lambda x: f(x).sum())(x)


DERIVATIVES = {f.__name__: f for f in (by_vjp, by_jvp, by_jacobian, by_hvp, by_grad, by_grad_or_zero, by_func)}


class Derived(nn.Module):
    """A function and its derivative by the input, as for an equation of physics."""

    def __init__(self, derivative: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]) -> None:
        super().__init__()
        self.f, self.derivative = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1)), derivative

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            return self.f(x), self.derivative(self.f, x)


def equation(output: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
    return (output[0] - y).square().mean() + (output[1] + output[0]).square().mean()


@pytest.mark.usefixtures("double")
@pytest.mark.filterwarnings("ignore:Derived .* cannot be vectorized:UserWarning")
@pytest.mark.parametrize("memory", ["graph", "constant"])
@pytest.mark.parametrize("vectorize", ["auto", False])
def test_a_model_that_differentiates_by_its_input_does_not_find_it_again(vectorize: Any, memory: Any) -> None:
    """A second step on the same tensor would differentiate through the first one."""
    x = torch.randn(3, 10, 1)
    tasks = il.Task(il.Batch(x[:, :6], x[:, :6].sin()), il.Batch(x[:, 6:], x[:, 6:].sin()))
    found = []
    for derivative in (by_func, by_leaf):
        torch.manual_seed(0)
        learner = il.maml(
            Derived(derivative), 0.1, steps=3, loss=equation, memory=memory, vectorize=vectorize, compile=False
        )
        found.append((learner.meta_gradient(tasks)[0], learner.predict(tasks)))
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-12)
    assert not tasks.support.x.requires_grad


@pytest.mark.parametrize("call", ["adapt", "predict", "adapt_all"])
def test_gradients_where_none_are_recorded_are_told_how_to_be(call: str) -> None:
    class Slope(Derived):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.f(x), by_leaf(self.f, x)

    x = torch.randn(3, 6, 1)
    tasks, learner = il.Task(il.Batch(x, x), il.Batch(x, x)), il.maml(Slope(by_leaf), 0.1, loss=equation)
    with pytest.raises(ValueError, match=r"torch\.enable_grad\(\)"):
        {
            "adapt": lambda: learner.adapt(il.task.select(tasks.support, 0))(x[0]),
            "predict": lambda: learner.predict(tasks),
            "adapt_all": lambda: learner.adapt_all(tasks.support)(x),
        }[call]()


@pytest.mark.usefixtures("double")
@pytest.mark.filterwarnings("ignore:Derived .* cannot be vectorized:UserWarning")
@pytest.mark.parametrize("memory", ["graph", "constant"])
@pytest.mark.parametrize("name", DERIVATIVES)
def test_derivatives_in_a_model_are_right_or_refused(name: str, memory: Any) -> None:
    """Torch says zero, of tasks at once."""
    model, x = Derived(DERIVATIVES[name]), torch.randn(3, 10, 1)
    tasks = il.Task(il.Batch(x[:, :6], x[:, :6].sin()), il.Batch(x[:, 6:], x[:, 6:].sin()))

    expected = by_hand(model, equation, tasks)
    for vectorize in ("auto", True, False, (1, 2)):
        learner = il.maml(model, 0.1, loss=equation, vectorize=vectorize, memory=memory)  # type: ignore[arg-type]
        if name != "by_func" and vectorize in (True, (1, 2)):
            with pytest.raises(ValueError, match=r"gradients from torch\.autograd.*To fix it, use torch\.func\.grad"):
                learner.meta_gradient(tasks)
        else:
            found = {n.removeprefix("model."): g for n, g in learner.meta_gradient(tasks)[0].items()}
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


# -- inputs that are not one row for each example ---------------------------------------------------------------------


class InContext(nn.Module):
    """Judges examples by others that come with them."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(3, 1), nn.BatchNorm1d(3) if norm else nn.Identity()

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return self.layer(self.norm(x) + context.mean(0))


@VECTORIZE
def test_inputs_that_have_not_a_row_for_each_example_are_not_cut_up(vectorize: Any) -> None:
    def inputs(number: int) -> tuple[Tensor, Tensor]:
        return torch.randn(3, number, 3), torch.randn(3, 9, 3)

    tasks = il.Task(il.Batch(inputs(6), torch.randn(3, 6, 1)), il.Batch(inputs(4), torch.randn(3, 4, 1)))
    refusal = r"inputs have \d examples, but one of their tensors has shape \(9, 3\)"
    whole = il.maml(InContext(), 0.1, loss=F.mse_loss, vectorize=vectorize)
    whole.meta_gradient(tasks)
    whole.predict(tasks)
    with pytest.raises(ValueError, match=refusal):
        il.maml(InContext(), 0.1, loss=F.mse_loss, vectorize=vectorize, batch_size=3).meta_gradient(tasks)
    normed = il.maml(InContext(norm=True), 0.1, loss=F.mse_loss, vectorize=vectorize)
    normed.meta_gradient(tasks)
    with pytest.raises(ValueError, match=refusal):
        normed.predict(tasks, transductive=False)
    adapted = normed.adapt(il.task.select(tasks.support, 0), transductive=False)
    with pytest.raises(ValueError, match=refusal):
        adapted(il.task.select(tasks.query.x, 0))
    with pytest.raises(ValueError, match=refusal):
        normed.adapt(il.task.select(tasks.support, 0))((torch.randn(1, 3), torch.randn(9, 3)))


# -- the same where a model is used -----------------------------------------------------------------------------------


class Padded(nn.Module):
    """Reads padded positions, which torch's fast path for inference sets to zero."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.body, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(8, 3)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        return self.head(self.body(x, src_key_padding_mask=padding).mean(1))


@pytest.mark.filterwarnings("ignore:.*nested tensor:UserWarning", "ignore:.*cannot be vectorized:UserWarning")
@pytest.mark.parametrize("vectorize", ["auto", False])
def test_what_is_adapted_answers_as_predictions_do(vectorize: Any) -> None:
    padding = (torch.arange(5) >= torch.tensor([5, 3, 2, 4])[:, None]).repeat(2, 1, 1)
    batch = il.Batch((torch.randn(2, 4, 5, 8), padding), torch.randint(3, (2, 4)))
    learner = il.maml(Padded(), 0.1, vectorize=vectorize)
    expected = learner.predict(il.Task(batch, batch))[:, -1]
    one = il.task.select(batch, 0)
    torch.testing.assert_close(learner.adapt(one)(one.x), expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(learner.adapt_all(batch)(batch.x), expected, rtol=1e-4, atol=1e-5)


class Clamped(torch.autograd.Function):
    """Clamps gradients, so that the backward pass is not linear."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.clamp(-1e-3, 1e-3)


@pytest.mark.usefixtures("double")
@VECTORIZE
def test_the_meta_gradient_is_that_of_the_mean_where_backward_passes_are_not_linear(vectorize: Any) -> None:
    class Net(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return Clamped.apply(super().forward(x))  # type: ignore[no-any-return, no-untyped-call]

    tasks, learner = column(regression()), il.maml(Net(3, 1), 0.1, loss=F.mse_loss, vectorize=vectorize)
    found = learner.meta_gradient(tasks)[0]
    learner(tasks).objective.mean().backward()
    expected = {name: p.grad for name, p in learner.named_parameters() if name in found}
    torch.testing.assert_close(found, expected)


def test_norms_that_would_not_go_by_their_own_statistics_are_named() -> None:
    pretrained = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    pretrained(torch.randn(20, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        il.maml(pretrained, 0.1)
        il.maml(pretrained.eval(), 0.1, statistics="running")
        il.maml(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval(), 0.1)
    with pytest.warns(UserWarning, match=r"batch norm '1' is in eval\(\) mode .* give statistics=\"running\""):
        il.maml(pretrained.eval(), 0.1)


# -- constant memory finds what it differentiates by -------------------------------------------------------------------


class Proxies(nn.Module):
    """A loss that shares a layer with the model."""

    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self.embedding = embedding

    def forward(self, output: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(output @ self.embedding.weight.T, y)  # type: ignore[operator, union-attr]


@pytest.mark.usefixtures("double")
@VECTORIZE
def test_a_layer_that_model_and_loss_share_counts_once(vectorize: Any) -> None:
    net = nn.ModuleDict({"embedding": nn.Embedding(5, 3), "head": nn.Linear(3, 3)})
    model = nn.Sequential(net["embedding"], net["head"])
    batch = il.Batch(torch.randint(5, (3, 6)), torch.randint(5, (3, 6)))
    gradients = []
    for memory in ("graph", "constant"):
        learner = il.anil(model, 0.1, head="1", loss=Proxies(net["embedding"]), vectorize=vectorize, memory=memory)
        gradients.append(learner.meta_gradient(il.Task(batch, batch))[0])
    torch.testing.assert_close(*gradients)


@VECTORIZE
@pytest.mark.parametrize("how", ["lambda", "method", "partial", "list", "plain"])
def test_constant_memory_refuses_tensors_that_it_cannot_find(how: str, vectorize: Any) -> None:
    scale, plain, tasks = nn.Linear(1, 1), torch.ones(1, requires_grad=True), column(regression())

    class Listed(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 1)
            self.hidden = [nn.Parameter(torch.ones(1))]

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.hidden[0]

    def scaled(by: nn.Module, output: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(by(output), y)

    losses: dict[str, Any] = {
        "lambda": lambda output, y: F.mse_loss(scale(output), y),
        "method": SimpleNamespace(scale=scale, loss=MethodType(scaled, scale)).loss,
        "partial": partial(scaled, scale),
        "plain": lambda output, y: F.mse_loss(plain * output, y),
    }
    model = Listed() if how == "list" else nn.Linear(3, 1)
    loss = losses.get(how, F.mse_loss)
    il.maml(model, 0.1, loss=loss, vectorize=vectorize).meta_gradient(tasks)
    with pytest.raises(
        ValueError, match=r"memory=\"constant\" would lose its gradient: register it as an nn\.Parameter"
    ):
        il.maml(model, 0.1, loss=loss, vectorize=vectorize, memory="constant").meta_gradient(tasks)


# -- the same model in training and in use -----------------------------------------------------------------------------


@pytest.mark.parametrize("statistics", ["batch", "running"])
def test_instance_norms_that_keep_statistics_are_the_same_in_training_and_in_use(statistics: Any) -> None:
    net = nn.Sequential(nn.Conv1d(2, 3, 2), nn.InstanceNorm1d(3, affine=True, track_running_stats=True), nn.Flatten())
    net.append(nn.Linear(12, 1))
    x, y = torch.randn(3, 6, 2, 5) + 3, torch.randn(3, 6, 1)
    tasks = il.Task(*(il.Batch(x, y) for _ in range(2)))
    learner = il.maml(net, 0.0, loss=F.mse_loss, statistics=statistics)
    trained = learner(tasks).output
    torch.testing.assert_close(learner.predict(tasks)[:, -1], trained)
    adapted = learner.adapt(il.Batch(x[0], y[0]))
    torch.testing.assert_close(adapted(x[0]), trained[0])
    torch.testing.assert_close(adapted.module()(x[0]), trained[0])
    torch.testing.assert_close(learner.adapt_all(tasks.support)(x), trained)


@VECTORIZE
def test_dropout_in_losses_and_rules_is_off_in_use(vectorize: Any) -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dropout = nn.Dropout(0.5)

        def forward(self, output: Tensor, y: Tensor) -> Tensor:
            return F.mse_loss(self.dropout(output), y)

    class DroppingRule(il.SGD):
        def __init__(self) -> None:
            super().__init__(0.1)
            self.dropout = nn.Dropout(0.5)

        def forward(self, grads: Any, params: Any, state: Any, step: int) -> Any:
            return super().forward({name: self.dropout(grad) for name, grad in grads.items()}, params, state, step)

    tasks = column(regression())
    for parts in ({"loss": Dropping()}, {"rule": DroppingRule()}):
        parts = {"model": nn.Linear(3, 1), "rule": il.SGD(0.1), "loss": F.mse_loss, **parts}
        learner = il.MetaLearner(**parts, vectorize=vectorize)
        expected = learner.predict(tasks)
        torch.testing.assert_close(learner.predict(tasks), expected, rtol=0, atol=0)
        assert not torch.equal(*(learner(tasks).output for _ in range(2)))  # where it stays on
        assert all(module.training for module in learner.modules())


def test_what_is_adapted_keeps_a_support_set_of_its_own() -> None:
    net, tasks = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)), column(regression())
    support, x = il.task.select(tasks.support, 0), tasks.query.x[0]
    adapted = il.maml(net, 0.1, loss=F.mse_loss).adapt(support, transductive=False)
    before = adapted(x), adapted.module()(x)
    support.x.mul_(3)
    torch.testing.assert_close((adapted(x), adapted.module()(x)), before, rtol=0, atol=0)


def test_objectives_are_one_number_of_each_task() -> None:
    class Twice(il.Unrolled):
        def __call__(self, episode: Any) -> Any:
            judgement = super().__call__(episode)
            return judgement._replace(objective=judgement.objective.expand(2))

    learner = il.MetaLearner(nn.Linear(3, 1), il.SGD(0.1), objective=Twice(), loss=F.mse_loss)
    with pytest.raises(ValueError, match=r"must be one scalar, got shape \(2,\)"):
        learner.meta_gradient(column(regression()))


@VECTORIZE
def test_outer_losses_that_move_the_models_statistics_are_refused(vectorize: Any) -> None:
    net, tasks = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)), column(regression())

    def anchored(output: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(output, y) + (net(tasks.query.x[0]).detach() - output).square().mean()

    learner = il.maml(net, 0.1, loss=anchored, inner_loss=F.mse_loss, vectorize=vectorize)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=r"changes the learner's 'model\.1\.\w+' in place"):
        learner.meta_gradient(tasks)
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)


@VECTORIZE
def test_models_may_have_sparse_buffers(vectorize: Any) -> None:
    class Graph(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 1)
            self.register_buffer("adjacency", torch.eye(3).to_sparse())

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x @ self.adjacency.to_dense())

    tasks, model = column(regression()), Graph()
    found = il.maml(model, 0.1, loss=F.mse_loss, vectorize=False).meta_gradient(tasks)[0]
    plain = nn.Linear(3, 1)
    plain.load_state_dict({"weight": model.weight, "bias": model.bias})
    expected = il.maml(plain, 0.1, loss=F.mse_loss, vectorize=vectorize).meta_gradient(tasks)[0]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.filterwarnings("ignore:.*spectral_norm.* is deprecated:FutureWarning")
def test_spectral_norms_are_said_not_to_follow_meta_training(old: bool) -> None:
    normed = nn.utils.spectral_norm if old else nn.utils.parametrizations.spectral_norm
    with pytest.warns(UserWarning, match=r"spectral norm in '0.*' .* call the model once in train\(\) mode"):
        il.maml(nn.Sequential(normed(nn.Linear(3, 4)), nn.Linear(4, 1)), 0.1)


@pytest.mark.filterwarnings("ignore:the spectral norm in:UserWarning")
@pytest.mark.parametrize("moved", [True, False])
def test_spectral_norms_follow_meta_training_by_what_the_warning_says(moved: bool) -> None:
    normed = nn.utils.parametrizations.spectral_norm
    net = nn.Sequential(normed(nn.Linear(1, 20)), nn.Tanh(), normed(nn.Linear(20, 20)), nn.Tanh(), nn.Linear(20, 1))
    learner, source = il.maml(net, 0.01, loss=F.mse_loss, vectorize=False), il.Sinusoid(shots=5)
    optimizer, generator = torch.optim.Adam(learner.parameters(), lr=3e-2), torch.Generator().manual_seed(0)
    for _ in range(150):
        optimizer.zero_grad()
        learner(source.sample(2, generator)).objective.mean().backward()
        optimizer.step()
        if moved:
            with torch.no_grad():
                net(torch.zeros(1, 1))
    net.eval()
    norms = [torch.linalg.matrix_norm(layer.weight, 2).item() for layer in (net[0], net[2])]
    assert (norms == pytest.approx([1, 1], abs=0.05)) is moved, norms


@pytest.mark.usefixtures("double")
@VECTORIZE
def test_code_that_asks_for_requires_grad_hears_the_same_wherever_it_runs(vectorize: Any) -> None:
    class Penalized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            penalty = sum((p.square().sum() for p in self.parameters() if p.requires_grad), x.new_zeros(()))
            return self.head(torch.tanh(self.body(x))), 0.1 * penalty

    loss = lambda output, y: F.mse_loss(output[0], y) + output[1]  # noqa: E731
    for adapt in (il.everything, il.head):
        tasks, model = regression(2), Penalized()
        model.body.bias.requires_grad_(False)
        learner = il.MetaLearner(model, il.SGD(0.1), adapt, loss=loss, steps=2, vectorize=vectorize)
        judged, predicted = learner(tasks).output, learner.predict(tasks)
        adapted = learner.adapt(il.task.select(tasks, 0).support)
        of_one = adapted(tasks.query.x[0])
        many = learner.adapt_all(tasks.support)(tasks.query.x)
        for part in range(2):
            torch.testing.assert_close(predicted[part][:, -1], judged[part])
            torch.testing.assert_close(many[part], judged[part])
            torch.testing.assert_close(of_one[part], judged[part][0])
        assert not any(p.requires_grad for p in adapted.parameters.values())
        assert adapted.losses[0] > 0.1 * sum(float(p.square().sum()) for p in model.parameters() if p.requires_grad)


def test_a_module_has_the_buffers_that_the_task_left() -> None:
    class Centered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)
            self.register_buffer("level", torch.tensor(0))

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.layer(x - self.level)
            self.level = x.mean() + 0.25
            return output

    torch.manual_seed(0)
    model, support, query = Centered(), il.Batch(torch.randn(6, 3) + 2, torch.randn(6, 2)), torch.randn(4, 3)
    adapted = il.maml(model, 0.1, steps=2, loss=F.mse_loss).adapt(support)
    module = adapted.module()
    assert module.level.dtype == torch.float32
    torch.testing.assert_close(module(query), adapted(query))
    assert model.level.dtype == torch.int64


def test_a_shared_buffer_that_becomes_two_is_refused() -> None:
    class Parting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)
            self.register_buffer("level", torch.zeros(()))
            self.register_buffer("same", self.level)

        def forward(self, x: Tensor) -> Tensor:
            self.level = x.mean()
            output: Tensor = self.layer(x) - self.same
            return output

    with pytest.raises(ValueError, match="'level' or 'same', which are one"):
        il.maml(Parting(), loss=F.mse_loss).meta_gradient(regression(2))


class _OwnNorm(nn.Module):
    def __init__(self, features: int, how: str) -> None:
        super().__init__()
        self.how = how
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("variance", torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "function":
            return F.batch_norm(x, self.mean, self.variance, training=self.training)
        if self.training or self.how == "batch":
            return (x - x.mean(0)) / x.std(0)
        return (x - self.mean) / self.variance.sqrt()


@pytest.mark.parametrize("call", ["adapt", "predict", "adapt_all"])
@pytest.mark.parametrize("how", ["function", "own", "batch", "dropout"])
def test_what_predicts_otherwise_than_it_trains_is_told(how: str, call: str) -> None:
    layers = [nn.Linear(3, 5), _OwnNorm(5, "batch" if how == "dropout" else how), nn.Linear(5, 2)]
    layers += [nn.Dropout(0.5)] if how == "dropout" else []
    learner, tasks = il.maml(nn.Sequential(*layers), 0.1, loss=F.mse_loss), regression(2)
    learner.meta_gradient(tasks)
    calls = {
        "adapt": lambda: learner.adapt(il.task.select(tasks, 0).support),
        "predict": lambda: learner.predict(tasks),
        "adapt_all": lambda: learner.adapt_all(tasks.support),
    }
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        calls[call]()
    told = [w for w in caught if "_OwnNorm gives other results in predictions" in str(w.message)]
    assert len(told) == (how in ("function", "own"))
    frozen = il.maml(nn.Sequential(*layers).eval(), 0.1, loss=F.mse_loss)  # which is trained so, too
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="_OwnNorm")
        frozen.meta_gradient(tasks)
        frozen.predict(tasks)


@pytest.mark.usefixtures("double")
@VECTORIZE
def test_constant_memory_keeps_the_gradient_by_the_examples(vectorize: Any) -> None:
    """As data set distillation asks for."""
    model, gradients, tasks = nn.Linear(3, 1), [], column(regression())
    for memory in ("graph", "constant"):
        x = tasks.support.x.clone().requires_grad_()
        y = tasks.support.y.clone().requires_grad_()
        learner = il.maml(model, 0.1, steps=2, loss=F.mse_loss, memory=memory, vectorize=vectorize)
        objective = learner(il.Task(il.Batch(2 * x, y.sin()), tasks.query)).objective.sum()
        gradients.append(torch.autograd.grad(objective, (x, y)))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-10, atol=1e-12)


def test_lazy_modules_have_to_be_called_first() -> None:
    model = nn.Sequential(nn.LazyLinear(2))
    with pytest.raises(ValueError, match=r"0\.weight has no shape yet.*call the model once on an example"):
        il.maml(model, loss=F.mse_loss)
    model(torch.ones(1, 3))
    il.maml(model, loss=F.mse_loss).meta_gradient(regression(2))


@VECTORIZE
@pytest.mark.parametrize("adapted", [True, False])
def test_hooks_that_come_after_the_first_call_are_refused(adapted: bool, vectorize: Any) -> None:
    model, tasks = nn.Linear(3, 1), column(regression())
    learner = il.MetaLearner(
        model, il.SGD(0.1), il.everything if adapted else il.named("bias"), loss=F.mse_loss, vectorize=vectorize
    )
    learner.meta_gradient(tasks)
    handle = model.weight.register_hook(lambda grad: grad.clamp(-0.01, 0.01))
    with pytest.raises(ValueError, match="'weight' has a hook"):
        learner.meta_gradient(tasks)
    if not adapted:
        learner.predict(tasks)  # which takes no gradient by it
    handle.remove()
    learner.meta_gradient(tasks)
    learner = il.meta_sgd(model, loss=F.mse_loss, vectorize=vectorize)
    next(learner.rule.parameters()).register_hook(lambda grad: grad.clamp(-0.01, 0.01))
    with pytest.raises(ValueError, match="has a hook"):
        learner.meta_gradient(tasks)


class Rated(nn.Module):
    """Has a parameter of the name that SGD's rate has."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.lr = nn.Linear(3, 1), nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.lr * self.layer(x)
        return output


@VECTORIZE
@pytest.mark.parametrize("adapted", [True, False])
def test_hooks_are_refused_where_the_model_and_the_rule_have_parameters_of_one_name(
    adapted: bool, vectorize: Any
) -> None:
    model, rule, tasks = Rated(), il.SGD(0.1, learned=True), column(regression())
    assert "lr" in dict(rule.named_parameters())
    selection = il.everything if adapted else il.named("layer.*")
    learner = il.MetaLearner(model, rule, selection, loss=F.mse_loss, vectorize=vectorize)
    learner.meta_gradient(tasks)
    handle = model.lr.register_hook(lambda grad: grad.clamp(-0.01, 0.01))
    advice = "il.GradientTransform" if adapted else "change the gradients that meta_gradient returns"
    with pytest.raises(ValueError, match=f"'lr' has a hook.*{advice}"):
        learner.meta_gradient(tasks)
    if adapted:
        with pytest.raises(ValueError, match=f"'lr' has a hook.*{advice}"):
            learner.predict(tasks)
    else:
        learner.predict(tasks)  # which takes no gradient by it
    handle.remove()
    rule.lr.register_hook(lambda grad: grad.clamp(-0.01, 0.01))
    with pytest.raises(ValueError, match=r"'lr' has a hook.*change the gradients that meta_gradient returns"):
        learner.meta_gradient(tasks)
    learner.predict(tasks)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("pre", [True, False])
def test_global_backward_hooks_run(pre: bool) -> None:
    model, tasks = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), column(regression())
    own = nn.modules.module
    halved = lambda grads: tuple(None if g is None else 0.5 * g for g in grads)  # noqa: E731
    if pre:
        handle = own.register_module_full_backward_pre_hook(lambda _, grads: halved(grads))
    else:
        handle = own.register_module_full_backward_hook(lambda _, inputs, __: halved(inputs))
    try:
        with pytest.warns(UserWarning, match="backward hooks of modules do not run while tasks run at once"):
            found = il.maml(model, 0.1, loss=F.mse_loss).meta_gradient(tasks)[0]
        expected = by_hand(model, F.mse_loss, tasks)
        for name, grad in expected.items():
            torch.testing.assert_close(found[f"model.{name}"], grad)
    finally:
        handle.remove()


@pytest.mark.parametrize("asks", ["grad_fn", "is_leaf"])
def test_code_that_looks_at_the_graph_runs_one_task_at_a_time(asks: str) -> None:
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            hidden = torch.tanh(self.first(x))
            if asks == "is_leaf" and not hidden.is_leaf:
                hidden = 2 * hidden
            elif asks == "grad_fn" and hidden.grad_fn is not None:
                hidden.grad_fn.register_prehook(lambda grads: (0.5 * grads[0],))
            output: Tensor = self.second(hidden)
            return output

    model, tasks = Looks(), column(regression())
    with pytest.warns(UserWarning, match=rf"a tensor's {asks} would not see the graph"):
        found = il.maml(model, 0.1, loss=F.mse_loss).meta_gradient(tasks)[0]
    for name, grad in by_hand(model, F.mse_loss, tasks).items():
        torch.testing.assert_close(found[f"model.{name}"], grad)


@pytest.mark.usefixtures("double")
def test_buffers_that_come_apart_when_they_are_converted() -> None:
    class Shifts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, one = nn.Linear(3, 1), torch.ones(3)
            self.register_buffer("shift", one)
            self.register_buffer("scale", one)

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.layer((x - self.shift) * self.scale)
            return output

    model, tasks = Shifts().float(), column(regression())
    learner = il.maml(model, 0.1, loss=F.mse_loss)
    model.double()
    model.load_state_dict({**model.state_dict(), "shift": torch.zeros(3), "scale": torch.full((3,), 3.0)})
    found = learner.meta_gradient(tasks)[0]
    for name, grad in by_hand(model, F.mse_loss, tasks).items():
        torch.testing.assert_close(found[f"model.{name}"], grad)


@pytest.mark.parametrize("change", ["got", "lost"])
def test_buffers_that_come_or_go_are_refused(change: str) -> None:
    model = nn.Sequential(nn.Linear(3, 1))
    model.register_buffer("scale", torch.ones(1))
    learner = il.maml(model, loss=F.mse_loss)
    if change == "got":
        model.register_buffer("extra", torch.ones(1))
    else:
        model.scale = None
    with pytest.raises(ValueError, match=rf"the model has {change} the buffer '(extra|scale)' since"):
        learner.meta_gradient(column(regression()))


@pytest.mark.usefixtures("double")
def test_the_rule_follows_a_model_that_reads_whole_numbers() -> None:
    model = nn.Sequential(nn.Embedding(10, 8), nn.Flatten(), nn.Linear(16, 2)).float()
    x, y = torch.randint(0, 10, (4, 6, 2)), torch.randint(0, 2, (4, 6))
    tasks = il.Task(il.Batch(x, y), il.Batch(x.flip(1), y.flip(1)))
    used = il.maml(model, lr=0.3, steps=3)
    used.meta_gradient(tasks)
    model.double()
    fresh = il.maml(model, lr=0.3, steps=3).meta_gradient(tasks)[0]
    for name, grad in used.meta_gradient(tasks)[0].items():
        torch.testing.assert_close(grad, fresh[name], rtol=1e-12, atol=1e-14)


@VECTORIZE
def test_an_inner_loss_that_comes_to_use_own_parameters_is_refused(vectorize: Any) -> None:
    model, decay, tasks = nn.Linear(3, 1), [0.0], column(regression())

    def inner(output: Tensor, y: Tensor) -> Tensor:
        loss = F.mse_loss(output, y)
        return loss + decay[0] * sum(p.square().sum() for p in model.parameters()) if decay[0] else loss

    learner = il.maml(model, 0.1, loss=F.mse_loss, inner_loss=inner, vectorize=vectorize)
    learner.meta_gradient(tasks)
    implicit = il.imaml(model, 0.1, loss=F.mse_loss, inner_loss=inner, steps=2, vectorize=vectorize)
    implicit.meta_gradient(tasks)
    decay[0] = 0.5
    with pytest.raises(ValueError, match="the inner loss uses the model's own 'weight'"):
        implicit.meta_gradient(tasks)
    for call in (lambda: learner.meta_gradient(tasks), lambda: learner(tasks), lambda: learner.predict(tasks)):
        with pytest.raises(ValueError, match="the inner loss uses the model's own 'weight'"):
            call()


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("what", ["hidden", "noise"])
def test_constant_memory_refuses_what_comes_later(what: str, vectorize: Any) -> None:
    model, tasks, noisy = nn.Linear(3, 1), column(regression()), [False]
    penalty = torch.tensor(0.3)

    def inner(output: Tensor, y: Tensor) -> Tensor:
        scale = 1 + float(np.random.rand()) if noisy[0] else 1.0
        return scale * F.mse_loss(output, y) + penalty * output.square().mean()

    learner = il.maml(model, 0.1, steps=2, loss=F.mse_loss, inner_loss=inner, memory="constant", vectorize=vectorize)
    learner.meta_gradient(tasks)
    if what == "hidden":
        penalty.requires_grad_()
    else:
        noisy[0] = True
    refusal = "would lose its gradient" if what == "hidden" else "recomputes inner steps|draws random numbers"
    with pytest.raises(ValueError, match=refusal):
        learner.meta_gradient(tasks)


def test_noise_that_comes_later_is_each_tasks_own() -> None:
    model, tasks, noisy = nn.Linear(3, 1), column(regression()), [False]

    def inner(output: Tensor, y: Tensor) -> Tensor:
        return (1 + float(np.random.rand()) if noisy[0] else 1.0) * F.mse_loss(output, y)

    learner = il.maml(model, 0.1, loss=F.mse_loss, inner_loss=inner)
    learner.meta_gradient(tasks)
    noisy[0] = True
    np.random.seed(0)
    with pytest.warns(UserWarning, match=r"draws random numbers from numpy\.random"):
        found = learner(tasks).objective
    assert len({round(float(value), 6) for value in found}) == 3


@pytest.mark.parametrize("at", [[7], [-1], [0, 7], [1, 1], []])
def test_predictions_after_steps_that_are_not_taken_are_refused(at: list[int]) -> None:
    learner = il.maml(nn.Linear(3, 1), steps=3, loss=F.mse_loss)
    with pytest.raises(ValueError, match=r"at= takes distinct numbers of steps from 0 to 3, got \["):
        learner.predict(column(regression()), at=at)
