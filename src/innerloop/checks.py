"""What a learner finds out on its first task: which parts have no part in adapting."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Iterator
from enum import IntEnum
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .checkpointing import refused_out_of_place
from .contracts import RefusedBroadcasts, without_kept_tensors
from .inner import Episode, Loss, detach, scalar
from .objectives import Implicit, Unrolled
from .stacks import RandomState, random_numbers_from, random_state, same_random_state
from .task import Params, tensors_of
from .threads import independent, plain_state
from .writes import model_writes, rule_writes


def require_tensors(output: Any) -> None:
    """Refuse what a model returns beside tensors, which cannot be put together for all tasks.

    Raises:
        TypeError: there is something, such as a cache.
    """
    for leaf in pytree.tree_leaves(output):
        if not isinstance(leaf, Tensor):
            raise TypeError(
                f"the model's {type(output).__name__} has a {type(leaf).__name__} in it, but outputs are tensors, or "
                'tuples, lists and dicts of them: give output= the name of the part that is meant, such as "logits", '
                "or return the tensors that it is made of (the parameters of a distribution) and make it in the loss"
            )


class Use(IntEnum):
    """What a learner does with a task: it runs the model on the query set, takes inner steps, computes the outer loss,
    takes second derivatives for a meta-gradient. From the second on, each includes those before."""

    ANSWER, ADAPT, JUDGE, DIFFERENTIATE = range(4)


def judging(objective: Any) -> Use:
    """What it takes to judge by an objective."""
    second = objective.order != 1 if isinstance(objective, Unrolled) else isinstance(objective, Implicit)
    return Use.DIFFERENTIATE if second else Use.JUDGE


class Found(NamedTuple):
    """What an examination found: whether random numbers are drawn, whether some part changes in Python when it is
    called, and whether copies of the model can run in threads of their own."""

    random: bool = False
    changing: bool = False
    separable: bool = True


def examine(episode: Episode, use: Use, objective: Any = None) -> Found:
    """Run one task's model and losses once, and refuse what would be wrong without an error later on.

    Args:
        episode: a task's, which is not changed.
        use: what will be done with tasks.
        objective: what they will be judged by, the first time that they are put to this use: then update steps and
            unused parameters are checked, too.

    Raises:
        ValueError: something writes to parameters, a loss broadcasts, or ``memory="constant"`` would lose a gradient.
        TypeError: the model's output has something in it that is not a tensor.
    """
    if use == Use.ANSWER:
        _answer(episode)
        return Found()
    start = {name: p.detach().clone().requires_grad_() for name, p in episode.start.items()}
    own = dataclasses.replace(
        episode,
        start=start,
        fixed={name: p.detach().clone() for name, p in episode.fixed.items()},
        task=pytree.tree_map_only(Tensor, Tensor.clone, episode.task),
    )
    model, batch, params = own.model.model, own.support(0), {**own.fixed, **start}
    own_tensors, changing = list(start.values()), False
    with torch.random.fork_rng([p.device for p in own_tensors[:1] if p.device.type == "cuda"]):
        before = random_state(own_tensors)
        with without_kept_tensors(model):
            with model_writes(model, params, batch.x):
                require_tensors(output := own.output(start, batch.x))
            with RefusedBroadcasts(output, batch.y):
                loss = scalar(own.inner_loss(output, batch.y))
            first, again = detach((output, loss)), None
            if objective is not None or own.memory == "constant":
                with refused_out_of_place(model):
                    used, lasting = _used(loss, start), _leaves(loss)
                del output, loss  # one graph at a time
                (output, loss), start, changing = _once_more(own, before, used)
                again = detach((output, loss))
            if own.memory == "constant":
                known = (*start.values(), *own.learned(), *tensors_of((*episode.task, episode.buffers)))
                _refuse_hidden(set(_leaves(loss)).intersection(lasting), known)
            if objective is not None:
                changing |= _take_steps(own, loss, start)
                _check_parts(own, objective, loss, start, second=use == Use.DIFFERENTIATE)
        _require_same(first, again or first, own, before, start)
        if use >= Use.JUDGE:
            _judge(own, params)
        random = not same_random_state(before, random_state(own_tensors))
        return Found(random, changing, objective is None or _separable(own))


def _answer(episode: Episode) -> None:
    """Run one task's model on its query set, and refuse writes."""
    x = pytree.tree_map_only(Tensor, Tensor.clone, episode.task.query.x)
    params = {name: p.detach() for name, p in {**episode.fixed, **episode.start}.items()}
    model, devices = episode.model.model, [p.device for p in params.values() if p.device.type == "cuda"]
    with torch.random.fork_rng(devices[:1]), without_kept_tensors(model), model_writes(model, params, x):
        episode.answer({name: params[name] for name in episode.start}, x)


