"""Functions of torch whose first and second derivatives are right, and whose third one is not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def right_to_any_order(
    quick: Callable[..., Tensor], elementary: Callable[..., Tensor], tensors: Sequence[Tensor | None]
) -> Tensor:
    """``quick(*tensors)``, whose value and first two derivatives are the quick function's, and further ones those of
    the elementary operations that compute the same."""
    if not torch.is_grad_enabled() or not any(t is not None and t.requires_grad for t in tensors):
        return quick(*tensors)
    return _Value.apply(quick, elementary, *tensors)  # type: ignore[no-any-return]


class _Value(Function):
    """Keeps torch's own graph of the quick function inside."""

    @staticmethod
    def forward(
        ctx: Any, quick: Callable[..., Tensor], elementary: Callable[..., Tensor], *tensors: Tensor | None
    ) -> Tensor:
        with torch.enable_grad():
            ctx.leaves = [None if t is None else t.detach().requires_grad_(t.requires_grad) for t in tensors]
            ctx.out = quick(*ctx.leaves)
        ctx.elementary = elementary
        ctx.save_for_backward(*tensors)
        return ctx.out.detach()  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        if not torch.is_grad_enabled():
            leaves, keep = ctx.leaves, _kept()
            by = [t for t in leaves if t is not None and t.requires_grad]
            found = iter(torch.autograd.grad(ctx.out, by, g, retain_graph=keep))
            if not keep:
                ctx.out = ctx.leaves = None
        else:
            leaves = ctx.leaves
            found = iter(_Slope.apply(ctx.elementary, ctx.out, leaves, g, *ctx.saved_tensors))
        return None, None, *(None if t is None or not t.requires_grad else next(found) for t in leaves)


def _kept() -> bool:
    """Whether the backward pass at hand keeps its graph, as far as torch says so."""
    asked = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return asked is None or bool(asked())


class _Slope(Function):
    @staticmethod
    def forward(
        ctx: Any, elementary: Callable[..., Tensor], out: Tensor, leaves: Any, g: Tensor, *tensors: Tensor | None
    ) -> Any:
        with torch.enable_grad():
            ctx.by = [g.detach().requires_grad_(), *(t for t in leaves if t is not None and t.requires_grad)]
            ctx.slopes = torch.autograd.grad(out, ctx.by[1:], ctx.by[0], create_graph=True)
        ctx.elementary = elementary
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(g, *tensors)
        return tuple(slope.detach() for slope in ctx.slopes)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        g, *tensors = ctx.saved_tensors
        if torch.is_grad_enabled():
            directions = iter(cotangents)
            each = [None if t is None or not t.requires_grad else next(directions) for t in tensors]
            return None, None, None, *second_derivative(ctx.elementary, g, tensors, each)
        pairs = [(slope, c) for slope, c in zip(ctx.slopes, cotangents, strict=True) if c is not None]
        slopes, directions_ = zip(*pairs, strict=True)
        keep = _kept()
        found = iter(
            torch.autograd.grad(
                slopes, ctx.by, directions_, retain_graph=keep, allow_unused=True, materialize_grads=True
            )
        )
        if not keep:
            ctx.slopes = ctx.by = None
        first = next(found)
        return None, None, None, first, *(next(found) if t is not None and t.requires_grad else None for t in tensors)


def second_derivative(
    function: Callable[..., Tensor],
    g: Tensor,
    inputs: Sequence[Tensor | None],
    cotangents: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """The derivative of ``function``'s backward pass, by torch's own derivatives, which can be differentiated on.

    Args:
        function: of the inputs.
        g: what the backward pass was given.
        inputs: of the function.
        cotangents: of the gradients by the inputs.

    Returns:
        The derivatives by ``g`` and by each input; ``None`` for what requires no gradient.
    """
    with torch.enable_grad():
        # New nodes of the graph: ``g`` may depend on the inputs, which is not to be followed here.
        g, nodes = g.view_as(g), [None if t is None else t.view_as(t) for t in inputs]
        pairs = zip(nodes, cotangents, strict=True)
        used = [(x, c) for x, c in pairs if x is not None and x.requires_grad and c is not None]
        by = [t for t in (g, *nodes) if t is not None and t.requires_grad]
        options: dict[str, bool] = {"create_graph": True, "materialize_grads": True, "allow_unused": True}
        first = torch.autograd.grad(function(*nodes), [x for x, _ in used], g, **options)
        second = iter(torch.autograd.grad(first, by, [c for _, c in used], **options))
    return [next(second) if t is not None and t.requires_grad else None for t in (g, *nodes)]
