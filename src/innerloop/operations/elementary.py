"""Replacements for functions of torch with wrong or missing batching rules or derivatives.

They are built from operations that are correct (torch 2.13; ``docs/torch.md`` describes the error of each function).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def select_scatter(input: Tensor, src: Tensor, dim: int, index: int) -> Tensor:
    """``torch.select_scatter``."""
    size = input.shape[dim]
    if not -size <= index < size:
        raise IndexError(f"index {index} is out of range for dimension {dim} of size {size}")
    at = index % size
    before, after = input.narrow(dim, 0, at), input.narrow(dim, at + 1, size - at - 1)
    return torch.cat([before, src.unsqueeze(dim if dim >= 0 else dim + input.ndim).to(input.dtype), after], dim)


def in_range(index: Tensor, size: int) -> Tensor:
    """Return the indices unchanged, but raise an ``IndexError`` for one outside of ``0 ... size - 1``.

    Under ``vmap``, torch does not check: it reads a row of another task (embeddings) or selects no row (``one_hot``).
    """
    return torch.arange(size, dtype=index.dtype, device=index.device)[torch.where(index < 0, size, index)]


def one_hot(input: Tensor, num_classes: int = -1) -> Tensor:
    """``torch.nn.functional.one_hot``, which under ``vmap`` does not refuse a class out of range."""
    return F.one_hot(input if num_classes < 1 else in_range(input, num_classes), num_classes)


def index_fill(input: Tensor, dim: int, index: Tensor, value: Any) -> Tensor:
    """``torch.index_fill``, which under ``vmap`` accepts indices out of range and ignores negative ones."""
    size = input.shape[dim] if input.ndim else 1
    return torch.index_fill(input, dim, torch.arange(size, device=index.device)[index.long()], value)


def index_add(input: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: float = 1) -> Tensor:
    """``torch.index_add``, which refuses negative indices in eager mode but accepts them when compiled."""
    size = input.shape[dim] if input.ndim else 1
    return torch.index_add(input, dim, in_range(index, size), source, alpha=alpha)


def index_fill_(input: Tensor, dim: int, index: Tensor, value: Any) -> Tensor:
    """``torch.Tensor.index_fill_``, built on `index_fill`."""
    return input.copy_(index_fill(input, dim, index, value))


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """``torch.nn.functional.hardsigmoid``, which has no second derivative."""
    out = F.relu6(input + 3) / 6
    return input.copy_(out) if inplace else out


def linear_cross_entropy(*args: Any, options: Any = None, **kwargs: Any) -> Tensor:
    """``torch.nn.functional.linear_cross_entropy`` without chunks, which have no correct second derivative."""
    return F.linear_cross_entropy(*args, **kwargs)


def logcumsumexp(input: Tensor, dim: int) -> Tensor:
    """``torch.logcumsumexp`` with a finite third derivative and a batching rule that handles scalars.

    The third derivative of torch's own function is NaN, and its batching rule takes a 0-dimensional tensor for a
    vector.

    It computes all pairs of elements, so it is torch's own function along more than 128 elements, and in low precision.
    """
    if input.ndim == 0:
        return input.clone()
    own = torch.logcumsumexp(input, dim)
    number = input.shape[dim]
    if not input.is_floating_point() or torch.finfo(input.dtype).bits < 32 or number > 128:
        return own
    x, y = input.movedim(dim, -1).unsqueeze(-2), own.detach().movedim(dim, -1).unsqueeze(-1)
    earlier = torch.ones(number, number, dtype=torch.bool, device=input.device).tril() & y.isfinite()
    parts = torch.where(earlier, torch.exp(torch.where(earlier, x - y, 0)), 0).sum(-1)  # 1, with the sum's derivatives
    y = y.squeeze(-1)
    return (y + torch.log(torch.where(y.isfinite(), parts, 1))).movedim(-1, dim)


def binary_cross_entropy(input: Tensor, target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """``torch.nn.functional.binary_cross_entropy``, whose derivatives beyond the first are inexact near 0 and 1.

    Torch's own function still handles probabilities within 1e-12 of 0 or 1, and values outside of [0, 1], which are an
    error.
    """
    reduction, weight = _reduction(*args, **kwargs)
    if reduction is None or torch.finfo(input.dtype).bits < 32 or input.shape != target.shape:
        return F.binary_cross_entropy(input, target, *args, **kwargs)
    value = input.detach()
    within = value * (1 - value) > 1e-12
    x = torch.where(within, input, 0.5)
    loss = torch.where(
        within,
        -target * torch.log(x) - (1 - target) * torch.log1p(-x),
        F.binary_cross_entropy(torch.where(within, 0.5, input), target, reduction="none"),
    )
    loss = loss if weight is None else loss * weight.expand_as(loss)
    return loss.mean() if reduction == "mean" else loss.sum() if reduction == "sum" else loss


def _reduction(
    weight: Tensor | None = None, size_average: Any = None, reduce: Any = None, reduction: str = "mean"
) -> tuple[str | None, Tensor | None]:
    """Return the reduction of a loss (``None`` if it is unknown or deprecated) and the loss's weights."""
    known = size_average is None and reduce is None and reduction in ("none", "mean", "sum")
    return (reduction if known else None), weight


