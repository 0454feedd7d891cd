"""Checks of a learner's parts on the first task of each set of shapes, before tasks run."""

from __future__ import annotations

import dataclasses
import warnings
from enum import IntEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..common.errors import user_level
from ..common.interrupts import raise_interrupt_behind
from ..episode import Episode, Step, detach, scalar
from ..functional.checkpointing import RefusedReentrant, refused_out_of_place
from ..functional.contracts import RefusedBroadcasts, without_kept_tensors
from ..functional.held import plain_state
from ..functional.randomness import Draws
from ..functional.stacks import (
    RandomState,
    leaves_of,
    random_numbers_from,
    random_state,
    refuse_hidden,
    same_random_state,
)
from ..functional.stand_ins import independent
from ..functional.stateless import DROPOUTS, NORMS, set_modes
from ..functional.writes import FlagReads, model_writes, rule_writes
from ..objectives import Implicit, Unrolled
from ..task import Batch, Params, tensors_of
from .dependence import check_dependence, parameters_of, reached, refuse_order, refuse_own_parameters


def require_tensors(output: Any) -> None:
    """Refuse model outputs that contain anything but tensors, because these cannot be stacked over tasks.

    Raises:
        TypeError: the output contains something else, such as a cache.
    """
    for leaf in pytree.tree_leaves(output):
        if not isinstance(leaf, Tensor):
            raise TypeError(
                f"the model's {type(output).__name__} has a {type(leaf).__name__} in it, but outputs must be tensors, "
                "or tuples, lists and dicts of them: give output= the name of the part that you want, such as "
                '"logits", or return the tensors that define the object (the parameters of a distribution) and build '
                "the object in the loss"
            )


class Use(IntEnum):
    """What a learner does with a task; from the second member on, each member includes those before it.

    The members are: run the model on the query set, take inner steps, compute the outer loss, and take second
    derivatives for a meta-gradient.
    """

    ANSWER, ADAPT, JUDGE, DIFFERENTIATE = range(4)


def judging(objective: Any) -> Use:
    """Return the use of a task by an objective."""
    second = objective.order != 1 if isinstance(objective, Unrolled) else isinstance(objective, Implicit)
    return Use.DIFFERENTIATE if second else Use.JUDGE


class Findings(NamedTuple):
    """The result of an examination of a learner's parts.

    Attributes:
        random: whether random numbers are drawn.
        changing: whether a part changes Python state when it is called.
        separable: whether copies of the model can run in several threads.
    """

    random: bool = False
    changing: bool = False
    separable: bool = True


def examine(episode: Episode, use: Use, draws: Draws, trained: Modes, objective: Any = None) -> Findings:
    """Run one task's model and losses once, and refuse what would silently give wrong results later.

    Args:
        episode: the episode of a task; it is not changed.
        use: what the learner will do with tasks.
        draws: records how random numbers are drawn.
        trained: the modes of the model's parts in meta-training.
        objective: the objective, at the first such use: then update steps and unused parameters are checked, too.

    Raises:
        ValueError: something writes to parameters, a loss broadcasts, or ``memory="constant"`` would lose a gradient.
        TypeError: the model's output contains something that is not a tensor.
    """
    if use == Use.ANSWER:
        _answer(episode, draws)
        return Findings()
    own = _apart(episode)
    model, start, changing = own.model.stateless.model, own.start.params, False
    tensors = list(start.values())
    with torch.random.fork_rng([p.device for p in tensors[:1] if p.device.type == "cuda"]):
        before = _moved_on(tensors)
        with without_kept_tensors(model):
            output, loss = _first(own, draws)
            first, again = detach((output, loss)), None
            if objective is not None or own.memory == "constant":
                with refused_out_of_place(model):
                    used, lasting = reached(loss, start), leaves_of(loss)
                del output, loss  # one graph at a time
                (output, loss), start, changing = _once_more(own, before, draws, used)
                again = detach((output, loss))
            if own.memory == "constant":
                refuse_hidden(set(leaves_of(loss)).intersection(lasting), _known(episode, own, start))
            if objective is not None:
                changing |= _take_steps(own, draws, loss, start)
                _check_parts(own, objective, loss, start, second=use == Use.DIFFERENTIATE)
        _require_same(first, again or first, own, before, draws, start)
        if use == Use.ADAPT:
            _warn_of_eval(own, before, draws, first, trained)
        if use >= Use.JUDGE:
            with draws:
                _judge(own)
        random = not same_random_state(before, random_state(tensors))
        return Findings(random, changing, objective is None or _separable(own, draws))


