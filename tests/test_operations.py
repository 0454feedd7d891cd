"""What stands in for torch's operations while tasks run at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import innerloop as il

READS: dict[str, Callable[[Tensor], Tensor]] = {
    "bool": lambda x: 2 * x if (x.abs() < 9).all() else x,
    "item": lambda x: x * (x > 9).sum().item() + x,
    "int": lambda x: x[: int((x.abs() < 9).all(1).sum())],
    "float": lambda x: x * float((x.abs() < 9).all()),
    "index": lambda x: x * (3, 4)[(x.abs() < 9).all().long()],
    "in": lambda x: x if 99.0 in x else 3 * x,
    "requires_grad_": lambda x: (2 * x).requires_grad_(),
}


class Reads(nn.Module):
    """Values say which code runs."""

    def __init__(self, read: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.read = nn.Linear(2, 1), read

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.read(x))  # type: ignore[no-any-return]


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("read", READS)
def test_values_that_are_the_same_for_all_tasks_can_be_read(
    read: str, order: int, regression: Callable[..., il.Task]
) -> None:
    tasks, model = regression(), Reads(READS[read])
    one_by_one, at_once = (il.maml(model, 0.1, order, loss=F.mse_loss, vectorize=v) for v in (False, True))
    torch.testing.assert_close(at_once.meta_gradient(tasks), one_by_one.meta_gradient(tasks), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(at_once.predict(tasks), one_by_one.predict(tasks))


def test_several_elements_are_not_one(regression: Callable[..., il.Task]) -> None:
    learner = il.maml(Reads(lambda x: 2 * x if x > 0 else x), 0.1, loss=F.mse_loss)
    with pytest.raises(RuntimeError, match="Boolean value of Tensor with more than one value is ambiguous"):
        learner.meta_gradient(regression())


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("vectorize", ["auto", True])
def test_where_tasks_differ_these_run_one_by_one(vectorize: object, regression: Callable[..., il.Task]) -> None:
    alike, different = regression(), regression()
    different.query.x[1, 0] += 99
    model = Reads(READS["bool"])
    learner = il.maml(model, 0.1, loss=F.mse_loss, vectorize=vectorize)  # type: ignore[arg-type]
    learner.meta_gradient(alike)
    if vectorize is True:
        with pytest.raises(ValueError, match=r"Reads .* cannot run these tasks at once, and vectorize=True forbids"):
            learner.meta_gradient(different)
        return
    expected = il.maml(model, 0.1, loss=F.mse_loss, vectorize=False).meta_gradient(different)
    with pytest.warns(UserWarning, match=r"Reads .* cannot run these tasks at once, so these run one by one"):
        torch.testing.assert_close(learner.meta_gradient(different), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learner.meta_gradient(different)
    assert learner.engine.vectorised
    assert any("some meta-batches one by one" in reason for reason in learner.choices)


def test_compiled_steps_read_nothing(regression: Callable[..., il.Task]) -> None:
    """Which would be what the example said."""
    learner = il.maml(Reads(READS["bool"]), 0.1, loss=F.mse_loss, vectorize=True, compile=True)
    with pytest.raises(ValueError, match="compile=True, but the step cannot be compiled: it cannot be recorded"):
        learner.meta_gradient(regression())
