"""Which metric an evaluation goes by, and that its scores are right, or refused."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import innerloop as il
from innerloop.train import METRICS, accuracy
from innerloop.train.accuracy import number
from innerloop.train.evaluate import judged_by
from innerloop.train.metrics import Judge, chosen, default, direction, tells_classes

Draw = Callable[[Tensor], Any]


class Source:
    """Tasks whose targets are a function of random inputs ``[n, 12, 3]``."""

    def __init__(self, targets: Draw) -> None:
        self.targets = targets

    def sample(self, n: int, generator: torch.Generator) -> il.Task:
        x = torch.randn(n, 12, 3, generator=generator)
        parts = ((part, None if (y := self.targets(part)) is None else y) for part in (x[:, :6], x[:, 6:]))
        return il.Task(*(il.Batch(*part) for part in parts))


def network(outputs: int = 1) -> nn.Module:
    torch.manual_seed(0)
    return il.models.mlp(3, 8, outputs)


def by_hand(learner: il.MetaLearner, source: Source, function: Callable[[Any, Any], Any], tasks: int = 4) -> float:
    """The mean of a function of outputs and targets after the last step."""
    stream, scores = torch.Generator().manual_seed(0), []
    for _ in range(tasks):
        support, query = il.task.select(source.sample(1, stream), 0)
        with torch.no_grad():
            scores.append(float(function(learner.adapt(support)(query.x), query.y)))
    return sum(scores) / tasks


def sums(x: Tensor) -> Tensor:
    return x.sum(-1)


def signs(x: Tensor) -> Tensor:
    return (x.sum(-1, keepdim=True) > 0).float()


def ratings(x: Tensor) -> Tensor:
    return (x[..., :1] * 2).round().clamp(0, 5).long()


def squeezed(output: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(output.squeeze(-1), y)


def rated(output: Tensor, y: Tensor) -> Tensor:
    return F.l1_loss(output, y.float())


def reconstructed(output: Tensor, y: None) -> Tensor:
    return output.square().mean()


class Tree(nn.Module):
    """Two outputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network(2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        mean, log_variance = self.body(x).unbind(-1)
        return {"mean": mean, "variance": log_variance.exp()}


def likelihood(output: dict[str, Tensor], y: dict[str, Tensor]) -> Tensor:
    return F.gaussian_nll_loss(output["mean"], y["value"], output["variance"])


LOSSES = {
    "squeezed": (1, sums, squeezed, "squeezed"),
    "lambda": (1, sums, lambda output, y: squeezed(output, y), "loss"),
    "partial": (1, signs, partial(F.mse_loss, reduction="sum"), "loss"),
    "integer ratings": (1, ratings, rated, "rated"),
    "no targets": (2, lambda x: None, reconstructed, "reconstructed"),
    "gaussian": (2, sums, lambda o, y: F.gaussian_nll_loss(o[..., 0], y, o[..., 1].exp()), "loss"),
    "mse": (1, signs, F.mse_loss, "mse"),
    "mse module": (1, signs, nn.MSELoss(), "mse"),
    "huber": (1, signs, F.huber_loss, "huber_loss"),
    "binary": (1, signs, F.binary_cross_entropy_with_logits, "binary_cross_entropy"),
    "binary module": (1, signs, nn.BCEWithLogitsLoss(), "binary_cross_entropy"),
    "weighted binary": (1, signs, nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0)), "binary_cross_entropy"),
    "weighted classes": (2, lambda x: signs(x)[..., 0].long(), nn.CrossEntropyLoss(torch.tensor([1.0, 9.0])),
                         "cross_entropy"),
    "smooth classes": (2, lambda x: signs(x)[..., 0].long(), nn.CrossEntropyLoss(label_smoothing=0.1), "cross_entropy"),
    "probabilities": (2, lambda x: torch.cat([signs(x), 1 - signs(x)], -1), F.cross_entropy, "cross_entropy"),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_the_default_is_the_learners_own_loss(name: str) -> None:
    outputs, targets, loss, called = LOSSES[name]
    learner, source = il.maml(network(outputs), lr=0.05, steps=2, loss=loss), Source(targets)
    found = il.evaluate(learner, source, 4)
    assert (found.metric, found.higher_is_better, found.unit) == (called, False, "")
    assert found.mean == pytest.approx(by_hand(learner, source, loss), rel=1e-4)
    same = il.evaluate(learner, source, 4, metric=loss)
    assert (same.mean, same.metric) == (found.mean, found.metric)
    both = il.Ensemble([learner, learner])
    assert il.evaluate(both, source, 4).mean == pytest.approx(found.mean, rel=1e-5)
    assert judged_by(learner, source) == found.scale


