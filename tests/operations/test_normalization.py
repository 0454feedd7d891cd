"""The stand-ins for torch's norms: the same values, the same running statistics, and derivatives that survive vmap."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import innerloop as il
from innerloop.operations.replacements import TaskOperations

pytestmark = pytest.mark.usefixtures("double")

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "batch 1-d": (lambda: nn.BatchNorm1d(4), (6, 4)),
    "batch 2-d": (lambda: nn.BatchNorm2d(4), (6, 4, 3, 3)),
    "batch, no statistics": (lambda: nn.BatchNorm2d(4, track_running_stats=False), (6, 4, 3, 3)),
    "batch, no scale": (lambda: nn.BatchNorm2d(4, affine=False), (6, 4, 3, 3)),
    "instance": (lambda: nn.InstanceNorm2d(4), (6, 4, 3, 3)),
    "instance, all": (lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True), (6, 4, 3, 3)),
    "layer": (lambda: nn.LayerNorm(4), (6, 4)),
    "layer, two axes": (lambda: nn.LayerNorm((3, 4)), (6, 3, 4)),
    "layer, no scale": (lambda: nn.LayerNorm(4, elementwise_affine=False), (6, 4)),
    "group": (lambda: nn.GroupNorm(2, 4), (6, 4, 3, 3)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_values_and_running_statistics_are_those_of_torch(name: str) -> None:
    make, shape = LAYERS[name]
    layers, x = [make(), make()], 3 + 2 * torch.randn(shape)
    for layer in layers:
        for index, parameter in enumerate(layer.parameters()):
            parameter.data = torch.linspace(0.5, 2 + index, parameter.numel()).reshape(parameter.shape)
    expected = layers[0](x)
    with TaskOperations(vectorized=True):
        torch.testing.assert_close(layers[1](x), expected)
    torch.testing.assert_close(dict(layers[1].named_buffers()), dict(layers[0].named_buffers()))


@pytest.mark.parametrize("name", LAYERS)
def test_vectorized_meta_gradients_through_a_norm_equal_looped_ones(name: str) -> None:
    make, shape = LAYERS[name]
    features = torch.Size(shape[1:]).numel()

    def learner(vectorize: bool) -> il.MetaLearner:
        torch.manual_seed(2)
        layers = [nn.Linear(3, features), nn.Unflatten(1, shape[1:]), make(), nn.Tanh(), nn.Flatten()]
        return il.maml(nn.Sequential(*layers, nn.Linear(features, 1)), lr=0.3, loss=F.mse_loss, vectorize=vectorize)

    x, y = torch.randn(3, 6, 3), torch.randn(3, 6, 1)
    tasks = il.Task(il.Batch(x, y), il.Batch(x + 1, y))
    expected, got = (learner(vectorize).meta_gradient(tasks)[0] for vectorize in (False, True))
    for grad_name, grad in expected.items():
        torch.testing.assert_close(got[grad_name], grad)


def test_one_value_per_channel_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"), TaskOperations(vectorized=True):
        nn.BatchNorm1d(3)(torch.randn(1, 3))


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_meta_gradients_through_weight_norm_agree_with_finite_differences(vectorize: bool, dim: int) -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(3, 4), dim=dim)
    expected = layer(torch.eye(3))
    with TaskOperations(vectorized=False):
        torch.testing.assert_close(layer(torch.eye(3)), expected)
    learner = il.maml(nn.Sequential(layer, nn.Tanh(), nn.Linear(4, 1)), 0.5, loss=F.mse_loss, vectorize=vectorize)
    x, y = torch.randn(2, 6, 3), torch.randn(2, 6, 1)
    tasks = il.Task(il.Batch(x, y), il.Batch(x + 1, y))
    grads, _ = learner.meta_gradient(tasks)
    for name, parameter in learner.named_parameters():
        if "original" not in name:
            continue
        direction = torch.randn_like(parameter)
        values = []
        for side in (1e-6, -1e-6):
            with torch.no_grad():
                parameter += side * direction
                values.append(learner(tasks).objective.mean())
                parameter -= side * direction
        slope = (values[0] - values[1]) / 2e-6
        torch.testing.assert_close((grads[name] * direction).sum(), slope, rtol=1e-6, atol=1e-8)
