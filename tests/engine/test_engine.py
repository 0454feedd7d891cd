"""The engine: sizes are found by measurement, and every path gives the same numbers."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import innerloop as il
from innerloop.engine import allocator as memory
from innerloop.engine import engine

pytestmark = pytest.mark.usefixtures("own_plans")


@pytest.mark.parametrize("vectorize", [0, -3, "yes", 2.5, None, (2, 0), (2, 2, 2), (True, 2)])
def test_a_number_of_tasks_is_at_least_one(vectorize: object) -> None:
    with pytest.raises(ValueError, match="vectorize must be"):
        il.maml(nn.Linear(2, 1), vectorize=vectorize)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_some_tasks_at_a_time(size: int, regression: Callable[..., il.Task]) -> None:
    tasks, model = regression(5), il.models.mlp(2, 8, 1)
    all_at_once, parts = (il.maml(model, 0.1, loss=F.mse_loss, vectorize=v) for v in (True, size))
    torch.testing.assert_close(parts.meta_gradient(tasks), all_at_once.meta_gradient(tasks))
    torch.testing.assert_close(parts(tasks), all_at_once(tasks))
    torch.testing.assert_close(parts.predict(tasks), all_at_once.predict(tasks))


def test_random_modules_always_run_all_at_once(regression: Callable[..., il.Task]) -> None:
    model = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    learner = il.maml(model, 0.1, loss=F.mse_loss)
    for _ in range(4):
        learner.meta_gradient(regression(12))
    assert learner.engine.random
    assert not learner.engine.plans.made


@pytest.mark.parametrize("vectorize", ["auto", True, False, 2, (1, 2)])
@pytest.mark.parametrize("y", [None, 2.0, {"mask": None, "power": 2}], ids=str)
@pytest.mark.parametrize("options", [{}, {"batch_size": 2, "steps": 3}, {"memory": "constant"}], ids=str)
def test_targets_that_are_no_tensors_are_the_same_for_all(y: Any, vectorize: Any, options: dict[str, Any]) -> None:
    """As of autoencoders, which need none."""
    seen = []

    def loss(output: Tensor, y: Any) -> Tensor:
        seen.append(y)
        return output.square().mean()

    batch = il.Batch(torch.randn(3, 6, 4), y)
    tasks, model = il.Task(batch, batch), nn.Linear(4, 4)
    learner = il.maml(model, 0.1, loss=loss, vectorize=vectorize, compile=False, **options)
    expected = il.maml(model, 0.1, loss=lambda output, y: output.square().mean(), vectorize=False, **options)
    filled = il.Task(*(il.Batch(batch.x, torch.zeros(3, 6)),) * 2)
    torch.testing.assert_close(learner(tasks), expected(filled))
    torch.testing.assert_close(learner.predict(tasks), expected.predict(filled))
    torch.testing.assert_close(learner.adapt_all(batch)(batch.x), expected.adapt_all(filled.support)(batch.x))
    learner.adapt(il.task.select(batch, 0))
    assert all(given == y for given in seen)
    grads, _ = learner.meta_gradient(tasks)
    torch.testing.assert_close(grads, expected.meta_gradient(filled)[0])
    assert all(g.abs().sum() > 0 for g in grads.values())


def test_arrays_that_are_no_tensors_are_refused() -> None:
    """Nothing would split them by tasks."""
    numpy = pytest.importorskip("numpy")
    batch = il.Batch(torch.randn(3, 6, 4), numpy.zeros((3, 6)))
    with pytest.raises(TypeError, match=r"contains a ndarray of shape \(3, 6\).*torch\.as_tensor"):
        il.maml(nn.Linear(4, 4), 0.1)(il.Task(batch, batch))


@pytest.fixture
def fresh() -> Iterator[None]:
    """The C library as a process finds it; afterwards as the other tests do."""
    for each in (memory._c_library, memory.keep_freed_memory):
        each.cache_clear()
    yield
    for each in (memory._c_library, memory.keep_freed_memory):
        each.cache_clear()


@pytest.mark.usefixtures("fresh")
def test_the_c_library_is_left_alone_where_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INNERLOOP_KEEP_MEMORY", "0")
    assert not memory.keep_freed_memory()
    memory.give_back_freed_memory()  # does nothing


@pytest.mark.usefixtures("fresh")
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_the_c_library_is_told_what_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory may grow, then not, then may again: the C library is told of each change, but not at every meta-batch."""
    told: list[tuple[int, int]] = []

    class Library:
        mallopt = staticmethod(lambda what, value: told.append((what, value)) or 1)

    monkeypatch.setattr(memory, "_c_library", Library)
    for grow in (True, True, False, False, True):
        assert memory.keep_freed_memory(grow)
    mapped = [value for what, value in told if what == memory.M_MMAP_MAX]
    assert mapped == [0, memory.MMAP_MAX, 0]


