"""Accuracy, and checks that outputs and targets fit a metric."""

from __future__ import annotations

from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


class DoesNotFitError(ValueError):
    """A metric cannot score these outputs and targets. The message names their shapes and the fix."""


def accuracy(output: Tensor, y: Tensor, ignore_index: int = -100, outputs: str = "") -> Tensor:
    """Return the percentage of correct predictions. A prediction with NaN is wrong.

    Args:
        output: logits ``[Q, C, ...]`` with the classes along axis 1, or one logit for each binary target.
        y: class indices ``[Q, ...]``, or binary targets 0 and 1 in the shape of the output.
        ignore_index: targets of this class are left out.
        outputs: what the model's loss takes as outputs: ``"classes"``, ``"logits"`` or ``"probabilities"`` (both
            binary); empty if that is not known, which reads them as logits.

    Raises:
        ValueError: the shapes do not fit each other, or binary targets are not 0 and 1.

    >>> logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0]])
    >>> float(accuracy(logits, torch.tensor([0, 2])))
    50.0
    """
    if not isinstance(output, Tensor) or not isinstance(y, Tensor):
        raise DoesNotFitError(
            f"accuracy compares one tensor of outputs with one of targets, got {type(output).__name__} and "
            f"{type(y).__name__}: give an il.Metric with your own function, with higher_is_better=True"
        )
    apart = output.ndim == y.ndim + 1 and output.shape[:1] + output.shape[2:] == y.shape
    if not y.is_floating_point() and apart and (output.shape[1] > 1 or outputs == "classes"):
        right, counted = _is_largest(output, y), y != ignore_index
    elif outputs == "classes" and y.is_floating_point() and output.shape == y.shape and y.ndim > 1:
        right, counted = _is_largest(output, y.argmax(1)), y.new_ones((), dtype=torch.bool)
    elif output.shape == y.shape or (apart and output.shape[1] == 1):
        right, counted = _yes_or_no(output.reshape(y.shape), y, ignore_index, outputs)
    else:
        raise DoesNotFitError(
            f"accuracy needs logits [Q, C, ...], with the classes along axis 1, for class indices [Q, ...], or one "
            f"logit for each target of 0 or 1; got outputs of shape {shape(output)} and targets of shape {shape(y)}: "
            "move the axis of classes (output.movedim(-1, 1)) or squeeze the targets, in the model or in an il.Metric"
        )
    return 100 * (right & counted).sum() / counted.expand_as(right).sum()


def _is_largest(output: Tensor, classes: Tensor) -> Tensor:
    return (output.argmax(1) == classes) & ~output.isnan().any(1)


def _yes_or_no(output: Tensor, y: Tensor, ignore_index: int, outputs: str) -> tuple[Tensor, Tensor]:
    """Return which binary predictions are right, and which count."""
    counted = torch.ones_like(y, dtype=torch.bool) if y.is_floating_point() else y != ignore_index
    if bool(y.isnan().any()):
        raise DoesNotFitError(
            f"accuracy got {int(y.isnan().sum())} of {y.numel()} targets that are NaN: leave them out in your own "
            f"il.Metric, or use integer targets with {ignore_index} (ignore_index) for missing ones"
        )
    if bool(((y < 0) | (y > 1))[counted].any()):
        raise DoesNotFitError(
            f"accuracy of one logit for each target needs targets from 0 to 1, got {float(y[counted].min()):g} to "
            f"{float(y[counted].max()):g}: class indices need logits [Q, C, ...], and regression needs an error, such "
            'as metric="mse"'
        )
    if not outputs and y.is_floating_point() and y.ndim > 1 and y.shape[1] > 1 and bool((y.sum(1) == 1).all()):
        raise DoesNotFitError(
            f"accuracy cannot tell whether targets of shape {shape(y)} are one class of {y.shape[1]} or "
            f"{y.shape[1]} binary targets: give class indices as targets, or your own il.Metric"
        )
    threshold = 0.5 if outputs == "probabilities" else 0.0
    return ((output > threshold) == (y > 0.5)) & ~output.isnan(), counted


def require_same_shape(name: str, output: Any, y: Any) -> None:
    """Refuse outputs and targets of different shapes, which torch would broadcast.

    Raises:
        ValueError: the shapes differ; the message has both shapes and the fix.
    """
    if not isinstance(output, Tensor) or not isinstance(y, Tensor):
        raise DoesNotFitError(
            f"the metric {name} compares one tensor of outputs with one of targets, got {type(output).__name__} and "
            f"{type(y).__name__}: give an il.Metric with your own function"
        )
    if output.shape != y.shape:
        raise DoesNotFitError(
            f"the metric {name} compares each output with its own target, got outputs of shape {shape(output)} and "
            f"targets of shape {shape(y)}, which torch would broadcast: give both the same shape (y.unsqueeze(-1), "
            "output.squeeze(-1)), or an il.Metric with a function that does so"
        )


def number(name: str, value: Any) -> Tensor:
    """Convert the result of a metric to a floating-point tensor without axes.

    Raises:
        ValueError: the result is not one real number.
    """
    if isinstance(value, Tensor):
        if value.ndim == 0 and not value.is_complex():
            return value.detach() if value.is_floating_point() else value.detach().double()
    elif isinstance(value, Real):
        return torch.tensor(float(value), dtype=torch.float64)
    elif getattr(value, "shape", None) == () and hasattr(value, "item") and isinstance(value.item(), Real):
        return torch.tensor(float(value.item()), dtype=torch.float64)
    got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    raise DoesNotFitError(
        f"the metric {name} returned {got}, but a metric must return one number for a task: take the mean, or one entry"
    )


def floating(values: Any) -> list[Tensor]:
    """Return the floating-point tensors in outputs."""
    leaves = pytree.tree_leaves(values)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def shape(values: Any) -> Any:
    """Return the shape of a tensor, or the shapes in a tree of tensors."""
    if isinstance(values, Tensor):
        return tuple(values.shape)
    return [
        tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__ for leaf in pytree.tree_leaves(values)
    ]
