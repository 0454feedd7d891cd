"""Random numbers that torch's global generator does not give: right, or said, or refused."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import innerloop as il
from innerloop.functional.diagnosis import first_line

HIDDEN = np.random.default_rng(5)


def from_a_helper() -> float:
    return float(HIDDEN.normal())


class Holder:
    def __init__(self) -> None:
        self.numbers = random.Random(1)


class Noisy(nn.Module):
    """Scales its features by what a function draws."""

    def __init__(self, draw: Callable[[Noisy], Any]) -> None:
        super().__init__()
        self.features, self.head, self.draw = nn.Linear(1, 4), nn.Linear(4, 1), draw
        self.torch_own, self.numpy_own = torch.Generator().manual_seed(0), np.random.default_rng(0)
        self.python_own, self.holder = random.Random(0), Holder()
        self.legacy = np.random.RandomState(3)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(torch.tanh(self.features(x)) * self.draw(self))
        return output


def forked(_: Noisy) -> Tensor:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return torch.randn(4)


def seeded(_: Noisy) -> Tensor:
    torch.manual_seed(7)
    return torch.rand(4)


def set_back(_: Noisy) -> Tensor:
    before = torch.get_rng_state()
    drawn = torch.rand(4)
    torch.set_rng_state(before)
    return drawn + torch.rand(4)


OWN: dict[str, Callable[[Noisy], Any]] = {
    "randn": lambda m: torch.randn(4, generator=m.torch_own),
    "rand": lambda m: torch.rand((4,), generator=m.torch_own),
    "bernoulli": lambda m: torch.bernoulli(torch.full((4,), 0.5), generator=m.torch_own),
    "randperm": lambda m: torch.randperm(4, generator=m.torch_own).float(),
    "in place": lambda m: m.head.weight.new_empty(4).uniform_(generator=m.torch_own),
    "a new generator": lambda m: torch.randn(4, generator=torch.Generator().manual_seed(3)),
    "Python": lambda m: 0.5 + random.random(),
    "Python, rarely": lambda m: 1.0 if random.random() < 0.9 else 0.5,
    "a Python generator": lambda m: m.python_own.uniform(0.5, 1.0),
    "one of an attribute's": lambda m: m.holder.numbers.uniform(0.5, 1.0),
    "NumPy": lambda m: float(np.random.rand()),
    "a NumPy generator": lambda m: float(m.numpy_own.normal()),
    "an old NumPy generator": lambda m: float(m.legacy.normal()),
    "a helper's": lambda m: from_a_helper(),
}
SEEDING: dict[str, Callable[[Noisy], Any]] = {"forked": forked, "seeded": seeded, "set back": set_back}
TORCH: dict[str, Callable[[Noisy], Any]] = {
    "randn": lambda m: torch.randn(4),
    "dropout": lambda m: F.dropout(torch.ones(4)),
    "default generator": lambda m: torch.rand(4, generator=torch.default_generator),
    "seeded NumPy": lambda m: float(np.random.default_rng(0).normal()),
}


def tasks(number: int = 3) -> il.Task:
    return il.Sinusoid().sample(number, torch.Generator().manual_seed(0))


def learner(draw: Callable[[Noisy], Any], seed: int = 0, **options: Any) -> il.MetaLearner:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    HIDDEN.bit_generator.state = np.random.default_rng(5).bit_generator.state
    return il.maml(Noisy(draw), 0.01, steps=2, loss=F.mse_loss, **options)


def gradient(maml: il.MetaLearner) -> Tensor:
    torch.manual_seed(11)
    return torch.cat([grad.flatten() for grad in maml.meta_gradient(tasks())[0].values()])


@pytest.mark.parametrize("name", [*OWN, *SEEDING])
def test_tasks_that_would_draw_others_run_one_by_one(name: str) -> None:
    draw = {**OWN, **SEEDING}[name]
    expected = gradient(learner(draw, vectorize=False))
    maml = learner(draw)
    how = "sets the seed" if name in SEEDING else "draws random numbers from"
    with pytest.warns(UserWarning, match=rf"cannot run these tasks at once, so tasks run one by one: it {how}"):
        found = gradient(maml)
    assert torch.equal(found, expected)
    with pytest.raises(ValueError, match=rf"vectorize=True does not allow running tasks one by one: it {how}"):
        gradient(learner(draw, vectorize=True))


@pytest.mark.parametrize("name", TORCH)
def test_tasks_run_at_once_with_numbers_of_torch(name: str) -> None:
    maml = learner(TORCH[name], vectorize=True)
    assert gradient(maml).isfinite().all()


@pytest.mark.filterwarnings("ignore:.*run one by one")
@pytest.mark.parametrize("vectorize", ["auto", False])
@pytest.mark.parametrize("name", [*OWN, *SEEDING])
def test_constant_memory_draws_the_same_again_or_refuses(name: str, vectorize: Any) -> None:
    draw = {**OWN, **SEEDING}[name]
    constant = learner(draw, memory="constant", vectorize=vectorize)
    if name in SEEDING:
        torch.testing.assert_close(gradient(constant), gradient(learner(draw, vectorize=False)))
    else:
        for _ in range(2):
            with pytest.raises(ValueError, match=r'memory="constant" recomputes.*draws random numbers from .*"graph"'):
                gradient(constant)


@pytest.mark.parametrize("name", ["randn", "dropout", "default generator", "seeded NumPy"])
def test_constant_memory_draws_what_torch_drew_again(name: str) -> None:
    constant = gradient(learner(TORCH[name], memory="constant", vectorize=False))
    torch.testing.assert_close(constant, gradient(learner(TORCH[name], vectorize=False)))


@pytest.mark.parametrize("call", ["adapt", "predict", "adapt_all", "evaluate"])
def test_predictions_of_one_and_of_many_tasks_agree(call: str) -> None:
    maml, many = learner(forked), tasks()
    calls = {
        "evaluate": lambda: il.evaluate(maml, il.Sinusoid(), num_tasks=2),
        "adapt_all": lambda: maml.adapt_all(many.support),
        "adapt": lambda: maml.adapt(il.task.select(many, 0).support),
        "predict": lambda: maml.predict(many),
    }
    with pytest.warns(UserWarning, match="sets the seed"):
        calls[call]()
    one = torch.stack([maml.adapt(il.task.select(many, i).support)(il.task.select(many, i).query.x) for i in range(3)])
    torch.testing.assert_close(maml.predict(many)[:, -1], one)


def test_looking_draws_nothing() -> None:
    """What a learner tries on its first task takes no numbers from anybody's generators."""
    draws = lambda m: sum(float(torch.as_tensor(draw(m)).sum()) for draw in OWN.values())  # noqa: E731
    task = il.task.select(tasks(), 0)
    maml = learner(draws, vectorize=False)
    torch.manual_seed(11)
    found = maml(il.task.select(tasks(), slice(0, 1))).objective[0]
    model = learner(draws).model  # the same one, and generators as they were
    torch.manual_seed(11)
    params = dict(model.named_parameters())
    call = lambda x: torch.func.functional_call(model, params, (x,))  # noqa: E731
    for _ in range(2):
        grads = torch.autograd.grad(F.mse_loss(call(task.support.x), task.support.y), list(params.values()))
        params = {n: p - 0.01 * g for (n, p), g in zip(params.items(), grads, strict=True)}
    torch.testing.assert_close(found, F.mse_loss(call(task.query.x), task.query.y))


