"""The networks of the rows as ordinary modules, for the libraries that are not innerloop."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import torch
from torch import Tensor, nn

from .rows import Row

IMAGE_SIZE, DRAWING_SIZE = 28, 105


def mlp(*sizes: int) -> nn.Sequential:
    """Linear layers with ReLUs between."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def conv4(ways: int, width: int) -> nn.Sequential:
    """Four times convolution, batch norm on batch statistics, ReLU, max-pooling, in this usual order; a linear head."""
    layers: list[nn.Module] = []
    for inputs in (1, width, width, width):
        convolution = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
        norm = nn.BatchNorm2d(width, track_running_stats=False)
        layers += [convolution, norm, nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * (IMAGE_SIZE // 16) ** 2, ways))


def pair_network() -> nn.Sequential:
    """5 x 5 convolutions of 6, 10, 12 and 16 filters, each with ReLU and max-pooling, and two linear layers: the
    probability that a drawing of 105 x 105 is of the second of two characters, ``[N]``."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise((1, 6, 10, 12, 16)):
        layers += [nn.Conv2d(inputs, outputs, 5), nn.ReLU(), nn.MaxPool2d(2)]
    head = [nn.Flatten(), nn.Linear(64, 10), nn.ReLU(), nn.Linear(10, 1), nn.Sigmoid(), nn.Flatten(0)]
    return nn.Sequential(*layers, *head)


def fully_connected(ways: int) -> nn.Sequential:
    """The layers 256-128-64-64 of Santoro et al. 2016, each with batch norm on batch statistics."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise((IMAGE_SIZE**2, 256, 128, 64, 64)):
        norm = nn.BatchNorm1d(outputs, eps=1e-3, track_running_stats=False)
        layers += [nn.Linear(inputs, outputs), norm, nn.ReLU()]
    network = nn.Sequential(*layers, nn.Linear(64, ways))
    for layer in network:
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.01, a=-0.02, b=0.02)
            nn.init.zeros_(layer.bias)
    return network


def ordinary(row: Row) -> nn.Sequential:
    """The network of a row."""
    if row.kind == "sinusoid":
        return mlp(1, 40, 40, 1)
    if row.kind == "images":
        return conv4(row.ways, row.width)
    return pair_network() if row.kind == "pairs" else fully_connected(row.ways)


@torch.no_grad()
def give_weights(model: nn.Module, weights: Iterable[Tensor]) -> None:
    """Copy weights into a model's parameters, in their order: our networks and the ordinary ones have the same."""
    for (name, parameter), weight in zip(model.named_parameters(), weights, strict=True):
        if parameter.shape != weight.shape:
            raise ValueError(f"{name} is {list(parameter.shape)}, but its weights are {list(weight.shape)}")
        parameter.copy_(weight)