def test_outputs_and_targets_may_be_trees() -> None:
    learner = il.maml(Tree(), lr=0.05, loss=likelihood)
    source = Source(lambda x: {"value": sums(x)})
    found = il.evaluate(learner, source, 4)
    assert found.metric == "likelihood"
    assert found.mean == pytest.approx(by_hand(learner, source, likelihood), rel=1e-4)


def test_a_loss_with_parameters_is_a_metric() -> None:
    loss = il.losses.OutputLoss(1, 1)
    learner = il.maml(network(), loss=loss)
    found = il.evaluate(learner, Source(signs), 4)
    assert found.metric == "OutputLoss"
    assert found.mean == pytest.approx(by_hand(learner, Source(signs), loss), rel=1e-4)


class Places(nn.Module):
    """Logits of four classes at each of some places, the classes along axis 1."""

    def __init__(self, *places: int) -> None:
        super().__init__()
        self.places, self.body = places, network(4 * math.prod(places))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).view(len(x), 4, *self.places)


def classes(*places: int) -> Draw:
    def draw(x: Tensor) -> Tensor:
        number = math.prod(places)
        values = (x[..., :1].abs() * 997).long() + torch.arange(number)
        return (values % 4).view(*x.shape[:2], *places)

    return draw


@pytest.mark.parametrize("places", [(), (7,), (4, 4), (5, 2, 3)])
@pytest.mark.parametrize("loss", [F.cross_entropy, nn.CrossEntropyLoss()])
def test_plain_cross_entropy_is_judged_by_accuracy(places: tuple[int, ...], loss: Any) -> None:
    """Also of pixels and positions, where torch has the classes along axis 1, and of as many places as classes."""
    learner, source = il.maml(Places(*places), loss=loss), Source(classes(*places))
    found = il.evaluate(learner, source, 4)
    assert (found.metric, found.higher_is_better, found.unit) == ("accuracy", True, "%")
    right = by_hand(learner, source, lambda output, y: 100 * (output.argmax(1) == y).float().mean())
    assert found.mean == pytest.approx(right)


@pytest.mark.parametrize(("loss", "left_out"), [(F.cross_entropy, -100), (nn.CrossEntropyLoss(ignore_index=2), 2)])
def test_ignored_targets_are_left_out(loss: Any, left_out: int) -> None:
    def targets(x: Tensor) -> Tensor:
        y = classes(7)(x)
        return torch.where((x[..., 1:2] > 0) & (y % 2 == 0), left_out, y)

    learner, source = il.maml(Places(7), loss=loss), Source(targets)

    def right(output: Tensor, y: Tensor) -> Tensor:
        return 100 * (output.argmax(1) == y)[y != left_out].float().mean()

    assert il.evaluate(learner, source, 4).mean == pytest.approx(by_hand(learner, source, right))
    assert il.evaluate(learner, source, 4, metric="accuracy").mean == pytest.approx(by_hand(learner, source, right))


LOGITS = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0]])