def test_the_warning_names_the_layer_and_the_line() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gradient(learner(OWN["randn"]))
    said = first_line(caught[0].message)  # type: ignore[arg-type]
    assert said.startswith("Noisy (the model itself) cannot run")
    assert "test_randomness.py, line" in said


class Strange:
    """Whatever it is asked for, it raises no AttributeError, as lazy modules and proxies do not."""

    def __getattr__(self, name: str) -> Any:
        raise ImportError(f"asked for {name}")


def lazy_module() -> ModuleType:
    module = ModuleType("lazy")
    module.__dict__["__getattr__"] = Strange().__getattr__
    return module


def function_of_one() -> Callable[[], Any]:
    module = lazy_module()
    return lambda: module


@pytest.mark.parametrize("make", [Strange, lazy_module, function_of_one])
def test_objects_are_not_asked_for_what_they_do_not_have(
    make: Callable[[], Any], regression: Callable[..., il.Task]
) -> None:
    held = make()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.kept = nn.Linear(2, 1), held

        def forward(self, x: Tensor) -> Tensor:
            assert held is not None
            return self.layer(x)  # type: ignore[no-any-return]

    learner = il.maml(Net(), loss=F.mse_loss)
    learner.meta_gradient(regression())
    learner.predict(regression())
    assert learner.engine.vectorized
