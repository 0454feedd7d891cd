"""Derivatives of backward passes that torch can differentiate further."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def second_derivative(
    function: Callable[..., Tensor],
    g: Tensor,
    inputs: Sequence[Tensor | None],
    cotangents: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Return the derivative of ``function``'s backward pass by torch's own derivatives, which has derivatives, too.

    Args:
        function: a function of the inputs.
        g: the gradient that the backward pass got.
        inputs: the inputs of the function.
        cotangents: the cotangents of the gradients of the inputs.

    Returns:
        The derivatives with respect to ``g`` and each input; ``None`` for tensors that require no gradient.
    """
    with torch.enable_grad():
        # New nodes of the graph: ``g`` may depend on the inputs, which must not be followed here.
        g, nodes = g.view_as(g), [None if t is None else t.view_as(t) for t in inputs]
        pairs = zip(nodes, cotangents, strict=True)
        used = [(x, c) for x, c in pairs if x is not None and x.requires_grad and c is not None]
        by = [t for t in (g, *nodes) if t is not None and t.requires_grad]
        options: dict[str, bool] = {"create_graph": True, "materialize_grads": True, "allow_unused": True}
        first = torch.autograd.grad(function(*nodes), [x for x, _ in used], g, **options)
        along = [(f, c) for f, (_, c) in zip(first, used, strict=True) if f.requires_grad]
        if not along:
            return [None] * (1 + len(nodes))
        second = iter(torch.autograd.grad([f for f, _ in along], by, [c for _, c in along], **options))
    return [next(second) if t is not None and t.requires_grad else None for t in (g, *nodes)]