def _known(episode: Episode, own: Episode, start: Params) -> list[Tensor]:
    """Return the tensors through which a recomputed inner gradient passes gradients on."""
    tensors = tensors_of((*episode.task, episode.start.buffers, getattr(episode.model, "slots", {})))
    given = [leaf for tensor in tensors if tensor.requires_grad for leaf in (tensor, *leaves_of(tensor))]
    return [*start.values(), *own.start.params.values(), *own.learned(), *given]


def _apart(episode: Episode) -> Episode:
    """Return the same episode on copies of its tensors; the adapted ones require gradients."""
    return dataclasses.replace(
        episode,
        start=episode.start.at({n: p.detach().clone().requires_grad_() for n, p in episode.start.params.items()}),
        model=dataclasses.replace(
            episode.model, fixed={name: p.detach().clone() for name, p in episode.model.fixed.items()}
        ),
        task=pytree.tree_map_only(Tensor, Tensor.clone, episode.task),
    )


def _first(episode: Episode, draws: Draws) -> Run:
    """Compute the output and the inner loss of the first step, and watch what they do.

    Raises:
        ValueError: something writes to parameters, a loss broadcasts, or ``memory="constant"`` could not repeat it.
        TypeError: the model's output contains something that is not a tensor.
    """
    model, batch = episode.model.stateless.model, episode.support(0)
    with draws:
        writes = model_writes(model, _parameters(episode), batch.x)
        with writes, RefusedReentrant(model, _learned(episode)), FlagReads() as reads:
            require_tensors(output := episode.output(episode.start, batch.x))
        episode.model.stateless.asks |= reads.seen
        with RefusedBroadcasts(output, batch.y):
            loss = _compared(episode, output, batch, episode.start)
    if episode.memory == "constant" and draws.error is not None and not draws.error.repeats:
        raise ValueError(
            f'memory="constant" recomputes inner steps in the backward pass, but {type(model).__name__} or its loss '
            f"{draws.error.how}, which would give other numbers then: draw them from torch's global generator "
            '(torch.rand), or give memory="graph"'
        ) from draws.error
    return output, loss


def _learned(episode: Episode) -> list[Tensor]:
    """Return the tensors that the model runs on and that may need gradients."""
    own, fixed = episode.model.stateless.parameters, episode.model.fixed_at(0)
    return [*episode.start.params.values(), *(p for n, p in fixed.items() if n in own and own[n].requires_grad)]


def _parameters(episode: Episode) -> Params:
    """Return all parameters of the model at the start."""
    return episode.model.parameters(episode.start.params, 0)


def _compared(episode: Episode, output: Any, batch: Batch, step: Step) -> Tensor:
    """Return the inner loss of an output on the support set."""
    known = {"params": step.params, "start": episode.start.params, "step": 0, "query": episode.task.query.x}
    return episode.compared(output, batch, {**known, "model": lambda x: episode.output(step, x)})


def _moved_on(tensors: list[Tensor]) -> RandomState:
    """Draw a number and return the state of torch's generators, so that a model that sets a seed changes the state."""
    torch.rand(1, device=tensors[0].device if tensors else None)
    return random_state(tensors)


