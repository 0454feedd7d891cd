"""Pooling and batch norm for stacks of tasks, on CPUs; `convolutions` has the convolutions.

Three things make them faster than torch's batching rules. First, the task axis is merged with the channels, and
channels are last in memory, so that pooling and sums run along contiguous channels. Second, second derivatives are
written out instead of being chains of small operations. Third, batch norm before max-pooling is computed after it, on a
quarter of the elements: with a positive scale ``pool(norm(y)) == norm(pool(y))`` (with a negative one, the minimum is
pooled).

Third derivatives are those of elementary operations. Values, first and second derivatives agree with these up to
rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from ..functional.stacks import on_stacks, place
from .convolutions import unread_gradients as unread_gradients
from .derivatives import second_derivative
from .layout import column, fold, pieces, result, unfold

aten: Any = torch.ops.aten
Window = tuple[list[int], list[int], list[int], list[int], bool]
"""Kernel size, stride, padding, dilation and ceil mode of a pooling."""

CACHE = 4 * 2**20
"""The number of bytes of one tensor that all passes process before the next piece."""
PIXELS = 4096
"""The largest number of values of a channel in one of torch's sums, which lose precision with more."""


def supported(*tensors: Tensor) -> bool:
    """Return whether the kernels here support these tensors and the present function transforms."""
    return place() != "other" and all(t.device.type == "cpu" and t.is_floating_point() for t in tensors)


def max_pool2d(x: Tensor, window: Window) -> Tensor:
    """``torch.max_pool2d``."""
    return on_stacks(lambda x: (_Pool.apply(x, window),), x)[0]


def batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, window: Window | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Apply batch norm to ``[N, C, H, W]`` with the batch's own statistics, and max-pooling if a window is given.

    Returns:
        The result, and the mean and (biased) variance, each ``[C]``, as constants.
    """
    dtype = x.dtype
    if dtype in (torch.bfloat16, torch.float16):
        x = x.float()  # 16 bits are too few for a variance
    weight = x.new_ones(x.shape[1]) if weight is None else weight.to(x.dtype)
    bias = x.new_zeros(x.shape[1]) if bias is None else bias.to(x.dtype)
    out, mean, variance = on_stacks(lambda x, w, b: _NormPool.apply(x, w, b, eps, window), x, weight, bias)
    return out.to(dtype), mean, variance


def batch_norm_gradients(
    g: Tensor, x: Tensor, scale: Tensor, mean: Tensor, inverse: Tensor, eps: float
) -> list[Tensor]:
    """Return differentiable gradients of one task's batch norm by ``x``, scale and offset.

    Args:
        g: the gradient with respect to the result, ``[N, C, H, W]``.
        x: the input, ``[N, C, H, W]``.
        scale: the scale, ``[C]``.
        mean: the mean of ``x``, ``[C]``.
        inverse: the inverse of its standard deviation, ``[C]``.
        eps: added to the variance.
    """
    y = fold(x.detach()[None])
    kept = y, y - column(mean), None, mean, inverse
    return [grad[0] for grad in _NormPoolBackward.apply(g[None], x[None], scale[None], kept, eps, None)]


# -- pooling ----------------------------------------------------------------------------------------------------------


def _pick(x: Tensor, index: Tensor) -> Tensor:
    """Return the values of ``x`` at the positions of the maxima."""
    n, channels, height, width = index.shape
    flat = x.permute(0, 2, 3, 1).reshape(n, -1, channels)
    picked = flat.gather(1, index.permute(0, 2, 3, 1).reshape(n, -1, channels))
    return picked.view(n, height, width, channels).permute(0, 3, 1, 2)


class _Pool(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, window: Window) -> Tensor:
        flat = fold(x)
        z, index = aten.max_pool2d_with_indices(flat, *window)
        ctx.window, ctx.shape = window, flat.shape
        ctx.save_for_backward(index)
        return result(z, len(x))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return _PoolBackward.apply(g, ctx.saved_tensors[0], ctx.window, ctx.shape), None


class _PoolBackward(Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, index: Tensor, window: Window, shape: torch.Size) -> Tensor:
        ctx.save_for_backward(index)
        like = torch.empty(shape, dtype=g.dtype, memory_format=torch.channels_last)
        return unfold(aten.max_pool2d_with_indices_backward(fold(g), like, *window, index), len(g))

    @staticmethod
    def backward(ctx: Any, c: Tensor) -> Any:
        return unfold(_pick(fold(c), ctx.saved_tensors[0]), len(c)), None, None, None


# -- batch norm, and pooling ------------------------------------------------------------------------------------------
# With y of M values a channel, mu and v their mean and variance, and z the pooled y, centred:
# out = a z + bias, where a = scale r and r = (v + eps)^-1/2.


class _NormPool(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, bias: Tensor, eps: float, window: Window | None) -> Any:
        tasks, y, factor = len(x), fold(x), scale.reshape(-1)
        z, index = (y, None) if window is None else _extremes(y, factor, window)
        mean, variance = _moments(y)
        r = torch.rsqrt(variance + eps)
        z = z - column(mean)
        out = torch.addcmul(column(bias), z, column(factor * r))
        ctx.save_for_backward(x, scale, y, z, index, mean, r)
        ctx.window, ctx.eps = window, eps
        mean, variance = mean.view(tasks, -1), variance.view(tasks, -1)
        ctx.mark_non_differentiable(mean, variance)
        return result(out, tasks), mean, variance

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: Tensor) -> Any:
        x, scale, *kept = ctx.saved_tensors
        return *_NormPoolBackward.apply(g, x, scale, kept, ctx.eps, ctx.window), None, None


class _NormPoolBackward(Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, scale: Tensor, kept: Any, eps: float, window: Window | None) -> Any:
        y, z, index, mean, r = kept
        tasks, g_, a, each = len(x), fold(g), scale.reshape(-1) * r, -y.shape[1] / y.numel()
        dbias, along = _sums(g_, z, torch.zeros_like(mean))
        dscale = r * along
        # dy = unpool(a g) + b (y - mu) + p, where the last two terms come from the variance and the mean.
        b, p = a * r * dscale * each, a * dbias * each
        dy = _spread(g_ * column(a), index, window, [(y, b)], torch.addcmul(p, b, mean, value=-1))
        ctx.save_for_backward(g, x, scale, y, z, index, mean, r, along, dbias)
        ctx.set_materialize_grads(False)
        ctx.eps, ctx.window = eps, window
        return unfold(dy, tasks), dscale.view(tasks, -1), dbias.view(tasks, -1)

    @staticmethod
    def backward(ctx: Any, cx: Tensor | None, cscale: Tensor | None, cbias: Tensor | None) -> Any:
        """Return the derivative of `forward` along the cotangents at constant ``g``; ``name1`` is that of ``name``."""
        g, x, scale, y, z, index, mean, r, along, dbias = ctx.saved_tensors
        if torch.is_grad_enabled():
            function, bias = _torch_norm_pool(ctx.eps, ctx.window), torch.zeros_like(scale).requires_grad_()
            return *second_derivative(function, g, (x, scale, bias), (cx, cscale, cbias))[:3], None, None, None
        tasks, g_, factor, each = len(x), fold(g), scale.reshape(-1), -y.shape[1] / y.numel()
        a, c, z1 = factor * r, None, None
        mean1 = r1 = along1 = torch.zeros_like(r)
        if cx is not None:
            c = fold(cx)
            total, products = _sums(c, y, mean)
            mean1, r1 = total * -each, r**3 * products * each
            z1 = (c if index is None else _pick(c, index)) - column(mean1)
            along1 = _sums(g_, z1, along1)[1]
        a1 = factor * r1 if cscale is None else torch.addcmul(factor * r1, cscale.reshape(-1), r)
        out1 = z * column(a1) if cbias is None else torch.addcmul(column(cbias), z, column(a1))
        if z1 is not None:
            out1.addcmul_(z1, column(a))
        dscale, dscale1 = r * along, r1 * along + r * along1
        b = a * r * dscale * each
        b1 = ((a1 * r + a * r1) * dscale + a * r * dscale1) * each
        terms = [(y, b1)] if c is None else [(y, b1), (c, b)]
        dy1 = _spread(g_ * column(a1), index, ctx.window, terms, a1 * dbias * each - b1 * mean - b * mean1)
        return unfold(out1, tasks), unfold(dy1, tasks), dscale1.view(tasks, -1), None, None, None


def _moments(y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the biased variance, ``[C]``."""
    parts = pieces(y, PIXELS)
    moments = [aten.batch_norm_update_stats(part, None, None, 0.0) for part in parts]
    if len(parts) == 1:
        return moments[0]  # type: ignore[no-any-return]
    share = torch.tensor([[len(part) / len(y)] for part in parts], dtype=y.dtype)
    means, variances = (torch.stack(values) for values in zip(*moments, strict=True))
    mean = (share * means).sum(0)
    return mean, (share * (variances + (means - mean).square())).sum(0)


