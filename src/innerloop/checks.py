"""What a learner finds out on its first task: which parts have no part in adapting."""

from __future__ import annotations

import dataclasses
import warnings
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .checkpointing import refused_out_of_place
from .contracts import RefusedBroadcasts, RefusedWrites
from .inner import Episode, Loss, scalar
from .task import Params
from .threads import independent


def require_tensors(output: Any) -> None:
    """Refuse what a model returns beside tensors, which cannot be put together for all tasks.

    Raises:
        TypeError: there is something, such as a cache.
    """
    for leaf in pytree.tree_leaves(output):
        if not isinstance(leaf, Tensor):
            raise TypeError(
                f"the model's {type(output).__name__} has a {type(leaf).__name__} in it, but outputs are tensors, or "
                'tuples, lists and dicts of them; give output= the name of the part that is meant, such as "logits"'
            )


def examine(episode: Episode, judged: bool, objective: Any = None) -> tuple[bool, bool]:
    """Run one task's model and losses once, and refuse what would be wrong without an error later on.

    Args:
        episode: a task's, which is not changed.
        judged: whether the outer loss is computed, too.
        objective: the learner's, the first time: then what has no part in adapting is named as well.

    Returns:
        Whether the model or the inner loss draws random numbers, and whether copies of the model can run in threads of
        their own.

    Raises:
        ValueError: the model writes to its own parameters, or a loss broadcasts targets against outputs.
        TypeError: the model's output has something in it that is not a tensor.
    """
    start = {name: p.detach().clone().requires_grad_() for name, p in episode.start.items()}
    own = dataclasses.replace(
        episode,
        start=start,
        fixed={name: p.detach().clone() for name, p in episode.fixed.items()},
        task=pytree.tree_map_only(Tensor, Tensor.clone, episode.task),
    )
    model, batch, params = own.model.model, own.support(0), {**own.fixed, **start}
    devices = {p.device for p in start.values() if p.device.type == "cuda"}
    with torch.random.fork_rng(list(devices)):
        before = torch.get_rng_state()
        with RefusedWrites(model, params, batch.x):
            require_tensors(output := own.output(start, batch.x))
        with RefusedBroadcasts(output, batch.y):
            loss = scalar(own.inner_loss(output, batch.y))
        random = not torch.equal(before, torch.get_rng_state())
        if judged:
            with RefusedWrites(model, params, own.task.query.x):
                output = own.answer(start, own.task.query.x)[0]
            with RefusedBroadcasts(output, own.task.query.y):
                scalar(own.loss(output, own.task.query.y))
        if objective is None:
            return random, True
        refuse_remembered(own, loss, start)
        refuse_order(objective, learned := parameters_of(own.inner_loss, own.loss))
        with refused_out_of_place(model):
            check_dependence(loss, start, learned)
        return random, _separable(own)


def refuse_remembered(episode: Episode, loss: Tensor, start: Params) -> None:
    """Refuse a model that keeps what it computed of its parameters for later calls, which have others.

    Args:
        episode: of one task, whose model was called once.
        loss: of that call, a scalar.
        start: the parameters that it was called with.

    Raises:
        ValueError: a loss of the next call does not depend on parameters that this one depends on.
    """
    batch, later = episode.support(0), {name: p.detach().clone().requires_grad_() for name, p in start.items()}
    again = episode.inner_loss(episode.output(later, batch.x), batch.y)
    if not loss.requires_grad:
        return
    every = [
        torch.autograd.grad(value, list(by.values()), retain_graph=True, allow_unused=True)
        if value.requires_grad
        else [None] * len(by)
        for value, by in ((loss, start), (again, later))
    ]
    for name, first, second in zip(start, *every, strict=True):
        if first is not None and second is None:
            raise ValueError(
                f"{type(episode.model.model).__name__} keeps what it computed of {name!r} from one call for the next, "
                "so it would not see what inner steps do: compute it in every forward, and keep nothing of parameters "
                "in attributes (functools.cached_property is one)"
            )


def _separable(episode: Episode) -> bool:
    """Whether copies of the model can run in threads of their own."""
    params = {name: p.detach().requires_grad_() for name, p in {**episode.fixed, **episode.start}.items()}
    return independent(episode.model.model, lambda: episode.model(params, episode.buffers, episode.support().x))


def check_dependence(loss: Tensor, start: Params, learned: Params) -> None:
    """Name the adapted parameters that an inner loss does not depend on, and the parameters of a learned loss that its
    gradient does not depend on, which the meta-gradient therefore cannot reach.

    Args:
        loss: of one task at its start, a scalar.
        start: the adapted parameters there.
        learned: the parameters of the inner loss, where it is a module.

    Raises:
        ValueError: it depends on none of the adapted parameters.
    """
    by = list(start.values())
    graph = bool(learned)
    grads = torch.autograd.grad(loss, by, create_graph=graph, allow_unused=True) if loss.requires_grad else ()
    unused = [name for name, grad in zip_longest(start, grads) if grad is None]
    if len(unused) == len(start):
        raise ValueError(f"the inner loss depends on none of the adapted parameters: {', '.join(start)}")
    if unused:
        warnings.warn(
            f"the inner loss does not depend on {', '.join(unused)}: these get an update of zero. Leave them out "
            f"of adapt= if that is meant, e.g. adapt=il.everything - il.named({unused[0]!r})",
            stacklevel=5,
        )
    size = torch.stack([(grad * grad.conj()).real.sum() for grad in grads if grad is not None]).sum()
    by = list(learned.values())
    reach = torch.autograd.grad(size, by, allow_unused=True) if by and size.requires_grad else [None] * len(by)
    if lost := [name for name, grad in zip(learned, reach, strict=True) if grad is None]:
        warnings.warn(
            f"the gradient of the learned inner loss does not depend on its {', '.join(lost)}, which no meta-gradient "
            "therefore reaches. What is only added to a loss, for one, has no part in its gradient",
            stacklevel=5,
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