@pytest.mark.parametrize(
    ("output", "y", "options", "right"),
    [
        (LOGITS, torch.tensor([0, 2]), {}, 50),
        (LOGITS, torch.tensor([0, -100]), {}, 100),
        (LOGITS, torch.tensor([0, 2]), {"ignore_index": 2}, 100),
        (torch.tensor([[-1.0], [2.0]]), torch.tensor([[0.0], [1.0]]), {}, 100),
        (torch.tensor([[-1.0], [2.0]]), torch.tensor([0.0, 0.0]), {}, 50),
        (torch.tensor([-1.0, 2.0]), torch.tensor([0, 1]), {}, 100),
        (torch.tensor([[-1.0], [2.0]]), torch.tensor([0, 0]), {}, 50),
        (torch.tensor([-1.0, 2.0]), torch.tensor([False, True]), {}, 100),
        (torch.tensor([0.2, 0.9]), torch.tensor([0.0, 1.0]), {"outputs": "probabilities"}, 100),
        (LOGITS, torch.tensor([[0.0, 1.0, 1.0], [0.0, 1.0, 1.0]]), {}, 200 / 3),
        (LOGITS, F.one_hot(torch.tensor([0, 2]), 3).float(), {"outputs": "classes"}, 50),
        (torch.full((2, 3), math.nan), torch.tensor([0, 0]), {}, 0),
        (torch.tensor([[math.nan, 1.0], [math.nan, 1.0]]), torch.tensor([0, 1]), {}, 0),
        (torch.tensor([math.nan, 2.0]), torch.tensor([0.0, 1.0]), {}, 50),
        (torch.tensor([-math.inf, 2.0]), torch.tensor([0.0, 1.0]), {}, 100),
    ],
)  # fmt: skip
def test_accuracy(output: Tensor, y: Tensor, options: dict[str, Any], right: float) -> None:
    assert accuracy(output, y, **options).item() == pytest.approx(right)


