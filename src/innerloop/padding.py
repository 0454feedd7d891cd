"""Examples that only fill up: losses that leave them out, and whether a model's other outputs ignore them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from .task import Batch, Padded, Task, kind_of, size, tensors_of

Terms = Callable[[Any, Any], tuple[Tensor, Tensor]]
"""``(output, y) -> (terms, weights)``, both ``[S, ...]``: a loss is the weighted mean of its terms."""

_EACH: tuple[Any, ...] = (
    F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss, F.binary_cross_entropy, F.binary_cross_entropy_with_logits
)  # fmt: skip
"""Losses that compare each element with its own target, and average over all of them."""
_EACH_CLASSES = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCELoss, nn.BCEWithLogitsLoss)


def terms_of(loss: Any) -> Terms | None:
    """Return a loss as terms and weights; ``None`` if it is not known to be a mean over examples."""
    if any(loss is each for each in _EACH):
        return lambda output, y: _weighted(loss(output, y, reduction="none"))
    if loss is F.cross_entropy:
        return lambda output, y: _classes(F.cross_entropy(output, y, reduction="none"), y, -100)
    if type(loss) not in (*_EACH_CLASSES, nn.CrossEntropyLoss) or loss.reduction != "mean" or any(_weights(loss)):
        return None
    each = copy.copy(loss)
    each.reduction = "none"
    if isinstance(loss, nn.CrossEntropyLoss):
        return lambda output, y: _classes(each(output, y), y, loss.ignore_index)
    return lambda output, y: _weighted(each(output, y))


def _weights(loss: Any) -> list[bool]:
    """Whether a loss of torch weighs its terms, by each way that it may do so."""
    named = (getattr(loss, name, None) for name in ("weight", "pos_weight"))
    return [*(weight is not None for weight in named), getattr(loss, "label_smoothing", 0.0) != 0.0]


def _weighted(terms: Tensor) -> tuple[Tensor, Tensor]:
    return terms, torch.ones_like(terms)


def _classes(terms: Tensor, y: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    counted = torch.ones_like(terms) if y.is_floating_point() else (y != ignore_index).to(terms.dtype)
    return terms, counted


def averaged(loss: Any, output: Any, part: Batch, **extras: Any) -> Tensor:
    """Return the loss of an output on a set, without the examples that fill up.

    Args:
        loss: ``(output, y) -> scalar``; for a padded set one of those that `terms_of` knows.
        output: of the model on the set.
        part: the set of one task.
        extras: what else the loss asks for.
    """
    if not isinstance(part, Padded):
        return loss(output, part.y, **extras)  # type: ignore[no-any-return]
    known = terms_of(loss)
    assert known is not None, "nothing is padded for a loss that is not known to be a mean over examples"
    terms, weights = known(output, part.y)
    weights = weights * part.mask.view(-1, *[1] * (terms.ndim - 1)).to(weights.dtype)
    return torch.where(weights > 0, terms, 0.0).mul(weights).sum() / weights.sum()


def ignores_padding(model: Callable[[Any], tuple[Any, Any]], tasks: Sequence[Task]) -> bool | None:
    """Whether a model's outputs on examples do not depend on other examples of the same call.

    The smallest set is filled up in two ways; a model that works example by example gives the same bits for the
    examples that were there before, and up to rounding what it gives without the others.

    Args:
        model: a function of inputs: the output, and the buffers after it.
        tasks: single tasks of different sizes.

    Returns:
        ``None`` if these tasks do not tell, because the inputs that fill up are the same both times.
    """
    sets = [part for task in tasks for part in task]
    if any(len(leaf) != size(part.x) for part in sets for leaf in tensors_of(part)):
        return False  # a tensor without an entry for each example
    small, large = (choose(sets, key=lambda part: size(part.x)) for choose in (min, max))
    number, most = size(small.x), size(large.x)
    if kind_of(Task(small, small)) != kind_of(Task(large, large)) or number == most:
        return False
    repeated = [-1] * (most - number)
    fillings = [pytree.tree_map_only(Tensor, lambda leaf: leaf[repeated], part.x) for part in (small, large)]
    if all(map(torch.equal, *map(tensors_of, fillings))):
        return None
    (first, after), (second, others) = (model(_joined(small.x, filling)) for filling in fillings)
    alone = zip(tensors_of(model(small.x)[0]), tensors_of(first), strict=True)
    if not all(len(b) == most and _close(a, b[:number]) for a, b in alone):
        return False
    rows = zip(tensors_of(first), tensors_of(second), strict=True)
    apart = all(torch.equal(a[:number], b[:number]) for a, b in rows)
    return apart and all(torch.equal(after[name], others[name]) for name in after)


def _close(a: Tensor, b: Tensor) -> bool:
    """Whether tensors agree up to rounding."""
    if not (a.is_floating_point() or a.is_complex()):
        return torch.equal(a, b)
    most = float(a.detach().abs().max()) if a.numel() else 0.0
    return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=most * torch.finfo(a.dtype).eps ** 0.5)


def _joined(one: Any, other: Any) -> Any:
    return pytree.tree_map(lambda a, b: torch.cat([a, b]) if isinstance(a, Tensor) else a, one, other)
