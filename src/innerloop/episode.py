"""The inner loop: the path of one task's parameters under an update rule.

`Episode` is one task with everything that is needed to adapt to it. `Episode.step` takes one inner step and
`Episode.path` all of them. Objectives, evaluation, adaptation and reinforcement learning all use this code.
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
"""``(output, y) -> scalar``, averaged over examples. The parameters of an ``nn.Module`` are meta-learned."""

Memory = Literal["graph", "constant"]
"""What the backward pass keeps of an inner step: its graph, or only the parameters that it started from."""


def check_known(
    steps: int, batch_size: int | None, statistics: Statistics, memory: Memory, precision: Precision
) -> None:
    """Check numbers and words among the arguments of a learner.

    Raises:
        ValueError: a number is too small or not an integer, or a word is unknown.
    """
    for name, number, least in (("steps", steps, 0), ("batch_size", batch_size, 1)):
        if number is not None and (not isinstance(number, int) or number < least):
            raise ValueError(f"{name} must be an integer of at least {least}, got {number}")
    words: tuple[tuple[str, str, Any], ...] = (
        ("statistics", statistics, Statistics), ("memory", memory, Memory), ("precision", precision, Precision)
    )  # fmt: skip
    for name, given, kinds in words:
        if given not in (known := get_args(kinds)):
            raise ValueError(f"{name} must be {' or '.join(map(json.dumps, known))}, got {given!r}")


def detach(tensors: Any) -> Any:
    """Detach a pytree of tensors from the graph."""
    if type(tensors) is dict and all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        with hidden_from_modes(tensors.values()):
            return {name: tensor.detach() for name, tensor in tensors.items()}
    return pytree.tree_map_only(Tensor, Tensor.detach, tensors)


def anew(params: Params) -> Params:
    """Return the same values as new nodes of the graph, so that a gradient by one does not run through another."""
    return {name: tensor.view_as(tensor) for name, tensor in params.items()}


@dataclass(frozen=True)
class Step:
    """A point on a task's path: its start, or the result of an inner step.

    Attributes:
        params: the adapted parameters.
        buffers: the task's own copy of the model's buffers.
        index: the number of inner steps so far.
        state: the state of the update rule; ``None`` at the start.
        loss: the inner loss before the last step, a scalar; ``None`` at the start.
        output: the model's output on the support examples of this loss; ``None`` at the start.
        losses: the inner losses before each of the steps so far, detached.
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
        """The index of the last inner step (0 at the start), whose per-step norms predictions use."""
        return max(self.index - 1, 0)

    def at(self, params: Params) -> Step:
        """Return the same point with other parameters."""
        return replace(self, params=params)

    def detached(self) -> Step:
        """Return the same point, detached from the graph."""
        params, buffers, state, loss, output = detach((self.params, self.buffers, self.state, self.loss, self.output))
        return replace(self, params=params, buffers=buffers, state=state, loss=loss, output=output)

    def kept(self) -> Step:
        """A copy of the place, cut from the graph, with what the path needs to go on from it."""
        parts = self.params, self.buffers, self.state, self.losses
        params, buffers, state, losses = pytree.tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), parts)
        return Step(params, buffers, self.index, state, losses=losses)


class Query(NamedTuple):
    """The result on the query set at a point of the path.

    Attributes:
        step: the point; its per-step running statistics, if any, have seen the query set.
        loss: the outer loss, a scalar.
        output: the model's output that the loss was computed from.
    """

    step: Step
    loss: Tensor
    output: Any


@dataclass(frozen=True)
class InnerLoss:
    """The inner loss of one inner step, on its mini-batch, as a function of the adapted parameters.

    A rule whose ``forward`` has a keyword ``inner`` gets it, and can compute the loss and its gradient at other points.
    """

    episode: Episode
    buffers: Params
    index: int
    batch: Batch
    order: int = 2

    def loss(self, params: Params) -> Tensor:
        """Return the loss, a scalar; it is a constant if the step is first-order."""
        loss = self._loss(*self._inputs(params))[0]
        return loss if self.order == 2 else loss.detach()

    def gradient(self, params: Params) -> Params:
        """Return its gradient with respect to the adapted parameters; it is a constant if the step is first-order."""
        return self.differentiated(anew(params))[0]  # one of them may have been computed from another

    def differentiated(self, params: Params) -> tuple[Params, Tensor, tuple[Any, Params]]:
        """Return the gradient, the loss, and the pair of the model's output and the module's buffers after the call."""
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
        """Return all tensors that the loss depends on, except meta-parameters that its module or the model hold."""
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
        # The loss may compute with its arguments, even if they are the model's own, as at the start of the path.
        given = {id(tensor) for tensor in (*params.values(), *(start or {}).values())} if episode.extras else ()
        own = {name: model.parameters[name] for name in params}
        with OwnParameters({name: tensor for name, tensor in own.items() if id(tensor) not in given}):
            return episode.compared(output, batch, known), (output, after)