@pytest.mark.parametrize(
    ("output", "y", "message"),
    [
        (torch.randn(4, 6, 3), torch.zeros(4, 6, dtype=torch.long), r"\(4, 6, 3\) and targets of shape \(4, 6\)"),
        (torch.randn(4, 3), torch.zeros(4, 1, dtype=torch.long), r"\(4, 3\) and targets of shape \(4, 1\)"),
        (torch.randn(4, 3), torch.zeros(3, dtype=torch.long), r"\(4, 3\) and targets of shape \(3,\)"),
        (torch.randn(4), torch.zeros(4, 1), r"\(4,\) and targets of shape \(4, 1\)"),
        (torch.randn(4), torch.tensor([0, 1, 2, 3]), "targets from 0 to 1, got 0 to 3"),
        (torch.randn(4, 1), torch.tensor([[-1.0], [0.5], [2.0], [0.0]]), "regression needs an error"),
        (torch.randn(4, 2), torch.tensor([[1.0, 0.0], [1.0, torch.nan]] * 2), "targets that are NaN: leave them out"),
        (LOGITS, F.one_hot(torch.tensor([0, 2]), 3).float(), "give class indices"),
        ({"a": LOGITS}, torch.tensor([0, 1]), "got dict and Tensor"),
        (LOGITS, None, "got Tensor and NoneType"),
    ],
)
def test_what_accuracy_is_not_defined_for_is_refused(output: Any, y: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        accuracy(output, y)


# -- what is given ----------------------------------------------------------------------------------------------------


@pytest.fixture
def learner() -> il.MetaLearner:
    return il.maml(network(), lr=0.05, loss=F.mse_loss)


def closeness(output: Tensor, y: Tensor) -> Tensor:
    return -(output - y).abs().mean()


def test_a_bare_function_has_to_say_its_direction(learner: il.MetaLearner) -> None:
    fix = r"higher is better for the metric closeness: give il\.Metric\(closeness, higher_is_better=True\)"
    with pytest.raises(ValueError, match=fix):
        il.evaluate(learner, Source(signs), 4, metric=closeness)
    with pytest.raises(ValueError, match=fix):
        il.Trainer(learner, Source(signs), Source(signs), metric=closeness)
    with pytest.raises(ValueError, match=r"il\.Metric\(f, higher_is_better=True\)"):
        il.evaluate(learner, Source(signs), 4, metric=lambda output, y: output.mean())
    with pytest.raises(ValueError, match="SGD is a class that cannot be built"):
        il.evaluate(learner, Source(signs), 4, metric=torch.optim.SGD)
    with pytest.raises(TypeError, match="got 3"):
        il.evaluate(learner, Source(signs), 4, metric=3)  # type: ignore[arg-type]
    found = il.evaluate(learner, Source(signs), 4, metric=il.Metric(closeness, True, unit="mm"))
    assert (found.metric, found.higher_is_better, found.unit) == ("closeness", True, "mm")
    assert str(found).startswith("closeness -")
    assert " mm after 1 step" in str(found)


@pytest.mark.parametrize("metric", [F.l1_loss, nn.L1Loss(), nn.L1Loss, "l1", METRICS["l1"], F.smooth_l1_loss])
def test_losses_of_torch_are_better_when_lower(learner: il.MetaLearner, metric: Any) -> None:
    found = il.evaluate(learner, Source(signs), 4, metric=metric)
    assert not found.higher_is_better
    other = F.smooth_l1_loss if metric is F.smooth_l1_loss else F.l1_loss
    assert found.mean == pytest.approx(by_hand(learner, Source(signs), other), rel=1e-4)


@pytest.mark.parametrize("name", METRICS)
def test_every_named_metric(name: str) -> None:
    outputs, targets = (2, lambda x: signs(x)[..., 0].long()) if name == "cross_entropy" else (1, signs)
    loss = F.cross_entropy if name == "cross_entropy" else F.binary_cross_entropy_with_logits
    found = il.evaluate(il.maml(network(outputs), loss=loss), Source(targets), 4, metric=name)
    assert found.scale == il.metrics.Scale.of(METRICS[name])
    assert math.isfinite(found.mean)


@pytest.mark.parametrize(
    ("loss", "threshold"),
    [(F.binary_cross_entropy_with_logits, 0.0), (nn.BCEWithLogitsLoss(), 0.0), (F.binary_cross_entropy, 0.5)],
)
def test_accuracy_of_yes_and_no_may_be_asked_for(loss: Any, threshold: float) -> None:
    model = nn.Sequential(network(), nn.Sigmoid()) if threshold else network()
    learner, source = il.maml(model, loss=loss), Source(signs)

    def right(output: Tensor, y: Tensor) -> Tensor:
        return 100 * ((output > threshold) == (y > 0)).float().mean()

    assert il.evaluate(learner, source, 4).metric != "accuracy"
    for metric in ("accuracy", accuracy, METRICS["accuracy"]):
        found = il.evaluate(learner, source, 4, metric=metric)
        assert (found.metric, found.unit) == ("accuracy", "%")
        assert found.mean == pytest.approx(by_hand(learner, source, right))


BROADCASTING = [
    "mse", "rmse", "l1", F.mse_loss, nn.MSELoss(), F.huber_loss, partial(F.l1_loss, reduction="sum"),
    il.Metric(F.mse_loss, False, "own"), nn.SmoothL1Loss(beta=0.5), F.poisson_nll_loss,
]  # fmt: skip


@pytest.mark.parametrize("metric", BROADCASTING)
def test_targets_that_broadcast_are_refused(metric: Any) -> None:
    learner = il.maml(network(), lr=0.05, loss=squeezed)
    if isinstance(metric, partial):
        metric = il.Metric(metric, False)
    with pytest.raises(ValueError, match=r"outputs of shape \(6, 1\) and targets of shape \(6,\).*squeeze"):
        il.evaluate(learner, Source(sums), 4, metric=metric)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda output, y: output, r"returned a tensor of shape \(6, 1\)"),
        (lambda output, y: {"f1": 1.0}, "returned dict"),
        (lambda output, y: None, "returned NoneType"),
        (lambda output, y: torch.tensor(1j), "one number"),
        (lambda output, y: output.missing, r"raised AttributeError: .*outputs of shape \(6, 1\)"),
        (nn.MSELoss(reduction="none"), r"returned a tensor of shape \(6, 1\)"),
    ],
)
def test_a_metric_that_does_not_fit_is_an_error_before_the_first_iteration(
    tmp_path: Path, function: Any, message: str
) -> None:
    learner = il.maml(network(), lr=0.05, loss=F.mse_loss)
    before = {name: tensor.clone() for name, tensor in learner.state_dict().items()}
    metric = il.Metric(function, higher_is_better=True)
    trainer = il.Trainer(
        learner, Source(signs), Source(signs), tmp_path / "run", iterations=9, metric=metric, progress=False
    )
    with pytest.raises(ValueError, match=message):
        trainer.fit()
    assert all(torch.equal(before[name], tensor) for name, tensor in learner.state_dict().items())
    assert trainer.iteration == 0
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    trainer = il.Trainer(learner, Source(signs), Source(signs), tmp_path / "run", iterations=2, progress=False)
    assert trainer.fit().iterations == 2  # the directory is as free as it was


