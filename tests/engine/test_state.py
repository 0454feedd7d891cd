"""Steps whose code reads Python state: compiled they give what they give eagerly, or are refused by name."""

from __future__ import annotations

import copy
import dataclasses
import functools
import gc
import itertools
import os
import random
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import innerloop as il
from innerloop.engine import compiling

pytestmark = pytest.mark.usefixtures("interpreted", "double", "own_plans")

Change = Callable[[int], Any]
Made = tuple[il.MetaLearner, Change]


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of compiled code, the recorded graph: as wrong as what would be compiled, in no time."""
    import torch._inductor

    monkeypatch.setattr(torch._inductor, "compile", lambda graph, example, options: graph)


def tasks(seed: int = 0, number: int = 3) -> il.Task:
    x = torch.randn(number, 9, 4, generator=torch.Generator().manual_seed(seed))
    y = torch.randint(3, (number, 9), generator=torch.Generator().manual_seed(seed))
    return il.Task(il.Batch(x[:, :5], y[:, :5]), il.Batch(x[:, 5:], y[:, 5:]))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def steps_of(made: Made, number: int = 5) -> list[Any]:
    learner, change = made
    found = []
    for step in range(number):
        change(step)
        found.append(learner.meta_gradient(tasks(step), step))
    return found


def nothing(step: int) -> None:
    pass


class Scaled(nn.Module):
    """Cross-entropy, divided by what a subclass or a function says."""

    def __init__(self, scale: Callable[[Any], Any] = lambda self: 1.0, **attributes: Any) -> None:
        super().__init__()
        self.scale = scale
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, output: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(output, y) * self.scale(self)


# -- state that the step changes by itself ----------------------------------------------------------------------------


class Counting(nn.Module):
    calls = 0

    def forward(self, output: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        return F.cross_entropy(output, y) * min(1.0, self.calls / 100)


class CountingInTheClass(nn.Module):
    calls = 0

    def forward(self, output: Tensor, y: Tensor) -> Tensor:
        type(self).calls += 1
        return F.cross_entropy(output, y) * min(1.0, self.calls / 100)


class CountingModel(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        self.seen = getattr(self, "seen", 0) + 1
        return super().forward(x) / self.seen


class CountingRule(il.SGD):
    def forward(self, grads: Any, params: Any, state: Any, step: int) -> Any:
        self.history.append(step)
        updates, state = super().forward(grads, params, state, step)
        return {name: update / len(self.history) for name, update in updates.items()}, state

    def __init__(self, lr: float) -> None:
        super().__init__(lr)
        self.history: list[int] = []


class CountingObjective(il.Unrolled):
    calls = 0

    def __call__(self, episode: Any) -> Any:
        self.calls += 1
        judgement = super().__call__(episode)
        return judgement._replace(objective=judgement.objective * self.calls)


class CountingStart(il.Initialization):
    calls = 0

    def __call__(self, episode: Any) -> Any:
        self.calls += 1
        return {name: start * (1 + self.calls / 10) for name, start in episode.start.params.items()}


class Moving(nn.Module):
    """Keeps a moving average of what it sees, in a buffer of its own."""

    def __init__(self, anew: bool, persistent: bool = True) -> None:
        super().__init__()
        self.anew = anew
        self.register_buffer("mean", torch.ones(()), persistent)

    def forward(self, output: Tensor, y: Tensor) -> Tensor:
        if self.anew:
            self.mean = 0.9 * self.mean + 0.1
        else:
            self.mean.mul_(0.9).add_(0.1).add_(0.05)
        return F.cross_entropy(output, y) * self.mean


CALLS = 0
LOG: list[int] = []


def counting_global(output: Tensor, y: Tensor) -> Tensor:
    global CALLS
    CALLS += 1
    return F.cross_entropy(output, y) * CALLS


def counting_list(output: Tensor, y: Tensor) -> Tensor:
    LOG.append(1)
    return F.cross_entropy(output, y) * len(LOG)


def counting_default(output: Tensor, y: Tensor, seen: list[int] = []) -> Tensor:  # noqa: B006
    seen.append(1)
    return F.cross_entropy(output, y) * len(seen)


def counting_closure() -> Callable[..., Tensor]:
    calls = 0

    def loss(output: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return F.cross_entropy(output, y) * calls

    return loss


def counting_attribute(output: Tensor, y: Tensor) -> Tensor:
    counting_attribute.calls += 1  # type: ignore[attr-defined]
    return F.cross_entropy(output, y) * counting_attribute.calls  # type: ignore[attr-defined]


def counting_iterator(numbers: Iterator[int]) -> Callable[..., Tensor]:
    return lambda output, y: F.cross_entropy(output, y) * next(numbers)


def fresh() -> None:
    """Set back what belongs to nobody."""
    global CALLS, SCALE
    CALLS, SCALE, CONFIG["scale"] = 0, 1.0, 1.0
    CountingInTheClass.calls = 0
    os.environ["INNERLOOP_TEST_SCALE"] = "1"
    with_default.__defaults__[0][0] = with_default.__kwdefaults__["other"]["by"] = 1.0  # type: ignore[index]
    LOG.clear()
    counting_attribute.calls = 0  # type: ignore[attr-defined]
    (counting_default.__defaults__ or ([],))[0].clear()
    random.seed(0)
    np.random.seed(0)


BY_ITSELF: dict[str, Callable[[], dict[str, Any]]] = {
    "calls, an attribute of a loss": lambda: {"loss": Counting()},
    "calls, an attribute of an inner loss": lambda: {"inner_loss": Counting()},
    "CountingInTheClass.calls": lambda: {"loss": CountingInTheClass()},
    "model.seen": lambda: {"model": CountingModel(*network())},
    "rule.history": lambda: {"rule": CountingRule(0.1)},
    "objective.calls": lambda: {"objective": CountingObjective()},
    "initial.calls": lambda: {"initial": CountingStart()},
    "loss.mean, in place": lambda: {"loss": Moving(False)},
    "loss.mean, anew": lambda: {"loss": Moving(True)},
    "loss.mean, not persistent": lambda: {"loss": Moving(False, persistent=False)},
    "global CALLS": lambda: {"loss": counting_global},
    "global LOG": lambda: {"loss": counting_list},
    "counting_default": lambda: {"loss": counting_default},
    "calls in counting_closure": lambda: {"loss": counting_closure()},
    "counting_attribute.calls": lambda: {"loss": counting_attribute},
    "numbers in counting_iterator": lambda: {"loss": counting_iterator(itertools.count(1))},
    "the rest of a list": lambda: {"loss": Scaled(lambda self: self.rest.pop(), rest=[2.0, 1.0] * 99)},
    "a dictionary": lambda: {"loss": Scaled(lambda s: s.seen.update(n=s.seen["n"] + 1) or s.seen["n"], seen={"n": 0})},
    "an array": lambda: {"loss": Scaled(lambda self: float(self.seen.__iadd__(1)[0]), seen=np.zeros(1))},
    "a plain tensor": lambda: {"loss": Scaled(lambda self: self.seen.add_(1), seen=torch.zeros(()))},
    "random.random": lambda: {"loss": Scaled(lambda self: random.random())},
    "random.uniform": lambda: {"loss": Scaled(lambda self: random.uniform(1, 2))},
    "a generator of its own": lambda: {"loss": Scaled(lambda s: s.own.random(), own=random.Random(0))},
    "numpy.random": lambda: {"loss": Scaled(lambda self: float(np.random.rand()))},
    "a generator of NumPy": lambda: {"loss": Scaled(lambda s: float(s.own.random()), own=np.random.default_rng(0))},
    "torch.Generator": lambda: {
        "loss": Scaled(lambda s: torch.rand((), generator=s.own), own=torch.Generator().manual_seed(0))
    },
}
DRAWING = [name for name in BY_ITSELF if name.startswith(("random.", "numpy.", "torch.G", "a generator"))]


def learner(compile: compiling.Compile, model: nn.Module | None = None, **options: Any) -> il.MetaLearner:
    rule = options.pop("rule", None) or il.SGD(0.1)
    options = {"loss": F.cross_entropy, "steps": 2, "vectorize": True, **options}
    return il.MetaLearner(model or network(), rule, compile=compile, **options)


@pytest.mark.parametrize("name", BY_ITSELF)
def test_state_that_a_step_changes_is_refused(name: str) -> None:
    fresh()
    compiled = learner(True, **BY_ITSELF[name]())
    message = "draws random numbers" if name in DRAWING else "compile=True, but the step cannot be compiled"
    with pytest.raises(ValueError, match=message) as refused:
        steps_of((compiled, nothing))
    known = name.partition(",")[0]
    if known.startswith(
        ("model.", "rule.", "objective.", "initial.", "loss.", "Counting", "global", "calls", "numbers")
    ):
        assert known.split()[0].rpartition(".")[2] in str(refused.value)


@pytest.mark.parametrize("name", [name for name in BY_ITSELF if name not in DRAWING])
def test_with_auto_state_that_a_step_changes_goes_on_changing(name: str, eagerly_auto: None) -> None:
    fresh()
    expected = steps_of((learner(False, **BY_ITSELF[name]()), nothing), 14)
    fresh()
    auto = learner("auto", **BY_ITSELF[name]())
    auto.compiler.steps_to_come = 10**9
    found = steps_of((auto, nothing), 14)
    (reason,) = auto.compiler.reasons.values()
    assert reason.startswith("eager, since")
    torch.testing.assert_close(found, expected)


@pytest.fixture
def eagerly_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    """``"auto"`` compiles whatever can be."""
    monkeypatch.setattr(compiling, "SECONDS_PER_OPERATION", 0.0)
    monkeypatch.setattr(compiling, "OTHERS", 0.0)
    monkeypatch.setattr(compiling, "_seconds", lambda call: 0.0)


# -- state that somebody else changes between steps -------------------------------------------------------------------


@dataclasses.dataclass
class Settings:
    scale: float = 1.0
    inner: Any = None


class Slotted:
    __slots__ = ("scale",)

    def __init__(self) -> None:
        self.scale = 1.0


SCALE = 1.0
CONFIG: dict[str, Any] = {"scale": 1.0}


def with_global(output: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(output, y) * SCALE * CONFIG["scale"]


def with_default(output: Tensor, y: Tensor, scale: Any = [1.0], *, other: Any = {"by": 1.0}) -> Tensor:  # noqa: B006
    return F.cross_entropy(output, y) * scale[0] * other["by"]


def with_environment(output: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(output, y) * float(os.environ.get("INNERLOOP_TEST_SCALE", "1"))


def with_getenv(output: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(output, y) * float(os.getenv("INNERLOOP_TEST_SCALE", "1"))


def scaled(scale: Any, output: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(output, y) * (scale["by"] if isinstance(scale, dict) else scale)


class PlainRule(il.UpdateRule):
    lr = 0.1

    def forward(self, grads: Any, params: Any, state: Any, step: int) -> Any:
        return {name: -self.lr * grad for name, grad in grads.items()}, state


def set_global(step: int) -> None:
    global SCALE
    SCALE = 1.0 + step


def with_local_import(output: Tensor, y: Tensor) -> Tensor:
    import os as system

    return F.cross_entropy(output, y) * float(system.environ.get("INNERLOOP_TEST_SCALE", "1"))


def set_environment(step: int) -> None:
    os.environ["INNERLOOP_TEST_SCALE"] = str(step + 1)


def attribute(maml: il.MetaLearner, path: str, of: Callable[[int], Any] = lambda step: 1.0 + step) -> Change:
    owner = functools.reduce(getattr, path.split(".")[:-1], maml)
    return lambda step: setattr(owner, path.rpartition(".")[2], of(step))


def with_loss(loss: Any, change: Callable[[Any], Change]) -> Callable[[compiling.Compile], Made]:
    def make(compile: compiling.Compile) -> Made:
        own = copy.deepcopy(loss)
        return learner(compile, loss=own), change(own)

    return make


def closure(compile: compiling.Compile) -> Made:
    scale = 1.0

    def loss(output: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(output, y) * scale

    def change(step: int) -> None:
        nonlocal scale
        scale = 1.0 + step

    return learner(compile, loss=loss), change


def default(compile: compiling.Compile) -> Made:
    assert with_default.__defaults__ is not None
    return learner(compile, loss=with_default), lambda step: with_default.__defaults__[0].__setitem__(0, 1.0 + step)  # type: ignore[index]


def keyword_default(compile: compiling.Compile) -> Made:
    return learner(compile, loss=with_default), lambda step: with_default.__kwdefaults__["other"].update(by=1.0 + step)


def partial_argument(compile: compiling.Compile) -> Made:
    scale = {"by": 1.0}
    return learner(compile, loss=functools.partial(scaled, scale)), lambda step: scale.update(by=1.0 + step)


def batch_norm(compile: compiling.Compile) -> Made:
    norm = nn.BatchNorm1d(5)
    maml = learner(compile, nn.Sequential(nn.Linear(4, 5), norm, nn.Linear(5, 3)).requires_grad_())
    torch.manual_seed(0)
    return maml, lambda step: setattr(norm, "eps", 1e-5 + 0.5 * step)


def inner_of(path: str) -> Callable[[compiling.Compile], Made]:
    def make(compile: compiling.Compile) -> Made:
        maml = learner(compile, rule=PlainRule(), loss=nn.CrossEntropyLoss())
        return maml, attribute(maml, path, lambda step: 0.1 + step / 100)

    return make


def forward_hook(compile: compiling.Compile) -> Made:
    model = network()
    later = lambda step: model[1].register_forward_hook(lambda m, i, out: 2 * out) if step == 2 else None  # noqa: E731
    return learner(compile, model), later


def replaced_method(compile: compiling.Compile) -> Made:
    loss = Scaled()
    anew = lambda output, y: 3 * F.cross_entropy(output, y)  # noqa: E731
    return learner(compile, loss=loss), lambda step: setattr(loss, "forward", anew) if step == 2 else None


def replaced_layer(compile: compiling.Compile) -> Made:
    model = network()

    def change(step: int) -> None:
        if step == 2:
            torch.manual_seed(1)
            model[2] = nn.Linear(5, 3)

    return learner(compile, model), change


def another_activation(compile: compiling.Compile) -> Made:
    model = network()
    return learner(compile, model), lambda step: model.__setitem__(1, nn.ReLU()) if step == 2 else None  # type: ignore[operator]


def added_layer(compile: compiling.Compile) -> Made:
    model = network()
    return learner(compile, model), lambda step: model.append(nn.Tanh()) if step == 2 else None  # type: ignore[operator]


def swapped_data(compile: compiling.Compile) -> Made:
    model = network()
    return learner(compile, model), lambda step: setattr(model[0].weight, "data", model[0].weight.data.clone() * 0.9)  # type: ignore[index]


def frozen(compile: compiling.Compile) -> Made:
    model = network()
    return learner(compile, model), lambda step: model[0].requires_grad_(step % 2 == 0)  # type: ignore[index]


def tensor_in_place(compile: compiling.Compile) -> Made:
    loss = Scaled(lambda self: self.t, t=torch.ones(()))
    return learner(compile, loss=loss), lambda step: loss.t.mul_(1.5)  # type: ignore[operator]


def tensor_data_in_place(compile: compiling.Compile) -> Made:
    loss = Scaled(lambda self: self.t, t=torch.ones(()))
    return learner(compile, loss=loss), lambda step: loss.t.data.mul_(1.5)  # type: ignore[union-attr]


def teacher(compile: compiling.Compile) -> Made:
    """A network that belongs to no part of the learner."""
    other = network()

    def loss(output: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(output, y) + 0.1 * sum(p.square().sum() for p in other.parameters())

    def change(step: int) -> None:
        with torch.no_grad():
            other[0].weight.mul_(1.5)  # type: ignore[index]

    return learner(compile, loss=loss), change


def class_attribute(compile: compiling.Compile) -> Made:
    class Own(Scaled):
        by = 1.0

    return learner(compile, loss=Own(lambda self: self.by)), lambda step: setattr(Own, "by", 1.0 + step)


BETWEEN: dict[str, Callable[[compiling.Compile], Made]] = {
    "loss.t": with_loss(Scaled(lambda s: s.t, t=1.0), lambda loss: lambda step: setattr(loss, "t", loss.t * 0.9)),
    "loss.config": with_loss(
        Scaled(lambda s: s.config["t"], config={"t": 1.0}), lambda loss: lambda i: loss.config.update(t=1.0 + i)
    ),
    "loss.rates": with_loss(
        Scaled(lambda s: s.rates[1], rates=[1.0, 1.0]), lambda loss: lambda i: loss.rates.__setitem__(1, 1.0 + i)
    ),
    "loss.deep.inner.inner": with_loss(
        Scaled(lambda s: s.deep.inner.scale, deep=Settings(inner=Settings())),
        lambda loss: lambda i: setattr(loss.deep.inner, "scale", 1.0 + i),
    ),
    "loss.slotted.scale": with_loss(
        Scaled(lambda s: s.slotted.scale, slotted=Slotted()),
        lambda loss: lambda i: setattr(loss.slotted, "scale", 1.0 + i),
    ),
    "loss.array": with_loss(
        Scaled(lambda s: float(s.array[0]), array=np.ones(2)), lambda loss: lambda i: loss.array.__setitem__(0, 1.0 + i)
    ),
    "loss.names": with_loss(Scaled(lambda s: len(s.names), names=set("a")), lambda loss: lambda i: loss.names.add(i)),
    "loss.anew": with_loss(
        Scaled(lambda s: s.anew, anew=torch.ones(())), lambda loss: lambda i: setattr(loss, "anew", loss.anew * 1.5)
    ),
    "label_smoothing": inner_of("loss.label_smoothing"),
    "rule.lr": inner_of("rule.lr"),
    "Own.by": class_attribute,
    "scale in closure": closure,
    "a default": default,
    "a keyword's default": keyword_default,
    "a partial's argument": partial_argument,
    "SCALE": lambda compile: (learner(compile, loss=with_global), set_global),
    "CONFIG": lambda c: (learner(c, loss=with_global), lambda i: CONFIG.update(scale=1.0 + i)),
    "environ": lambda compile: (learner(compile, loss=with_environment), set_environment),
    "a local import": lambda compile: (learner(compile, loss=with_local_import), set_environment),
    "getenv": lambda compile: (learner(compile, loss=with_getenv), set_environment),
    "a layer's eps": batch_norm,
    "a hook": forward_hook,
    "a method": replaced_method,
    "a layer": replaced_layer,
    "an activation": another_activation,
    "one layer more": added_layer,
    "data": swapped_data,
    "requires_grad": frozen,
    "a tensor in place": tensor_in_place,
    "a tensor's data in place": tensor_data_in_place,
    "a teacher": teacher,
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if number % 3 else []) for number, name in enumerate(BETWEEN)]
)
def test_state_that_changes_between_steps_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INNERLOOP_TEST_SCALE", "1")
    fresh()
    expected = steps_of(BETWEEN[name](False), 4)
    fresh()
    maml, change = BETWEEN[name](True)
    found: list[Any] = []
    try:
        for step in range(4):
            change(step)
            found.append(maml.meta_gradient(tasks(step), step))
    except ValueError as error:
        if "changes again and again" not in str(error):
            raise
    assert len(found) >= 3
    torch.testing.assert_close(found, expected[: len(found)])


def test_state_is_seen_that_is_hidden_from_the_garbage_collector() -> None:
    """A server that freezes its objects before it forks."""
    fresh()
    maml = learner(True, loss=with_global)
    gc.freeze()
    try:
        maml.meta_gradient(tasks(), 0)
        set_global(1)
        expected = learner(False, loss=with_global).meta_gradient(tasks(), 1)
        torch.testing.assert_close(maml.meta_gradient(tasks(), 1), expected)
    finally:
        gc.unfreeze()


@pytest.mark.slow
@pytest.mark.parametrize("name", BETWEEN)
def test_with_auto_state_that_changes_between_steps_is_seen(
    name: str, eagerly_auto: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INNERLOOP_TEST_SCALE", "1")
    fresh()
    expected = steps_of(late(BETWEEN[name](False)), 17)
    fresh()
    maml, change = late(BETWEEN[name]("auto"))
    maml.compiler.steps_to_come = 10**9
    found = steps_of((maml, change), 17)
    assert maml.compiler.reasons
    torch.testing.assert_close(found, expected)


def late(made: Made) -> Made:
    """The change comes when a step has been compiled."""
    maml, change = made
    return maml, lambda step: change(step - 12) if step >= 12 else None


settings: Any = types.ModuleType("my_settings")


def by_getattr() -> float:
    return float(getattr(settings, "SCALE"))  # noqa: B009


def by_vars() -> float:
    return float(vars(settings)["SCALE"])


@pytest.mark.parametrize("read", [by_getattr, by_vars])
def test_what_is_read_by_a_string_is_seen(read: Callable[[], float]) -> None:
    settings.SCALE = 1.0
    options = {"loss": lambda output, y: F.cross_entropy(output, y) * read()}
    model = network()
    compiled, eager = learner(True, model, **options), learner(False, model, **options)
    for scale in (1.0, 2.0, 2.0, 0.5):
        settings.SCALE = scale
        torch.testing.assert_close(compiled.meta_gradient(tasks())[0], eager.meta_gradient(tasks())[0])


def test_what_reads_unseen_is_not_compiled() -> None:
    loss = lambda output, y: F.cross_entropy(output, y) * globals()["CALLS"]  # noqa: E731
    with pytest.raises(ValueError, match=r"calls globals\(\), so what it reads cannot be watched"):
        learner(True, loss=loss).meta_gradient(tasks())
