"""Any module works unmodified: a zoo, each vectorized and looped with the same meta-gradient, itself untouched."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import innerloop as il


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.d = nn.Linear(4, 4), nn.Linear(4, 4)
        self.d.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.d(torch.tanh(self.a(x)))


class OneUnderTwoNames(nn.Module):
    """The same module object twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.d = self.a

    def forward(self, x: Tensor) -> Tensor:
        return self.d(torch.tanh(self.a(x)))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(2, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(x.reshape(len(x), 2, 2))).mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(2, 5, batch_first=True), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x.reshape(len(x), 2, 2))[0][:, -1])


class Frozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 4)
        self.body.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x)))


class Counter(nn.Module):
    """A buffer that changes in every forward, and matters."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layer(x) * self.calls


def image_net() -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 2), nn.Flatten(), nn.Linear(3, 4))


ZOO: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(4, 4),
    "tied": Tied,
    "one module, two names": OneUnderTwoNames,
    "batch norm": lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 4)),
    "batch norm without statistics": lambda: nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6, track_running_stats=False), nn.Linear(6, 4)
    ),
    "layer norm": lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 4)),
    "convolution": image_net,
    "attention": Attention,
    "gru": Recurrent,
    "frozen": Frozen,
    "counter": Counter,
    "dropout in evaluation": lambda: nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 4)).eval(),
}


def tasks(number: int = 3) -> il.Task:
    y = torch.randint(4, (number, 8))
    x = F.one_hot(y, 4) + 0.5 * torch.randn(number, 8, 4)
    return il.Task(il.Batch(x[:, :5], y[:, :5]), il.Batch(x[:, 5:], y[:, 5:]))


@pytest.mark.usefixtures("double")
@pytest.mark.filterwarnings("ignore:.*cannot be vectorized")
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("name", ZOO)
def test_vectorized_equals_looped(name: str, order: int) -> None:
    model, batch = ZOO[name](), tasks()
    learners = [il.maml(model, lr=0.2, order=order, steps=2, vectorize=v) for v in ("auto", False)]
    (got, outcome), (expected, reference) = (learner.meta_gradient(batch) for learner in learners)
    torch.testing.assert_close(outcome, reference)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(learners[0].predict(batch, 3), learners[1].predict(batch, 3))
    inductive = [learner.predict(batch, 1, transductive=False) for learner in learners]
    torch.testing.assert_close(*inductive)


@pytest.mark.filterwarnings("ignore:.*cannot be vectorized")
@pytest.mark.parametrize("vectorize", ["auto", False])
@pytest.mark.parametrize("name", ZOO)
def test_the_model_is_never_changed(name: str, vectorize: Any) -> None:
    model, batch = ZOO[name](), tasks()
    before, objects, modes = copy.deepcopy(model.state_dict()), list(model.parameters()), _modes(model)
    learner = il.maml(model, lr=0.2, steps=2, vectorize=vectorize)
    learner.meta_gradient(batch)
    learner(batch)
    learner.predict(batch, 3, transductive=False)
    adapted = learner.adapt(il.task.select(batch.support, 0))
    adapted(batch.query.x[0])
    adapted.module()
    assert all(a is b for a, b in zip(objects, model.parameters(), strict=True))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert _modes(model) == modes
    assert all(p.grad is None for p in model.parameters())


def _modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def test_a_module_that_cannot_be_vectorized_is_looped_and_named_once() -> None:
    learner, batch = il.maml(Recurrent(), lr=0.1), tasks()
    with pytest.warns(UserWarning, match=r"GRU \(gru\) cannot be vectorized over tasks"):
        learner.meta_gradient(batch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learner.meta_gradient(batch)
    with pytest.raises(ValueError, match=r"GRU \(gru\) cannot be vectorized"):
        il.maml(Recurrent(), lr=0.1, vectorize=True).meta_gradient(batch)


def test_a_mistake_in_the_data_is_reported_as_itself_not_as_a_vmap_error() -> None:
    learner, batch = il.maml(nn.Linear(5, 4), lr=0.1), tasks()
    for _ in range(2):  # and the engine does not conclude that the module cannot be vectorized
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            learner.meta_gradient(batch)
    assert learner.engine.vectorized


def test_parameters_that_a_task_never_uses_are_named_once_and_stay() -> None:
    model = nn.ModuleDict({"used": nn.Linear(4, 4), "spare": nn.Linear(4, 4)})
    model.forward = lambda x: model["used"](x)  # type: ignore[method-assign]
    learner = il.maml(model, lr=0.1)
    with pytest.warns(UserWarning, match=r"spare\.weight, spare\.bias"):
        grads, _ = learner.meta_gradient(tasks())
    assert torch.equal(grads["model.spare.weight"], torch.zeros(4, 4))
    assert grads["model.used.weight"].abs().sum() > 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learner.meta_gradient(tasks())
    adapted = learner.adapt(il.task.select(tasks().support, 0))
    assert torch.equal(adapted.parameters["spare.weight"], model["spare"].weight)


def test_an_inner_loss_without_adapted_parameters_is_refused() -> None:
    model = nn.ModuleDict({"used": nn.Linear(4, 4), "spare": nn.Linear(4, 4)})
    model.forward = lambda x: model["used"](x)  # type: ignore[method-assign]
    learner = il.anil(model, head="spare")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"none of the adapted parameters: spare\.weight"):
            learner.meta_gradient(tasks())


def test_frozen_parameters_are_neither_adapted_nor_meta_learned() -> None:
    model = Frozen()
    learner = il.maml(model, lr=0.5, steps=3)
    grads, _ = learner.meta_gradient(tasks())
    assert set(grads) == {"model.head.weight", "model.head.bias"}
    adapted = learner.adapt(il.task.select(tasks().support, 0))
    assert torch.equal(adapted.parameters["body.weight"], model.body.weight)
    assert not torch.equal(adapted.parameters["head.weight"], model.head.weight)


@pytest.mark.parametrize("vectorize", [True, False])
def test_buffers_live_for_one_task(vectorize: bool) -> None:
    """Each task counts its own forwards from the model's count, whatever ran before."""
    model, batch = Counter(), tasks()
    learner = il.maml(model, lr=0.0, steps=2, vectorize=vectorize)
    first, again = learner.predict(batch), learner.predict(batch)
    torch.testing.assert_close(first, again)
    # With a rate of zero only the counter moves: the outputs after 0, 1, 2 steps are 1, 2, 3 times the layer's.
    torch.testing.assert_close(first[:, 1], 2 * first[:, 0])
    torch.testing.assert_close(first[:, 2], 3 * first[:, 0])