def test_a_metric_may_write_to_what_it_is_given() -> None:
    learner, source = il.maml(network(), loss=F.mse_loss, steps=2), Source(lambda x: x.sum(-1, keepdim=True))
    given = il.Metric(lambda output, y: y.sub_(output).abs().mean(), False)
    found = il.evaluate(learner, source, 4, metric=given)
    assert found.steps == il.evaluate(learner, source, 4, metric="l1").steps


@pytest.mark.parametrize("value", [2, 2.0, True, torch.tensor(2), torch.tensor(True), torch.tensor(2.0).double()])
def test_plain_numbers_are_scores(learner: il.MetaLearner, value: Any) -> None:
    found = il.evaluate(learner, Source(signs), 4, metric=il.Metric(lambda output, y: value, True))
    assert found.mean == float(value)


class Counting(Source):
    """Tells apart how it was used."""

    drawn = 0

    def sample(self, n: int, generator: torch.Generator) -> il.Task:
        self.drawn += n
        return super().sample(n, generator)

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.drawn = state["drawn"]


def test_trying_a_validation_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(tried: bool) -> tuple[dict[str, Tensor], float, int]:
        model = nn.Sequential(network(8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1))
        learner, val = il.maml(model, lr=0.05, loss=F.mse_loss), Counting(signs)
        trainer = il.Trainer(
            learner, Source(signs), val, iterations=6, tasks=3, val_tasks=2, validate_every=3, progress=False
        )
        if not tried:
            monkeypatch.setattr(trainer, "_rehearse", lambda: None)
        torch.manual_seed(5)
        state = torch.get_rng_state()
        trainer.fit()
        assert torch.equal(state, torch.get_rng_state())
        return learner.state_dict(), il.evaluate(learner, Source(signs), 4).mean, val.drawn

    (one, score, drawn), (other, again, as_often) = trained(True), trained(False)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (score, drawn) == (again, as_often)


def test_the_best_weights_are_the_highest_where_higher_is_better(tmp_path: Path) -> None:
    learner = il.maml(network(), lr=0.05, loss=F.mse_loss)
    metric = il.Metric(closeness, higher_is_better=True)
    trainer = il.Trainer(
        learner, Source(signs), Source(signs), tmp_path / "run", iterations=30, tasks=4, lr=0.01, validate_every=5,
        val_tasks=10, metric=metric, progress=False,
    )  # fmt: skip
    result = trainer.fit()
    record = il.report.read_run(tmp_path / "run")
    lines = record.lines["validation"]
    assert {(line["metric"], line["higher_is_better"], line["unit"]) for line in lines} == {("closeness", True, "")}
    assert result.best[0]["score"] == max(line["mean"] for line in lines)
    assert record.best is not None
    assert record.best["iteration"] == result.best[0]["iteration"]


def test_tasks_that_are_acted_in_have_their_own_metric() -> None:
    class Acted:
        metric = il.metrics.Scale("goals", higher_is_better=False, unit="m")

        def require(self, learner: Any) -> None: ...

        def collect(self, learner: Any, n: int, generator: torch.Generator) -> il.Task:
            return Source(signs).sample(n, generator)

        def returns(self, learner: Any, n: int, steps: int | None, generator: torch.Generator) -> Tensor:
            return torch.rand(n, 2, generator=generator)

        def report(self) -> dict[str, Any]:
            return {}

    learner = il.maml(network(), loss=F.mse_loss)
    found = il.evaluate(learner, Acted(), 4)
    assert (found.metric, found.higher_is_better, found.unit, found.mode) == ("goals", False, "m", "acting")
    with pytest.raises(ValueError, match="their metric is goals: leave out metric"):
        il.evaluate(learner, Acted(), 4, metric="mse")


