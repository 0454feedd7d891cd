"""Per-task convolutions for stacks of tasks, with derivatives of every order, on CPUs.

The task axis is merged with the channels, and channels are last in memory. Per-task convolutions are then grouped
convolutions in the layout that oneDNN runs at full speed. A convolution is linear in images and weights. So its
derivatives are convolutions, too: the gradient with respect to the images and that with respect to the weights, whose
own derivatives are again these three.

Torch's own batching rule is not used, because it passes ambiguous strides for a single image. Torch's grouped
convolutions without oneDNN (float64, or a build without it) then return uninitialized gradients of the weights
(torch 2.13).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from ..functional.stacks import on_stacks
from .layout import fold, fold_weight, result, unfold, unfold_weight

aten: Any = torch.ops.aten


class Options(NamedTuple):
    """The arguments of ``aten.convolution``, with a number for each axis of the images."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    transposed: bool
    output_padding: list[int]
    groups: int


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, options: Options) -> Tensor:
    """``aten.convolution``: ``[N, C, ...]``, ``[O, C / groups, ...]`` and ``[O]`` -> ``[N, O, ...]``.

    The weights of a transposed one are ``[C, O / groups, ...]``.
    """
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    if bias is None:
        return on_stacks(lambda x, weight: (_Convolution.apply(x, weight, None, options),), x, weight)[0]
    return on_stacks(lambda x, weight, bias: (_Convolution.apply(x, weight, bias, options),), x, weight, bias)[0]


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, options: Options, tasks: int) -> Tensor:
    bias = None if bias is None else bias.reshape(-1)
    return aten.convolution(x, weight, bias, *options[:-1], options.groups * tasks)  # type: ignore[no-any-return]


def _backward(g: Tensor, x: Tensor, weight: Tensor, options: Options, tasks: int, mask: Sequence[bool]) -> Any:
    return aten.convolution_backward(g, x, weight, [g.shape[1]], *options[:-1], options.groups * tasks, mask)


_unread = ContextVar("unread gradients", default=False)


@contextmanager
def unread_gradients() -> Iterator[None]:
    """While entered, gradients of weights that are leaves are connected to the graph but not computed.

    It is for code that differentiates these gradients and does not read their values. Under ``vmap`` such code is
    always the library's own: a module's plain gradients cannot be vectorized, and looped tasks do not use these
    kernels.
    """
    token = _unread.set(True)
    try:
        yield
    finally:
        _unread.reset(token)


class _Convolution(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, options: Options) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.last = weight.is_leaf
        ctx.options, tasks = options, len(x)
        return result(_forward(fold(x), fold_weight(weight), bias, options, tasks), tasks)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        unread, mask = ctx.last and _unread.get(), ctx.needs_input_grad[:3]
        return *_ConvolutionBackward.apply(g, *ctx.saved_tensors, ctx.options, mask, unread), None


class _ConvolutionBackward(Function):
    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, weight: Tensor, options: Options, mask: Sequence[bool], unread: bool
    ) -> Any:
        ctx.save_for_backward(g, x, weight)
        ctx.set_materialize_grads(False)
        ctx.options, ctx.mask, tasks = options, mask, len(x)
        wanted = [mask[0], mask[1] and not unread, mask[2]]
        dx, dweight, dbias = _backward(fold(g), fold(x), fold_weight(weight), options, tasks, wanted)
        return (
            None if dx is None else unfold(dx, tasks),
            unfold_weight(dweight, tasks) if wanted[1] else torch.zeros_like(weight) if mask[1] else None,
            None if dbias is None else dbias.view(tasks, -1),
        )

    @staticmethod
    def backward(ctx: Any, cx: Tensor | None, cweight: Tensor | None, cbias: Tensor | None) -> Any:
        g, x, weight = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *_again(g, x, weight, (cx, cweight, cbias), ctx.options, ctx.mask), None, None, None
        tasks, options = len(x), ctx.options
        g_, x_, weight_ = fold(g), fold(x), fold_weight(weight)
        dg = dx = dweight = None
        if cweight is not None:
            cweight_ = fold_weight(cweight)
            dg = _forward(x_, cweight_, cbias, options, tasks)
            if ctx.mask[0]:
                dx = unfold(_backward(g_, x_, cweight_, options, tasks, [True, False, False])[0], tasks)
        elif cbias is not None:
            dg = cbias.reshape(1, -1, *[1] * (g.ndim - 3)).expand_as(g_)
        if cx is not None:
            cx_ = fold(cx)
            other = _forward(cx_, weight_, None, options, tasks)
            dg = other if dg is None else other.add_(dg)
            dweight = unfold_weight(_backward(g_, cx_, weight_, options, tasks, [False, True, False])[1], tasks)
        return None if dg is None else unfold(dg, tasks), dx, dweight, None, None, None


def _again(
    g: Tensor, x: Tensor, weight: Tensor, cotangents: Sequence[Tensor | None], options: Options, mask: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the same derivative, with functions that have derivatives of every order."""
    cx, cweight, cbias = cotangents
    parts: list[Tensor] = []
    dx = dweight = None
    if cweight is not None:
        parts.append(_Convolution.apply(x, cweight, None, options))
        if mask[0]:
            dx = _ImageGradient.apply(g, cweight, x.shape, options)
    if cx is not None:
        parts.append(_Convolution.apply(cx, weight, None, options))
        dweight = _WeightGradient.apply(g, cx, weight.shape, options)
    if cbias is not None:
        parts.append(cbias[:, None].reshape(len(x), 1, -1, *[1] * (g.ndim - 3)).expand_as(g))
    return (sum(parts[1:], parts[0]) if parts else None), dx, dweight


class _ImageGradient(Function):
    """The gradient of a convolution with respect to the images, which is linear in ``g`` and in the weights."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, weight: Tensor, shape: torch.Size, options: Options) -> Tensor:
        ctx.save_for_backward(g, weight)
        ctx.options, tasks = options, len(g)
        x = fold(g.new_zeros(()).expand(shape))
        return unfold(_backward(fold(g), x, fold_weight(weight), options, tasks, [True, False, False])[0], tasks)

    @staticmethod
    def backward(ctx: Any, c: Tensor) -> Any:
        g, weight = ctx.saved_tensors
        dg = _Convolution.apply(c, weight, None, ctx.options)
        return dg, _WeightGradient.apply(g, c, weight.shape, ctx.options), None, None


class _WeightGradient(Function):
    """The gradient of a convolution with respect to the weights, which is linear in ``g`` and in the images."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, shape: torch.Size, options: Options) -> Tensor:
        ctx.save_for_backward(g, x)
        ctx.options, tasks = options, len(g)
        weight = fold_weight(g.new_zeros(()).expand(shape))
        return unfold_weight(_backward(fold(g), fold(x), weight, options, tasks, [False, True, False])[1], tasks)

    @staticmethod
    def backward(ctx: Any, c: Tensor) -> Any:
        g, x = ctx.saved_tensors
        dg = _Convolution.apply(x, c, None, ctx.options)
        return dg, _ImageGradient.apply(g, c, x.shape, ctx.options), None, None