def gaussian_nll_loss(
    input: Tensor, target: Tensor, var: Tensor | float, full: bool = False, eps: float = 1e-6, reduction: str = "mean"
) -> Tensor:
    """``torch.nn.functional.gaussian_nll_loss``, which under ``vmap`` cannot check for negative variances."""
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f'reduction must be "none", "mean" or "sum", got {reduction!r}')
    if not isinstance(var, Tensor):
        var = var * torch.ones_like(input)
    if var.shape != input.shape:
        if var.shape == input.shape[:-1]:
            var = var[..., None]
        elif var.ndim != input.ndim or sum(b for a, b in zip(input.shape, var.shape, strict=True) if a != b) != 1:
            raise ValueError(f"var of shape {tuple(var.shape)} does not fit input of shape {tuple(input.shape)}")
    low = var.detach()
    none = in_range((low < 0).long(), 1).to(low.dtype)  # raises IndexError; then tasks run one by one, with torch's own
    var = var + (low.clamp(min=eps) - low) + none
    loss = 0.5 * (torch.log(var) + (input - target).square() / var)
    loss = loss + 0.5 * math.log(2 * math.pi) if full else loss
    return loss.mean() if reduction == "mean" else loss.sum() if reduction == "sum" else loss


def i1(input: Tensor) -> Tensor:
    """``torch.special.i1``, whose third derivative at 0 is wrong."""
    if not input.is_floating_point():
        return torch.special.i1(input)  # type: ignore[no-any-return]
    near = input.detach().abs() < 1e-2
    x = torch.where(near, input, 0.0)
    series = x / 2 * (1 + x**2 / 8 * (1 + x**2 / 24 * (1 + x**2 / 48)))
    far: Tensor = torch.special.i1(torch.where(near, 1.0, input))
    return torch.where(near, series, far)


def largest(input: Tensor, *args: Any, **kwargs: Any) -> Any:
    """``torch.max`` of a whole tensor, with a gradient that ties share; under ``vmap`` torch's does not."""
    return torch.max(input, *args, **kwargs) if args or kwargs else input.amax()


def smallest(input: Tensor, *args: Any, **kwargs: Any) -> Any:
    """``torch.min`` of a whole tensor, with a gradient that ties share; see `largest`."""
    return torch.min(input, *args, **kwargs) if args or kwargs else input.amin()


def median(input: Tensor, *args: Any, **kwargs: Any) -> Any:
    """``torch.median`` of a whole tensor, with a gradient that ties share; see `largest`."""
    if args or kwargs or not input.is_floating_point():
        return torch.median(input, *args, **kwargs)
    return _shared(input, torch.median(input.detach()))


def nanmedian(input: Tensor, *args: Any, **kwargs: Any) -> Any:
    """``torch.nanmedian`` of a whole tensor, with a gradient that ties share; see `largest`."""
    if args or kwargs or not input.is_floating_point():
        return torch.nanmedian(input, *args, **kwargs)
    return _shared(input, torch.nanmedian(input.detach()))


def _shared(input: Tensor, value: Tensor) -> Tensor:
    """Return ``value``, with its gradient divided equally among the input elements that are equal to it."""
    ties = torch.where(value.isnan(), input.isnan(), input == value)
    mean = torch.where(ties, input, 0).sum() / ties.sum()
    zero = mean - mean.detach()
    return value + torch.where(value.isfinite(), zero, 0)


METHODS = (select_scatter, index_fill, index_add, median, nanmedian)
"""Replacements of functions that are also methods of ``torch.Tensor``."""
