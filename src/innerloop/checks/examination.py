"""What a learner finds out on its first task of some shapes, before it runs any."""

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
    """What a learner does with a task; from the second member on, each member includes those before it.

    The members are: run the model on the query set, take inner steps, compute the outer loss, and take second
    derivatives for a meta-gradient.
    """

    ANSWER, ADAPT, JUDGE, DIFFERENTIATE = range(4)


def judging(objective: Any) -> Use:
    """What it takes to judge by an objective."""
    second = objective.order != 1 if isinstance(objective, Unrolled) else isinstance(objective, Implicit)
    return Use.DIFFERENTIATE if second else Use.JUDGE


class Found(NamedTuple):
    """The result of an examination of a learner's parts.

    It says whether random numbers are drawn, whether a part changes Python state when it is called, and whether copies
    of the model can run in several threads.
    """

    random: bool = False
    changing: bool = False
    separable: bool = True


def examine(episode: Episode, use: Use, draws: Draws, trained: Modes, objective: Any = None) -> Found:
    """Run one task's model and losses once, and refuse what would be wrong without an error later on.

    Args:
        episode: a task's, which is not changed.
        use: what will be done with tasks.
        draws: notes how random numbers are drawn.
        trained: the modes that the model's parts have in meta-training.
        objective: what they will be judged by, the first time that they are put to this use: then update steps and
            unused parameters are checked, too.

    Raises:
        ValueError: something writes to parameters, a loss broadcasts, or ``memory="constant"`` would lose a gradient.
        TypeError: the model's output has something in it that is not a tensor.
    """
    if use == Use.ANSWER:
        _answer(episode, draws)
        return Found()
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
        return Found(random, changing, objective is None or _separable(own, draws))


def _known(episode: Episode, own: Episode, start: Params) -> list[Tensor]:
    """The tensors through which a recomputed inner gradient hands gradients on."""
    tensors = tensors_of((*episode.task, episode.start.buffers, getattr(episode.model, "slots", {})))
    given = [leaf for tensor in tensors if tensor.requires_grad for leaf in (tensor, *leaves_of(tensor))]
    return [*start.values(), *own.start.params.values(), *own.learned(), *given]


def _apart(episode: Episode) -> Episode:
    """The same on tensors of its own, which require gradients where they are adapted."""
    return dataclasses.replace(
        episode,
        start=episode.start.at({n: p.detach().clone().requires_grad_() for n, p in episode.start.params.items()}),
        model=dataclasses.replace(
            episode.model, fixed={name: p.detach().clone() for name, p in episode.model.fixed.items()}
        ),
        task=pytree.tree_map_only(Tensor, Tensor.clone, episode.task),
    )


def _first(episode: Episode, draws: Draws) -> Run:
    """The output and the inner loss of the first step, under watch.

    Raises:
        ValueError: something writes to parameters, a loss broadcasts, or ``memory="constant"`` could not repeat it.
        TypeError: the model's output has something in it that is not a tensor.
    """
    model, batch = episode.model.stateless.model, episode.support(0)
    with draws:
        writes = model_writes(model, _parameters(episode), batch.x)
        with writes, RefusedReentrant(model, _learned(episode)), FlagReads() as reads:
            require_tensors(output := episode.output(episode.start, batch.x))
        episode.model.stateless.asks |= reads.found
        with RefusedBroadcasts(output, batch.y):
            loss = _compared(episode, output, batch, episode.start)
    if episode.memory == "constant" and draws.error is not None and not draws.error.repeats:
        raise ValueError(
            f'memory="constant" computes inner steps again in the backward pass, but {type(model).__name__} or its '
            f"loss {draws.error.how}, which would give others then: draw them from torch's global generator "
            '(torch.rand), or give memory="graph"'
        ) from draws.error
    return output, loss