def _once_more(episode: Episode, before: RandomState, used: list[str]) -> tuple[Run, Params, bool]:
    """The same on other tensors: the output and the inner loss, the tensors, and whether Python state changed.

    Raises:
        ValueError: the loss no longer depends on what it used.
    """
    parts = {"model": episode.model.model, "loss": episode.inner_loss}
    start = {name: p.detach().clone().requires_grad_() for name, p in episode.start.items()}
    still = plain_state(parts)
    output, loss = _again(episode, before, start)
    changing = plain_state(parts) != still
    with refused_out_of_place(episode.model.model):
        _refuse_remembered(episode.model.model, used, _used(loss, start))
    return (output, loss), start, changing


def _take_steps(episode: Episode, loss: Tensor, start: Params) -> bool:
    """Run all steps of the update rule on the first step's gradient, and refuse writes to parameters.

    Returns:
        Whether the rule's Python state changed.
    """
    if not loss.requires_grad:
        return False
    with refused_out_of_place(episode.model.model):
        grads = torch.autograd.grad(loss, list(start.values()), allow_unused=True, retain_graph=True)
    given = {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(start.items(), grads, strict=True)}
    params = {name: p.detach() for name, p in start.items()}
    with torch.no_grad(), without_kept_tensors(episode.rule), rule_writes(episode.rule, params):
        state, still = episode.rule.init(params), plain_state({"rule": episode.rule})
        for step in range(episode.steps):
            _, state = episode.rule({name: grad.clone() for name, grad in given.items()}, params, state, step)
        return plain_state({"rule": episode.rule}) != still


def _check_parts(episode: Episode, objective: Any, loss: Tensor, start: Params, second: bool) -> None:
    """Name what has no part in adapting, and refuse what the inner loop would leave out."""
    model = episode.model.model
    refuse_order(objective, learned := parameters_of(episode.inner_loss, episode.loss))
    if isinstance(objective, Implicit):
        objective.require_minimum(episode.rule, start)
    _refuse_own_parameters(loss, {name: p for name, p in model.named_parameters() if name in start})
    with refused_out_of_place(model):
        check_dependence(loss, start, learned, second=second)


def _judge(episode: Episode, params: Params) -> None:
    """Run the model and the outer loss on the query set."""
    query = episode.task.query
    with model_writes(episode.model.model, params, query.x):
        output = episode.answer(episode.start, query.x)[0]
    with RefusedBroadcasts(output, query.y):
        scalar(episode.loss(output, query.y))


Run = tuple[Any, Tensor]
"""The output and the inner loss."""


def _again(episode: Episode, before: RandomState, params: Params) -> Run:
    """The same once more, with the same random numbers."""
    batch = episode.support(0)
    with random_numbers_from(before):
        output = episode.output(params, batch.x)
        return output, scalar(episode.inner_loss(output, batch.y))


def _require_same(first: Run, again: Run, episode: Episode, before: RandomState, params: Params) -> None:
    """Refuse what depends on how often it was computed where tasks, or the backward pass, would be wrong then.

    Raises:
        ValueError: the model computes with tensors that it kept in attributes, or something is not the same the second
            time and ``memory="constant"`` computes it twice.
    """
    if _close(first, again):
        return
    kept = False
    if not _close(first[0], again[0]):
        with without_kept_tensors(episode.model.model):
            kept = _close(first[0], detach(_again(episode, before, params)[0]))
    if kept:
        raise ValueError(
            f"{type(episode.model.model).__name__} computes with tensors that it keeps in attributes from one call to "
            "the next, which would be those of other tasks: make them buffers (self.register_buffer), of which each "
            "task has its own"
        )
    if episode.memory == "constant":
        what = "loss" if _close(first[0], again[0]) else "model"
        raise ValueError(
            f'memory="constant" computes inner steps again in the backward pass, and the {what} gives something else '
            "when it is called again: keep what changes in a buffer (self.register_buffer), draw random numbers by "
            'torch\'s global generator, or give memory="graph"'
        )