def test_batch_statistics_are_a_choice_not_a_side_effect_of_train_and_eval() -> None:
    model, batch = ZOO["batch norm"](), tasks()
    model[1].running_mean += 5.0
    outputs = {}
    for statistics in ("batch", "running"):
        learner = il.MetaLearner(model, il.SGD(0.1), statistics=statistics)
        outputs[statistics] = learner.train().predict(batch)
        torch.testing.assert_close(learner.eval().predict(batch), outputs[statistics])
    assert not torch.allclose(outputs["batch"], outputs["running"], atol=1e-2)


@pytest.mark.parametrize("vectorize", [True, False])
def test_inductive_predictions_do_not_depend_on_the_other_queries(vectorize: bool) -> None:
    model, batch = ZOO["batch norm"](), tasks()
    learner = il.MetaLearner(model, il.SGD(0.1), vectorize=vectorize)
    other = batch._replace(
        query=il.Batch(torch.cat([batch.query.x[:, :1], 9 + batch.query.x[:, 1:]], 1), batch.query.y)
    )
    for transductive in (True, False):
        pair = [learner.predict(b, transductive=transductive)[:, :, 0] for b in (batch, other)]
        assert torch.allclose(*pair, atol=1e-5) is not transductive


def test_dropout_draws_anew_for_every_task_and_rests_outside_training() -> None:
    model = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5), nn.Linear(64, 4))
    batch = il.task.select(tasks(1), slice(0, 1))
    twice = il.Task(*(il.Batch(*(torch.cat([t, t]) for t in part)) for part in batch))
    learner = il.maml(model, lr=0.1)
    output = learner(twice).output
    assert not torch.allclose(output[0], output[1])
    predictions = learner.predict(twice)
    torch.testing.assert_close(predictions[0], predictions[1])
    adapted = learner.adapt(il.task.select(batch.support, 0))
    torch.testing.assert_close(adapted(batch.query.x[0]), predictions[0, -1])
    torch.testing.assert_close(adapted.module()(batch.query.x[0]), predictions[0, -1])