def _answer(episode: Episode, draws: Draws) -> None:
    """Run one task's model on its query set, and refuse writes."""
    x = pytree.tree_map_only(Tensor, Tensor.clone, episode.task.query.x)
    params = {name: p.detach() for name, p in _parameters(episode).items()}
    model, devices = episode.model.stateless.model, [p.device for p in params.values() if p.device.type == "cuda"]
    with torch.random.fork_rng(devices[:1]), without_kept_tensors(model), model_writes(model, params, x):
        _moved_on(list(params.values())[:1])
        with draws, FlagReads() as reads:
            episode.answer(episode.start.at({name: params[name] for name in episode.start.params}), x)
    episode.model.stateless.asks |= reads.seen


def _once_more(episode: Episode, before: RandomState, draws: Draws, used: list[str]) -> tuple[Run, Params, bool]:
    """Run on other tensors; return the output and the inner loss, the tensors, and whether Python state changed.

    Raises:
        ValueError: the loss no longer depends on all parameters that it depended on in the first run.
    """
    parts = {"model": episode.model.stateless.model, "loss": episode.inner_loss}
    start = {name: p.detach().clone().requires_grad_() for name, p in episode.start.params.items()}
    still = plain_state(parts)
    output, loss = _again(episode, before, draws, start)
    changing = plain_state(parts) != still
    with refused_out_of_place(episode.model.stateless.model):
        _refuse_remembered(episode.model.stateless.model, used, reached(loss, start))
    return (output, loss), start, changing


def _take_steps(episode: Episode, draws: Draws, loss: Tensor, start: Params) -> bool:
    """Run all steps of the update rule on the first step's gradient, and refuse writes to parameters.

    Returns:
        Whether the rule's Python state changed.
    """
    if not loss.requires_grad:
        return False
    with refused_out_of_place(episode.model.stateless.model):
        grads = torch.autograd.grad(loss, list(start.values()), allow_unused=True, retain_graph=True)
    given = {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(start.items(), grads, strict=True)}
    params = {name: p.detach() for name, p in start.items()}
    with torch.no_grad(), without_kept_tensors(episode.rule), rule_writes(episode.rule, params), draws:
        state, still = episode.rule.init(params), plain_state({"rule": episode.rule})
        for step in range(episode.steps):
            grads_now, inner = (
                {name: grad.clone() for name, grad in given.items()},
                episode.inner(episode.start, step, 1),
            )
            _, state = episode.rule(grads_now, params, state, step, inner)
        return plain_state({"rule": episode.rule}) != still


def _check_parts(episode: Episode, objective: Any, loss: Tensor, start: Params, second: bool) -> None:
    """Warn of unused parameters, and refuse losses and rules that do not fit the objective."""
    model = episode.model.stateless.model
    refuse_order(objective, learned := parameters_of(episode.inner_loss, episode.loss))
    if isinstance(objective, Implicit):
        objective.require_minimum(episode.rule, start)
    refuse_own_parameters(loss, {name: p for name, p in model.named_parameters() if name in start})
    with refused_out_of_place(model):
        check_dependence(loss, start, learned, second=second)


def _judge(episode: Episode) -> None:
    """Run the model and the outer loss on the query set."""
    query = episode.task.query
    with model_writes(episode.model.stateless.model, _parameters(episode), query.x):
        output = episode.answer(episode.start, query.x)[0]
    with RefusedBroadcasts(output, query.y):
        scalar(episode.loss(output, query.y))


Run = tuple[Any, Tensor]
"""The output and the inner loss."""


def _again(episode: Episode, before: RandomState, draws: Draws, params: Params) -> Run:
    """Run again with the same random numbers; return the output and the inner loss."""
    batch = episode.support(0)
    with random_numbers_from(before), draws:
        output = episode.output(step := episode.start.at(params), batch.x)
        return output, _compared(episode, output, batch, step)


