"""Rebuild the head of a learner for another number of classes than it was trained for."""

from __future__ import annotations

import copy
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ..initializations import Prototypes
from ..learner import MetaLearner
from ..select import head_name

Head = Literal["trained", "drawn", "prototypes", "zero"]
"""How the head of a task is initialized: as it was trained (its first outputs, for fewer classes), with random further
outputs like the trained ones, at the class means of the support set (Triantafillou et al. 2020, section 3), or at zero,
so that the first step moves only the head."""


def classes_of(learner: MetaLearner) -> int:
    """Return the number of classes of the learner's head.

    Raises:
        ValueError: its head is not a linear layer.
    """
    return _linear(learner.model, head_name(learner.model)).out_features


def with_classes(learner: MetaLearner, classes: int, head: Head | None = None) -> MetaLearner:
    """Return the learner with a head for another number of classes: a copy, or itself if nothing changes.

    Meta-training shuffles the classes in every task, so any output of the head can stand for any class. For fewer
    classes, the first outputs are kept. For more, no further outputs are trained, so you have to choose their
    initialization. What the update rule learned for each output is cut in the same way; further outputs get the mean.

    Args:
        learner: its model has a linear head with a bias.
        classes: at least 2.
        head: how a task's head is initialized; default ``"trained"``. A learner that starts at prototypes takes any
            number of classes without it.

    Raises:
        ValueError: the number or the initialization is not valid, or there are more classes than were trained and no
            initialization.
    """
    name = head_name(learner.model)
    trained = _linear(learner.model, name).out_features
    if classes < 2:
        raise ValueError(f"a classifier needs at least 2 classes, got {classes}")
    if head is not None and head not in get_args(Head):
        raise ValueError(f"head must be one of {', '.join(get_args(Head))}, got {head!r}")
    own = isinstance(learner.initial, Prototypes)  # prototypes need no trained outputs
    if classes > trained and not own and head in (None, "trained"):
        raise ValueError(
            f"there are {classes} classes, but the head was trained for {trained}: choose how to initialize a larger "
            "one, head = drawn (random outputs like the trained ones), prototypes (the class means) or zero"
        )
    if classes == trained and head in (None, "trained"):
        return learner
    learner = copy.deepcopy(learner)
    layer = _linear(learner.model, name)
    _resize(layer, classes, zero=head == "zero")
    _rebind(learner)
    if head is not None:
        learner.initial = Prototypes(learner.model, name) if head == "prototypes" else None
        learner.engine.parts["initialization"] = learner.initial
    return learner


def _linear(model: nn.Module, name: str) -> nn.Linear:
    layer = model.get_submodule(name)
    if not isinstance(layer, nn.Linear) or layer.bias is None or is_parametrized(layer):
        raise ValueError(
            f"the head of a classifier must be a plain nn.Linear with a bias; {name!r} of {type(model).__name__} is "
            f"{layer}"
        )
    if layer.out_features < 2:
        raise ValueError(
            f"{name!r} of {type(model).__name__} has one output: a regressor, or a classifier of two fixed classes"
        )
    return layer


@torch.no_grad()
def _resize(layer: nn.Linear, classes: int, zero: bool) -> None:
    """Resize the layer in place: keep its first outputs, and draw further ones like them."""
    layer.out_features, trained = classes, layer.weight
    weight, bias = (_outputs(parameter, classes) for parameter in (trained, layer.bias))
    if classes > len(trained):
        generator = torch.Generator().manual_seed(0)
        direction = torch.randn(classes - len(trained), trained.shape[1], generator=generator).to(trained)
        far = (trained - trained.mean(0)).norm(dim=1).mean()  # the distance from their mean
        weight[len(trained) :] += far * direction / direction.norm(dim=1, keepdim=True)
    layer.weight.data, layer.bias.data = (torch.zeros_like(t) if zero else t for t in (weight, bias))


def _outputs(tensor: Tensor, number: int) -> Tensor:
    """Return another number of rows: the first ones, then repeats of their mean."""
    more = max(0, number - len(tensor))
    return torch.cat([tensor[:number], tensor.mean(0, keepdim=True).expand(more, *tensor.shape[1:])])


@torch.no_grad()
def _rebind(learner: MetaLearner) -> None:
    """Give the rule's tensors for the head its new size; square maps of outputs become the identity.

    Raises:
        ValueError: a tensor of the rule changed its shape in another way.
    """
    adapted = {name: p.detach() for name, p in learner.model.named_parameters() if name in learner.adapted}
    before = {name: tensor.clone() for name, tensor in learner.rule.state_dict().items()}
    learner.rule.bind(adapted, learner.steps)
    learner.rule.to(next(learner.model.parameters()).device)
    for name, tensor in learner.rule.state_dict().items():
        old = before[name]
        apart = [axis for axis, (a, b) in enumerate(zip(old.shape, tensor.shape, strict=False)) if a != b]
        if old.shape == tensor.shape:
            tensor.copy_(old)
        elif old.ndim == tensor.ndim and len(apart) == 1:
            axis = apart[0]
            tensor.copy_(_outputs(old.movedim(axis, 0), tensor.shape[axis]).movedim(0, axis))
        elif not (old.ndim == tensor.ndim == 2 and len(set(old.shape)) == len(set(tensor.shape)) == 1):
            raise ValueError(
                f"the update rule's {name} has the shape {tuple(old.shape)}, but the new head needs "
                f"{tuple(tensor.shape)}, and the learned values cannot be converted: meta-train a model for this "
                "number of classes"
            )
