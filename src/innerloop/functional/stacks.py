"""Run code on stacks of all tasks from inside ``vmap``, and compute inner gradients in this way.

Under ``torch.vmap`` code sees one task. If code for a stack is better than torch's batching rules, `on_stacks` leaves
``vmap`` for one call. The inner gradient is such a call: the losses of tasks are independent, so one plain backward
pass of their sum gives the gradient of every task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.autograd import Function
from torch.func import grad_and_value, vmap
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import get_device_states, set_device_states

from ..common import private
from ..task import Params
from .quick import hidden_from_modes

Place = Literal["plain", "vmap", "other"]


def place() -> Place:
    """Return whether the caller runs under no function transform, under one ``vmap``, or under others."""
    level = private.transform_level()
    if level is None:
        return "plain"
    kind = private.innermost_transform().key()
    return "vmap" if level == 1 and kind == private.TransformType.Vmap else "other"


def of_all_tasks(tensor: Tensor) -> Tensor:
    """Return the tensor inside the wrappers of function transforms, which under ``vmap`` holds all tasks."""
    while private.is_wrapped(tensor):
        tensor = private.unwrapped(tensor)
    return tensor


@contextmanager
def under(transforms: Sequence[Any]) -> Iterator[list[Any]]:
    """Enter these function transforms, the innermost first, in place of the present ones, which it yields."""
    present: list[Any] = []
    while private.innermost_transform() is not None:
        present.append(private.pop_transform())
    try:
        for transform in reversed(transforms):
            private.push_transform(transform)
        try:
            yield list(present)
        finally:
            for _ in transforms:
                private.pop_transform()
    finally:
        while present:
            private.push_transform(present.pop())


def on_stacks(function: Callable[..., Sequence[Tensor]], *tensors: Tensor) -> tuple[Tensor, ...]:
    """Call ``function`` on the tensors of all tasks, ``[T, ...]`` each, and return the results as those of one task.

    T is 1 outside of ``vmap``.
    """
    if place() != "vmap":
        return tuple(result[0] for result in function(*(tensor[None] for tensor in tensors)))
    interpreter = private.interpreter()
    level, number = interpreter.level(), interpreter.batch_size()
    unwrapped = [private.unwrap_batched(tensor, level) for tensor in tensors]
    with interpreter.lower():
        results = function(*(_stack(tensor, axis, number) for tensor, axis in unwrapped))
    return tuple(private.add_batch_dim(result, 0, level) for result in results)


def _stack(tensor: Tensor, axis: int | None, number: int) -> Tensor:
    if axis is None:
        return tensor.expand(number, *tensor.shape)
    return tensor if axis == 0 else tensor.movedim(axis, 0)  # the same object: gradients may be needed


def value_and_gradient(
    function: Callable[[Params], tuple[Tensor, Any]], params: Params, order: int
) -> tuple[Params, Tensor, Any]:
    """Return the gradient of a task's loss by its parameters, the loss, and what else the function returned.

    Args:
        function: ``params -> (loss, rest)``.
        params: the parameters; under ``vmap`` each must have a task axis.
        order: 2 keeps the graph, so that the gradient can be differentiated again; 1 does not.
    """
    if place() == "other":  # under torch.func, which has its own gradients
        with torch.set_grad_enabled(order == 2 and torch.is_grad_enabled()):
            grads, (loss, rest) = grad_and_value(function, has_aux=True)(params)
        return grads, loss, rest
    at = _differentiable(params, order)
    with torch.enable_grad():
        loss, rest = function(at)
        grads = dict(zip(at, _gradient(loss, list(at.values()), order == 2), strict=True))
    return grads, loss, rest


def _differentiable(params: Params, order: int) -> Params:
    """Return the parameters to differentiate by: for order 1, new leaves of the graph."""
    connected = order == 2 and torch.is_grad_enabled()

    def leaves(*values: Tensor) -> list[Tensor]:
        with hidden_from_modes(values):
            return [v if connected and v.requires_grad else v.detach().requires_grad_() for v in values]

    if place() == "plain":
        return dict(zip(params, leaves(*params.values()), strict=True))
    return dict(zip(params, on_stacks(leaves, *params.values()), strict=True))


def _gradient(loss: Tensor, by: list[Tensor], graph: bool) -> Sequence[Tensor]:
    def gradient(losses: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(losses.sum(), values, create_graph=graph, allow_unused=True, materialize_grads=True)

    return gradient(loss, *by) if place() == "plain" else on_stacks(gradient, loss, *by)


def nodes_of(tensors: Iterable[Tensor]) -> Iterator[Any]:
    """Yield all nodes of the graph of some tensors."""
    nodes, seen = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None], set[Any]()
    while nodes:
        node = nodes.pop()
        if node not in seen:
            seen.add(node)
            yield node
            nodes += [following for following, _ in node.next_functions if following is not None]


def leaves_of(*tensors: Tensor) -> list[Tensor]:
    """Return the leaves of the graph of some tensors: the tensors that they are computed from."""
    return [node.variable for node in nodes_of(tensors) if hasattr(node, "variable")]


def refuse_hidden(leaves: Iterable[Tensor], known: Iterable[Tensor]) -> None:
    """Refuse an inner loss that depends on tensors outside of the learner: constant memory would lose their gradient.

    Args:
        leaves: the tensors that require a gradient and that every evaluation of the inner loss depends on.
        known: the tensors with gradients that are kept: parameters of the model and the loss, the task, its buffers.

    Raises:
        ValueError: a leaf is not among the known tensors.
    """
    if hidden := set(leaves).difference(known):
        raise ValueError(
            f"the inner loss depends on a tensor of shape {tuple(hidden.pop().shape)} that requires a gradient but is "
            'not a parameter of the model or of a loss module, and memory="constant" would lose its gradient: '
            'register it as an nn.Parameter of the model or of the loss, or give memory="graph"'
        )


# -- constant memory --------------------------------------------------------------------------------------------------


def recomputed(
    function: Callable[..., Any],
    inputs: Any,
    learned: Sequence[Tensor],
    context: Callable[[], AbstractContextManager[None]],
    unread: Callable[[], AbstractContextManager[None]] = nullcontext,
    repeated: int = 0,
) -> Any:
    """Return ``function(2, *inputs)``, keeping only the inputs: the backward pass runs the function again.

    Args:
        function: ``(order, *inputs) -> pytree of tensors``; order 1 gives only the values.
        inputs: a tuple, a pytree with all tensors that the function depends on except the learned ones.
        learned: parameters that the function uses without getting them as arguments.
        context: entered around each run.
        unread: entered around the second run, whose results are differentiated but whose values are not read.
        repeated: the index of a flattened result that has its value even then; it is compared with the first run to
            check that the function gives the same again.
    """
    leaves, structure = pytree.tree_flatten(inputs)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    others = [None if isinstance(leaf, Tensor) else (leaf,) for leaf in leaves]  # keeps no tensor alive
    results: Any = None

    def flat(order: int, *values: Tensor) -> tuple[Tensor, ...]:
        nonlocal results
        rest = iter(values)
        filled = [next(rest) if other is None else other[0] for other in others]
        values_out, results = pytree.tree_flatten(function(order, *pytree.tree_unflatten(filled, structure)))
        return tuple(values_out)

    def stacked(*values: Tensor) -> tuple[Tensor, ...]:
        def run(order: int, *stacks: Tensor) -> tuple[Tensor, ...]:
            return vmap(lambda *one: flat(order, *one), randomness="different")(*stacks)

        return _Recomputed.apply(  # type: ignore[no-any-return]
            run, context, unread, repeated, len(values), *values, *learned
        )

    if place() == "vmap":
        outputs = on_stacks(stacked, *tensors)
    else:
        outputs = _Recomputed.apply(flat, context, unread, repeated, len(tensors), *tensors, *learned)
    return pytree.tree_unflatten(list(outputs), results)


RandomState = tuple[Tensor, list[int], list[Tensor]]
"""The state of the CPU generator, the numbers of the accelerators, and the states of their generators."""


def random_state(tensors: Sequence[Tensor]) -> RandomState:
    """Return the state of torch's global generators, on the CPU and on the devices of the tensors."""
    return torch.get_rng_state(), *get_device_states(*tensors)


