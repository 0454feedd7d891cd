"""Every operator of torch's own list through an inner loop: right, or refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.fuzz import operators
from tests.fuzz.cases import Case


def results() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(operators.RESULTS.read_text())
    return found


def test_the_page_is_made_of_the_results_that_are_kept() -> None:
    assert operators.PAGE.read_text() == operators.page(results())


def test_nothing_of_the_results_is_wrong_without_a_word() -> None:
    found = results()["operators"]
    assert len(found) > 300
    assert not [name for name, r in found.items() if "differs" in (r["looped"], r["vectorized"])]


class _Shifted(torch.autograd.Function):
    """Has a wrong derivative of one order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.order = order
        return x.exp()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return g * (1.5 * x.exp() if ctx.order == 1 else _Shifted.apply(x, ctx.order - 1)), None


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_wrong_derivative_is_found_out(order: int) -> None:
    verdict = operators.judge("wrong", Case(lambda x: _Shifted.apply(x, order), [torch.randn(3)]))
    assert verdict is not None
    assert verdict.wrong == order
    assert verdict.vectorized.startswith("refused")
    assert verdict.looped.startswith("differs") == (order > 1)


@pytest.mark.usefixtures("double")
def test_a_wrong_batching_rule_is_found_out() -> None:
    """One that all tasks share the result of the first of."""

    class Mixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            from innerloop.functional.stacks import on_stacks

            return on_stacks(lambda stack: (stack[:1].expand_as(stack) * stack,), x)[0]

    verdict = operators.judge("mixed", Case(lambda net, x: net(x), [torch.randn(3)], module=Mixed()))
    assert verdict is not None
    assert verdict.looped == "right"
    assert verdict.vectorized.startswith("differs")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_operator_is_right_or_refused() -> None:
    pytest.importorskip("expecttest", reason="torch's list of operators needs expecttest")
    found = operators.collect(operators.operators())
    assert len(found["operators"]) > 300
    assert not [n for n, r in found["operators"].items() if "differs" in (r["looped"], r["vectorized"])]
    if found["torch"] == results()["torch"]:
        kinds = ("wrong", "looped", "vectorized")
        kept = results()["operators"]
        assert {n: [r[k] for k in kinds] for n, r in found["operators"].items()} == {
            n: [r[k] for k in kinds] for n, r in kept.items()
        }
