"""Functions of torch whose batching rules or derivatives are wrong or missing, from operations that have right ones
(torch 2.13; ``docs/torch.md`` says what is wrong with each)."""

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


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """``torch.nn.functional.hardsigmoid``, which has no second derivative."""
    out = F.relu6(input + 3) / 6
    return input.copy_(out) if inplace else out


def linear_cross_entropy(*args: Any, options: Any = None, **kwargs: Any) -> Tensor:
    """``torch.nn.functional.linear_cross_entropy``, never in chunks, which have no right second derivative."""
    return F.linear_cross_entropy(*args, **kwargs)


def logcumsumexp(input: Tensor, dim: int) -> Tensor:
    """``torch.logcumsumexp``, whose batching rule takes a number without axes for one of several."""
    return input.clone() if input.ndim == 0 else torch.logcumsumexp(input, dim)


def gaussian_nll_loss(
    input: Tensor, target: Tensor, var: Tensor | float, full: bool = False, eps: float = 1e-6, reduction: str = "mean"
) -> Tensor:
    """``torch.nn.functional.gaussian_nll_loss``, but for its look at the values of ``var``: a negative variance gives
    NaN."""
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f'reduction is "none", "mean" or "sum", got {reduction!r}')
    if not isinstance(var, Tensor):
        var = var * torch.ones_like(input)
    if var.shape != input.shape:
        if var.shape == input.shape[:-1]:
            var = var[..., None]
        elif var.ndim != input.ndim or sum(b for a, b in zip(input.shape, var.shape, strict=True) if a != b) != 1:
            raise ValueError(f"var of {tuple(var.shape)} does not fit input of {tuple(input.shape)}")
    low = var.detach()
    var = var + (low.clamp(min=eps) - low)
    loss = 0.5 * (torch.log(torch.where(low < 0, math.nan, var)) + (input - target).square() / var)
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