@pytest.mark.parametrize("memory", ["graph", "constant"])
def test_memory_grows_at_first_and_then_only_where_it_does_not_count(
    memory: Any, regression: Callable[..., il.Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[bool] = []
    monkeypatch.setattr(engine, "keep_freed_memory", lambda grow: told.append(grow))
    learner = il.maml(il.models.mlp(2, 8, 1), 0.1, loss=F.mse_loss, vectorize=True, memory=memory)
    for _ in range(3):
        learner.meta_gradient(regression(4))
    learner.predict(regression(4))
    assert told == ([True, True, True, True] if memory == "graph" else [True, False, False, True])


# -- memory="constant" ------------------------------------------------------------------------------------------------


def learned_loss() -> nn.Module:
    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(0.7))

        def forward(self, output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return F.mse_loss(self.scale * output, y)

    return Loss()


RULES: dict[str, Callable[[], il.UpdateRule]] = {
    "SGD": lambda: il.SGD(0.1),
    "Meta-SGD": lambda: il.rules.ElementwiseSGD(0.1),
    "Adam": lambda: il.Adam(0.1),
    "proximal": lambda: il.Chain(il.Proximal(0.5), il.Momentum(), il.SGD(0.1)),
}


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("vectorize", [True, False, 2])
@pytest.mark.parametrize("rule", RULES)
def test_constant_memory_gives_the_same_gradients(
    rule: str, vectorize: bool | int, regression: Callable[..., il.Task]
) -> None:
    tasks, grads = regression(3), []
    for kept in ("graph", "constant"):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 1))
        learner = il.MetaLearner(
            model, RULES[rule](), il.everything - il.named("3.bias"), il.Unrolled(2, [0.2, 0.0, 0.3, 0.5]), F.mse_loss,
            inner_loss=learned_loss(), steps=4, batch_size=4, memory=kept, vectorize=vectorize
        )  # fmt: skip
        grads.append(learner.meta_gradient(tasks))
    assert any("inner_loss" in name for name in grads[0][0])
    torch.testing.assert_close(grads[1], grads[0])


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("vectorize", [True, False, 2])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["points", "images"])
def test_constant_memory_gives_the_same_higher_derivatives(
    kind: str, rule: str, vectorize: bool | int, regression: Callable[..., il.Task], episodes: Callable[..., il.Task]
) -> None:
    """The meta-gradient, differentiated again, as Fisher products are, and twice more."""
    torch.manual_seed(1)
    head = nn.Linear(6, 1) if kind == "points" else nn.Linear(36, 3)
    body = {
        "points": (nn.Linear(2, 6), nn.Tanh()),
        "images": (
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.Softplus(),
            nn.AdaptiveAvgPool2d(3),
            nn.Flatten(),
        ),
    }[kind]
    model, loss = nn.Sequential(*body, head), F.mse_loss if kind == "points" else F.cross_entropy
    tasks, found = regression(2) if kind == "points" else episodes(2), []
    for kept in ("graph", "constant"):
        inner = learned_loss() if kind == "points" else None
        learner = il.MetaLearner(
            model, RULES[rule](), loss=loss, inner_loss=inner, steps=2, memory=kept, vectorize=vectorize
        )
        by = [p for p in learner.parameters() if p.requires_grad]
        derivative, orders = learner(tasks).objective.mean(), []
        weights = [torch.linspace(-1, 1, p.numel()).view_as(p) for p in by]
        for _ in range(3 if kind == "points" else 2):  # third derivatives of images amplify roundings
            grads = torch.autograd.grad(derivative, by, create_graph=True, materialize_grads=True)
            derivative = torch.stack([(w * g).sum() for w, g in zip(weights, grads, strict=True)]).sum()
            orders.append(grads)
        found.append(orders)
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("vectorize", [True, False])
def test_constant_memory_repeats_random_draws(vectorize: bool, regression: Callable[..., il.Task]) -> None:
    tasks, grads = regression(3), []
    model = nn.Sequential(nn.Linear(2, 16), nn.Dropout(0.5), nn.Tanh(), nn.Linear(16, 1))
    for kept in ("graph", "constant"):
        torch.manual_seed(1)
        learner = il.maml(model, 0.1, loss=F.mse_loss, steps=3, memory=kept, vectorize=vectorize)
        grads.append(learner.meta_gradient(tasks))
    torch.testing.assert_close(grads[1], grads[0])


