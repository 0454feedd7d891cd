"""The inner loop, which exists once: one task's path of parameters under an update rule.

Training objectives, evaluation, adaptation to one's own data and reinforcement learning all walk the same generator,
`Episode.path`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .contracts import without_kept_tensors
from .kernels import unread_gradients
from .quick import hidden_from_modes
from .rules import UpdateRule
from .stacks import place, recomputed, value_and_gradient
from .stateless import Precision, Stateless, Statistics
from .supported import support_first
from .task import Batch, Params, Task, rows
from .threads import mine
from .writes import OwnParameters

Loss = Callable[[Any, Any], Tensor]
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


@dataclass
class Episode:
    """One task as an objective sees it: pure functions of the adapted parameters, and their path.

    Attributes:
        start: the adapted parameters before the first step, connected to the meta-parameters.
        fixed: the model's other parameters.
        buffers: the model's buffers, a task's own copy; renewed by every step on the support set.
        steps: the number K of inner steps.
        iteration: the outer iteration, for schedules.
        batch_size: support examples per inner step, taken in order and cyclically; ``None`` takes them all.
        joint: whether the model judges other examples by the support set, which then has to be handed to it with them.
        slots: parameters that every step has its own of, ``[K, ...]``; those of the present step are in ``fixed``.
        buffer_slots: likewise buffers.
        stored: whether steps leave these buffers as they are stored, to predict by; else they move along the path.
        own: the model's own parameters, by name, of which the inner loss must not compute anything.
        support_losses: filled by `path`: the inner loss at the parameters before each step.
    """

    model: Stateless
    rule: UpdateRule
    loss: Loss
    inner_loss: Loss
    task: Task
    start: Params
    fixed: Params
    buffers: Params
    steps: int
    iteration: int = 0
    batch_size: int | None = None
    memory: Memory = "graph"
    joint: bool = False
    slots: Params = field(default_factory=dict)
    buffer_slots: Params = field(default_factory=dict)
    stored: bool = False
    own: Params = field(default_factory=dict)
    support_losses: list[Tensor] = field(default_factory=list)
    _left: list[Params] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._turn_to(0)

    def output(self, params: Params, x: Any) -> Any:
        """The model's output on ``x`` with adapted parameters ``params``."""
        return self.model({**self.fixed, **params}, self.buffers, x)[0]

    def answer(self, params: Params, x: Any) -> tuple[Any, Params]:
        """The model's output on other examples than the support set's, and the buffers after it."""
        if self.joint:
            return self.beside_support(params, x, self.buffers)
        return self.model({**self.fixed, **params}, self.buffers, x)

    def beside_support(self, params: Params, x: Any, buffers: Params) -> tuple[Any, Params]:
        """The same, the model being handed the support set and ``x`` in one batch."""
        support = self.task.support.x
        number = rows(support)
        together = pytree.tree_map(lambda *parts: torch.cat(parts), support, x)
        with support_first(number):
            output, after = self.model({**self.fixed, **params}, buffers, together)
        return pytree.tree_map(lambda out: out[number:], output), after

    def support(self, step: int | None = None) -> Batch:
        """The support examples of a step: all of them, or the step's mini-batch."""
        if step is None or self.batch_size is None:
            return self.task.support
        total = rows((self.task.support.x, self.task.support.y))
        index = [(step * self.batch_size + i) % total for i in range(min(self.batch_size, total))]
        return Batch(*pytree.tree_map_only(Tensor, lambda leaf: leaf[index], tuple(self.task.support)))

    def support_loss(self, params: Params, step: int | None = None) -> Tensor:
        """The inner loss, a scalar."""
        batch = self.support(step)
        return self._inner_loss(self.output(params, batch.x), batch.y)

    def _inner_loss(self, output: Any, y: Any) -> Tensor:
        with OwnParameters(self.own):
            loss = self.inner_loss(output, y)
        return scalar(loss)

    def query_loss(self, params: Params) -> tuple[Tensor, Any]:
        """The outer loss on the query set, a scalar, and the output it was computed from."""
        with without_kept_tensors(mine(self.model.model)):  # the steps after it go on from what the steps before left
            output, after = self.answer(params, self.task.query.x)
            if self.buffer_slots and place() != "other":  # the tensors of a transform must not outlive it
                self.buffers = {**self.buffers, **{name: after[name].detach() for name in self.buffer_slots}}
            return scalar(self.loss(output, self.task.query.y)), output

    def path(self, order: int = 2) -> Iterator[Params]:
        """Yield the adapted parameters after step 1, 2, ..., K.

        Args:
            order: 2 keeps the whole graph; 1 takes each update as a constant of the parameters (Finn et al. 2017,
                section 5.2), though not of the rule's own parameters.
        """
        if order not in (1, 2):
            raise ValueError(f"order is 1 or 2, got {order!r} at iteration {self.iteration}")
        params, state = self.start, self.rule.init(self.start if order == 2 else detach(self.start))
        for step in range(self.steps):
            if step:
                self._left.append(self._own_buffers())
                self._turn_to(step)
            inputs = (params, self.support(step), self.fixed, self.buffers)
            if order == 2 and self.memory == "constant" and torch.is_grad_enabled():
                results = recomputed(
                    self._gradient, inputs, self.learned(), self.model.as_now(), unread_gradients, len(params)
                )
            else:
                results = self._gradient(order, *inputs)
            grads, loss, buffers = results
            self.support_losses.append(loss.detach())
            # Buffers move with the graph of what they were computed of, as they would in a loop written by hand.
            connected = order == 2 and torch.is_grad_enabled()
            self.buffers = (buffers if connected else detach(buffers)) | (
                _slot(self.buffer_slots, step) if self.stored else {}
            )
            updates, state = self.rule(grads, params if order == 2 else detach(params), state, step)
            with hidden_from_modes((*params.values(), *updates.values())):
                params = {name: param + updates[name] for name, param in params.items()}
            yield params

    def left(self) -> Params:
        """What every step so far left in the buffers that each has its own of, ``[K, ...]``."""
        return stack([*self._left, self._own_buffers()])  # type: ignore[no-any-return]

    def _own_buffers(self) -> Params:
        return {name: self.buffers[name].detach() for name in self.buffer_slots}

    def _turn_to(self, step: int) -> None:
        """Put the parameters and buffers that a step has of its own in place."""
        if self.slots:
            self.fixed = {**self.fixed, **_slot(self.slots, step)}
            self.buffers = {**self.buffers, **_slot(self.buffer_slots, step)}

    def _gradient(
        self, order: int, params: Params, batch: Batch, fixed: Params, buffers: Params
    ) -> tuple[Params, Tensor, Params]:
        """The gradient of the inner loss, the loss, and the buffers after it."""

        def inner(at: Params) -> tuple[Tensor, Params]:
            output, after = self.model({**fixed, **at}, buffers, batch.x)
            return self._inner_loss(output, batch.y), after

        return value_and_gradient(inner, params, order)

    def learned(self) -> list[Tensor]:
        """The meta-parameters that the graph of an inner loss may reach by itself.

        These are the parameters of a loss module, and the model's own, which a loss that is a function may use.
        """
        parameters = self.inner_loss.parameters() if isinstance(self.inner_loss, nn.Module) else ()
        return [p for p in dict.fromkeys((*self.model.model.parameters(), *parameters)) if p.requires_grad]

    def last(self, order: int = 2) -> Params:
        """The adapted parameters after all K steps (the start itself for K = 0)."""
        params = self.start
        for params in self.path(order):  # noqa: B007 - only the end of the path is wanted
            pass
        return params


def _slot(tensors: Params, step: int) -> Params:
    """What a step has of its own; those past the last have what the last has."""
    return {name: tensor[min(step, len(tensor) - 1)] for name, tensor in tensors.items()}


def scalar(loss: Tensor) -> Tensor:
    """Return a loss, which must be a scalar.

    Raises:
        ValueError: it has axes.
    """
    if loss.ndim:
        raise ValueError(f"a loss must average to one scalar, got shape {tuple(loss.shape)}: use reduction='mean'")
    return loss


def stack(items: Sequence[Any]) -> Any:
    """Pytrees of tensors, stacked along a new first axis."""
    return pytree.tree_map(lambda *leaves: torch.stack(leaves), *items)
