"""Another number of classes than a learner was trained for: its head, rebuilt."""

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
"""Where the head of a task starts: as it was trained (its first outputs, for fewer classes), with further outputs drawn
like those, at the class means of the support set (Triantafillou et al. 2020, section 3), or at zero, from where the
first step moves the head alone."""


def classes_of(learner: MetaLearner) -> int:
    """The number of classes that the learner's head tells apart.

    Raises:
        ValueError: its head is no linear layer.
    """
    return _linear(learner.model, head_name(learner.model)).out_features


def with_classes(learner: MetaLearner, classes: int, head: Head | None = None) -> MetaLearner:
    """The learner with a head for another number of classes; a copy, or itself where nothing is to be changed.

    The classes of meta-training are shuffled anew in every task, so any of the head's outputs can stand for any class:
    for fewer classes its first outputs do. For more, there is nothing trained, and a start has to be chosen. What the
    update rule has learned for each output is cut likewise; further ones have the mean.

    Args:
        learner: whose model has a linear head with a bias.
        classes: at least 2.
        head: where a task's head starts; if not given, ``"trained"``. A learner that starts at prototypes anyway takes
            any number of classes.

    Raises:
        ValueError: a number or a start that cannot be; among them more classes than were trained, with no start given.
    """
    name = head_name(learner.model)
    trained = _linear(learner.model, name).out_features
    if classes < 2:
        raise ValueError(f"a classifier tells at least 2 classes apart, got {classes}")
    if head is not None and head not in get_args(Head):
        raise ValueError(f"head is one of {', '.join(get_args(Head))}, got {head!r}")
    own = isinstance(learner.initial, Prototypes)  # which needs no trained outputs
    if classes > trained and not own and head in (None, "trained"):
        raise ValueError(
            f"there are {classes} classes, and the head was trained for {trained}: choose where a larger one starts, "
            "head = drawn (more outputs like the trained ones), prototypes (the class means) or zero"
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
            f"the head of a classifier is a plain nn.Linear with a bias; {name!r} of {type(model).__name__} is {layer}"
        )
    if layer.out_features < 2:
        raise ValueError(
            f"{name!r} of {type(model).__name__} has one output: it is a regressor, or tells two given classes apart"
        )
    return layer


@torch.no_grad()
def _resize(layer: nn.Linear, classes: int, zero: bool) -> None:
    """Give it another number of outputs, in place: the first ones it had, and others drawn like them."""
    layer.out_features, trained = classes, layer.weight
    weight, bias = (_outputs(parameter, classes) for parameter in (trained, layer.bias))
    if classes > len(trained):
        generator = torch.Generator().manual_seed(0)
        direction = torch.randn(classes - len(trained), trained.shape[1], generator=generator).to(trained)
        far = (trained - trained.mean(0)).norm(dim=1).mean()  # from their middle: what tells classes apart
        weight[len(trained) :] += far * direction / direction.norm(dim=1, keepdim=True)
    layer.weight.data, layer.bias.data = (torch.zeros_like(t) if zero else t for t in (weight, bias))


def _outputs(tensor: Tensor, number: int) -> Tensor:
    """Another number of rows: the first ones, and then as often as needed their mean."""
    more = max(0, number - len(tensor))
    return torch.cat([tensor[:number], tensor.mean(0, keepdim=True).expand(more, *tensor.shape[1:])])


@torch.no_grad()
def _rebind(learner: MetaLearner) -> None:
    """Give what the rule holds for each parameter the head's new size; of square maps of outputs, the identity.

    Raises:
        ValueError: something of the rule's has changed its shape otherwise.
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
                f"{tuple(tensor.shape)}, and what the rule learned cannot be carried over: meta-train a model for this "
                "number of classes"
            )