@dataclass(frozen=True)
class Episode:
    """One task with everything that is needed to adapt to it and to evaluate the result.

    It is immutable; its methods are pure functions of a `Step`.

    Attributes:
        model: the model on this task.
        rule: moves the adapted parameters.
        loss: the outer loss.
        inner_loss: the loss that inner steps minimize.
        task: the support and the query set.
        start: where the path begins; its parameters are connected to the meta-parameters.
        steps: the number K of inner steps.
        iteration: the outer iteration, for schedules.
        batch_size: support examples per inner step, taken in order and cyclically; ``None`` takes all of them.
        memory: what the backward pass keeps of an inner step.
        extras: the keyword-only parameters of the inner loss; see `innerloop.losses.extras_of`.
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
            previous: the point to start from.
            order: 2 keeps the whole graph. 1 treats the loss, the output and the gradient as constants, so that the
                update depends on the rule's own parameters alone (Finn et al. 2017, section 5.2).

        Raises:
            ValueError: ``order`` is neither 1 nor 2.
        """
        if order not in (1, 2):
            raise ValueError(f"order must be 1 or 2, got {order!r} at iteration {self.iteration}")
        index, params = previous.index, previous.params
        seen = params if order == 2 else detach(params)
        state = self.rule.init(seen) if index == 0 else previous.state
        inner = InnerLoss(self, previous.buffers, index, self.support(index), order)
        grads, loss, (output, after) = inner.differentiated(params)
        # Buffers keep the graph of what they were computed from, as they would in a loop written by hand.
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
        """Yield the result of each inner step.

        Args:
            order: as in `step`: one for all, or one for each step.
            steps: the number of steps; by default that of the episode.
            start: the point to start from; by default the start of the episode.

        Raises:
            ValueError: the number of orders is not the number of steps.
        """
        step, number = start or self.start, self.steps if steps is None else steps
        orders = [order] * number if isinstance(order, int) else list(order)
        if len(orders) != number:
            raise ValueError(f"{number} inner steps need one order, or one for each step; got {orders}")
        for each in orders:
            step = self.step(step, each)
            yield step

    def last(self, order: int | Sequence[int] = 2, steps: int | None = None, start: Step | None = None) -> Step:
        """Return the result of the last of these steps; the start itself if there are none."""
        step = start or self.start
        for step in self.path(order, steps, start):  # noqa: B007 - only the end of the path is wanted
            pass
        return step

    # -- evaluations at a point of the path ---------------------------------------------------------------------------

    def output(self, step: Step, x: Any) -> Any:
        """Return the model's output on ``x``."""
        return self.model(step.params, step.buffers, x, step.latest)[0]

    def answer(self, step: Step, x: Any) -> tuple[Any, Params]:
        """Return the model's output on examples outside of the support set, and the task's buffers after the call."""
        if self.model.joint:
            return self.beside_support(step, x)
        return self.model(step.params, step.buffers, x, step.latest)

    def beside_support(self, step: Step, x: Any) -> tuple[Any, Params]:
        """Return the same, calling the model on the support set and ``x`` in one batch."""
        return self.model.beside(self.task.support.x, step.params, step.buffers, x, step.latest)

    def support(self, index: int | None = None) -> Batch:
        """Return the support examples of an inner step: all of them, or the step's mini-batch."""
        if index is None or self.batch_size is None:
            return self.task.support
        total = rows((self.task.support.x, self.task.support.y))
        chosen = [(index * self.batch_size + i) % total for i in range(min(self.batch_size, total))]
        return Batch(*pytree.tree_map_only(Tensor, lambda leaf: leaf[chosen], tuple(self.task.support)))

    def support_loss(self, step: Step, index: int | None = None) -> Tensor:
        """Return the inner loss on the whole support set, or on the mini-batch of an inner step; a scalar."""
        return InnerLoss(self, step.buffers, step.latest, self.support(index)).loss(step.params)

    def inner(self, step: Step, index: int | None = None, order: int = 2) -> InnerLoss:
        """Return the inner loss as a function of the adapted parameters, at a point of the path.

        Args:
            step: the point.
            index: the inner step whose mini-batch and per-step norms are used; ``None`` uses the whole support set and
                the norms of the last step.
            order: 1 treats the loss and its gradients as constants.
        """
        number = step.latest if index is None else index
        return InnerLoss(self, step.buffers, number, self.support(index), order)

    def compared(self, output: Any, batch: Batch, known: Mapping[str, Any]) -> Tensor:
        """Return the inner loss of an output on examples, a scalar.

        Args:
            output: the model's output.
            batch: the examples.
            known: values by name, from which the loss gets its keyword-only parameters.
        """
        return scalar(averaged(self.inner_loss, output, batch, **{name: known[name] for name in self.extras}))

    def query(self, step: Step) -> Query:
        """Return the outer loss and the output on the query set."""
        with without_kept_tensors(mine(self.model.stateless.model)):  # later steps continue from what the model kept
            output, after = self.answer(step, self.task.query.x)
            buffers = self.model.seen(step.buffers, after, step.latest)
            return Query(replace(step, buffers=buffers), scalar(averaged(self.loss, output, self.task.query)), output)

    def learned(self) -> list[Tensor]:
        """Return the meta-parameters that an inner loss may use without getting them as arguments.

        These are the parameters of a loss module, and the model's own, which a loss function may refer to.
        """
        parameters = self.inner_loss.parameters() if isinstance(self.inner_loss, nn.Module) else ()
        own = self.model.stateless.model.parameters()
        return [p for p in dict.fromkeys((*own, *parameters)) if p.requires_grad]


def scalar(loss: Tensor) -> Tensor:
    """Return a loss, which must be a scalar.

    Raises:
        ValueError: the loss has axes.
    """
    if loss.ndim:
        raise ValueError(f"a loss must be one scalar, got shape {tuple(loss.shape)}: use reduction='mean'")
    return loss
