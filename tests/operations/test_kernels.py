"""The kernels for stacks of tasks: torch's values, and first, second and third derivatives, in whatever layout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

import innerloop as il
from innerloop.operations import kernels
from innerloop.operations import normalization as normalization
from innerloop.operations.convolutions import Options, convolution
from innerloop.operations.replacements import TaskOperations, norm_pool

pytestmark = pytest.mark.usefixtures("double")
POOL: kernels.Window = ([2, 2], [2, 2], [0, 0], [1, 1], False)
OVERLAPPING: kernels.Window = ([3, 3], [2, 2], [1, 1], [1, 1], True)


def pooled(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return kernels.batch_norm(x, scale, bias, 1e-5, POOL)[0]


def convolved(stride: int, padding: int, dilation: int, groups: int) -> Callable[[Tensor, Tensor], Tensor]:
    options = Options([stride] * 2, [padding] * 2, [dilation] * 2, False, [0, 0], groups)
    return lambda x, w, b=None: convolution(x, w, b, options)


CASES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], list[Tensor]]] = {
    "convolution": (convolved(1, 1, 1, 1), lambda x, w: F.conv2d(x, w, None, 1, 1), [(2, 3, 5, 4), (4, 3, 3, 3)]),
    "with bias": (convolved(1, 1, 1, 1), lambda x, w, b: F.conv2d(x, w, b, 1, 1), [(2, 2, 4, 4), (3, 2, 3, 3), (3,)]),
    "strided": (convolved(2, 0, 1, 1), lambda x, w: F.conv2d(x, w, None, 2), [(2, 2, 6, 5), (3, 2, 2, 3)]),
    "one channel": (convolved(1, 1, 1, 1), lambda x, w: F.conv2d(x, w, None, 1, 1), [(2, 1, 4, 4), (3, 1, 3, 3)]),
    "dilated groups": (
        convolved(1, 2, 2, 2),
        lambda x, w: F.conv2d(x, w, None, 1, 2, 2, 2),
        [(2, 4, 5, 5), (4, 2, 3, 3)],
    ),
    "max-pool": (lambda x: kernels.max_pool2d(x, POOL), lambda x: F.max_pool2d(x, 2), [(2, 3, 4, 5)]),
    "overlapping max-pool": (
        lambda x: kernels.max_pool2d(x, OVERLAPPING),
        lambda x: F.max_pool2d(x, 3, 2, 1, 1, True),
        [(2, 2, 5, 5)],
    ),
    "batch norm": (
        lambda x, w, b: kernels.batch_norm(x, w, b, 1e-5)[0],
        lambda x, w, b: normalization.batch_norm(x, None, None, w, b, True),
        [(3, 2, 2, 3), (2,), (2,)],
    ),
    "batch norm and max-pool": (
        pooled,
        lambda x, w, b: F.max_pool2d(normalization.batch_norm(x, None, None, w, b, True), 2),
        [(2, 3, 4, 4), (3,), (3,)],
    ),
}


def inputs(shapes: list[Any], tasks: int | None = None) -> list[Tensor]:
    return [torch.randn((*([tasks] if tasks else []), *shape)).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("name", CASES)
def test_values_and_derivatives_of_every_order(name: str) -> None:
    kernel, reference, shapes = CASES[name]
    tensors = inputs(shapes)
    torch.testing.assert_close(kernel(*tensors), reference(*tensors))
    gradcheck(kernel, tensors)
    gradgradcheck(kernel, tensors)
    assert [tuple(g.shape) for g in third(kernel, tensors)] == [tuple(t.shape) for t in tensors]
    torch.testing.assert_close(third(kernel, tensors), third(reference, tensors))


def third(function: Callable[..., Tensor], tensors: list[Tensor]) -> tuple[Tensor, ...]:
    """A third derivative, along fixed directions."""
    found = function(*tensors).square().sum()
    for order in range(3):
        grads = torch.autograd.grad(found, tensors, create_graph=True)
        torch.manual_seed(order)
        found = torch.stack([(g * torch.randn(g.shape)).sum() for g in grads]).sum()
    return tuple(g.detach() for g in grads)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("axes", [0, 1, "some"])
def test_under_vmap_each_task_has_its_own(name: str, axes: int | str) -> None:
    kernel, reference, shapes = CASES[name]
    tensors = inputs(shapes, tasks=3)
    if axes == "some":  # one task's weights for all
        tensors[1:] = [t[0].detach().requires_grad_() for t in tensors[1:]]
        where: Any = (0, *[None] * (len(tensors) - 1))
    else:
        where = axes
        tensors = [t.movedim(0, axes).detach().requires_grad_() for t in tensors]
    results = []
    for function in (kernel, reference):
        found = torch.func.vmap(function, where)(*tensors)
        grads = torch.autograd.grad(found.square().sum(), tensors, create_graph=True)
        second = torch.autograd.grad(torch.stack([g.square().sum() for g in grads]).sum(), tensors, create_graph=True)
        third = torch.autograd.grad(torch.stack([g.square().sum() for g in second]).sum(), tensors)
        results.append((found, grads, second, third))
    torch.testing.assert_close(results[0], results[1])


def test_a_negative_scale_pools_the_minimum() -> None:
    x, scale, bias = inputs([(2, 3, 4, 4), (3,), (3,)])
    scale = torch.tensor([1.0, -0.5, -2.0], requires_grad=True)
    reference = CASES["batch norm and max-pool"][1]
    torch.testing.assert_close(pooled(x, scale, bias), reference(x, scale, bias))
    gradgradcheck(pooled, (x, scale, bias))


@pytest.mark.parametrize("window", [None, POOL])
def test_values_far_from_zero_keep_their_variance(window: kernels.Window | None) -> None:
    x = (1000 + torch.randn(8, 3, 4, 4)).float().requires_grad_()
    results = []
    for dtype in (torch.float32, torch.float64):
        found = kernels.batch_norm(x.to(dtype), None, None, 1e-5, window)[0]
        results.append((found.double(), torch.autograd.grad(found.pow(3).sum(), x)[0].double()))
    torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("halve", [1, 3, 5])
def test_parts_that_fit_the_cache_make_no_difference(halve: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = inputs([(9, 2, 4, 4), (2,), (2,)])
    expected = torch.autograd.functional.hessian(lambda s: pooled(tensors[0], s, tensors[2]).pow(3).sum(), tensors[1])
    monkeypatch.setattr(kernels, "CACHE", halve * 2 * 4 * 4 * 8)
    found = torch.autograd.functional.hessian(lambda s: pooled(tensors[0], s, tensors[2]).pow(3).sum(), tensors[1])
    torch.testing.assert_close(found, expected)


def test_torch_runs_what_the_kernels_do_not() -> None:
    x, w = torch.randn(3, 2, 1, 5, 5), torch.randn(3, 4, 1, 3, 3)
    with TaskOperations(vectorized=True):
        same = torch.func.vmap(lambda x, w: F.conv2d(x, w, padding="same"))(x, w)
        torch.testing.assert_close(same, torch.func.vmap(lambda x, w: F.conv2d(x, w, padding=1))(x, w))
        values, where = torch.func.vmap(lambda x: F.max_pool2d(x, 2, return_indices=True))(x)
        torch.testing.assert_close(values, torch.func.vmap(lambda x: F.max_pool2d(x, 2))(x))
        assert where.dtype == torch.int64
        jacobian = torch.func.vmap(torch.func.jacrev(lambda w, x: F.conv2d(x, w)))(w, x)
    assert jacobian.shape == (3, 2, 4, 3, 3, 4, 1, 3, 3)


def test_norm_pool_is_batch_norm_and_pooling() -> None:
    x, scale, bias = inputs([(4, 3, 6, 6), (3,), (3,)])
    for tracks, training in ((False, True), (False, False), (True, True), (True, False)):
        norm, other = (nn.BatchNorm2d(3, track_running_stats=tracks).train(training) for _ in range(2))
        for layer in (norm, other):
            layer.weight, layer.bias = nn.Parameter(scale.detach()), nn.Parameter(bias.detach())
        for quick in (True, False):
            plain = F.max_pool2d(other(x), 2)
            torch.testing.assert_close(norm_pool(x, norm, 2), plain)
            other(x)
            with TaskOperations(vectorized=True, kernels=quick):
                torch.testing.assert_close(norm_pool(x, norm, 2), plain)
        torch.testing.assert_close(norm.state_dict(), other.state_dict())


def test_a_loss_that_is_itself_a_gradient(episodes: Callable[..., il.Task]) -> None:
    """An inner loss with a gradient penalty takes third derivatives."""
    model, tasks = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, track_running_stats=False), nn.Tanh(),
                                 nn.Flatten(), nn.Linear(2 * 4 * 4, 3)), episodes(2, size=6)  # fmt: skip

    def penalized(output: Tensor, y: Tensor) -> Tensor:
        (slope,) = torch.autograd.grad(F.cross_entropy(output, y), output, create_graph=True)
        return F.cross_entropy(output, y) + slope.square().sum()

    tasks = il.Task(*(il.Batch(b.x.double(), b.y) for b in tasks))
    learner = il.maml(model, lr=0.1, inner_loss=penalized, vectorize=False)
    assert all(torch.isfinite(g).all() for g in learner.meta_gradient(tasks)[0].values())


IN_PLACE: dict[str, tuple[Callable[[], list[nn.Module]], tuple[int, ...]]] = {
    "convolution": (lambda: [nn.Conv2d(2, 3, 3)], (2, 6, 6)),
    "convolution of lines": (lambda: [nn.Conv1d(2, 3, 3)], (2, 6)),
    "transposed convolution": (lambda: [nn.ConvTranspose2d(2, 3, 3)], (2, 4, 4)),
    "one channel and pixel": (lambda: [nn.Conv2d(2, 1, 1)], (2, 1, 1)),
    "pooling": (lambda: [nn.Conv2d(2, 3, 3), nn.MaxPool2d(2)], (2, 6, 6)),
    "batch norm": (lambda: [nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)], (2, 6, 6)),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_activations_may_write_into_results(name: str) -> None:
    layers, shape = IN_PLACE[name]
    torch.manual_seed(0)
    body = layers()
    head = nn.Linear(nn.Sequential(*body)(torch.zeros(2, *shape)).flatten(1).shape[1], 2)
    x, y = torch.randn(2, 3, 4, *shape), torch.randint(2, (2, 3, 4))
    tasks = il.Task(il.Batch(x[0], y[0]), il.Batch(x[1], y[1]))
    found = []
    for inplace, vectorize in ((True, True), (False, False)):
        model = nn.Sequential(*body, nn.LeakyReLU(inplace=inplace), nn.Flatten(), head)
        grads, _ = il.maml(model, steps=2, vectorize=vectorize).meta_gradient(tasks)
        found.append(torch.cat([grad.flatten() for grad in grads.values()]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-12)