def _close(first: Any, again: Any) -> bool:
    pairs = zip(pytree.tree_leaves(first), pytree.tree_leaves(again), strict=True)
    return all(a.shape == b.shape and torch.allclose(a, b, rtol=1e-5, atol=1e-7, equal_nan=True) for a, b in pairs)


def _used(loss: Tensor, params: Params) -> list[str]:
    """The names of the parameters that a loss depends on."""
    if not loss.requires_grad:
        return []
    grads = torch.autograd.grad(loss, list(params.values()), allow_unused=True, retain_graph=True)
    return [name for name, grad in zip(params, grads, strict=True) if grad is not None]


def _refuse_remembered(model: nn.Module, first: list[str], again: list[str]) -> None:
    """Refuse a model that keeps what it computed of its parameters for later calls, which have others.

    Raises:
        ValueError: the loss of a second call, with other tensors, does not depend on what that of the first does.
    """
    if lost := [name for name in first if name not in again]:
        raise ValueError(
            f"{type(model).__name__} keeps what it computed of {lost[0]!r} from one call for the next, so it would not "
            "see what inner steps do: compute it in every forward, and keep nothing of parameters in attributes "
            "(functools.cached_property is one)"
        )


def _separable(episode: Episode) -> bool:
    """Whether copies of the model can run in threads of their own."""
    params = {name: p.detach().requires_grad_() for name, p in {**episode.fixed, **episode.start}.items()}
    return independent(episode.model.model, lambda: episode.model(params, episode.buffers, episode.support().x))


def check_dependence(loss: Tensor, start: Params, learned: Params, second: bool = False) -> None:
    """Name the adapted parameters that an inner loss does not depend on, and the parameters of a learned loss that its
    gradient does not depend on, which the meta-gradient therefore cannot reach.

    Args:
        loss: of one task at its start, a scalar.
        start: the adapted parameters there.
        learned: the parameters of the inner loss, where it is a module.
        second: whether the gradient will be differentiated.

    Raises:
        ValueError: it depends on none of the adapted parameters, or its gradient cannot be differentiated.
    """
    by = list(start.values())
    graph = bool(learned) or second
    grads = torch.autograd.grad(loss, by, create_graph=graph, allow_unused=True) if loss.requires_grad else ()
    if second:
        _refuse_once_differentiable([grad for grad in grads if grad is not None])
    unused = [name for name, grad in zip_longest(start, grads) if grad is None]
    if len(unused) == len(start):
        raise ValueError(f"the inner loss depends on none of the adapted parameters: {', '.join(start)}")
    if unused:
        warnings.warn(
            f"the inner loss of the first task does not depend on {', '.join(unused)}: these get an update of zero. If "
            f"no task uses them, leave them out of adapt=, e.g. adapt=il.everything - il.named({unused[0]!r})",
            stacklevel=6,
        )
    size = torch.stack([(grad * grad.conj()).real.sum() for grad in grads if grad is not None]).sum()
    if second and size.requires_grad:
        _require_second_derivative(size, list(start.values()))
    by = list(learned.values())
    reach = torch.autograd.grad(size, by, allow_unused=True) if by and size.requires_grad else [None] * len(by)
    if lost := [name for name, grad in zip(learned, reach, strict=True) if grad is None]:
        warnings.warn(
            f"the gradient of the learned inner loss does not depend on its {', '.join(lost)}, which no meta-gradient "
            "therefore reaches. What is only added to a loss, for one, has no part in its gradient",
            stacklevel=6,
        )