# -- what is not finite -----------------------------------------------------------------------------------------------


class Broken(nn.Module):
    """Outputs that are not numbers, for all inputs or for those whose first number is positive."""

    def __init__(self, outputs: int, always: bool = True, value: float = math.nan) -> None:
        super().__init__()
        self.body, self.always, self.value = network(outputs), always, value

    def forward(self, x: Tensor) -> Tensor:
        output = self.body(x)
        spoilt = torch.ones_like(output, dtype=torch.bool) if self.always else (x[..., :1] > 0).expand_as(output)
        return torch.where(spoilt, output * 0 + self.value, output)


def first_class(x: Tensor) -> Tensor:
    return torch.zeros(x.shape[:2], dtype=torch.long)


@pytest.mark.parametrize(
    ("outputs", "targets", "loss"),
    [
        (5, first_class, F.cross_entropy),
        (5, first_class, nn.CrossEntropyLoss(ignore_index=3)),
        (1, lambda x: torch.zeros(*x.shape[:2], 1), F.binary_cross_entropy_with_logits),
        (1, lambda x: torch.ones(*x.shape[:2], 1), nn.BCEWithLogitsLoss()),
    ],
)
def test_what_is_no_number_is_wrong(outputs: int, targets: Draw, loss: Any) -> None:
    learner = il.maml(Broken(outputs), loss=loss, steps=0)
    with pytest.warns(UserWarning, match="48 of 48 outputs of the model are not finite.*count as wrong") as said:
        found = il.evaluate(learner, Source(targets), 8, batch=3, metric="accuracy")
    assert (found.mean, len(said)) == (0, 1)
    assert said[0].filename == __file__


def test_only_those_that_are_no_numbers_are_wrong() -> None:
    learner = il.maml(Broken(1, always=False), loss=F.binary_cross_entropy_with_logits, steps=0)
    source = Source(lambda x: (x[..., :1] > 0).float())
    with pytest.warns(UserWarning, match=r"\d+ of 48 outputs"):
        found = il.evaluate(learner, source, 8, metric="accuracy")
    assert 0 < found.mean < 100


def f1(output: Tensor, y: Tensor) -> Tensor:
    """Takes what is no number for the first class."""
    right = ((output.argmax(-1) == 0) & (y == 0)).sum()
    return 2 * right / ((output.argmax(-1) == 0).sum() + (y == 0).sum()).clamp_min(1)


@pytest.mark.parametrize("metric", [il.Metric(f1, True), "cross_entropy"])
def test_other_metrics_are_then_no_number(metric: Any) -> None:
    learner = il.maml(Broken(5), steps=0)
    with pytest.warns(UserWarning, match="48 of 48 outputs.*and so 8 of 8 scores .* are not finite"):
        found = il.evaluate(learner, Source(first_class), 8, metric=metric)
    assert math.isnan(found.mean)


def test_infinite_scores_are_said() -> None:
    learner = il.maml(Broken(1, value=-math.inf), loss=F.mse_loss, steps=0)
    with pytest.warns(UserWarning, match=r"8 of 8 scores \(mse\) are not finite"):
        assert il.evaluate(learner, Source(signs), 8).mean == math.inf


def test_logits_that_rule_out_a_class_are_no_fault() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network(3)

        def forward(self, x: Tensor) -> Tensor:
            mask = torch.tensor([0.0, 0.0, -math.inf])
            return self.body(x) + mask

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert 0 <= il.evaluate(il.maml(Masked()), Source(first_class), 4).mean <= 100


