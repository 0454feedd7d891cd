"""Parameters and statistics of norm layers that every inner step has its own of."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .functional.stateless import BATCH_NORMS
from .rules import PerParameter
from .select import Selection
from .task import Params
from .task_model import TaskModel


class Slots(nn.Module):
    """One slot for each inner step, which replaces some of the model's parameters and batch norm statistics.

    The statistics are the running statistics of the layers that these parameters belong to (BNWB and BNRS; Antoniou et
    al. 2019, section 4).

    The slots of a parameter are meta-learned in its place, unless it is frozen, and start as copies of it. Step k of
    the inner loop, and what is asked of the parameters after it, use slot k; steps past the last use the last.

    Args:
        model: the module.
        selection: which of its parameters.
        steps: the number of slots.
        adapted: the names of the parameters that the inner loop moves.

    Attributes:
        parameters_of: the names of the parameters that there are slots of.
        buffers_of: likewise the buffers.

    Raises:
        ValueError: a parameter would be adapted by the inner loop, and have slots.
    """

    citation = "Antoniou, Edwards, Storkey. How to train your MAML. ICLR 2019. arXiv:1810.09502"

    def __init__(self, model: nn.Module, selection: Selection, steps: int, adapted: Collection[str]) -> None:
        super().__init__()
        self.parameters_of = selection.names(model)
        if both := [name for name in self.parameters_of if name in adapted]:
            raise ValueError(
                f"{', '.join(both)}: the inner loop adapts these, so there cannot be one of each for every step; leave "
                "them out of per_step=, or out of what adapts, e.g. MetaLearner(..., adapt=il.everything - il.norms)"
            )
        owners = {name.rpartition(".")[0] for name in self.parameters_of}
        kept = {n: m for n, m in model.named_modules() if n in owners and isinstance(m, BATCH_NORMS)}
        buffers = dict(model.named_buffers())
        self.buffers_of = tuple(n for n in buffers if n.rpartition(".")[0] in kept)
        parameters, slots = dict(model.named_parameters()), max(steps, 1)
        self.learned = PerParameter({n: _repeat(parameters[n].detach(), slots) for n in self.parameters_of})
        for name in self.parameters_of:
            self.learned[name].requires_grad_(parameters[name].requires_grad)
        for name in self.buffers_of:
            self.register_buffer(name.replace(".", "/"), _repeat(buffers[name], slots))

    def require_statistics(self, model: nn.Module) -> None:
        """Refuse to go by running statistics that there are none of, or that nothing gathers.

        Raises:
            ValueError: no layer keeps any, or one that does has no slots.
        """
        layers = {name.rpartition(".")[0] for name in self.buffers_of}
        others = [n for n, m in model.named_modules() if isinstance(m, BATCH_NORMS) and m.running_mean is not None]
        if left_out := [name for name in others if name not in layers]:
            raise ValueError(
                f"{', '.join(left_out)}: nothing gathers the running statistics of these batch norms, whose parameters "
                "are not in per_step=; name them there, or make the layers with track_running_stats=False"
            )
        if not self.buffers_of:
            raise ValueError(
                "predictions by running statistics need batch norms of per_step= that keep some: make the model with "
                "track_running_stats=True (il.models.conv4(running=True))"
            )

    def put(self, params: Params, buffers: Params, shared: bool = False) -> tuple[Params, Params]:
        """A model's parameters and buffers with the slots, ``[K, ...]`` each, in place of the single ones.

        Args:
            params: the model's.
            buffers: likewise.
            shared: whether all steps share one set of running statistics: those of the values that all of them saw.
        """
        stored = {name: self.get_buffer(name.replace(".", "/")) for name in self.buffers_of}
        return (
            {**params, **{name: self.learned[name] for name in self.parameters_of}},
            {**buffers, **(_shared(stored) if shared else stored)},
        )

    def on(self, model: TaskModel, stored: bool) -> PerStepModel:
        """A model on one task, whose parameters and buffers are those of `put`, with the slots in place.

        Args:
            model: without the slots.
            stored: whether running statistics stay as they are stored, to predict by.
        """
        fixed = dict(model.fixed)
        slots = {name: fixed.pop(name).unbind() for name in self.parameters_of}
        return PerStepModel(model.stateless, fixed, model.joint, slots, self.buffers_of, stored)

    @torch.no_grad()
    def renew(self, seen: Params) -> None:
        """Keep what became of the buffers in some tasks, on average, where it is finite.

        Args:
            seen: the mean of every buffer over the tasks, ``[K, ...]``.
        """
        for name, tensor in seen.items():
            stored = self.get_buffer(name.replace(".", "/"))
            stored.copy_(torch.where(torch.isfinite(tensor), tensor, stored))

    def extra_repr(self) -> str:
        """What ``repr`` shows: the names of the parameters and buffers with slots."""
        return ", ".join((*self.parameters_of, *self.buffers_of))


@dataclass(frozen=True)
class PerStepModel(TaskModel):
    """A model on one task with slots: an inner step, and what is asked of the parameters after it, use the step's.

    A task's buffers have the stored slots, ``[K, ...]``, under the names of the buffers, and beside them what steps of
    this task have left, each under a name of its own.

    Attributes:
        slots: parameters that every step has its own of, K tensors each.
        buffer_slots: the names of the buffers that there are slots of.
        stored: whether calls leave the slots of buffers as they are stored, to predict by.
    """

    slots: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)
    buffer_slots: tuple[str, ...] = ()
    stored: bool = False

    def fixed_at(self, step: int) -> Params:
        """The parameters that the inner loop does not move, with the slots of an inner step."""
        return {**self.fixed, **{name: _slot(tensor, step) for name, tensor in self.slots.items()}}

    def buffers_at(self, buffers: Params, step: int) -> Params:
        """The module's buffers, with the slots of an inner step."""
        own = {
            n: buffers[at] if (at := _left(n, step)) in buffers else _slot(buffers[n], step) for n in self.buffer_slots
        }
        return {**{name: tensor for name, tensor in buffers.items() if LEFT not in name}, **own}

    def renewed(self, buffers: Params, after: Params, step: int) -> Params:
        """The task's buffers, with what a call in an inner step left in its slots."""
        rest = {name: tensor for name, tensor in after.items() if name not in self.buffer_slots}
        left = {} if self.stored else {_left(name, step): after[name] for name in self.buffer_slots}
        return {**buffers, **rest, **left}

    def seen(self, buffers: Params, after: Params, step: int) -> Params:
        """The task's buffers, of which the slots of an inner step have seen the query set, too."""
        names = [left for name in self.buffer_slots if (left := _left(name, step)) in after]
        return {**buffers, **{name: after[name].detach() for name in names}}

    def left(self, buffers: Params, steps: int) -> Params:
        """What each of so many steps left in its slots, ``[K, ...]``, detached."""
        each = [self.buffers_at(buffers, step) for step in range(max(steps, 1))] if self.buffer_slots else []
        return {name: torch.stack([own[name].detach() for own in each]) for name in self.buffer_slots}


