from __future__ import annotations

import copy
import gc
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import innerloop as il


def learner(**options: object) -> il.MetaLearner:
    return il.maml(il.models.mlp(2, 8, 1), **({"lr": 0.05, "loss": F.mse_loss, "steps": 3} | options))


def test_shapes_of_an_outcome(regression: Callable[..., il.Task]) -> None:
    tasks = regression(4)
    outcome = learner()(tasks)
    assert [tuple(t.shape) for t in outcome] == [(4,), (4,), (4, 4, 1), (4, 3)]
    assert outcome.objective.requires_grad
    assert not any(t.requires_grad for t in (outcome.loss, outcome.output, outcome.steps))
    torch.testing.assert_close(outcome.loss, F.mse_loss(outcome.output, tasks.query.y, reduction="none").mean((1, 2)))


def test_the_support_curve_is_the_loss_along_the_path(regression: Callable[..., il.Task]) -> None:
    tasks, maml = regression(2), learner()
    outcome = maml(tasks)
    for index in range(2):
        support = il.task.select(tasks.support, index)
        adapted = [maml.adapt(support, steps=k) for k in range(4)]
        expected = torch.stack([F.mse_loss(a(support.x), support.y) for a in adapted])
        torch.testing.assert_close(outcome.steps[index], expected[:-1])
        torch.testing.assert_close(adapted[3].losses, expected)
    assert (outcome.steps[:, -1] < outcome.steps[:, 0]).all()


def test_predict_adapt_and_outcome_agree(regression: Callable[..., il.Task]) -> None:
    tasks, maml = regression(2), learner()
    predictions = maml.predict(tasks)
    assert predictions.shape == (2, 4, 4, 1)
    torch.testing.assert_close(predictions[:, -1], maml(tasks).output)
    adapted = maml.adapt(il.task.select(tasks.support, 1))
    torch.testing.assert_close(predictions[1, -1], adapted(tasks.query.x[1]))
    torch.testing.assert_close(predictions[1, -1], adapted.module()(tasks.query.x[1]))
    torch.testing.assert_close(maml.predict(tasks, steps=5)[:, :4], predictions)


def test_to_adapt_takes_the_support_set_alone(regression: Callable[..., il.Task]) -> None:
    task = il.task.select(regression(1), 0)
    with pytest.raises(TypeError, match=r"got a Task: give its support set, task\.support"):
        learner().adapt(task)
    with pytest.raises(TypeError, match=r"got a tuple: give Batch\(x, y\)"):
        learner().adapt(tuple(task.support))


def test_an_adapted_module_is_plain_and_its_own(regression: Callable[..., il.Task]) -> None:
    maml, tasks = learner(), regression(1)
    module = maml.adapt(il.task.select(tasks.support, 0)).module()
    assert type(module) is type(maml.model)
    before = copy.deepcopy(maml.model.state_dict())
    torch.optim.SGD(module.parameters(), 1.0).step(lambda: module(tasks.query.x[0]).sum().backward() or 0.0)
    assert all(torch.equal(v, before[k]) for k, v in maml.model.state_dict().items())


def test_mini_batches_walk_through_the_support_set() -> None:
    """Six examples in batches of two, four steps: examples 01, 23, 45, 01."""
    x, y = torch.randn(6, 2), torch.randn(6, 1)
    maml = learner(steps=4, batch_size=2)
    adapted = maml.adapt(il.Batch(x, y))
    model = copy.deepcopy(maml.model)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for start in (0, 2, 4, 0):
        optimizer.zero_grad()
        F.mse_loss(model(x[start : start + 2]), y[start : start + 2]).backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(adapted.parameters[name], parameter.detach())


