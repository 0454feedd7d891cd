"""Recording a step: it leaves no trace, whatever happens, and everything that it depends on is an input."""

from __future__ import annotations

import copy
import cProfile
import functools
import pstats
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.nn import functional as F

import innerloop as il
from innerloop.engine import compiling
from innerloop.engine.recording import Recorded

pytestmark = pytest.mark.usefixtures("double", "own_plans")


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of compiled code, the recorded graph, which takes no time to make."""
    import torch._inductor

    monkeypatch.setattr(torch._inductor, "compile", lambda graph, example, options: graph)


def tasks(seed: int = 0) -> il.Task:
    x = torch.randn(3, 9, 4, generator=torch.Generator().manual_seed(seed))
    y = torch.randint(3, (3, 9), generator=torch.Generator().manual_seed(seed))
    return il.Task(il.Batch(x[:, :5], y[:, :5]), il.Batch(x[:, 5:], y[:, 5:]))


class Twice(nn.Module):
    """One layer under two names, a list that holds its parameter, and a buffer that two layers share."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 3)
        self.second = self.first
        self.held = [self.first.weight]
        self.register_buffer("shift", torch.ones(4), persistent=False)
        self.first.register_buffer("shift", self.shift)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x)))) + self.first.shift)  # type: ignore[operator]


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    model[2].weight = model[0].weight  # type: ignore[union-attr]
    return model


class Shared(nn.Module):
    """A loss with a parameter of the model's."""

    def __init__(self, of: nn.Linear, scale: nn.Parameter) -> None:
        super().__init__()
        self.bias, self.scale, self.kept = of.bias, scale, [scale, (of.weight,)]

    def forward(self, output: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(output * self.kept[0].exp(), y) + 0.1 * self.bias.square().sum()


def weighted() -> dict[str, Any]:
    return {"loss": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]))}


def sharing() -> dict[str, Any]:
    model = nn.Sequential(nn.Linear(4, 3))
    scale = nn.Parameter(torch.zeros(()))
    return {"model": model, "loss": Shared(model[0], scale), "inner_loss": F.cross_entropy}  # type: ignore[arg-type]


def closure() -> dict[str, Any]:
    """A loss that is a function with a parameter of the model's in its closure."""
    model = nn.Sequential(nn.Linear(4, 3))
    weight = model[0].weight
    loss = lambda output, y: F.cross_entropy(output, y) + 0.1 * weight.square().sum()  # noqa: E731
    return {"model": model, "loss": loss, "inner_loss": F.cross_entropy}


def per_step() -> dict[str, Any]:
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, track_running_stats=True), nn.Tanh(), nn.Linear(5, 3))
    return {"model": model, "adapt": il.everything - il.norms, "per_step": il.norms, "rule": il.PerStepSGD(0.1)}


MADE: dict[str, Callable[[], dict[str, Any]]] = {
    "weighted loss": weighted,
    "one layer under two names": lambda: {"model": Twice()},
    "tied parameters": lambda: {"model": tied()},
    "parameters of model and loss": sharing,
    "parameters in a closure": closure,
    "per step": per_step,
    "first order": lambda: {"objective": il.Unrolled(order=1)},
    "implicit": lambda: {"objective": il.Implicit(2.0), "rule": il.Chain(il.Proximal(2.0), il.SGD(0.1))},
    "reptile": lambda: {"objective": il.Reptile()},
    "learned rates": lambda: {"rule": il.ElementwiseSGD(0.1)},
    "curvature": lambda: {"rule": il.Chain(il.Clip(1.0), il.Momentum(), il.KroneckerCurvature(), il.SGD(0.1))},
    "adam": lambda: {"rule": il.Adam(0.1)},
    "batch norm": lambda: {"model": nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))},
    "prototypes": lambda: {"initial": "prototypes"},
    "mini-batches": lambda: {"batch_size": 2},
}


def learner(compile: compiling.Compile, **options: Any) -> il.MetaLearner:
    model = options.pop("model", None) or nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    if options.get("initial") == "prototypes":
        options["initial"] = il.Prototypes(model)
    rule = options.pop("rule", None) or il.SGD(0.1)
    return il.MetaLearner(model, rule, compile=compile, **{"steps": 2, "loss": F.cross_entropy, **options})


def everything(module: nn.Module) -> list[Any]:
    """Every object that modules hold, and what tensors are."""
    parts: list[Any] = []
    for part in module.modules():
        for holder in (vars(part), part._parameters, part._buffers, part._modules):
            parts += [(key, id(value), value.clone() if isinstance(value, Tensor) else repr(value)[:99])
                      for key, value in holder.items() if key not in ("_examined", "compiler", "engine")]  # fmt: skip
    return parts