LEFT = ".."
"""What no name of a buffer has in it."""


def _left(name: str, step: int) -> str:
    """The name of what an inner step left in a buffer."""
    return f"{name}{LEFT}{step}"


def _slot(slots: Tensor | tuple[Tensor, ...], step: int) -> Tensor:
    """The slot of an inner step; steps past the last have the last."""
    return slots[min(step, len(slots) - 1)]


def _repeat(tensor: Tensor, slots: int) -> Tensor:
    return tensor.expand(slots, *tensor.shape).clone()


def _shared(stored: Params) -> Params:
    """Every step's statistics replaced by those of all steps' values together."""
    shared = dict(stored)
    for name, variance in stored.items():
        prefix, _, leaf = name.rpartition(".")
        if leaf == "running_var":
            mean = stored[f"{prefix}.running_mean"]
            together = mean.mean(0), variance.mean(0) + mean.var(0, correction=0)
            for statistic, value in zip(("running_mean", "running_var"), together, strict=True):
                shared[f"{prefix}.{statistic}"] = value.expand_as(mean)
    return shared


def average(left: Params) -> Params:
    """Over tasks; of whole numbers, which count batches, any task's."""
    return {name: t.mean(0) if t.is_floating_point() or t.is_complex() else t[0] for name, t in left.items()}
