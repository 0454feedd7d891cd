"""Running code on whole stacks of tasks from inside ``vmap``, and inner gradients that way.

``torch.vmap`` shows one task to code that works on all of them. Where a stack can be worked on better than torch's own
batching rules do, `on_stacks` steps out of ``vmap`` for one call. The inner gradient is such a call: the tasks' losses
are independent, so one plain backward pass of their sum gives every task's own gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.func import grad_and_value, vmap
from torch.utils import _pytree as pytree

from .task import Params

Place = Literal["plain", "vmap", "other"]


def place() -> Place:
    """Where this code runs: under no function transform, under one ``vmap``, or under others."""
    level = torch._C._functorch.maybe_current_level()
    if level is None:
        return "plain"
    kind = torch._C._functorch.peek_interpreter_stack().key()
    return "vmap" if level == 1 and kind == torch._C._functorch.TransformType.Vmap else "other"


class _OutsideVmap(Function):
    """Calls ``function(number of tasks, task axis of each tensor, *tensors)`` with the stacked tensors."""

    @staticmethod
    def forward(function: Callable[..., Any], *tensors: Tensor) -> Any:
        raise AssertionError("called under vmap only, with something to stack")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing to keep: autograd records what the function does."""

    @staticmethod
    def vmap(info: Any, axes: Sequence[int | None], function: Callable[..., Any], *tensors: Tensor) -> Any:
        """What ``vmap`` calls instead of `forward`."""
        return function(info.batch_size, axes[1:], *tensors)


def on_stacks(function: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
    """``function`` of the tensors of all tasks, each with a leading task axis ``[T, ...]``, and back to one task's.

    Not under ``vmap``, T is 1.
    """

    def stacked(number: int, axes: Sequence[int | None], *values: Tensor) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        stacks = [
            value.expand(number, *value.shape) if axis is None else value.movedim(axis, 0)
            for value, axis in zip(values, axes, strict=True)
        ]
        results = function(*stacks)
        return results, (0,) * len(results)

    if place() == "vmap":
        return _OutsideVmap.apply(stacked, *tensors)  # type: ignore[no-any-return]
    return tuple(result[0] for result in function(*(tensor[None] for tensor in tensors)))


def value_and_gradient(
    function: Callable[[Params], tuple[Tensor, Any]], params: Params, order: int
) -> tuple[Params, Tensor, Any]:
    """The gradient of a task's loss by its parameters, the loss, and what else the function returned.

    Args:
        function: ``params -> (loss, rest)``.
        params: one value per task: under ``vmap`` each must have a task axis.
        order: 2 keeps the graph, through which the gradient can be differentiated again; 1 does not.
    """
    if place() == "other":  # within torch.func, which brings its own
        with torch.set_grad_enabled(order == 2 and torch.is_grad_enabled()):
            grads, (loss, rest) = grad_and_value(function, has_aux=True)(params)
        return grads, loss, rest
    at = _differentiable(params, order)
    with torch.enable_grad():
        loss, rest = function(at)
        grads = dict(zip(at, _gradient(loss, list(at.values()), order == 2), strict=True))
    return grads, loss, rest


def _differentiable(params: Params, order: int) -> Params:
    """The same parameters to differentiate by: fresh leaves of the graph for order 1."""

    connected = order == 2 and torch.is_grad_enabled()

    def leaves(*values: Tensor) -> list[Tensor]:
        return [v if connected and v.requires_grad else v.detach().requires_grad_() for v in values]

    if place() == "plain":
        return dict(zip(params, leaves(*params.values()), strict=True))
    found = _OutsideVmap.apply(lambda _, axes, *values: (tuple(leaves(*values)), tuple(axes)), *params.values())
    return dict(zip(params, found, strict=True))


def _gradient(loss: Tensor, by: list[Tensor], graph: bool) -> Sequence[Tensor]:
    def gradient(losses: Tensor, values: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(losses.sum(), values, create_graph=graph, allow_unused=True, materialize_grads=True)

    if place() == "plain":
        return gradient(loss, by)
    found: Sequence[Tensor] = _OutsideVmap.apply(
        lambda _, axes, losses, *values: (gradient(losses, values), tuple(axes[1:])), loss, *by
    )
    return found


# -- constant memory --------------------------------------------------------------------------------------------------


def recomputed(
    function: Callable[..., Any],
    inputs: Any,
    learned: Sequence[Tensor],
    context: Callable[[], AbstractContextManager[None]],
) -> Any:
    """``function(2, *inputs)``, of which only the inputs are kept: the backward pass runs it again.

    Args:
        function: ``(order, *inputs) -> pytree of tensors``; order 1 gives the values alone.
        inputs: a tuple, a pytree with all tensors that the function depends on, but for the learned ones.
        learned: parameters that the function finds by itself.
        context: entered around each run.
    """
    leaves, structure = pytree.tree_flatten(inputs)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    results: Any = None

    def flat(order: int, *values: Tensor) -> tuple[Tensor, ...]:
        nonlocal results
        rest = iter(values)
        filled = [next(rest) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        found, results = pytree.tree_flatten(function(order, *pytree.tree_unflatten(filled, structure)))
        return tuple(found)

    def stacked(_: int, axes: Sequence[int | None], *values: Tensor) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        def run(order: int, *stacks: Tensor) -> tuple[Tensor, ...]:
            return vmap(lambda *one: flat(order, *one), tuple(axes), randomness="different")(*stacks)

        found = _Recomputed.apply(run, context, len(values), *values, *learned)
        return found, (0,) * len(found)

    if place() == "vmap":
        found = _OutsideVmap.apply(stacked, *tensors)
    else:
        found = _Recomputed.apply(flat, context, len(tensors), *tensors, *learned)
    return pytree.tree_unflatten(list(found), results)


class _Recomputed(Function):
    @staticmethod
    def forward(ctx: Any, run: Callable[..., Any], context: Any, number: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.run, ctx.context, ctx.number = run, context, number
        ctx.random = torch.get_rng_state()
        ctx.save_for_backward(*tensors)
        with context():  # torch leaves function modes outside
            results = tuple(run(1, *tensors[:number]))
        ctx.mark_non_differentiable(*(r for r in results if not r.is_floating_point()))
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        tensors, needed = ctx.saved_tensors, ctx.needs_input_grad[3:]
        inputs = [t.detach().requires_grad_(need) for t, need in zip(tensors[: ctx.number], needed, strict=False)]
        with torch.random.fork_rng([]), torch.enable_grad(), ctx.context():
            torch.set_rng_state(ctx.random)
            results = ctx.run(2, *inputs)
        by = [t for t, need in zip([*inputs, *tensors[ctx.number :]], needed, strict=True) if need]
        pairs = [(r, c) for r, c in zip(results, cotangents, strict=True) if r.requires_grad and c is not None]
        grads = iter(torch.autograd.grad([r for r, _ in pairs], by, [c for _, c in pairs], allow_unused=True))
        return None, None, None, *(next(grads) if need else None for need in needed)