def _refuse_own_parameters(loss: Tensor, adapted: Params) -> None:
    """Refuse an inner loss that finds the model's own parameters by itself, in place of the task's, and hooks of them.

    Raises:
        ValueError: it depends on one that the inner loop adapts, or one has a hook.
    """
    if hooked := [name for name, p in adapted.items() if p._backward_hooks]:
        raise ValueError(
            f"the parameter {hooked[0]!r} has a hook, which the inner loop would not run, since it moves other tensors "
            "in its place: change inner gradients in an update rule (il.GradientTransform), or leave "
            "the parameter out of adapt="
        )
    own = {name: p for name, p in adapted.items() if p.requires_grad}
    if not own or not loss.requires_grad:
        return
    found = torch.autograd.grad(loss, list(own.values()), allow_unused=True, retain_graph=True)
    if read := [name for name, grad in zip(own, found, strict=True) if grad is not None]:
        raise ValueError(
            f"the inner loss uses the model's own {read[0]!r}, which is the meta-parameter and not what the inner loop "
            "adapts: compute what depends on adapted parameters (a penalty, another call of the model) in the model's "
            "forward and return it beside the output, or leave the parameter out of adapt="
        )


def _require_second_derivative(size: Tensor, by: list[Tensor]) -> None:
    """Raise a ``ValueError`` that says what to do if torch cannot differentiate the inner gradient."""
    try:
        torch.autograd.grad(size, by, allow_unused=True, retain_graph=True)
    except RuntimeError as error:
        if "not implemented" not in str(error) and "not differentiable" not in str(error):
            raise
        raise ValueError(
            "a second-order meta-gradient needs second derivatives of the model and the inner loss, and one of their "
            f"operations has none ({str(error).splitlines()[0]}): replace it by elementary operations, or give order=1"
        ) from error


def _nodes(tensors: Iterable[Tensor]) -> Iterator[Any]:
    """All nodes of the graph of some tensors."""
    nodes, seen = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None], set[Any]()
    while nodes:
        node = nodes.pop()
        if node not in seen:
            seen.add(node)
            yield node
            nodes += [following for following, _ in node.next_functions if following is not None]


def _leaves(loss: Tensor) -> list[Tensor]:
    """The tensors that require a gradient and that a loss is computed of."""
    return [node.variable for node in _nodes([loss]) if hasattr(node, "variable")]


def _refuse_hidden(leaves: Iterable[Tensor], known: Iterable[Tensor]) -> None:
    """Refuse an inner loss that depends on tensors outside of the learner, whose gradient constant memory would lose.

    Args:
        leaves: the tensors requiring a gradient that every evaluation of the inner loss depends on.
        known: the tensors whose gradient is kept: parameters of the model and the loss, the task and its buffers.

    Raises:
        ValueError: a leaf is not among the known tensors.
    """
    if hidden := set(leaves).difference(known):
        raise ValueError(
            f"the inner loss depends on a tensor of shape {tuple(hidden.pop().shape)} that requires a gradient but is "
            'not a parameter of the model or of a loss module, and memory="constant" would lose its gradient: '
            'register it as an nn.Parameter of the model or of the loss, or give memory="graph"'
        )


def _refuse_once_differentiable(grads: list[Tensor]) -> None:
    """Refuse gradients of functions that take no second derivative: torch leaves their part out where it is asked for
    gradients by some tensors alone.

    Raises:
        ValueError: there is such a function.
    """
    for node in _nodes(grads):
        if node.name() == "torch::autograd::Error":
            raise ValueError(
                "the model or the inner loss uses a torch.autograd.Function that is marked as once_differentiable, so "
                "a second-order meta-gradient would lack a part: write its backward by differentiable operations and "
                "without that mark, or give order=1"
            )


def parameters_of(loss: Loss, outer: Loss) -> Params:
    """Those of a learned inner loss that nothing but its gradient can teach, by name; none if it is the outer loss
    too."""
    if not isinstance(loss, nn.Module) or loss is outer:
        return {}
    return {name: p for name, p in loss.named_parameters() if p.requires_grad}


def refuse_order(objective: Any, learned: Params) -> None:
    """Refuse to learn an inner loss by first-order gradients, which never see it.

    Raises:
        ValueError: the objective takes updates as constants.
    """
    if learned and getattr(objective, "order", 2) == 1:
        raise ValueError(
            f"a learned inner loss ({', '.join(learned)}) takes order=2: with order=1 updates are constants, and no "
            "meta-gradient reaches it"
        )