def _learned(episode: Episode) -> list[Tensor]:
    """The tensors on which the model runs that gradients may be taken by."""
    own, fixed = episode.model.stateless.parameters, episode.model.fixed_at(0)
    return [*episode.start.params.values(), *(p for n, p in fixed.items() if n in own and own[n].requires_grad)]


def _parameters(episode: Episode) -> Params:
    """All parameters of the model at the start."""
    return episode.model.parameters(episode.start.params, 0)


def _compared(episode: Episode, output: Any, batch: Batch, step: Step) -> Tensor:
    """The inner loss of an output of the support set."""
    known = {"params": step.params, "start": episode.start.params, "step": 0, "query": episode.task.query.x}
    return episode.compared(output, batch, {**known, "model": lambda x: episode.output(step, x)})


def _moved_on(tensors: list[Tensor]) -> RandomState:
    """The state of torch's generators after a draw, which is that of no seed: a model that sets one changes it."""
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
    episode.model.stateless.asks |= reads.found


def _once_more(episode: Episode, before: RandomState, draws: Draws, used: list[str]) -> tuple[Run, Params, bool]:
    """The same on other tensors: the output and the inner loss, the tensors, and whether Python state changed.

    Raises:
        ValueError: the loss no longer depends on what it used.
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
    """Name what has no part in adapting, and refuse what the inner loop would leave out."""
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
    """The same once more, with the same random numbers."""
    batch = episode.support(0)
    with random_numbers_from(before), draws:
        output = episode.output(step := episode.start.at(params), batch.x)
        return output, _compared(episode, output, batch, step)


def _require_same(first: Run, again: Run, episode: Episode, before: RandomState, draws: Draws, params: Params) -> None:
    """Refuse what depends on how often it was computed where tasks, or the backward pass, would be wrong then.

    Raises:
        ValueError: the model computes with tensors that it kept in attributes, or something is not the same the second
            time and ``memory="constant"`` computes it twice.
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
            "one call to the next, which would be those of other tasks: make them buffers (self.register_buffer), of "
            "which each task has its own"
        )
    if episode.memory == "constant":
        what = "loss" if _close(first[0], again[0]) else "model"
        raise ValueError(
            f'memory="constant" computes inner steps again in the backward pass, and the {what} gives something else '
            "when it is called again: keep what changes in a buffer (self.register_buffer), draw random numbers by "
            'torch\'s global generator, or give memory="graph"'
        )


def _warn_of_eval(episode: Episode, before: RandomState, draws: Draws, first: Run, trained: Modes) -> None:
    """Warn if a model in eval mode predicts differently from how it is meta-trained.

    A layer that reads ``self.training`` does so. The difference cannot be detected if the model draws random numbers in
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
    except Exception as error:  # whatever it does in training, which nobody has asked for yet
        raise_interrupt_behind(error)
        return
    finally:
        set_modes(off, [False] * len(off))
    if not same:
        warnings.warn(
            f"{type(own[0]).__name__} gives something else in predictions, which turn training mode off, than in "
            "meta-training. If a layer goes by running statistics then, these have not moved, since buffers are a "
            "task's own: build it on torch's batch norms, which follow statistics=, or have it do the same in both "
            "modes. If the difference is meant, as for noise, all is well",
            stacklevel=user_level(),
        )


Modes = dict[nn.Module, bool]
"""Of modules, whether they are in training mode."""


def _close(first: Any, again: Any) -> bool:
    pairs = zip(pytree.tree_leaves(first), pytree.tree_leaves(again), strict=True)
    return all(a.shape == b.shape and torch.allclose(a, b, rtol=1e-5, atol=1e-7, equal_nan=True) for a, b in pairs)


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


def _separable(episode: Episode, draws: Draws) -> bool:
    """Whether copies of the model can run in threads of their own."""
    params = {name: p.detach().requires_grad_() for name, p in _parameters(episode).items()}

    def call() -> Any:
        with draws:
            return episode.model.stateless(
                params, episode.model.buffers_at(episode.start.buffers, 0), episode.support().x
            )

    return independent(episode.model.stateless.model, call)