@pytest.mark.parametrize("higher", [True, False])
def test_a_validation_that_is_no_number_is_never_the_best(tmp_path: Path, higher: bool) -> None:
    scores = iter([math.nan] * 2 + [math.nan] * 4 + [1.0, 2.0, 1.0, 2.0] + [math.nan] * 4)  # two are tried

    learner = il.maml(network(), lr=0.05, loss=F.mse_loss)
    trainer = il.Trainer(
        learner, Source(signs), Source(signs), tmp_path / "run", iterations=3, tasks=2, validate_every=1, val_tasks=2,
        metric=il.Metric(lambda output, y: next(scores), higher), progress=False,
    )  # fmt: skip
    with pytest.warns(UserWarning, match="scores"):
        result = trainer.fit()
    assert [entry["iteration"] for entry in result.best] == [2]
    trainer = il.Trainer(
        learner, Source(signs), Source(signs), tmp_path / "other", iterations=1, tasks=2, val_tasks=2,
        metric=il.Metric(lambda output, y: math.nan, higher), progress=False,
    )  # fmt: skip
    with pytest.warns(UserWarning, match="scores"):
        assert trainer.fit().best == ()


# -- torchmetrics -----------------------------------------------------------------------------------------------------


class Gathering:
    """Of the kind of torchmetrics' metrics: gathers what it is shown until it is reset."""

    higher_is_better = True

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def update(self, preds: Tensor, target: Tensor) -> None:
        self.seen.append((preds.argmax(1) == target).float())

    def compute(self) -> Tensor:
        return torch.cat(self.seen).mean()

    def reset(self) -> None:
        self.seen = []

    def __call__(self, preds: Tensor, target: Tensor) -> Tensor:
        self.update(preds, target)
        return self.compute()


def test_an_object_that_gathers_is_reset_between_tasks() -> None:
    learner, source = il.maml(network(4)), Source(classes())
    plain = il.evaluate(learner, source, 6)
    for metric in (Gathering, Gathering(), il.Metric(Gathering(), True, "Gathering")):
        found = il.evaluate(learner, source, 6, metric=metric)
        torch.testing.assert_close(100 * found.scores, plain.scores, rtol=1e-6, atol=1e-4)
        assert (found.metric, found.higher_is_better) == ("Gathering", True)


def test_nothing_is_imported_for_it() -> None:
    import subprocess

    code = "import innerloop.train, innerloop.report, innerloop.recipe, sys; print('torchmetrics' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_metrics_of_torchmetrics() -> None:
    library = pytest.importorskip("torchmetrics")
    function = library.functional
    learner, source = il.maml(network(4), lr=0.1), Source(classes())
    mine = il.evaluate(learner, source, 6)
    several = {"task": "multiclass", "num_classes": 4}
    for metric in (
        library.classification.MulticlassAccuracy(num_classes=4, average="micro"),
        library.Accuracy(**several),
        partial(function.accuracy, **several),
        il.Metric(partial(function.classification.multiclass_accuracy, num_classes=4, average="micro"), True),
    ):
        found = il.evaluate(learner, source, 6, metric=metric)
        torch.testing.assert_close(100 * found.scores, mine.scores, rtol=1e-5, atol=1e-4)
        assert found.higher_is_better
    with pytest.raises(
        ValueError, match=r"MulticlassF1Score is a class.*give an instance, MulticlassF1Score\(\.\.\.\)"
    ):
        il.evaluate(learner, source, 6, metric=library.classification.MulticlassF1Score)
    with pytest.warns(UserWarning, match="not finite"):
        broken = il.evaluate(il.maml(Broken(4), steps=0), source, 6, metric=library.Accuracy(**several))
    assert math.isnan(broken.mean)


def test_errors_of_torchmetrics(learner: il.MetaLearner) -> None:
    library = pytest.importorskip("torchmetrics")
    expected = by_hand(learner, Source(signs), F.mse_loss)
    for metric in (library.MeanSquaredError, library.MeanSquaredError(), library.functional.mean_squared_error):
        found = il.evaluate(learner, Source(signs), 4, metric=metric)
        assert found.mean == pytest.approx(expected, rel=1e-4)
        assert not found.higher_is_better
    assert il.evaluate(learner, Source(signs), 4, metric=library.functional.r2_score).higher_is_better
    with pytest.raises(
        ValueError, match=r"it is unknown whether higher is better for the metric pearson_corrcoef.*il\.Metric"
    ):
        il.evaluate(learner, Source(signs), 4, metric=library.functional.pearson_corrcoef)