def same_random_state(state: RandomState, other: RandomState) -> bool:
    """Return whether two states of the same devices are equal, so that no numbers were drawn in between."""
    return all(map(torch.equal, (state[0], *state[2]), (other[0], *other[2])))


@contextmanager
def random_numbers_from(state: RandomState | None) -> Iterator[None]:
    """While entered, repeat the random numbers that were drawn from this state on; ``None`` does nothing."""
    if state is None:
        yield
        return
    with torch.random.fork_rng(state[1]):
        torch.set_rng_state(state[0])
        set_device_states(*state[1:])
        yield


class _Recomputed(Function):
    """A recomputed function with derivatives of every order: its backward pass is a recomputed function, too."""

    @staticmethod
    def forward(
        ctx: Any,
        run: Callable[..., Any],
        context: Any,
        unread: Any,
        repeated: int | None,
        number: int,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.run, ctx.context, ctx.unread, ctx.number = run, context, unread, number
        ctx.save_for_backward(*tensors)
        before = random_state(tensors)
        with context():  # torch has left function modes here
            results = tuple(run(1, *tensors[:number]))
        ctx.repeated = None if repeated is None else (repeated, results[repeated].clone())
        # Nothing is kept without need: the smallest tensor among the freed memory of a step fragments it.
        ctx.random = None if same_random_state(before, random_state(tensors)) else before
        ctx.mark_non_differentiable(*(r for r in results if not r.is_floating_point() and not r.is_complex()))
        return results

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        number, needed = ctx.number, ctx.needs_input_grad[5:]
        tensors, learned = ctx.saved_tensors[:number], ctx.saved_tensors[number:]

        def gradients(order: int, *values: Tensor) -> list[Tensor]:
            # Leaves, since one input may be computed from another, or from learned parameters.
            inputs = [
                v if order == 2 and v.requires_grad else v.detach().requires_grad_(need)
                for v, need in zip(values[:number], needed, strict=False)
            ]
            with random_numbers_from(ctx.random), torch.enable_grad():
                with ctx.context(), ctx.unread():
                    results = ctx.run(2, *inputs)
                if ctx.repeated is not None and not further:
                    _require_repeated(ctx.repeated[0], ctx.repeated[1], results)
                    strangers = set(leaves_of(*results)).difference(inputs, learned)
                    refuse_hidden(filter(_seen_before, strangers), ())
                by = [t for t, need in zip([*inputs, *learned], needed, strict=True) if need]
                pairs = [(r, c) for r, c in zip(results, values[number:], strict=True) if r.requires_grad]
                return list(
                    torch.autograd.grad(
                        [r for r, _ in pairs], by, [c for _, c in pairs], create_graph=order == 2,
                        allow_unused=True, materialize_grads=order == 2 or further,
                    )
                )  # fmt: skip

        further = torch.is_grad_enabled()
        if further:
            values = (*tensors, *cotangents)
            computed = _Recomputed.apply(gradients, nullcontext, nullcontext, None, len(values), *values, *learned)
        else:
            computed = gradients(1, *tensors, *cotangents)
        grads = iter(computed)
        return None, None, None, None, None, *(next(grads) if need else None for need in needed)


_strangers: WeakValueDictionary[int, Tensor] = WeakValueDictionary()


def _seen_before(leaf: Tensor) -> bool:
    """Return whether a tensor was also a leaf of an earlier step, and not made in this step."""
    earlier = _strangers.get(id(leaf))
    _strangers[id(leaf)] = leaf
    return earlier is leaf


def _require_repeated(index: int, before: Tensor, results: Sequence[Tensor]) -> None:
    """Refuse a function that gives another result when it is recomputed.

    Raises:
        ValueError: the results differ.
    """
    if not torch.allclose(before, results[index].detach(), rtol=1e-4, atol=1e-6, equal_nan=True):
        raise ValueError(
            'memory="constant" recomputes inner steps in the backward pass, but the model or the loss gives another '
            "result when it is called again: keep what changes in a buffer (self.register_buffer), draw random "
            'numbers from torch\'s global generator, or give memory="graph"'
        )
