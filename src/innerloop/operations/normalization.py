"""Normalization by elementary operations, for correct second derivatives under ``vmap``.

When autograd records *through* ``vmap``, as it does here, second derivatives of torch's batch, instance and layer norm
with a scale are silently wrong by factors (seen with torch 2.5, 2.13 and 2.15): the batching rules of their backward
seem to treat the saved statistics as constants. So these functions replace torch's while tasks run at once (see
`operations`). Torch's own third derivatives of these norms are always wrong, and so is the second derivative of weight
norm (``gradgradcheck`` fails on torch 2.13), so they replace torch's in looped tasks, too. Group norm's batching rule
fails on images with channels last. ``tests/operations/test_normalization.py`` fails without these replacements.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def _standardise(x: Tensor, axes: list[int], eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``x`` with mean 0 and variance 1 over some axes, and its mean and (biased) variance, in float32."""
    if x.dtype in (torch.bfloat16, torch.float16):
        x = x.float()  # 16 bits are too few for a variance
    mean = x.mean(axes, keepdim=True)
    centred = x - mean
    variance = centred.square().mean(axes, keepdim=True)
    return centred * torch.rsqrt(variance + eps), mean, variance


def statistics(x: Tensor, axes: list[int], eps: float) -> tuple[Tensor, Tensor]:
    """Return the mean and the inverse deviation over some axes, as constants."""
    _, mean, variance = _standardise(x.detach(), axes, eps)
    return mean, torch.rsqrt(variance + eps)


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    x = x if weight is None else x * weight.reshape(shape)
    return (x if bias is None else x + bias.reshape(shape)).to(dtype)


def _by_stored(
    input: Tensor,
    mean: Tensor | None,
    variance: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> Tensor:
    """Normalize with stored statistics.

    Torch's own function has a wrong gradient under ``vmap`` if its input is one image that comes from a convolution,
    because the strides of such an image are ambiguous.
    """
    if mean is None or variance is None:
        raise ValueError("a norm with stored statistics needs running_mean and running_var")
    shape = [1, -1, *[1] * (input.ndim - 2)]
    x = (input - mean.reshape(shape)) * torch.rsqrt(variance + eps).reshape(shape)
    return _affine(x, weight, bias, shape, input.dtype)


def move(running: Tensor | None, value: Tensor, momentum: float) -> None:
    """Move running statistics towards those of a batch, in place."""
    if running is not None:
        running.mul_(1 - momentum).add_(momentum * value.detach().reshape(running.shape).to(running.dtype))


def values_per_channel(input: Tensor) -> int:
    """Return the number of values in each mean and variance of batch norm, which must be at least 2."""
    each = input.numel() // input.shape[1]
    if each < 2:
        raise ValueError(f"batch norm needs more than 1 value per channel, got input of shape {tuple(input.shape)}")
    return each


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``torch.nn.functional.batch_norm``."""
    if not training:
        return _by_stored(input, running_mean, running_var, weight, bias, eps)
    axes = [0, *range(2, input.ndim)]
    each = values_per_channel(input)
    x, mean, variance = _standardise(input, axes, eps)
    move(running_mean, mean, momentum)
    move(running_var, variance * each / (each - 1), momentum)
    return _affine(x, weight, bias, [1, -1, *[1] * (input.ndim - 2)], input.dtype)


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``torch.nn.functional.instance_norm``."""
    if not use_input_stats:
        return _by_stored(input, running_mean, running_var, weight, bias, eps)
    each = input[0, 0].numel()
    x, mean, variance = _standardise(input, list(range(2, input.ndim)), eps)
    move(running_mean, mean.mean(0), momentum)
    move(running_var, variance.mean(0) * each / max(each - 1, 1), momentum)
    return _affine(x, weight, bias, [1, -1, *[1] * (input.ndim - 2)], input.dtype)


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Tensor:
    """``torch.nn.functional.layer_norm``."""
    x, _mean, _variance = _standardise(input, list(range(-len(normalized_shape), 0)), eps)
    return _affine(x, weight, bias, normalized_shape, _layer_dtype(input))


def group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5, *_: Any
) -> Tensor:
    """``torch.nn.functional.group_norm``."""
    n, channels, *space = input.shape
    if channels % num_groups:
        raise ValueError(f"group norm needs groups of equal size, got {channels} channels in {num_groups} groups")
    grouped = input.reshape(n, num_groups, channels // num_groups, *space)
    x, _mean, _variance = _standardise(grouped, list(range(2, grouped.ndim)), eps)
    return _affine(x.reshape(input.shape), weight, bias, [1, -1, *[1] * len(space)], _layer_dtype(input))


def _layer_dtype(input: Tensor) -> torch.dtype:
    """Return the type of torch's own results: that of the input, or float32 on GPUs under autocast."""
    device = input.device.type
    return torch.float32 if device == "cuda" and torch.is_autocast_enabled(device) else input.dtype


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """Compute what ``torch.nn.utils.parametrizations.weight_norm`` computes.

    The result is ``v`` rescaled to norm ``g`` along all axes except ``dim`` (along all axes for -1).
    """
    axes = [axis for axis in range(v.ndim) if axis != dim]
    return v * (g / v.square().sum(axes, keepdim=True).sqrt())