def _sums(g: Tensor, y: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums of ``g`` and of ``g (y - mean)``, ``[C]``: in torch, gradients of batch norm's bias and scale."""
    one, want = torch.ones_like(mean), [False, True, True]
    sums = [
        aten.native_batch_norm_backward(*part, one, None, None, mean, one, True, 0.0, want)[1:]
        for part in zip(pieces(g, PIXELS), pieces(y, PIXELS), strict=True)
    ]
    products, total = sums[0] if len(sums) == 1 else (torch.stack(v).sum(0) for v in zip(*sums, strict=True))
    return total, products


def _extremes(y: Tensor, scale: Tensor, window: Window) -> tuple[Tensor, Tensor]:
    """Return the maxima, or the minima if the scale is negative, and their positions."""
    if not bool((scale < 0).any()):
        return aten.max_pool2d_with_indices(y, *window)  # type: ignore[no-any-return]
    sign = column(torch.where(scale < 0, -1.0, 1.0).to(y.dtype))
    z, index = aten.max_pool2d_with_indices(y * sign, *window)
    return z * sign, index


def _spread(
    g: Tensor, index: Tensor | None, window: Window | None, terms: Sequence[tuple[Tensor, Tensor]], constant: Tensor
) -> Tensor:
    """Return ``unpool(g) + sum(factor * x for x, factor in terms) + constant``, in pieces that fit into the cache."""
    (like, _), *_ = terms
    pixels = CACHE / (like.shape[1] * like.element_size())
    out, done = g if index is None else torch.empty_like(like), 0
    factors = [column(factor) for _, factor in terms]
    for here, *xs in zip(*(pieces(x, pixels) for x in (out, *(x for x, _ in terms))), strict=True):
        if index is not None and window is not None:
            part = slice(done, done := done + len(here))
            aten.max_pool2d_with_indices_backward.grad_input(g[part], xs[0], *window, index[part], grad_input=here)
        for x, factor in zip(xs, factors, strict=True):
            here.addcmul_(x, factor)
        here.add_(column(constant))
    return out


def _torch_norm_pool(eps: float, window: Window | None) -> Any:
    def function(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        centred = x - x.mean((1, 3, 4), keepdim=True)
        deviation = (centred.square().mean((1, 3, 4), keepdim=True) + eps).sqrt()
        out = centred / deviation * scale[:, None, :, None, None] + bias[:, None, :, None, None]
        return out if window is None else F.max_pool2d(out.flatten(0, 1), *window).unflatten(0, x.shape[:2])

    return function
