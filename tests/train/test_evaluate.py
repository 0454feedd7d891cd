from __future__ import annotations

import statistics

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import innerloop as il
from innerloop.train import METRICS, accuracy

from ..held import Held


@pytest.fixture
def learner():
    torch.manual_seed(0)
    return il.maml(il.models.mlp(1, 8, 1), lr=0.01, steps=2, loss=F.mse_loss)


class Noisy(nn.Module):
    """Batch norm with running statistics, and dropout: all that could leave a trace."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(1, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(8, 1)

    def forward(self, x):
        return self.head(self.body(x))


@pytest.mark.parametrize("vectorize", [True, False])
def test_everything_is_left_bit_identical(vectorize):
    learner = il.maml(Noisy(), loss=F.mse_loss, vectorize=vectorize)
    learner.model.body[3].eval()
    before = {name: tensor.clone() for name, tensor in learner.state_dict().items()}
    modes = [module.training for module in learner.modules()]
    stream, random = torch.Generator().manual_seed(3), torch.get_rng_state()
    state = stream.get_state()

    il.evaluate(learner, il.Sinusoid(), num_tasks=30, batch=7)

    assert all(torch.equal(before[name], tensor) for name, tensor in learner.state_dict().items())
    assert modes == [module.training for module in learner.modules()]
    assert torch.equal(random, torch.get_rng_state())
    assert torch.equal(state, stream.get_state())
    assert all(p.grad is None for p in learner.parameters())


def test_the_interval_is_that_of_a_mean(learner):
    found = il.evaluate(learner, il.Sinusoid(), num_tasks=20, steps=3)
    assert found.scores.shape == (20, 4)
    for step in range(4):
        column = found.scores[:, step].tolist()
        assert found.steps[step] == pytest.approx(statistics.fmean(column))
        assert found.steps_ci95[step] == pytest.approx(1.96 * statistics.stdev(column) / 20**0.5)
    assert (found.mean, found.ci95) == (found.steps[-1], found.steps_ci95[-1])


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_tasks_do_not_depend_on_the_batch_or_their_number(learner, batch):
    source = il.Sinusoid()
    whole = il.evaluate(learner, source, num_tasks=20)
    part = il.evaluate(learner, source, num_tasks=10, batch=batch)
    torch.testing.assert_close(part.scores, whole.scores[:10], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(part.scores, il.evaluate(learner, source, num_tasks=10, seed=1).scores)


def test_random_layers_are_off_and_repeatable():
    learner = il.maml(Noisy(), loss=F.mse_loss)
    first, second = (il.evaluate(learner, il.Sinusoid(), num_tasks=5) for _ in range(2))
    assert torch.equal(first.scores, second.scores)


def test_scores_agree_with_adapting_by_hand(learner):
    found = il.evaluate(learner, il.Sinusoid(), num_tasks=3, steps=4, seed=7)
    stream = torch.Generator().manual_seed(7)
    for index in range(3):
        support, query = (il.Batch(b.x[0], b.y[0]) for b in il.Sinusoid().sample(1, stream))
        adapted = learner.adapt(support, steps=4)
        torch.testing.assert_close(found.scores[index, -1].float(), F.mse_loss(adapted(query.x), query.y))


def test_classification_is_scored_in_per_cent():
    learner = il.maml(il.models.conv4(width=4, image_size=16), lr=0.1)
    source = il.Strokes(size=16)
    found = il.evaluate(learner, source, num_tasks=4)
    assert found.metric == "accuracy"
    assert found.higher_is_better
    assert 0 <= found.mean <= 100
    assert {round(score, 3) for score in found.scores.flatten().tolist()} <= {0, 20, 40, 60, 80, 100}


def test_batch_norm_mode_is_reported_and_matters():
    torch.manual_seed(0)
    learner, source = il.maml(il.models.conv4(width=8), lr=1.0), il.Strokes()
    both = {mode: il.evaluate(learner, source, num_tasks=10, transductive=mode) for mode in (True, False)}
    assert not torch.equal(both[True].scores, both[False].scores)
    for mode, name in ((True, "transductive"), (False, "inductive")):
        assert both[mode].as_dict()["transductive"] is mode
        assert f" {name}]" in str(both[mode])


def test_accuracy():
    assert accuracy(torch.tensor([[1.0, 2.0], [2.0, 1.0]]), torch.tensor([1, 1])) == 50
    assert accuracy(torch.tensor([[-1.0], [2.0]]), torch.tensor([[0.0], [1.0]])) == 100


def test_metrics_by_name_function_and_kind(learner):
    assert set(METRICS) == {"accuracy", "mse", "rmse", "l1", "cross_entropy", "binary_cross_entropy"}
    assert il.evaluate(learner, il.Sinusoid(), num_tasks=2).metric == "mse"
    found = il.evaluate(learner, il.Sinusoid(), num_tasks=2, metric=F.l1_loss)
    assert (found.metric, found.higher_is_better) == ("l1_loss", False)


@pytest.mark.parametrize("loss", [F.binary_cross_entropy_with_logits, nn.BCEWithLogitsLoss()])
def test_binary_cross_entropy_is_scored_by_itself_and_by_accuracy_if_asked(loss):
    class Signs:
        def sample(self, n, generator):
            x = torch.randn(n, 6, 1, generator=generator)
            y = (x > 0).float()
            return il.Task(il.Batch(x[:, :3], y[:, :3]), il.Batch(x[:, 3:], y[:, 3:]))

    learner = il.maml(il.models.mlp(1, 1), loss=loss)
    assert il.evaluate(learner, Signs(), num_tasks=2).metric == "binary_cross_entropy"
    found = il.evaluate(learner, Signs(), num_tasks=2, metric="accuracy")
    assert (found.metric, found.higher_is_better, found.unit) == ("accuracy", True, "%")
    assert 0 <= found.mean <= 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_tasks": 1}, "num_tasks >= 2"),
        ({"batch": 0}, "batch >= 1"),
        ({"steps": -1}, "steps >= 0"),
        ({"metric": "acuracy"}, "accuracy, mse"),
    ],
)
def test_wrong_arguments(learner, options, message):
    with pytest.raises(ValueError, match=message):
        il.evaluate(learner, il.Sinusoid(), **options)


def test_a_failing_source_leaves_everything_as_it_was(learner):
    class Broken:
        def sample(self, n, generator):
            torch.rand(1)
            raise RuntimeError("gone")

    random = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="gone"):
        il.evaluate(learner, Broken())
    assert learner.training
    assert torch.equal(random, torch.get_rng_state())


def test_memory_does_not_grow_with_the_number_of_tasks():
    class Watched:
        def __init__(self):
            self.held = []

        def sample(self, n, generator):
            self.held.append(held.now)
            return il.Sinusoid().sample(n, generator)

    learner, source = il.maml(il.models.mlp(1, 64, 64, 1), lr=0.001, loss=F.mse_loss), Watched()
    with Held() as held:
        il.evaluate(learner, source, num_tasks=1200)
    assert source.held[-1] - source.held[200] < 1000 * 40  # bytes: of a task, only its scores are kept
