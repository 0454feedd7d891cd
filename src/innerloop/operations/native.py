"""Torch's own norms for one task at a time, with correct derivatives of every order.

Torch's values, first and second derivatives are correct here, and fast; its third derivatives are wrong (see
`normalization`). So only first derivatives are torch's: a backward pass that is recorded for further derivatives uses
other operations. Adapting to a task records none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from ..functional.stacks import place
from . import kernels
from . import normalization as normalization

aten: Any = torch.ops.aten


def supported(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> bool:
    """Return whether the norms here support these tensors and the present function transforms."""
    return (
        place() == "plain"
        and forward_ad._current_level < 0
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and x.is_contiguous()  # with channels last, torch's sums have no more precision than x
        and all(t is None or (t.dtype == x.dtype and t.device == x.device) for t in (weight, bias))
    )


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float,
    eps: float,
) -> Tensor:
    """``torch.nn.functional.batch_norm`` with the batch's own statistics."""
    normalization.values_per_channel(input)
    return _BatchNorm.apply(input, weight, bias, running_mean, running_var, momentum, eps)  # type: ignore[no-any-return,no-untyped-call]


def layer_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """``torch.nn.functional.layer_norm``."""
    return _LayerNorm.apply(input, weight, bias, list(normalized_shape), eps)  # type: ignore[no-any-return,no-untyped-call]


class _BatchNorm(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Any,
        variance: Any,
        momentum: Any,
        eps: Any,
    ) -> Tensor:
        out, *kept = aten.native_batch_norm(x, weight, bias, mean, variance, True, momentum, eps)
        ctx.save_for_backward(x, weight, bias, *kept)
        ctx.eps = eps
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, weight, bias, mean, inverse = ctx.saved_tensors
        if not torch.is_grad_enabled():
            wanted = ctx.needs_input_grad[:3]
            none = (None,) * 4
            g = g.contiguous()
            return *aten.native_batch_norm_backward(
                g, x, weight, None, None, mean, inverse, True, ctx.eps, wanted
            ), *none
        if x.ndim == 4:
            scale = x.new_ones(x.shape[1]) if weight is None else weight
            every = kernels.batch_norm_gradients(g, x, scale, mean, inverse, ctx.eps)
            grads = [None if t is None else grad for t, grad in zip((x, weight, bias), every, strict=True)]
        else:
            norm = lambda x, w, b: normalization.batch_norm(x, None, None, w, b, True, 0.0, ctx.eps)  # noqa: E731
            grads = _gradients(norm, g, x, weight, bias)
        return *grads, None, None, None, None


class _LayerNorm(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, shape: list[int], eps: float
    ) -> Tensor:
        out, *kept = aten.native_layer_norm(x, shape, weight, bias, eps)
        ctx.save_for_backward(x, weight, bias, *kept)
        ctx.shape, ctx.eps = shape, eps
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, weight, bias, mean, inverse = ctx.saved_tensors
        if torch.is_grad_enabled():
            norm = lambda x, w, b: normalization.layer_norm(x, ctx.shape, w, b, ctx.eps)  # noqa: E731
            return *_gradients(norm, g, x, weight, bias), None, None
        wanted = ctx.needs_input_grad[:3]
        return *aten.native_layer_norm_backward(g, x, ctx.shape, mean, inverse, weight, bias, wanted), None, None


def _gradients(norm: Callable[..., Tensor], g: Tensor, *inputs: Tensor | None) -> list[Tensor | None]:
    """Return the gradients of a norm by its inputs, which have derivatives of every order."""
    # New nodes of the graph: an input may depend on another one, which must not be followed here.
    nodes = [None if t is None else t.view_as(t) for t in inputs]
    by = [t for t in nodes if t is not None and t.requires_grad]
    grads = iter(torch.autograd.grad(norm(*nodes), by, g, create_graph=True))
    return [next(grads) if t is not None and t.requires_grad else None for t in nodes]