def test_constant_memory_finds_what_a_loss_uses(regression: Callable[..., il.Task]) -> None:
    """A function, not a module, that takes a parameter of the model's."""
    tasks, grads = regression(3), []
    model = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1))
    model.register_parameter("scale", nn.Parameter(torch.tensor(0.5)))

    def loss(output: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(output * model.scale, y)

    for kept in ("graph", "constant"):
        learner = il.MetaLearner(model, il.SGD(0.1), il.everything - il.named("scale"), loss=loss, steps=2, memory=kept)
        grads.append(learner.meta_gradient(tasks)[0])
    torch.testing.assert_close(grads[1], grads[0])


def test_constant_memory_backward_outside_of_the_learner(regression: Callable[..., il.Task]) -> None:
    """The second run of a step has the modes of the first, whatever they are when backward is called."""
    tasks, grads = regression(3), []
    model = nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 1))
    for kept in ("graph", "constant"):
        learner = il.maml(model, 0.1, loss=F.mse_loss, steps=2, memory=kept)
        objective = learner(tasks).objective.mean()
        model.eval()
        grads.append(torch.autograd.grad(objective, list(model.parameters())))
        model.train()
    torch.testing.assert_close(grads[1], grads[0])


def test_memory_has_two_settings() -> None:
    with pytest.raises(ValueError, match='memory must be "graph" or "constant", got \'none\''):
        il.maml(nn.Linear(2, 1), memory="none")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='precision must be "float32" or "bfloat16"'):
        il.maml(nn.Linear(2, 1), precision="half")  # type: ignore[arg-type]


def test_bfloat16_is_for_float32(regression: Callable[..., il.Task]) -> None:
    with pytest.raises(ValueError, match="needs a float32 model, but weight is float64"):
        il.maml(nn.Linear(2, 1).double(), loss=F.mse_loss, precision="bfloat16").meta_gradient(regression(2))


@pytest.mark.parametrize("vectorize", [True, False])
def test_bfloat16_is_near_float32_and_keeps_types(vectorize: bool, episodes: Callable[..., il.Task]) -> None:
    tasks, model = episodes(), il.models.conv4(1, 3, 8, 16)
    exact, half = (
        il.maml(model, 0.1, vectorize=vectorize, precision=p).meta_gradient(tasks) for p in ("float32", "bfloat16")
    )
    assert half[1].output.dtype == torch.float32
    assert all(g.dtype == torch.float32 for g in half[0].values())
    torch.testing.assert_close(half[1].loss, exact[1].loss, rtol=0.1, atol=0.1)
    assert not torch.equal(half[1].loss, exact[1].loss)
    whole = [torch.cat([g.flatten() for g in grads.values()]) for grads, _ in (exact, half)]
    assert F.cosine_similarity(whole[0], whole[1], dim=0) > 0.95


def test_constant_memory_computes_no_gradients_that_nobody_reads(episodes: Callable[..., il.Task]) -> None:
    model, flops = il.models.conv4(1, 3, 8, 16), []
    for kept in ("graph", "constant"):
        learner = il.maml(model, 0.1, steps=20, memory=kept, vectorize=True, compile=False)  # type: ignore[arg-type]
        with FlopCounterMode(display=False) as counter:
            learner.meta_gradient(episodes())
        flops.append(counter.get_total_flops())
    assert flops[1] / flops[0] < 1.26  # 11 passes for 9; with these gradients 12


@pytest.mark.parametrize("vectorize", [True, False])
def test_constant_memory_computes_again_under_the_same_autocast(
    vectorize: bool, episodes: Callable[..., il.Task]
) -> None:
    """As with `torch.utils.checkpoint`: the backward pass usually comes after autocasting has ended."""
    tasks, grads = episodes(3), []
    for kept in ("graph", "constant"):
        torch.manual_seed(1)
        learner = il.maml(il.models.conv4(1, 3, 4, 16), loss=F.cross_entropy, steps=2, memory=kept, vectorize=vectorize)
        with torch.autocast("cpu", torch.bfloat16):
            objective = learner(tasks).objective.mean()
        grads.append(torch.autograd.grad(objective, list(learner.model.parameters())))
    for one, other in zip(*grads, strict=True):
        assert (one - other).norm() <= 0.02 * one.norm() + 1e-4
