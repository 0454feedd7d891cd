"""The inner loop, which exists once: one task's path of parameters under an update rule.

`Episode` is one task with everything that adapting to it takes. `Episode.step` takes one inner step, from one value to
the next, and `Episode.path` folds it. Training objectives, evaluation, adaptation to one's own data and reinforcement
learning all walk it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .functional.contracts import without_kept_tensors
from .functional.quick import hidden_from_modes
from .functional.stacks import recomputed, value_and_gradient
from .functional.stand_ins import mine
from .functional.stateless import Precision, Statistics
from .functional.writes import OwnParameters
from .operations.kernels import unread_gradients
from .padding import averaged
from .rules import UpdateRule
from .task import Batch, Params, Task, rows
from .task_model import TaskModel

Loss = Callable[..., Tensor]
"""``(output, y) -> scalar``, averaged over examples. An ``nn.Module`` brings its parameters to be meta-learned."""

Memory = Literal["graph", "constant"]
"""What is kept of an inner step for the backward pass: its graph, or only the parameters that it started from."""


def check_known(
    steps: int, batch_size: int | None, statistics: Statistics, memory: Memory, precision: Precision
) -> None:
    """Refuse numbers that are none, and words that are not among those known.

    Raises:
        ValueError: one is.
    """
    for name, number, least in (("steps", steps, 0), ("batch_size", batch_size, 1)):
        if number is not None and (not isinstance(number, int) or number < least):
            raise ValueError(f"{name} is an integer of at least {least}, got {number}")
    words: tuple[tuple[str, str, Any], ...] = (
        ("statistics", statistics, Statistics), ("memory", memory, Memory), ("precision", precision, Precision)
    )  # fmt: skip
    for name, given, kinds in words:
        if given not in (known := get_args(kinds)):
            raise ValueError(f"{name} is {' or '.join(map(json.dumps, known))}, got {given!r}")


def detach(tensors: Any) -> Any:
    """A pytree of tensors, cut from the graph."""
    if type(tensors) is dict and all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        with hidden_from_modes(tensors.values()):
            return {name: tensor.detach() for name, tensor in tensors.items()}
    return pytree.tree_map_only(Tensor, Tensor.detach, tensors)


def anew(params: Params) -> Params:
    """The same values as new nodes of the graph, so that a gradient by one does not run through another."""
    return {name: tensor.view_as(tensor) for name, tensor in params.items()}


@dataclass(frozen=True)
class Step:
    """A place on a task's path: its start, or where an inner step led.

    Attributes:
        params: the adapted parameters.
        buffers: the task's own copy of the model's buffers.
        index: the number of inner steps that led here.
        state: of the update rule; ``None`` at the start.
        loss: the inner loss before the step, a scalar; ``None`` at the start.
        output: the model's output on the support examples that this loss is of; ``None`` at the start.
        losses: the inner losses before all steps that led here, detached.
    """

    params: Params
    buffers: Params
    index: int = 0
    state: Any = None
    loss: Tensor | None = None
    output: Any = None
    losses: tuple[Tensor, ...] = ()

    @property
    def latest(self) -> int:
        """The index of the inner step that led here (0 at the start), by whose own norms examples are judged."""
        return max(self.index - 1, 0)

    def at(self, params: Params) -> Step:
        """The same place with other parameters."""
        return replace(self, params=params)

    def detached(self) -> Step:
        """The same place, cut from the graph."""
        params, buffers, state, loss, output = detach((self.params, self.buffers, self.state, self.loss, self.output))
        return replace(self, params=params, buffers=buffers, state=state, loss=loss, output=output)

    def kept(self) -> Step:
        """A copy of the place, cut from the graph, with what the path needs to go on from it."""
        parts = self.params, self.buffers, self.state, self.losses
        params, buffers, state, losses = pytree.tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), parts)
        return Step(params, buffers, self.index, state, losses=losses)


class Query(NamedTuple):
    """What the query set says of a place on the path.

    Attributes:
        step: the place; running statistics that it has of its own have seen the query set.
        loss: the outer loss, a scalar.
        output: the model's output that it was computed from.
    """

    step: Step
    loss: Tensor
    output: Any


@dataclass(frozen=True)
class InnerLoss:
    """The inner loss of one inner step, on its mini-batch, as a function of the adapted parameters.

    A rule whose ``forward`` has a keyword ``inner`` is given it, and may ask for the loss and its gradient elsewhere.
    """

    episode: Episode
    buffers: Params
    index: int
    batch: Batch
    order: int = 2

    def loss(self, params: Params) -> Tensor:
        """The loss, a scalar: a constant where the step is of first order."""
        loss = self._loss(*self._inputs(params))[0]
        return loss if self.order == 2 else loss.detach()

    def gradient(self, params: Params) -> Params:
        """Its gradient by the adapted parameters: a constant where the step is of first order."""
        return self.differentiated(anew(params))[0]  # one of them may have been computed from another

    def differentiated(self, params: Params) -> tuple[Params, Tensor, tuple[Any, Params]]:
        """The gradient and the loss, and of the call of the model the output and the module's buffers after it."""
        if "start" in self.episode.extras:  # before the first step, the parameters are the start
            params = anew(params)
        inputs, episode = self._inputs(params), self.episode
        if self.order == 1 or episode.memory == "graph" or not torch.is_grad_enabled():
            return self._gradient(self.order, *inputs)
        again = episode.model.stateless.as_now()
        return recomputed(  # type: ignore[no-any-return]
            self._gradient, inputs, episode.learned(), again, unread_gradients, len(params)
        )

    def _inputs(self, params: Params) -> tuple[Any, ...]:
        """All tensors that the loss depends on, but for meta-parameters that its module or the model hold."""
        episode, model = self.episode, self.episode.model
        start = episode.start.params if "start" in episode.extras else None
        query = episode.task.query.x if "query" in episode.extras else None
        fixed, buffers = model.fixed_at(self.index), model.buffers_at(self.buffers, self.index)
        return params, self.batch, fixed, buffers, start, query

    def _gradient(self, order: int, params: Params, *inputs: Any) -> tuple[Params, Tensor, tuple[Any, Params]]:
        def inner(at: Params) -> tuple[Tensor, tuple[Any, Params]]:
            return self._loss(at, *inputs)

        return value_and_gradient(inner, params, order)

    def _loss(
        self, params: Params, batch: Batch, fixed: Params, buffers: Params, start: Params | None, query: Any
    ) -> tuple[Tensor, tuple[Any, Params]]:
        episode, model = self.episode, self.episode.model.stateless
        output, after = model({**fixed, **params}, buffers, batch.x)
        known: dict[str, Any] = {"params": params, "start": start, "step": self.index, "query": query}
        known["model"] = lambda x: model({**fixed, **params}, buffers, x)[0]
        # What the loss is given it may compute with, also where it is the model's own, as at the start of the path.
        given = {id(tensor) for tensor in (*params.values(), *(start or {}).values())} if episode.extras else ()
        own = {name: model.parameters[name] for name in params}
        with OwnParameters({name: tensor for name, tensor in own.items() if id(tensor) not in given}):
            return episode.compared(output, batch, known), (output, after)