def test_an_adapted_module_has_the_running_statistics_of_the_support_set() -> None:
    model, batch = ZOO["batch norm"](), tasks()
    support = il.task.select(batch.support, 0)
    adapted = il.maml(model, lr=0.1).adapt(support)
    module = adapted.module()
    assert not module.training
    assert module[1].momentum == model[1].momentum
    hidden = module[0](support.x)
    torch.testing.assert_close(module[1].running_mean, hidden.mean(0))
    torch.testing.assert_close(module[1].running_var, hidden.var(0, correction=0))  # what adapting normalized by
    torch.testing.assert_close(module(support.x), adapted(support.x))
    together = module(batch.query.x[0])  # inductive: one by one is the same
    torch.testing.assert_close(together, torch.cat([module(x[None]) for x in batch.query.x[0]]))


def test_inductive_use_of_a_module_that_cannot_be_vectorized() -> None:
    """By a fresh learner, which has not tried yet."""

    class Normed(Recurrent):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(super().forward(x))

    model, batch = Normed(), tasks()
    adapted = il.maml(model, lr=0.1).adapt(il.task.select(batch.support, 0), transductive=False)
    expected = il.maml(model, lr=0.1, vectorize=False).predict(batch, transductive=False)[0, -1]
    torch.testing.assert_close(adapted(batch.query.x[0]), expected)


def test_what_was_adapted_does_not_change_with_the_learner() -> None:
    learner, batch = il.anil(ZOO["batch norm"]()), tasks()
    adapted = learner.adapt(il.task.select(batch.support, 0), steps=0)
    before = adapted(batch.query.x[0])
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(1.0)
    assert torch.equal(adapted(batch.query.x[0]), before)


def test_a_tied_head_is_selected_whole() -> None:
    model = Tied()
    assert il.anil(model, head="d").adapted == ("a.weight", "d.bias")
    assert il.boil(model, head="d").adapted == ("a.bias",)


@pytest.mark.parametrize("function", [torch.native_layer_norm, torch.batch_norm])
@pytest.mark.filterwarnings("ignore:.*cannot be vectorized")
@pytest.mark.usefixtures("double")
def test_norms_called_past_the_modules_are_right_too(function: Callable[..., Any]) -> None:
    class Direct(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.scale, self.shift = (
                nn.Linear(4, 4),
                nn.Parameter(torch.ones(4)),
                nn.Parameter(torch.ones(4)),
            )

        def forward(self, x: Tensor) -> Tensor:
            x = self.layer(x)
            if function is torch.batch_norm:
                return torch.batch_norm(x, self.scale, self.shift, None, None, True, 0.1, 1e-5, False)
            return torch.native_layer_norm(x, (4,), self.scale, self.shift, 1e-5)[0]

    model, batch = Direct(), tasks()
    got, expected = (il.maml(model, lr=0.5, vectorize=v).meta_gradient(batch)[0] for v in ("auto", False))
    torch.testing.assert_close(got, expected)


def test_one_bad_task_does_not_end_vectorizing() -> None:
    learner, batch = il.maml(nn.Linear(4, 4), lr=0.1), tasks()
    batch.support.y[2, 0] = 7
    with pytest.raises(IndexError, match="out of bounds"):
        learner.meta_gradient(batch)
    assert learner.engine.vectorized


def test_inputs_and_targets_may_be_pytrees() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
            out = self.layer(torch.cat([left, right], 1))
            return {"mean": out[:, 0], "scale": out[:, 1]}

    def loss(output: dict[str, Tensor], y: dict[str, Tensor]) -> Tensor:
        return ((output["mean"] - y["target"]) ** 2 + (output["scale"] - 1) ** 2).mean()

    x, y = torch.randn(3, 8, 4), torch.randn(3, 8)

    def part(index: slice, named: bool) -> il.Batch:
        left, right = x[:, index, :1], x[:, index, 1:]
        return il.Batch({"left": left, "right": right} if named else (left, right), {"target": y[:, index]})

    results = []
    for named in (True, False):
        batch = il.Task(part(slice(0, 5), named), part(slice(5, 8), named))
        for vectorize in (True, False):
            torch.manual_seed(0)
            learner = il.maml(Two(), lr=0.1, loss=loss, vectorize=vectorize)
            learner.predict(batch, transductive=False)
            results.append(learner.meta_gradient(batch))
    for grads, outcome in results[1:]:
        torch.testing.assert_close(grads, results[0][0])
        torch.testing.assert_close(outcome.output, results[0][1].output)
    assert results[0][1].output["mean"].shape == (3, 3)


# -- every path gives the same gradients ------------------------------------------------------------------------------

PATHS: dict[str, dict[str, Any]] = {
    "all at once": {"vectorize": True},
    "two at a time": {"vectorize": 2},
    "side by side": {"vectorize": (1, 2)},
    "constant memory": {"vectorize": True, "memory": "constant"},
    "constant memory, looped": {"vectorize": False, "memory": "constant"},
}
IMAGES: dict[str, Callable[[], nn.Module]] = {
    "conv4": lambda: il.models.conv4(1, 3, 8, 16),
    "conv4, strided": lambda: il.models.conv4(1, 3, 8, 16, "stride"),
    "resnet12": lambda: il.models.resnet12(1, 3, (4, 6, 8, 8)),
    "usual order": lambda: nn.Sequential(
        *(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 8, 3, stride=2, groups=2), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Linear(32, 3)),
    ),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", [*ZOO, *IMAGES])
def test_every_path_equals_the_eager_loop_in_float32(name: str, path: str, episodes: Callable[..., il.Task]) -> None:
    """To 1e-5 of the meta-gradient's norm."""
    model, batch = (IMAGES[name](), episodes()) if name in IMAGES else (ZOO[name](), tasks())
    expected = il.maml(model, lr=0.1, steps=2, vectorize=False, compile=False).meta_gradient(batch)[0]
    learner = il.maml(model, lr=0.1, steps=2, compile=False, **PATHS[path])
    if name == "gru" and PATHS[path]["vectorize"]:
        with pytest.raises(ValueError, match="cannot be vectorized"):
            learner.meta_gradient(batch)
        return
    found = learner.meta_gradient(batch)[0]
    total = torch.cat([g.flatten() for g in expected.values()]).norm()
    worst = max(float((found[key] - grad).norm() / total) for key, grad in expected.items())
    assert worst < 1e-5, f"{worst:.1e}"


class Silenced(nn.Module):
    """Its first layer gets no gradient, by a hook."""

    def __init__(self, of: str) -> None:
        super().__init__()
        self.first, self.last, self.of = nn.Linear(4, 8), nn.Sequential(nn.Identity(), nn.Linear(8, 3)), of
        if of == "module":
            self.last[0].register_full_backward_hook(lambda module, before, after: (0 * before[0],))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x))
        if self.of == "tensor":
            hidden.register_hook(lambda grad: 0 * grad)
        return self.last(hidden)  # type: ignore[no-any-return]


