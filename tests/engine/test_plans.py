"""Plans are settled before the first meta-batch, leave no trace, and are remembered."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import innerloop as il
from innerloop.common import plan_files
from innerloop.engine import plans, search

pytestmark = pytest.mark.usefixtures("own_plans")


def learner(width: int = 8, **options: Any) -> il.MetaLearner:
    torch.manual_seed(0)
    return il.maml(il.models.mlp(2, width, 1), 0.1, loss=F.mse_loss, **options)


def kept() -> list[dict[str, Any]]:
    return [entry for _, entry in plan_files.entries()]


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is so quick that plans do not matter."""
    monkeypatch.setattr(search, "QUICK", 0.0)


@pytest.mark.usefixtures("slow")
def test_a_plan_is_settled_before_the_first_meta_batch(regression: Callable[..., il.Task]) -> None:
    tasks, maml = regression(12), learner()
    expected = learner(vectorize=False).meta_gradient(tasks)
    first = maml.meta_gradient(tasks)
    torch.testing.assert_close(first, expected)
    (reason,) = maml.choices
    assert reason.startswith("meta-gradient 12x6x2")
    assert "one by one" in reason
    assert " ms" in reason
    for _ in range(3):
        again = maml.meta_gradient(tasks)
        assert all(torch.equal(grad, first[0][name]) for name, grad in again[0].items())
    assert maml.choices == [reason]


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("best", [search.Plan(0), search.Plan(2), search.Plan(8), search.Plan(12)])
def test_learners_that_are_alike_have_one_plan(
    best: search.Plan, regression: Callable[..., il.Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the clock says."""
    tasks, measured = regression(12), list[Any]()

    def measure(search: search.Search, *_: Any) -> None:
        measured.append(search)
        search.plan, search.done = best, True

    monkeypatch.setattr("innerloop.engine.engine.measure", measure)
    first = learner().meta_gradient(tasks)
    (entry,) = kept()
    assert (entry["decision"]["size"], entry["decision"]["threads"]) == best
    best = search.Plan(5)
    for other in (learner(), copy.deepcopy(learner())):
        assert all(torch.equal(g, first[0][name]) for name, g in other.meta_gradient(tasks)[0].items())
    assert len(measured) == 1
    learner(width=9).meta_gradient(tasks)
    learner(steps=2).meta_gradient(tasks)
    learner().meta_gradient(regression(11))
    il.maml(learner().model, 0.1, loss=F.l1_loss).meta_gradient(tasks)
    learner().predict(tasks)
    assert len(measured) == 6
    fresh = learner()
    fresh.engine.plans.fresh = True
    fresh.meta_gradient(tasks)
    assert len(measured) == 7
    assert [tuple(e["decision"][k] for k in ("size", "threads")) for e in kept()].count((5, 1)) >= 1


@pytest.mark.usefixtures("slow")
def test_measuring_leaves_no_trace(regression: Callable[..., il.Task]) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm = nn.Linear(2, 1), nn.BatchNorm1d(1)

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.norm(self.linear(x))
            return output

    torch.manual_seed(0)
    maml = il.maml(Model(), 0.1, loss=F.mse_loss)
    before, random_state = copy.deepcopy(maml.state_dict()), torch.get_rng_state()
    maml.predict(regression(12))
    torch.set_rng_state(random_state)
    tasks = regression(12)
    random_state = torch.get_rng_state()
    maml.meta_gradient(tasks)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, before[name]) for name, value in maml.state_dict().items())


@pytest.mark.usefixtures("slow")
def test_threads_come_to_one_plan(regression: Callable[..., il.Task], monkeypatch: pytest.MonkeyPatch) -> None:
    tasks, maml, number = regression(12), learner(), iter(range(2, 12))
    meeting = threading.Barrier(2)

    def measure(found: search.Search, *_: Any) -> None:
        found.plan, found.done = search.Plan(next(number)), True
        meeting.wait(600)

    monkeypatch.setattr("innerloop.engine.engine.measure", measure)
    results: list[Tensor] = []
    threads = [threading.Thread(target=lambda: results.append(maml.predict(tasks))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
    assert len(results) == 2
    assert torch.equal(*results)
    assert len(maml.engine.plans.made) == 1


@pytest.mark.usefixtures("slow")
def test_a_folder_that_cannot_be_written_keeps_nothing(
    regression: Callable[..., il.Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(plan_files, "folder", lambda: tmp_path / "file" / "plans")
    maml = learner()
    maml.meta_gradient(regression(12))
    assert len(maml.engine.plans.made) == 1
    assert not kept()


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"version": 0}'],
    ids=lambda content: repr(content[:10]),
)
def test_a_damaged_plan_is_made_anew(content: bytes, regression: Callable[..., il.Task]) -> None:
    learner().meta_gradient(regression(12))
    ((path, entry),) = plan_files.entries()
    path.write_bytes(content)
    assert not kept()
    learner().meta_gradient(regression(12))
    assert kept() == [entry | {"made": kept()[0]["made"], "decision": kept()[0]["decision"]}]


def test_plans_do_not_depend_on_numbers_or_addresses() -> None:
    class Loss:
        def __init__(self, weight: Tensor) -> None:
            self.weight, self.function, self.itself = weight, partial(F.mse_loss, reduction="sum"), self

        def __call__(self, output: Tensor, y: Tensor) -> Tensor:
            return self.weight * F.mse_loss(output, y)

    paths = {
        il.maml(il.models.mlp(2, 8, 1), 0.1, loss=Loss(torch.tensor(value))).engine.plans._path("meta-gradient")
        for value in (1.0, 2.0)
    }
    assert len(paths) == 1
    assert learner().engine.plans._path("a") != learner().engine.plans._path("b")


def test_old_plans_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_files, "MOST", 5)
    maml = learner()
    for number in range(200):
        maml.engine.plans.put(str(number), size=1, threads=1)
    assert len(kept()) < 100
    assert plan_files.clear() == len(list(plan_files.folder().glob("*"))) + plan_files.clear() or not kept()
    assert not kept()


@pytest.mark.usefixtures("slow")
def test_tasks_that_differ_are_no_matter_of_time() -> None:
    def loss(output: Tensor, y: Tensor) -> Tensor:
        error = F.mse_loss(output, y)
        return error if y.sum() > 0 else 2 * error

    x = torch.randn(12, 6, 2)
    batch = il.Batch(x, torch.tensor([1.0, -1.0]).repeat(6)[:, None, None].expand(12, 6, 1))
    maml = il.maml(il.models.mlp(2, 8, 1), 0.1, loss=loss)
    with pytest.warns(UserWarning, match="one by one"):
        maml.meta_gradient(il.Task(batch, batch))
    maml.meta_gradient(il.Task(batch, batch))
    assert [decision["size"] for decision in maml.engine.plans.made.values()] == [8]


@pytest.mark.usefixtures("slow")
def test_no_plan_is_judged_by_its_first_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of larger ones, memory grows there. Patience ends in the first run of the second plan."""
    clock, ran = [0.0], list[search.Plan]()
    monkeypatch.setattr("innerloop.engine.plans.time.perf_counter", lambda: clock[0])

    def seconds(plan: search.Plan) -> float:
        ran.append(plan)
        clock[0] += (took := (0.9 if plan not in ran[:-1] else 0.3) / (plan.size + 1))
        return took

    found = search.Search(64)
    plans.measure(found, seconds, lambda plan: True)
    assert all(ran.count(plan) > 1 for plan in found.times)
    assert found.plan == search.Plan(64)
    clock[0], found = 0.0, search.Search(64)
    monkeypatch.setattr(plans, "PATIENCE", 0.2)
    ran.clear()
    plans.measure(found, seconds, lambda plan: True)
    assert found.plan == search.Plan(8)
    assert list(found.times) == [search.Plan(8)]
