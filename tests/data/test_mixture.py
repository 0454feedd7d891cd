"""Tasks from several sources."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import innerloop as il
from innerloop.data import Linear, Mixture, Sinusoid, from_tasks
from innerloop.task import Tasks, singles
from innerloop.train.evaluate import rehearse


class Constant:
    """Tasks whose targets are a number, which tells the source."""

    def __init__(self, value: float, shots: int = 3) -> None:
        self.value, self.shots, self.drawn = value, shots, 0

    def sample(self, n: int, generator: torch.Generator) -> il.Task:
        self.drawn += n
        x = torch.rand(n, self.shots, 1, generator=generator)
        batch = il.Batch(x, torch.full_like(x, self.value))
        return il.Task(batch, batch)

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.drawn = state["drawn"]


def finite(number: int, value: float) -> il.data.FixedTasks:
    return from_tasks([(torch.rand(6, 1), torch.full((6, 1), value + place)) for place in range(number)], shots=3)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def learner() -> il.MetaLearner:
    torch.manual_seed(0)
    return il.maml(il.models.mlp(1, 4, 1), lr=0.01, loss=F.mse_loss)


def values(tasks: Tasks) -> list[float]:
    return [float(task.query.y.flatten()[0]) for task in singles(tasks)]


def test_sets_are_drawn_by_their_weights() -> None:
    mixture = Mixture({"a": Constant(0.0), "b": Constant(1.0), "c": Constant(2.0)}, {"a": 1, "b": 2, "c": 7})
    drawn = Counter(values(mixture.sample(20_000, generator())))
    for value, share in ((0.0, 0.1), (1.0, 0.2), (2.0, 0.7)):
        deviation = math.sqrt(share * (1 - share) * 20_000)
        assert abs(drawn[value] - share * 20_000) < 4 * deviation
    assert Mixture({"a": Constant(0.0), "b": Constant(1.0)}).weights == {"a": 0.5, "b": 0.5}


def test_the_same_state_gives_the_same_tasks() -> None:
    mixture = Mixture({"waves": Sinusoid(), "lines": Linear(10)})
    first, second = (mixture.sample(16, generator(3)) for _ in range(2))
    assert isinstance(first, il.Task)  # of equal sizes, so stacked
    assert isinstance(second, il.Task)
    torch.testing.assert_close(first.support.x, second.support.x, rtol=0, atol=0)


def test_sizes_may_differ_and_finite_sets_give_different_tasks() -> None:
    mixture = Mixture({"small": Constant(0.5, 2), "many": finite(4, 10.0)})
    tasks = mixture.sample(8, generator(1))
    assert isinstance(tasks, list)
    fixed = [value for value in values(tasks) if value != 0.5]
    assert len({*fixed}) == min(len(fixed), 4)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 3.0), (0.2, 0.3, 0.5), (5.0, 1e-6)])
def test_every_set_has_its_share_after_every_task(weights: tuple[float, ...]) -> None:
    names = [f"set {index}" for index in range(len(weights))]
    mixture = Mixture({name: Constant(0.0) for name in names}, dict(zip(names, weights, strict=True)))
    order = mixture.order(200)
    assert mixture.order(70) == order[:70]
    for number in range(1, 201):
        had = Counter(order[:number])
        assert all(abs(had[name] - mixture.weights[name] * number) < 1 for name in names)


@pytest.mark.parametrize(
    ("sources", "weights", "message"),
    [
        ({}, None, "at least one source"),
        ({"a": Constant(0.0)}, {"b": 1.0}, "weights are needed for the sets a, and given for b"),
        ({"a": Constant(0.0), "b": Constant(1.0)}, {"a": 1.0, "b": 0.0}, "the weight of 'b' must be positive, got 0"),
        ({"a": Constant(0.0)}, {"a": math.inf}, "must be positive, got inf"),
        ({"a": Constant(0.0)}, {"a": math.nan}, "must be positive, got nan"),
    ],
)
def test_what_cannot_be_mixed(sources: Any, weights: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mixture(sources, weights)


def test_tasks_to_act_in_are_refused() -> None:
    with pytest.raises(TypeError, match="acts in the tasks of 'walk'"):
        Mixture({"walk": il.rl.TASKS["navigation"]().train})  # type: ignore[dict-item]


# -- evaluation -------------------------------------------------------------------------------------------------------


def test_an_evaluation_tells_each_set() -> None:
    sources = {"zeros": Constant(0.0), "tens": Constant(10.0)}
    found = il.evaluate(learner(), Mixture(sources, {"zeros": 1, "tens": 2}), num_tasks=30, batch=7)
    assert {name: each.num_tasks for name, each in found.sets.items()} == {"tens": 20, "zeros": 10}
    last: Tensor = found.scores[:, -1]
    order = Mixture(sources, {"zeros": 1, "tens": 2}).order(30)
    for name, each in found.sets.items():
        own = last[[place for place, other in enumerate(order) if other == name]]
        assert each.mean == pytest.approx(float(own.mean()), abs=1e-12)
        assert each.ci95 == pytest.approx(1.96 * float(own.std()) / math.sqrt(len(own)), abs=1e-12)
    assert found.sets["zeros"].mean < 1 < found.sets["tens"].mean
    assert found.as_dict()["sets"]["tens"] == {
        "mean": found.sets["tens"].mean, "ci95": found.sets["tens"].ci95, "num_tasks": 20
    }  # fmt: skip
    assert "\n  tens: " in str(found)
    assert "sets" not in il.evaluate(learner(), Sinusoid(), num_tasks=4).as_dict()


def test_the_tasks_of_a_set_depend_on_nothing_else() -> None:
    def scores(weights: Mapping[str, float], number: int, batch: int) -> Tensor:
        mixture = Mixture({"waves": Sinusoid(), "lines": Linear(5)}, weights)
        return il.evaluate(learner(), mixture, num_tasks=number, batch=batch).sets["waves"].scores

    reference = scores({"waves": 1, "lines": 1}, 20, 20)
    for found in (scores({"waves": 1, "lines": 1}, 11, 3), scores({"waves": 3, "lines": 1}, 8, 8)):
        torch.testing.assert_close(found, reference[: len(found)], rtol=1e-5, atol=1e-6)


def test_an_evaluation_ends_with_the_last_task_of_a_finite_set() -> None:
    found = il.evaluate(learner(), Mixture({"few": finite(3, 0.0), "waves": Sinusoid()}), num_tasks=100)
    assert found.num_tasks == 6
    assert {name: each.num_tasks for name, each in found.sets.items()} == {"few": 3, "waves": 3}


@pytest.mark.filterwarnings("error")
def test_one_task_of_a_set_has_no_interval() -> None:
    found = il.evaluate(learner(), Mixture({"a": Sinusoid(), "b": Linear(5)}), num_tasks=2)
    assert all(math.isnan(each.ci95) and math.isfinite(each.mean) for each in found.sets.values())
    assert math.isfinite(found.ci95)


def test_a_metric_that_does_not_fit_one_set_is_found_before_training() -> None:
    class Classes(Constant):
        def sample(self, n: int, generator: torch.Generator) -> il.Task:
            task = super().sample(n, generator)
            return il.Task(*(il.Batch(part.x, part.y[..., 0].long()) for part in task))

    with pytest.raises(ValueError, match=r"\(3, 1\)|shape"):
        rehearse(learner(), Mixture({"numbers": Constant(1.0), "classes": Classes(1.0)}))


def test_training_on_a_mixture_resumes_exactly_with_what_its_sources_keep(tmp_path: Any) -> None:
    def trainer(run: str, iterations: int) -> il.Trainer:
        mixture = Mixture({"a": Constant(1.0), "waves": Sinusoid(5)}, {"a": 2, "waves": 1})
        return il.Trainer(learner(), mixture, mixture, tmp_path / run, iterations=iterations, tasks=4, validate_every=3,
                          val_tasks=4, checkpoint_every=3, progress=False)  # fmt: skip

    whole = trainer("whole", 6)
    whole.fit()
    trainer("parts", 3).fit()
    resumed = trainer("parts", 6)
    resumed.fit(resume=True)
    for name, value in whole.learner.state_dict().items():
        torch.testing.assert_close(resumed.learner.state_dict()[name], value, rtol=0, atol=0)
    states = [each.train.state_dict() for each in (whole, resumed)]
    assert states[0] == states[1]
    assert states[0]["a"]["drawn"] > 0