@pytest.mark.parametrize("of", ["module", "tensor"])
def test_backward_hooks_run_for_they_are_not_vectorized(of: str) -> None:
    y = torch.arange(3).repeat(2).expand(2, -1)
    batch = il.Batch(torch.randn(2, 6, 4), y)
    learner = il.maml(Silenced(of), 0.1)
    with pytest.warns(UserWarning, match="hooks of .*s do not run while tasks run at once"):
        grads, _ = learner.meta_gradient(il.Task(batch, batch))
    assert not grads["model.first.weight"].any()
    assert grads["model.last.1.weight"].any()


@pytest.mark.parametrize("vectorize", [True, False])
def test_buffers_may_be_set_anew(vectorize: bool) -> None:
    class Count(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls = self.calls + 1
            return x * self.weight + self.calls

    batch = il.Batch(torch.zeros(2, 1, 1), torch.zeros(2, 1, 1))
    model = Count()
    learner = il.maml(model, 0.0, loss=F.mse_loss, steps=3, vectorize=vectorize)
    assert learner.predict(il.Task(batch, batch))[0, :, 0, 0].tolist() == [1, 2, 3, 4]
    assert model.calls == 0


@pytest.mark.parametrize("vectorize", [True, (1, 2)])
def test_a_mistake_is_the_callers_whatever_is_demanded_and_changes_nothing(vectorize: Any) -> None:
    y = torch.arange(3).expand(2, -1)
    good = il.Batch(torch.randn(2, 3, 4), y)
    learner = il.maml(nn.Linear(4, 3), 0.1, vectorize=vectorize)
    before = learner.meta_gradient(il.Task(good, good))[0]
    with pytest.raises(IndexError, match="out of bounds"):
        learner.meta_gradient(il.Task(good, il.Batch(good.x, y + 5)))
    assert learner.engine.vectorized
    assert learner.engine.separable
    with torch.no_grad():  # a meta-gradient needs no permission
        after = learner.meta_gradient(il.Task(good, good))[0]
    assert all(torch.equal(before[name], grad) for name, grad in after.items())


def test_frozen_parameters_are_named_where_nothing_is_left() -> None:
    with pytest.raises(ValueError, match=r"weight \(frozen\), bias \(frozen\)"):
        il.maml(nn.Linear(2, 1).requires_grad_(False))


def test_a_bias_transformation_has_more_freedom_than_a_bias() -> None:
    """A step on it moves the output by more than one on the bias, which moves by as much too."""
    layer = il.models.BiasTransformed(3, 2, size=4)
    x = torch.randn(5, 3)
    out = layer(x)
    torch.testing.assert_close(out, x @ layer.weight[:, :3].T + layer.weight[:, 3:] @ layer.transformation + layer.bias)
    grads = torch.autograd.grad(out.sum(), [layer.transformation, layer.weight])
    assert grads[0].shape == (4,)
    torch.testing.assert_close(grads[1][:, 3:], 5 * layer.transformation.expand(2, 4))


def test_a_module_adapted_for_single_inputs_has_the_support_set_in_every_batch_norm() -> None:
    """Also in those that keep none: each input is then judged by itself, and the support set as in adapting."""
    torch.manual_seed(0)
    norms = nn.BatchNorm1d(8, track_running_stats=False), nn.BatchNorm1d(8)
    model = nn.Sequential(nn.Linear(4, 8), norms[0], nn.ReLU(), nn.Linear(8, 8), norms[1], nn.Linear(8, 4))
    batch = tasks()
    support = il.task.select(batch.support, 0)
    learner = il.maml(model, lr=0.1, steps=2)
    module, x = learner.adapt(support, transductive=False).module(), batch.query.x[0]
    torch.testing.assert_close(module(x), torch.cat([module(one[None]) for one in x]))
    torch.testing.assert_close(module(support.x), learner.adapt(support)(support.x))
    together = learner.adapt(support).module()  # as it was asked for: batch norms that keep none go by what is at hand
    assert together[1].running_mean is None
    assert not torch.allclose(together(x), torch.cat([together(one[None].expand(2, -1))[:1] for one in x]))
    assert model[1].running_mean is None


class Scripted(nn.Module):
    """A fixed part before what is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.part = torch.jit.freeze(torch.jit.script(nn.Sequential(nn.Linear(2, 3), nn.Tanh()).eval()))
        self.head = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.part(x))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*performance drop:UserWarning")
@pytest.mark.filterwarnings("ignore:.*cannot be vectorized:UserWarning")
@pytest.mark.parametrize("memory", ["graph", "constant"])
def test_frozen_scripts_are_parts(memory: Any, regression: Callable[..., il.Task]) -> None:
    torch.manual_seed(0)
    model, tasks = Scripted(), il.Task(*(il.Batch(x.float(), y.float()) for x, y in regression(3)))
    found = il.maml(model, 0.1, loss=F.mse_loss, memory=memory, compile=False)
    features = il.Task(*(il.Batch(model.part(x), y) for x, y in tasks))
    expected = il.maml(copy.deepcopy(model.head), 0.1, loss=F.mse_loss, compile=False)
    for a, b in zip(found.meta_gradient(tasks)[0].values(), expected.meta_gradient(features)[0].values(), strict=True):
        torch.testing.assert_close(a, b, check_dtype=False)
    torch.testing.assert_close(found.predict(tasks), expected.predict(features), check_dtype=False)


class Constant(nn.Module):
    """A model without inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.zeros(1))

    def forward(self) -> Tensor:
        return self.level


@pytest.mark.parametrize("broadcast", [lambda a, y: a.expand_as(y), lambda a, y: a.expand(y.shape)])
def test_models_without_inputs(broadcast: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Their loss may say by name that it broadcasts."""
    y = torch.randn(3, 5, 2)
    learner = il.maml(Constant(), 0.25, loss=lambda a, y: F.mse_loss(broadcast(a, y), y), compile=False)
    want = 0.5 * y.mean((1, 2))
    torch.testing.assert_close(learner.adapt_all(il.Batch((), y))(()).flatten(), want)
    torch.testing.assert_close(learner.predict(il.Task(il.Batch((), y), il.Batch((), y)))[:, -1].flatten(), want)
    torch.testing.assert_close(learner.adapt(il.Batch((), y[0]))(()).flatten(), want[:1])
