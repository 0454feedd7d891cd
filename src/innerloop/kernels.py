"""Convolution, pooling and batch norm for stacks of tasks with their own weights, on CPUs.

Three things make them quick where torch's batching rules are slow. The task axis is laid beside the channels, and
channels last in memory: per-task convolutions are then grouped convolutions of the layout that oneDNN runs at full
speed, and pooling and sums run along contiguous channels. Derivatives of derivatives are written down, instead of being
left to chains of small operations. And batch norm before max-pooling is computed after it: with a positive scale
``pool(norm(y)) == norm(pool(y))`` (with a negative one the minimum is pooled), on a quarter of the elements.

Third derivatives fall back on torch's. Values, first and second derivatives agree with torch's to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F
from torch.nn.modules.utils import _pair

from .stacks import on_stacks, place

aten: Any = torch.ops.aten
Window = tuple[list[int], list[int], list[int], list[int], bool]
"""Kernel size, stride, padding, dilation and rounding mode of a pooling."""


def supported(*tensors: Tensor) -> bool:
    """Whether the kernels here run on these tensors, at this place."""
    return place() != "other" and all(t.device.type == "cpu" and t.is_floating_point() for t in tensors)


def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
) -> Tensor:
    """``torch.conv2d``: ``[N, C, H, W]``, ``[O, C / groups, kh, kw]`` and ``[O]`` -> ``[N, O, H', W']``."""
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    options = (list(_pair(stride)), list(_pair(padding)), list(_pair(dilation)), groups)
    if bias is None:
        return on_stacks(lambda x, weight: (_Convolution.apply(x, weight, None, options),), x, weight)[0]
    return on_stacks(lambda x, weight, bias: (_Convolution.apply(x, weight, bias, options),), x, weight, bias)[0]


def max_pool2d(x: Tensor, window: Window) -> Tensor:
    """``torch.max_pool2d``."""
    return on_stacks(lambda x: (_Pool.apply(x, window),), x)[0]


def batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, window: Window | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Batch norm of ``[N, C, H, W]`` by the batch's own statistics, and max-pooling if a window is given.

    Returns:
        The result, and the mean and (biased) variance, each ``[C]``, as constants.
    """
    if x.dtype in (torch.bfloat16, torch.float16):
        x = x.float()  # too few digits for a variance
    weight = x.new_ones(x.shape[1]) if weight is None else weight
    bias = x.new_zeros(x.shape[1]) if bias is None else bias
    found = on_stacks(lambda x, w, b: _NormPool.apply(x, w, b, eps, window), x, weight, bias)
    return found[0], found[1], found[2]


# -- layout -----------------------------------------------------------------------------------------------------------


def _fold(stack: Tensor) -> Tensor:
    """``[T, N, C, H, W] -> [N, T * C, H, W]``, channels last in memory; a view of what `_unfold` gave."""
    tasks, n, channels, height, width = stack.shape
    return _channels_last(stack.permute(1, 3, 4, 0, 2), (n, tasks * channels, height, width))