def assert_untouched(module: nn.Module, before: list[Any]) -> None:
    for (key, identity, value), (other, now, found) in zip(before, everything(module), strict=True):
        assert (key, identity) == (other, now)
        assert torch.equal(value, found) if isinstance(value, Tensor) else value == found, key
        assert not isinstance(found, FakeTensor)


@pytest.mark.parametrize("name", MADE)
def test_recorded_steps_equal_eager_ones_and_leave_no_trace(name: str, interpreted: None) -> None:
    check_zoo(name, 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", MADE)
def test_compiled_steps_equal_eager_ones(name: str) -> None:
    check_zoo(name, 1e-8)


def check_zoo(name: str, tolerance: float) -> None:
    made = []
    for compile in (False, True):
        torch.manual_seed(0)
        made.append(learner(compile, **MADE[name]()))
    eager, compiled = made
    eager.meta_gradient(tasks(9))  # as the other's first does, this one moves the statistics of steps
    before = everything(compiled) if compiled.slots is None else None
    compiled.meta_gradient(tasks(9))
    if before is not None:
        assert_untouched(compiled, before)
    for seed in range(3):
        (grads, outcome), (expected, reference) = (maml.meta_gradient(tasks(seed)) for maml in (compiled, eager))
        torch.testing.assert_close(grads, expected, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(outcome, reference, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(list(compiled.buffers()), list(eager.buffers()))
        with torch.no_grad():
            for maml in made:
                for parameter, grad in zip(
                    (p for p in maml.parameters() if p.requires_grad), expected.values(), strict=True
                ):
                    parameter -= 0.1 * grad
    assert [compiled_.runs for compiled_ in compiled.compiler._compiled.values() if compiled_] == [3]


class Keeps(nn.Sequential):
    """A model that keeps what it computed."""

    def forward(self, x: Tensor) -> Tensor:
        self.features = super().forward(x)
        self.log.append(self.features)  # type: ignore[operator, union-attr]
        return self.features


@functools.lru_cache
def table(size: int) -> Tensor:
    return torch.arange(1.0, size + 1)


def raises(error: BaseException) -> Callable[..., Tensor]:
    def loss(output: Tensor, y: Tensor) -> Tensor:
        if get_proxy_mode() is not None:  # while it is recorded
            raise error
        return F.cross_entropy(output, y)

    return loss


def by_value(output: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(output, y) * (2.0 if float(output.detach().sum()) > 1e9 else 1.0)


@pytest.mark.parametrize(
    "loss", [raises(RuntimeError()), raises(RuntimeError("own words")), raises(KeyboardInterrupt()), by_value]
)
def test_a_recording_that_fails_leaves_everything_as_it_was(loss: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "SECONDS_PER_OPERATION", 0.0)
    monkeypatch.setattr(compiling, "OTHERS", 0.0)
    torch.manual_seed(0)
    modules = nn.ModuleList([nn.CrossEntropyLoss(weight=torch.ones(3)), Twice()])
    own = lambda output, y: loss(output, y) + modules[0](output, y)  # noqa: E731
    for compile in ("auto", True):
        maml = learner(compile, model=modules[1], loss=own, inner_loss=modules[0])
        maml.compiler.steps_to_come = 10**9
        before, random_state = everything(maml), torch.get_rng_state()
        for _ in range(14):
            try:
                maml.meta_gradient(tasks())
            except (ValueError, KeyboardInterrupt):
                break
        assert_untouched(maml, before)
        assert torch.equal(random_state, torch.get_rng_state())
        assert torch.is_grad_enabled()
        maml.compiler.setting = False
        expected = learner(False, model=copy.deepcopy(modules[1]), loss=own, inner_loss=modules[0])
        torch.testing.assert_close(maml.meta_gradient(tasks()), expected.meta_gradient(tasks()))


def test_cprofile_sees_what_runs_and_goes_on_afterwards(interpreted: None) -> None:
    """It is a profiler of C, which `sys.setprofile` does not take."""

    def between() -> None:
        pass

    def afterwards() -> None:
        pass

    def broken(output: Tensor, y: Tensor) -> Tensor:
        raise RuntimeError("own words")

    profiler = cProfile.Profile()
    maml = learner(True)
    profiler.enable()
    try:
        before = sys.getprofile()
        maml.meta_gradient(tasks())
        assert sys.getprofile() is before
        between()
        with pytest.raises(RuntimeError, match="own words"):
            learner(False, loss=broken).meta_gradient(tasks())
        assert sys.getprofile() is before
        afterwards()
    finally:
        profiler.disable()
    seen = {name for _, _, name in pstats.Stats(profiler).stats}
    assert {"between", "afterwards", "meta_gradient"} <= seen


def test_a_profiler_that_could_not_go_on_keeps_a_step_from_being_compiled() -> None:
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, with_stack=True):
        before = sys.getprofile()
        with pytest.raises(ValueError, match="the profiler TraceContext is active and could not be resumed"):
            learner(True).meta_gradient(tasks())
        assert sys.getprofile() is before is not None
        learner("auto").meta_gradient(tasks())
        assert sys.getprofile() is before


def test_inductor_that_fails_leaves_everything_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor

    def fail(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(torch._inductor, "compile", fail)
    maml = learner(True, **weighted())
    before = everything(maml)
    with pytest.raises(ValueError, match="TorchInductor failed: RuntimeError"):
        maml.meta_gradient(tasks())
    assert_untouched(maml, before)


def test_caches_of_functions_keep_no_stand_ins(interpreted: None) -> None:
    def loss(output: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(output * table(3), y)

    table.cache_clear()
    maml, eager = learner(True, loss=loss), learner(False, loss=loss)
    eager.load_state_dict(maml.state_dict())
    for seed in range(3):
        torch.testing.assert_close(maml.meta_gradient(tasks(seed)), eager.meta_gradient(tasks(seed)))
    assert type(table(3)) is Tensor


def test_parameters_out_of_reach_are_refused(interpreted: None) -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    fixed = (model[0].weight,)
    loss = lambda output, y: F.cross_entropy(output, y) + fixed[0].square().sum()  # noqa: E731
    with pytest.raises(ValueError, match=r"holds model\.0\.weight|uses the model's own '0\.weight'"):
        learner(True, model=model, loss=loss).meta_gradient(tasks())


def test_values_of_tensors_are_not_kept(interpreted: None) -> None:
    held = torch.ones(2)
    for read in (lambda: float(held[0]), lambda: held.tolist()[0], lambda: held.numpy().max(), lambda: held[0].item()):
        loss = lambda output, y, read=read: F.cross_entropy(output, y) * read()  # noqa: E731
        with pytest.raises(ValueError, match="reads the value of a tensor"):
            learner(True, loss=loss).meta_gradient(tasks())


def test_settings_of_torch_belong_to_what_is_compiled(interpreted: None) -> None:
    maml, batch = learner(True), tasks()
    for change in (lambda: None, lambda: torch.set_default_dtype(torch.float32), lambda: maml.eval()):
        change()
        maml.meta_gradient(batch)
    assert len(maml.compiler.reasons) == 3


class Iterating(il.Unrolled):
    """An objective that says nothing of what is fixed of an iteration."""

    constants = il.Objective.constants

    def __call__(self, episode: Any) -> Any:
        judgement = super().__call__(episode)
        return judgement._replace(objective=judgement.objective * (1 + episode.iteration))


def test_an_objective_that_is_another_every_iteration(interpreted: None) -> None:
    torch.manual_seed(0)
    maml, eager = learner(True, objective=Iterating()), learner(False, objective=Iterating())
    eager.load_state_dict(maml.state_dict())
    for iteration in (0, 0, 1, 2, 3):
        torch.testing.assert_close(maml.meta_gradient(tasks(), iteration), eager.meta_gradient(tasks(), iteration))
    maml = learner(True, objective=Iterating())
    for iteration in range(3):
        maml.meta_gradient(tasks(), iteration)
    with pytest.raises(ValueError, match=r"constants\(iteration\)"):
        maml.meta_gradient(tasks(), 3)


def test_writes_into_inputs_are_refused() -> None:
    def function(x: Tensor) -> Tensor:
        x.view(-1).clamp_(min=-9.0)
        return x.sum()

    with pytest.raises(compiling.UnsuitableError, match="x changes with every step"):
        Recorded(function, [torch.ones(2, 2)], ["x"])


def test_class_weights_in_a_trainer_with_every_default(interpreted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "SECONDS_PER_OPERATION", 0.0)
    monkeypatch.setattr(compiling, "OTHERS", 0.0)
    monkeypatch.setattr(compiling, "_seconds", lambda call: 0.0)
    found = []
    for compile in (False, "auto"):
        torch.manual_seed(0)
        maml = learner(compile, **weighted())  # type: ignore[arg-type]
        maml.compiler.steps_to_come = 10**9
        optimizer = torch.optim.Adam(maml.parameters())
        for step in range(20):
            for name, grad in maml.meta_gradient(tasks(step), step)[0].items():
                maml.get_parameter(name).grad = grad
            optimizer.step()
        found.append([p.detach() for p in maml.parameters()])
        assert type(maml.loss.weight) is Tensor  # type: ignore[union-attr]
    assert "compiled in" in maml.choices[-1]
    torch.testing.assert_close(*found)