def test_torchmetrics_is_given_probabilities() -> None:
    """It takes logits that lie in [0, 1] for probabilities: 0.3 is yes as a logit and no as a probability."""
    library = pytest.importorskip("torchmetrics")

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network()

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) * 0 + 0.3

    source = Source(lambda x: torch.ones(*x.shape[:2], 1))
    for loss in (F.binary_cross_entropy_with_logits, nn.BCEWithLogitsLoss()):
        learner = il.maml(Small(), loss=loss, steps=0)
        assert il.evaluate(learner, source, 4, metric=library.classification.BinaryAccuracy()).mean == 1
        bare = library.functional.classification.binary_f1_score
        assert il.evaluate(learner, source, 4, metric=bare).mean == 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mean_squared_error", False), ("r2_score", True), ("f1_score", True), ("accuracy", True),
        ("calibration_error", False), ("pearson_corrcoef", None), ("confusion_matrix", None), ("auroc", True),
    ],
)  # fmt: skip
def test_directions_of_torchmetrics_functions(name: str, expected: bool | None) -> None:
    function = getattr(pytest.importorskip("torchmetrics.functional"), name)
    assert direction(function) is expected
    assert direction(partial(function, num_classes=3)) is expected


def test_plain_classes_are_told_by_loss_and_targets() -> None:
    y = torch.zeros(3, dtype=torch.long)
    assert tells_classes(F.cross_entropy, y)
    assert tells_classes(nn.CrossEntropyLoss(reduction="sum"), y.to(torch.uint8))
    assert not tells_classes(nn.CrossEntropyLoss(torch.ones(2)), y)
    assert not tells_classes(partial(F.cross_entropy, label_smoothing=0.1), y)
    assert not tells_classes(F.cross_entropy, y.float())
    assert not tells_classes(F.cross_entropy, {"y": y})
    assert default(nn.CrossEntropyLoss(ignore_index=1), y)(LOGITS[:1], torch.tensor([1])).isnan()
    assert chosen(None, F.mse_loss) is None
    assert Judge(METRICS["mse"], F.mse_loss).same_shape


@pytest.mark.parametrize(
    "metric",
    [
        il.Metric(lambda output, y: (output - y).abs().mean(), higher_is_better=False, name="by hand"),
        il.Metric(
            lambda output, y: 1 - (y - output).square().sum() / (y - y.mean()).square().sum(),
            higher_is_better=True, name="explained",
        ),
    ],
)  # fmt: skip
def test_metrics_of_ones_own_that_broadcast_are_refused(metric: il.Metric) -> None:
    def squeezed(output: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(output.squeeze(-1), y)

    learner = il.maml(network(), 0.1, loss=squeezed)
    with pytest.raises(ValueError, match=r"the metric compares outputs of shape \[6, 1\] with targets of shape \[6\]"):
        il.evaluate(learner, Source(sums), 4, metric=metric)
    fits = Source(lambda x: x.sum(-1, keepdim=True))
    assert math.isfinite(il.evaluate(il.maml(network(), 0.1, loss=F.mse_loss), fits, 4, metric=metric).mean)


def test_a_source_that_draws_more_tasks_than_asked_gives_no_more_scores() -> None:
    class Many(Source):
        def sample(self, n: int, generator: torch.Generator) -> il.Task:
            return super().sample(3, generator)

    found = il.evaluate(il.maml(network(), 0.1, loss=F.mse_loss), Many(lambda x: x.sum(-1, keepdim=True)), 4)
    assert len(found.scores) == 4


@pytest.mark.parametrize("value", [1 / 3, np.float64(1 / 3), torch.tensor(1 / 3, dtype=torch.float64)])
def test_numbers_keep_their_digits(value: Any) -> None:
    assert number("a score", value).double().item() == 1 / 3
    assert number("a count", torch.tensor(2**24 + 1)).item() == 2**24 + 1
