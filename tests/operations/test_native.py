"""Norms of one task at a time: torch's values and running statistics, and derivatives of every order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import innerloop as il
from innerloop.operations import native
from innerloop.operations import normalization as normalization
from innerloop.operations.replacements import TaskOperations

pytestmark = pytest.mark.usefixtures("double")

SHAPES = {
    "batch 1-d": (6, 4),
    "batch of lines": (3, 4, 5),
    "batch 2-d": (3, 4, 2, 3),
    "layer": (5, 4),
    "layer, two axes": (3, 2, 4),
}
PARTS = {"scale and offset": (True, True), "scale": (True, False), "offset": (False, True), "neither": (False, False)}


def inputs(name: str, parts: str) -> tuple[Tensor | None, ...]:
    generator = torch.Generator().manual_seed(3)
    shape = SHAPES[name]
    own = shape[-2:] if name.endswith("two axes") else (4,)
    made = [torch.randn(size, generator=generator) for size in (shape, own, own)]
    return tuple(t.requires_grad_() if there else None for t, there in zip(made, (True, *PARTS[parts]), strict=True))


def norm(name: str, exact: bool) -> Callable[..., Tensor]:
    """By `native`, or by elementary operations."""
    if name.startswith("batch"):
        if exact:
            return lambda x, w, b: normalization.batch_norm(x, None, None, w, b, True, 0.1, 1e-2)
        return lambda x, w, b: native.batch_norm(x, None, None, w, b, 0.1, 1e-2)
    own = SHAPES[name][1:] if name.endswith("two axes") else (4,)
    function: Any = normalization.layer_norm if exact else native.layer_norm
    return lambda x, w, b: function(x, own, w, b, 1e-2)


def gradients(value: Tensor, by: list[Tensor], create_graph: bool = False) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value, by, create_graph=create_graph, allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("name", SHAPES)
def test_derivatives_are_those_of_elementary_operations(name: str, parts: str) -> None:
    given = inputs(name, parts)
    found = []
    for exact in (True, False):
        there = [t for t in given if t is not None]
        value = norm(name, exact)(*given)
        results = [value]
        for _ in range(3):  # every next derivative, along a direction
            along = gradients((value * (1 + value.detach().tanh())).sum(), there, create_graph=True)
            value = sum((g * torch.linspace(-1, 2, g.numel()).view_as(g)).sum() for g in along)  # type: ignore[assignment]
            results.append(value)
        results += gradients(value, there)  # the first without a graph
        found.append(results)
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("name", SHAPES)
def test_derivatives_agree_with_finite_differences(name: str) -> None:
    given = inputs(name, "scale and offset")
    assert gradcheck(norm(name, exact=False), given)
    assert gradgradcheck(norm(name, exact=False), given)

    def first(*at: Tensor) -> Any:
        return torch.autograd.grad(norm(name, exact=False)(*at).sin().sum(), at, create_graph=True)

    assert gradgradcheck(first, given)  # third derivatives, in which torch's own norms are wrong


@pytest.mark.parametrize("name", SHAPES)
def test_the_gradient_asked_for_alone_is_right(name: str) -> None:
    given = inputs(name, "scale and offset")
    for index in range(3):
        at = [t.detach().requires_grad_(i == index) for i, t in enumerate(given) if t is not None]
        expected, got = (
            torch.autograd.grad(norm(name, exact)(*at).sin().sum(), at[index])[0] for exact in (True, False)
        )
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: nn.BatchNorm1d(4), (6, 4)),
        (lambda: nn.BatchNorm2d(4), (6, 4, 3, 3)),
        (lambda: nn.BatchNorm2d(4, momentum=None), (6, 4, 3, 3)),
        (lambda: nn.BatchNorm3d(4, affine=False), (2, 4, 2, 2, 2)),
        (lambda: nn.LayerNorm((4, 3), bias=False), (6, 4, 3)),
    ],
)
def test_values_and_running_statistics_are_those_of_torch(layer: Callable[[], nn.Module], shape: Any) -> None:
    torch.manual_seed(0)
    one, other = layer(), layer()
    for _ in range(2):
        x = 3 + 2 * torch.randn(shape)
        with TaskOperations(vectorized=False):
            got = other(x.requires_grad_())
        assert torch.equal(got, one(x))
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_where_torch_would_lose_digits_it_is_not_used() -> None:
    x = torch.randn(2, 4, 3, 3, requires_grad=True)
    assert native.supported(x, None, None)
    assert not native.supported(x.to(memory_format=torch.channels_last), None, None)
    assert not native.supported(x.bfloat16(), None, None)
    assert not native.supported(x, torch.ones(4, dtype=torch.float32), None)
    with forward_ad.dual_level():  # of which an autograd.Function without jvp knows nothing
        assert not native.supported(x, None, None)


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(4, track_running_stats=False), nn.LayerNorm(4)])
def test_norms_under_forward_mode_derivatives(layer: nn.Module) -> None:
    layer = layer.double()
    x, direction = torch.randn(6, 4), torch.randn(6, 4)
    with forward_ad.dual_level(), TaskOperations(vectorized=False):
        got = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, direction))).tangent
    torch.testing.assert_close(got, torch.func.jvp(layer, (x,), (direction,))[1])


@pytest.mark.parametrize("make", [lambda: nn.BatchNorm1d(5), lambda: nn.LayerNorm(5)])
def test_looped_meta_gradients_equal_vectorized_ones(make: Callable[[], nn.Module]) -> None:
    x, y = torch.randn(3, 6, 3), torch.randn(3, 6, 1)
    tasks = il.Task(il.Batch(x, y), il.Batch(x + 1, y))

    def found(vectorize: bool) -> Any:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(3, 5), make(), nn.Tanh(), nn.Linear(5, 1))
        return il.maml(model, 0.3, steps=3, loss=nn.MSELoss(), vectorize=vectorize).meta_gradient(tasks)[0]

    torch.testing.assert_close(found(False), found(True))