def _require_same(first: Run, again: Run, episode: Episode, before: RandomState, draws: Draws, params: Params) -> None:
    """Refuse a model or a loss that gives another result in a second call, if results would then be wrong.

    Raises:
        ValueError: the model computes with tensors that it kept in attributes, or a result differs in the second call
            and ``memory="constant"`` computes it twice.
    """
    if _close(first, again):
        return
    kept = False
    if not _close(first[0], again[0]):
        with without_kept_tensors(episode.model.stateless.model):
            kept = _close(first[0], detach(_again(episode, before, draws, params)[0]))
    if kept:
        raise ValueError(
            f"{type(episode.model.stateless.model).__name__} computes with tensors that it keeps in attributes from "
            "one call to the next, which would be tensors of other tasks: make them buffers (self.register_buffer), "
            "so that each task has its own copy"
        )
    if episode.memory == "constant":
        what = "loss" if _close(first[0], again[0]) else "model"
        raise ValueError(
            f'memory="constant" recomputes inner steps in the backward pass, but the {what} gives another result when '
            "it is called again: keep what changes in a buffer (self.register_buffer), draw random numbers from "
            'torch\'s global generator, or give memory="graph"'
        )


def _warn_of_eval(episode: Episode, before: RandomState, draws: Draws, first: Run, trained: Modes) -> None:
    """Warn if a model predicts differently in eval mode from how it is meta-trained.

    That happens if a layer reads ``self.training``. It cannot be detected if the model draws random numbers in
    training.
    """
    off = [m for m, was in trained.items() if was and not m.training and not isinstance(m, (*NORMS, *DROPOUTS))]
    own = [m for m in off if not type(m).__module__.startswith(("torch.", "innerloop."))]
    if not own:
        return
    set_modes(off, [True] * len(off))
    try:
        with without_kept_tensors(episode.model.stateless.model), random_numbers_from(before), draws:
            other = detach(episode.output(episode.start, episode.support(0).x))
            drawn = not same_random_state(before, random_state(list(episode.start.params.values())))
        same = drawn or _close((first[0],), (other,))
    except Exception as error:  # the model may fail in training mode, which the caller has not used
        raise_interrupt_behind(error)
        return
    finally:
        set_modes(off, [False] * len(off))
    if not same:
        warnings.warn(
            f"{type(own[0]).__name__} gives other results in predictions, which turn training mode off, than in "
            "meta-training. If a layer uses running statistics in eval mode, meta-training has not updated them, since "
            "each task has its own buffers: build it on torch's batch norms, which follow statistics=, or make it do "
            "the same in both modes. If you want the difference, as for noise, ignore this warning",
            stacklevel=user_level(),
        )


Modes = dict[nn.Module, bool]
"""Whether each module is in training mode."""


def _close(first: Any, again: Any) -> bool:
    pairs = zip(pytree.tree_leaves(first), pytree.tree_leaves(again), strict=True)
    return all(a.shape == b.shape and torch.allclose(a, b, rtol=1e-5, atol=1e-7, equal_nan=True) for a, b in pairs)


def _refuse_remembered(model: nn.Module, first: list[str], again: list[str]) -> None:
    """Refuse a model that caches what it computed from its parameters for later calls with other parameters.

    Raises:
        ValueError: the loss of a second call, with other tensors, depends on fewer parameters than that of the first.
    """
    if lost := [name for name in first if name not in again]:
        raise ValueError(
            f"{type(model).__name__} keeps what it computed from {lost[0]!r} for the next call, so it would not see "
            "the updates of inner steps: compute it in every forward, and keep no results of parameters in attributes "
            "(such as functools.cached_property)"
        )


def _separable(episode: Episode, draws: Draws) -> bool:
    """Return whether copies of the model can run in separate threads."""
    params = {name: p.detach().requires_grad_() for name, p in _parameters(episode).items()}

    def call() -> Any:
        with draws:
            return episode.model.stateless(
                params, episode.model.buffers_at(episode.start.buffers, 0), episode.support().x
            )

    return independent(episode.model.stateless.model, call)