@dataclass(frozen=True)
class Episode:
    """One task with all that it takes to adapt to it and to judge the result: a value, with pure functions of a `Step`.

    Attributes:
        model: as this task has it.
        rule: moves the adapted parameters.
        loss: the outer loss.
        inner_loss: what inner steps descend.
        task: its support and its query set.
        start: where the path begins; its parameters are connected to the meta-parameters.
        steps: the number K of inner steps.
        iteration: the outer iteration, for schedules.
        batch_size: support examples per inner step, taken in order and cyclically; ``None`` takes them all.
        memory: what is kept of an inner step for the backward pass.
        extras: what the inner loss asks for beside output and targets; see `innerloop.losses.extras_of`.
    """

    model: TaskModel
    rule: UpdateRule
    loss: Loss
    inner_loss: Loss
    task: Task
    start: Step
    steps: int
    iteration: int = 0
    batch_size: int | None = None
    memory: Memory = "graph"
    extras: tuple[str, ...] = ()

    # -- the path -----------------------------------------------------------------------------------------------------

    def step(self, previous: Step, order: int = 2) -> Step:
        """Take one inner step.

        Args:
            previous: where from.
            order: 2 keeps the whole graph; 1 takes the update as a constant of the parameters (Finn et al. 2017,
                section 5.2), though not of the rule's own parameters, and the loss and the output as constants.

        Raises:
            ValueError: ``order`` is neither.
        """
        if order not in (1, 2):
            raise ValueError(f"order is 1 or 2, got {order!r} at iteration {self.iteration}")
        index, params = previous.index, previous.params
        seen = params if order == 2 else detach(params)
        state = self.rule.init(seen) if index == 0 else previous.state
        inner = InnerLoss(self, previous.buffers, index, self.support(index), order)
        grads, loss, (output, after) = inner.differentiated(params)
        # Buffers move with the graph of what they were computed of, as they would in a loop written by hand.
        if not (order == 2 and torch.is_grad_enabled()):
            loss, output, after = detach((loss, output, after))
        updates, state = self.rule(grads, seen, state, index, inner)
        with hidden_from_modes((*params.values(), *updates.values())):
            params = {name: param + updates[name] for name, param in params.items()}
        buffers = self.model.renewed(previous.buffers, after, index)
        return Step(params, buffers, index + 1, state, loss, output, (*previous.losses, loss.detach()))

    def path(
        self, order: int | Sequence[int] = 2, steps: int | None = None, start: Step | None = None
    ) -> Iterator[Step]:
        """Yield where each inner step leads.

        Args:
            order: as of `step`: one for all, or one for each step.
            steps: how many; those of the episode if not given.
            start: where from; the start of the episode if not given.

        Raises:
            ValueError: there is not one order for each step.
        """
        step, number = start or self.start, self.steps if steps is None else steps
        orders = [order] * number if isinstance(order, int) else list(order)
        if len(orders) != number:
            raise ValueError(f"{number} inner steps need one order, or one for each step; got {orders}")
        for each in orders:
            step = self.step(step, each)
            yield step

    def last(self, order: int | Sequence[int] = 2, steps: int | None = None, start: Step | None = None) -> Step:
        """Where the last of these steps leads; the start itself if there is none."""
        step = start or self.start
        for step in self.path(order, steps, start):  # noqa: B007 - only the end of the path is wanted
            pass
        return step

    # -- what is asked of a place on it -------------------------------------------------------------------------------

    def output(self, step: Step, x: Any) -> Any:
        """The model's output on ``x``."""
        return self.model(step.params, step.buffers, x, step.latest)[0]

    def answer(self, step: Step, x: Any) -> tuple[Any, Params]:
        """The model's output on other examples than the support set's, and the task's buffers after it."""
        if self.model.joint:
            return self.beside_support(step, x)
        return self.model(step.params, step.buffers, x, step.latest)

    def beside_support(self, step: Step, x: Any) -> tuple[Any, Params]:
        """The same, the model being handed the support set and ``x`` in one batch."""
        return self.model.beside(self.task.support.x, step.params, step.buffers, x, step.latest)

    def support(self, index: int | None = None) -> Batch:
        """The support examples of an inner step: all of them, or the step's mini-batch."""
        if index is None or self.batch_size is None:
            return self.task.support
        total = rows((self.task.support.x, self.task.support.y))
        chosen = [(index * self.batch_size + i) % total for i in range(min(self.batch_size, total))]
        return Batch(*pytree.tree_map_only(Tensor, lambda leaf: leaf[chosen], tuple(self.task.support)))

    def support_loss(self, step: Step, index: int | None = None) -> Tensor:
        """The inner loss on the whole support set, or on the mini-batch of an inner step; a scalar."""
        return InnerLoss(self, step.buffers, step.latest, self.support(index)).loss(step.params)

    def inner(self, step: Step, index: int | None = None, order: int = 2) -> InnerLoss:
        """The inner loss as a function of the adapted parameters, at a place on the path.

        Args:
            step: the place.
            index: of an inner step, for its mini-batch and what it has of its own; ``None`` for the whole support set
                and what the step that led here has.
            order: 1 takes the loss and its gradients as constants.
        """
        number = step.latest if index is None else index
        return InnerLoss(self, step.buffers, number, self.support(index), order)

    def compared(self, output: Any, batch: Batch, known: Mapping[str, Any]) -> Tensor:
        """The inner loss of an output on examples, a scalar, which gets what it asks for of what is known."""
        return scalar(averaged(self.inner_loss, output, batch, **{name: known[name] for name in self.extras}))

    def query(self, step: Step) -> Query:
        """The outer loss on the query set."""
        with without_kept_tensors(mine(self.model.stateless.model)):  # later steps go on from what earlier steps left
            output, after = self.answer(step, self.task.query.x)
            buffers = self.model.seen(step.buffers, after, step.latest)
            return Query(replace(step, buffers=buffers), scalar(averaged(self.loss, output, self.task.query)), output)

    def learned(self) -> list[Tensor]:
        """The meta-parameters that the graph of an inner loss may reach by itself.

        These are the parameters of a loss module, and the model's own, which a loss that is a function may use.
        """
        parameters = self.inner_loss.parameters() if isinstance(self.inner_loss, nn.Module) else ()
        own = self.model.stateless.model.parameters()
        return [p for p in dict.fromkeys((*own, *parameters)) if p.requires_grad]


def scalar(loss: Tensor) -> Tensor:
    """Return a loss, which must be a scalar.

    Raises:
        ValueError: it has axes.
    """
    if loss.ndim:
        raise ValueError(f"a loss must average to one scalar, got shape {tuple(loss.shape)}: use reduction='mean'")
    return loss