def test_a_learned_inner_loss_is_meta_learned(regression: Callable[..., il.Task]) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.log_scale = nn.Parameter(torch.zeros(()))

        def forward(self, output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return self.log_scale.exp() * F.mse_loss(output, y)

    tasks, maml = regression(3), learner(inner_loss=Scaled())
    grads, outcome = maml.meta_gradient(tasks)
    torch.testing.assert_close(outcome.loss, learner_like(maml)(tasks).loss)  # a scale of one at first
    assert grads["inner_loss.log_scale"].abs() > 0


def learner_like(other: il.MetaLearner) -> il.MetaLearner:
    return il.MetaLearner(other.model, il.SGD(0.05), loss=F.mse_loss, steps=3)


def test_cavia_starts_every_task_at_a_zero_context_and_leaves_it_there(regression: Callable[..., il.Task]) -> None:
    model = il.models.WithContext(il.models.mlp(2 + 3, 8, 1), 3)
    cavia, tasks = il.cavia(model, lr=0.5, loss=F.mse_loss, steps=2), regression(3)
    grads, _ = cavia.meta_gradient(tasks)
    assert "model.context" not in grads
    assert all(grad.abs().sum() > 0 for grad in grads.values())
    adapted = cavia.adapt(il.task.select(tasks.support, 0))
    assert adapted.parameters["context"].abs().sum() > 0
    assert torch.equal(model.context, torch.zeros(3))
    for name, parameter in model.named_parameters():
        assert name == "context" or torch.equal(adapted.parameters[name], parameter)


def test_prototypical_predictions_are_those_of_nearest_class_means(episodes: Callable[..., il.Task]) -> None:
    tasks, model = episodes(2), nn.Sequential(nn.Flatten(), nn.Linear(256, 7), nn.Tanh(), nn.Linear(7, 3))
    logits = il.prototypical(model).predict(tasks)[:, 0]
    for index in range(2):
        task, embed = il.task.select(tasks, index), model[:3]
        centres = torch.stack([embed(task.support.x[task.support.y == c]).mean(0) for c in range(3)])
        distances = torch.cdist(embed(task.query.x), centres).square()
        torch.testing.assert_close(logits[index].softmax(-1), (-distances).softmax(-1), rtol=1e-4, atol=1e-5)


def test_protomaml_at_zero_steps_is_the_prototypical_network(episodes: Callable[..., il.Task]) -> None:
    tasks, model = episodes(2), il.models.conv4(ways=3, width=4, image_size=16)
    torch.testing.assert_close(
        il.protomaml(model, lr=0.1).predict(tasks, steps=0), il.prototypical(model).predict(tasks)
    )


def test_citations_follow_the_parts_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    model = il.models.mlp(2, 3, 1)
    il.meta_curvature(model).references()
    printed = capsys.readouterr().out
    assert "Meta-Curvature" in printed
    assert "Model-Agnostic" in printed
    assert not any("Reptile" in c or "Meta-SGD" in c for c in il.meta_curvature(model).citations)
    assert any("Fast Context" in c for c in il.cavia(il.models.WithContext(model, 1)).citations)
    assert all(preset(*_arguments(name)).citations for name, preset in il.presets.PRESETS.items())


def _arguments(preset: str) -> tuple[nn.Module]:
    model = il.models.mlp(4, 5, 3)
    return (il.models.WithContext(model, 1) if preset == "cavia" else model,)


def test_state_dict_round_trip(regression: Callable[..., il.Task]) -> None:
    tasks = regression(2)
    source = il.meta_sgd(il.models.mlp(2, 8, 1), lr=0.1, loss=F.mse_loss)
    target = il.meta_sgd(il.models.mlp(2, 8, 1), lr=0.3, loss=F.mse_loss)
    buffer = io.BytesIO()
    torch.save(source.state_dict(), buffer)
    buffer.seek(0)
    target.load_state_dict(torch.load(buffer, weights_only=True))
    torch.testing.assert_close(target.predict(tasks), source.predict(tasks))


def test_evaluation_keeps_memory_flat(regression: Callable[..., il.Task]) -> None:
    """A thousand tasks leave no tensor behind: no graph is kept, nothing accumulates."""
    maml = learner()
    support = il.task.select(regression(1).support, 0)

    def alive() -> int:
        gc.collect()
        return sum(isinstance(o, torch.Tensor) for o in gc.get_objects())

    maml.predict(regression(2))
    maml.adapt(support)
    before = alive()
    for _ in range(50):
        predictions = maml.predict(regression(20), steps=5)
        assert not predictions.requires_grad
        maml.adapt(support)
    del predictions
    assert alive() <= before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -1}, "steps must be an integer of at least 0"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1"),
        ({"statistics": "moving"}, "'moving'"),
        ({"vectorize": "yes"}, "'yes'"),
        ({"order": 3}, "order must be 1 or 2"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        learner(**options)


def test_a_loss_that_does_not_average_is_refused(regression: Callable[..., il.Task]) -> None:
    with pytest.raises(ValueError, match="reduction='mean'"):
        learner(loss=lambda output, y: (output - y).square().mean(1), inner_loss=F.mse_loss)(regression())


def test_a_meta_batch_without_a_common_task_axis_is_refused(regression: Callable[..., il.Task]) -> None:
    tasks = regression(3)
    with pytest.raises(ValueError, match="one leading task axis"):
        learner()(tasks._replace(query=il.task.select(tasks.query, slice(0, 2))))


def test_a_single_task_without_its_axis_is_refused() -> None:
    x = torch.randn(10, 2)
    with pytest.raises(ValueError, match=r"got shapes \[\(10, 2\), \(10,\)"):
        il.maml(il.models.mlp(2, 3))(il.Task(il.Batch(x, x[:, 0].long()), il.Batch(x, x[:, 0].long())))


def test_a_learner_can_be_pickled(regression: Callable[..., il.Task]) -> None:
    tasks, maml = regression(2), learner()
    again = pickle.loads(pickle.dumps(maml))
    torch.testing.assert_close(again.predict(tasks), maml.predict(tasks))


def test_step_weights_must_fit_the_steps(regression: Callable[..., il.Task]) -> None:
    maml = il.MetaLearner(il.models.mlp(2, 1), il.SGD(), objective=il.Unrolled(step_weights=[1.0]), steps=2)
    with pytest.raises(ValueError, match="2 inner steps need as many step weights"):
        maml(regression())


def test_a_learner_with_nothing_to_learn_says_so(regression: Callable[..., il.Task]) -> None:
    frozen = learner()
    frozen.requires_grad_(False)
    frozen.predict(regression())  # evaluating is fine
    model = il.models.mlp(2, 1).requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to meta-learn"):
        il.MetaLearner(model, il.SGD(0.1), adapt=il.named("0.*"), loss=F.mse_loss).meta_gradient(regression())


def test_adapting_to_many_tasks_is_adapting_to_each():
    learner = il.maml(il.models.conv4(width=8), lr=0.1, steps=2, vectorize=True)
    tasks = il.Strokes(ways=5, shots=1).sample(3, torch.Generator().manual_seed(0))
    together = learner.adapt_all(tasks.support)
    outputs = together(tasks.query.x)
    for index in range(3):
        alone = learner.adapt(il.Batch(tasks.support.x[index], tasks.support.y[index]))
        torch.testing.assert_close(outputs[index], alone(tasks.query.x[index]), rtol=1e-4, atol=1e-4)
        assert all(torch.allclose(together.parameters[n][index], p, atol=1e-5) for n, p in alone.parameters.items())


def test_another_objective_judges_by_the_same_path():
    learner = il.maml(il.models.mlp(1, 8, 1), loss=F.mse_loss, steps=3)
    tasks = il.Sinusoid(5).sample(4, torch.Generator().manual_seed(0))
    weighted = il.Unrolled(step_weights=[0.2, 0.3, 0.5])
    other = il.MetaLearner(learner.model, learner.rule, objective=weighted, loss=F.mse_loss, steps=3)
    torch.testing.assert_close(learner(tasks, objective=weighted).objective, other(tasks).objective)
    assert not torch.allclose(learner(tasks).objective, other(tasks).objective)