def _unfold(x: Tensor, tasks: int) -> Tensor:
    """``[N, T * C, H, W] -> [T, N, C, H, W]``."""
    n, channels, height, width = x.shape
    flat = x.permute(0, 2, 3, 1).contiguous()
    return flat.view(n, height, width, tasks, channels // tasks).permute(3, 0, 4, 1, 2)


def _fold_weight(stack: Tensor) -> Tensor:
    """``[T, O, C, kh, kw] -> [T * O, C, kh, kw]``, channels last in memory."""
    tasks, out, channels, *kernel = stack.shape
    return _channels_last(stack.permute(0, 1, 3, 4, 2), (tasks * out, channels, *kernel))


def _channels_last(values: Tensor, shape: Sequence[int]) -> Tensor:
    """Values in the order of memory, as images. The strides say channels last even where there is one channel: by
    them torch chooses the layout it works in."""
    _, channels, height, width = shape
    strides = (channels * height * width, 1, channels * width, channels)
    return values.contiguous().as_strided(shape, strides)


def _unfold_weight(weight: Tensor, tasks: int) -> Tensor:
    out, channels, *kernel = weight.shape
    return weight.permute(0, 2, 3, 1).contiguous().view(tasks, out // tasks, *kernel, channels).permute(0, 1, 4, 2, 3)


def _rows(x: Tensor) -> Tensor:
    """``[N, C, H, W] -> [N * H * W, C]``, a view where channels are last in memory."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _columns(vector: Tensor) -> Tensor:
    """``[C] -> [1, C, 1, 1]``."""
    return vector.view(1, -1, 1, 1)


CACHE = 4 * 2**20
"""Bytes of one tensor that a pass works on before the next pass does."""


def _parts(x: Tensor) -> list[slice]:
    """Some images at a time, as many as fit into `CACHE`, but enough for every thread to have some."""
    each = max(CACHE // max(1, x[0].numel() * x.element_size()), 2 * torch.get_num_threads())
    number = max(1, round(len(x) / each))
    bounds = [len(x) * index // number for index in range(number + 1)]
    return [slice(start, end) for start, end in pairwise(bounds)]


# -- convolution ------------------------------------------------------------------------------------------------------


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, options: Any, tasks: int) -> Tensor:
    stride, padding, dilation, groups = options
    bias = None if bias is None else bias.reshape(-1)
    return aten.convolution(x, weight, bias, stride, padding, dilation, False, [0, 0], groups * tasks)  # type: ignore[no-any-return]


def _backward(g: Tensor, x: Tensor, weight: Tensor, options: Any, tasks: int, mask: Sequence[bool]) -> Any:
    stride, padding, dilation, groups = options
    return aten.convolution_backward(
        g, x, weight, [g.shape[1]], stride, padding, dilation, False, [0, 0], groups * tasks, mask
    )


class _Convolution(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, options: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.options, tasks = options, len(x)
        return _unfold(_forward(_fold(x), _fold_weight(weight), bias, options, tasks), tasks)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return *_ConvolutionBackward.apply(g, *ctx.saved_tensors, ctx.options, ctx.needs_input_grad[:3]), None


class _ConvolutionBackward(Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, weight: Tensor, options: Any, mask: Sequence[bool]) -> Any:
        ctx.save_for_backward(g, x, weight)
        ctx.set_materialize_grads(False)
        ctx.options, ctx.mask, tasks = options, mask, len(x)
        dx, dweight, dbias = _backward(_fold(g), _fold(x), _fold_weight(weight), options, tasks, mask)
        return (
            None if dx is None else _unfold(dx, tasks),
            None if dweight is None else _unfold_weight(dweight, tasks),
            None if dbias is None else dbias.view(tasks, -1),
        )

    @staticmethod
    def backward(ctx: Any, cx: Tensor | None, cweight: Tensor | None, cbias: Tensor | None) -> Any:
        g, x, weight = ctx.saved_tensors
        if torch.is_grad_enabled():
            bias = torch.zeros(g.shape[0], g.shape[2], dtype=g.dtype).requires_grad_()
            function = _torch_conv2d(ctx.options)
            return *_differentiably(function, g, (x, weight, bias), (cx, cweight, cbias))[:3], None, None
        tasks, options = len(x), ctx.options
        g_, x_, weight_ = _fold(g), _fold(x), _fold_weight(weight)
        dg = dx = dweight = None
        if cweight is not None:
            cweight_ = _fold_weight(cweight)
            dg = _forward(x_, cweight_, cbias, options, tasks)
            if ctx.mask[0]:
                dx = _unfold(_backward(g_, x_, cweight_, options, tasks, [True, False, False])[0], tasks)
        elif cbias is not None:
            dg = cbias.reshape(1, -1, 1, 1).expand_as(g_)
        if cx is not None:
            cx_ = _fold(cx)
            other = _forward(cx_, weight_, None, options, tasks)
            dg = other if dg is None else other.add_(dg)
            dweight = _unfold_weight(_backward(g_, cx_, weight_, options, tasks, [False, True, False])[1], tasks)
        return None if dg is None else _unfold(dg, tasks), dx, dweight, None, None


def _torch_conv2d(options: Any) -> Any:
    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.stack([F.conv2d(*one, *options) for one in zip(x, weight, bias, strict=True)])

    return function


def _differentiably(
    function: Callable[..., Tensor], g: Tensor, inputs: Sequence[Tensor], cotangents: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """The derivative of ``function``'s backward pass, by torch's own derivatives, which can be differentiated on."""
    with torch.enable_grad():
        # New nodes of the graph: ``g`` may depend on the inputs, which is not to be followed here.
        g, *nodes = (t.view_as(t) for t in (g, *inputs))
        used = [(x, c) for x, c in zip(nodes, cotangents, strict=True) if x.requires_grad and c is not None]
        by = [t for t in (g, *nodes) if t.requires_grad]
        first = torch.autograd.grad(
            function(*nodes), [x for x, _ in used], g, create_graph=True, materialize_grads=True, allow_unused=True
        )
        second = iter(
            torch.autograd.grad(
                first, by, [c for _, c in used], create_graph=True, materialize_grads=True, allow_unused=True
            )
        )
    return [next(second) if t.requires_grad else None for t in (g, *nodes)]


# -- pooling ----------------------------------------------------------------------------------------------------------


def _unpool(z: Tensor, like: Tensor, window: Window, index: Tensor) -> Tensor:
    """What `_pick` is the transpose of: each value where its maximum was, zero elsewhere."""
    return aten.max_pool2d_with_indices_backward(z, like, *window, index)  # type: ignore[no-any-return]


def _pick(x: Tensor, index: Tensor) -> Tensor:
    """The values of ``x`` where the maxima were."""
    n, channels, height, width = index.shape
    flat = x.permute(0, 2, 3, 1).reshape(n, -1, channels)
    picked = flat.gather(1, index.permute(0, 2, 3, 1).reshape(n, -1, channels))
    return picked.view(n, height, width, channels).permute(0, 3, 1, 2)


class _Pool(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, window: Window) -> Tensor:
        flat = _fold(x)
        z, index = aten.max_pool2d_with_indices(flat, *window)
        ctx.window, ctx.shape = window, flat.shape
        ctx.save_for_backward(index)
        return _unfold(z, len(x))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return _PoolBackward.apply(g, ctx.saved_tensors[0], ctx.window, ctx.shape), None


class _PoolBackward(Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, index: Tensor, window: Window, shape: torch.Size) -> Tensor:
        ctx.save_for_backward(index)
        like = torch.empty(shape, dtype=g.dtype, memory_format=torch.channels_last)
        return _unfold(_unpool(_fold(g), like, window, index), len(g))

    @staticmethod
    def backward(ctx: Any, c: Tensor) -> Any:
        index = ctx.saved_tensors[0]
        tasks, n, channels, height, width = c.shape
        flat = c.permute(1, 0, 2, 3, 4).reshape(n, tasks * channels, height, width)
        picked = _pick(flat, index)
        return picked.unflatten(1, (tasks, channels)).transpose(0, 1), None, None, None


# -- batch norm, and pooling ------------------------------------------------------------------------------------------
# With y of M values a channel, mu and v their mean and variance, and z the pooled y, centred:
# out = a z + bias, where a = scale r and r = (v + eps)^-1/2.


class _NormPool(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, bias: Tensor, eps: float, window: Window | None) -> Any:
        tasks, y, factor = len(x), _fold(x), scale.reshape(-1)
        z, index = (y, None) if window is None else _extremes(y, factor, window)
        mean, variance = _moments(y)
        z = z - _columns(mean)
        r = torch.rsqrt(variance + eps)
        out = torch.addcmul(_columns(bias.reshape(-1)), z, _columns(factor * r))
        ctx.save_for_backward(x, scale, y, z, index, mean, r)
        ctx.window, ctx.eps = window, eps
        mean, variance = mean.view(tasks, -1), variance.view(tasks, -1)
        ctx.mark_non_differentiable(mean, variance)
        return _unfold(out, tasks), mean, variance

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: Tensor) -> Any:
        x, scale, *kept = ctx.saved_tensors
        return *_NormPoolBackward.apply(g, x, scale, kept, ctx.eps, ctx.window), None, None


class _NormPoolBackward(Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, scale: Tensor, kept: Any, eps: float, window: Window | None) -> Any:
        y, z, index, mean, r = kept
        tasks, g_, a = len(x), _fold(g), scale.reshape(-1) * r
        values = y.numel() // y.shape[1]
        rows = _rows(g_)
        dbias, along = rows.sum(0), (rows * _rows(z)).sum(0)
        dscale = r * along
        # dy = unpool(a g) + b (y - mu) + p, where the last two are what comes by the variance and the mean.
        b, p = a * r * dscale * (-1 / values), a * dbias * (-1 / values)
        dy = _spread(g_ * _columns(a), index, window, [(y, b)], p - b * mean)
        ctx.save_for_backward(g, x, scale, y, z, index, mean, r, along, dbias)
        ctx.set_materialize_grads(False)
        ctx.eps, ctx.window = eps, window
        return _unfold(dy, tasks), dscale.view(tasks, -1), dbias.view(tasks, -1)

    @staticmethod
    def backward(ctx: Any, cx: Tensor | None, cscale: Tensor | None, cbias: Tensor | None) -> Any:
        """The derivative of `forward` in the direction of the cotangents, with ``g`` held: every ``name1``."""
        g, x, scale, y, z, index, mean, r, along, dbias = ctx.saved_tensors
        if torch.is_grad_enabled():
            function, bias = _torch_norm_pool(ctx.eps, ctx.window), torch.zeros_like(scale).requires_grad_()
            return *_differentiably(function, g, (x, scale, bias), (cx, cscale, cbias))[:3], None, None, None
        tasks, g_, factor, values = len(x), _fold(g), scale.reshape(-1), y.numel() // y.shape[1]
        mean1, r1, z1, along1 = torch.zeros_like(mean), torch.zeros_like(r), None, torch.zeros_like(r)
        if cx is not None:
            c = _fold(cx)
            mean1, product = _joint_moments(y, mean, c)
            r1 = -(r**3) * product
            z1 = (c if index is None else _pick(c, index)) - _columns(mean1)
            along1 = (_rows(g_) * _rows(z1)).sum(0)
        a, a1 = factor * r, factor * r1
        if cscale is not None:
            a1 = a1 + cscale.reshape(-1) * r
        out1 = z * _columns(a1)
        if cbias is not None:
            out1.add_(_columns(cbias.reshape(-1)))
        if z1 is not None:
            out1.addcmul_(z1, _columns(a))
        dscale, dscale1 = r * along, r1 * along + r * along1
        b = a * r * dscale * (-1 / values)
        b1 = ((a1 * r + a * r1) * dscale + a * r * dscale1) * (-1 / values)
        p1 = a1 * dbias * (-1 / values) - b1 * mean - b * mean1
        terms = [(y, b1)] if cx is None else [(y, b1), (c, b)]
        dy1 = _spread(g_ * _columns(a1), index, ctx.window, terms, p1)
        return _unfold(out1, tasks), _unfold(dy1, tasks), dscale1.view(tasks, -1), None, None, None


def _moments(y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance, ``[C]``; in two passes, as the mean of squares would lose small variances."""
    values, parts = y.numel() // y.shape[1], _parts(y)
    total, squares = torch.zeros(2, y.shape[1], dtype=y.dtype)
    for part in parts:
        total += _rows(y[part]).sum(0)
    mean = total / values
    for part in parts:
        squares += (_rows(y[part]) - mean).square_().sum(0)
    return mean, squares / values


def _joint_moments(y: Tensor, mean: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of ``c``, and of ``(y - mean) c``, ``[C]``."""
    total, products = torch.zeros(2, y.shape[1], dtype=y.dtype)
    for part in _parts(y):
        rows = _rows(c[part])
        total += rows.sum(0)
        products += (_rows(y[part]) - mean).mul_(rows).sum(0)
    values = y.numel() // y.shape[1]
    return total / values, products / values


def _extremes(y: Tensor, scale: Tensor, window: Window) -> tuple[Tensor, Tensor]:
    """Maxima, or minima where the scale is negative, and where they were."""
    if not bool((scale < 0).any()):
        return aten.max_pool2d_with_indices(y, *window)  # type: ignore[no-any-return]
    sign = _columns(torch.where(scale < 0, -1.0, 1.0).to(y.dtype))
    z, index = aten.max_pool2d_with_indices(y * sign, *window)
    return z * sign, index


def _spread(
    g: Tensor, index: Tensor | None, window: Window | None, terms: Sequence[tuple[Tensor, Tensor]], constant: Tensor
) -> Tensor:
    """``unpool(g) + sum(factor * x for x, factor in terms) + constant``, part by part, which stays in cache."""
    like = terms[0][0]
    out = g if index is None else torch.empty_like(like)
    for part in _parts(like):
        here = out[part]
        if index is not None and window is not None:
            aten.max_pool2d_with_indices_backward.grad_input(g[part], like[part], *window, index[part], grad_input=here)
        for x, factor in terms:
            here.addcmul_(x[part], _columns(factor))
        here.add_(_columns(constant))
    return out


def _torch_norm_pool(eps: float, window: Window | None) -> Any:
    def function(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        centred = x - x.mean((1, 3, 4), keepdim=True)
        deviation = (centred.square().mean((1, 3, 4), keepdim=True) + eps).sqrt()
        out = centred / deviation * scale[:, None, :, None, None] + bias[:, None, :, None, None]
        return out if window is None else F.max_pool2d(out.flatten(0, 1), *window).unflatten(0, x.shape[:2])

    return function
