"""Per-step parameters and running statistics of norm layers."""

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
    """Per-step copies ("slots") of some parameters, and of the running statistics of their batch norm layers.

    These are BNWB and BNRS of MAML++ (Antoniou et al. 2019, section 4).

    The slots start as copies of the parameter and are meta-learned in its place, unless it is frozen. Step k of the
    inner loop, and evaluations of the parameters after it, use slot k; steps past the last use the last slot.

    Args:
        model: the module.
        selection: the parameters that get slots.
        steps: the number of slots.
        adapted: the names of the parameters that the inner loop moves.

    Attributes:
        parameters_of: the names of the parameters with slots.
        buffers_of: the names of the buffers with slots.

    Raises:
        ValueError: the inner loop adapts a parameter that would have slots.
    """

    citation = "Antoniou, Edwards, Storkey. How to train your MAML. ICLR 2019. arXiv:1810.09502"

    def __init__(self, model: nn.Module, selection: Selection, steps: int, adapted: Collection[str]) -> None:
        super().__init__()
        self.parameters_of = selection.names(model)
        if both := [name for name in self.parameters_of if name in adapted]:
            raise ValueError(
                f"{', '.join(both)}: the inner loop adapts these parameters, so they cannot also be per-step: leave "
                "them out of per_step=, or out of adapt=, e.g. MetaLearner(..., adapt=il.everything - il.norms)"
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
        """Check that every batch norm that keeps running statistics has slots, and that there is one.

        Raises:
            ValueError: no layer keeps running statistics, or one that does has no slots.
        """
        layers = {name.rpartition(".")[0] for name in self.buffers_of}
        others = [n for n, m in model.named_modules() if isinstance(m, BATCH_NORMS) and m.running_mean is not None]
        if left_out := [name for name in others if name not in layers]:
            raise ValueError(
                f"{', '.join(left_out)}: nothing updates the running statistics of these batch norms, because their "
                "parameters are not in per_step=: name them there, or build the layers with track_running_stats=False"
            )
        if not self.buffers_of:
            raise ValueError(
                "predictions with running statistics need batch norms in per_step= that keep running statistics: build "
                "the model with track_running_stats=True (il.models.conv4(running=True))"
            )

    def put(self, params: Params, buffers: Params, shared: bool = False) -> tuple[Params, Params]:
        """Return a model's parameters and buffers with the slots, ``[K, ...]`` each, in place of the originals.

        Args:
            params: the model's parameters.
            buffers: the model's buffers.
            shared: whether all steps share one set of running statistics, pooled over the steps.
        """
        stored = {name: self.get_buffer(name.replace(".", "/")) for name in self.buffers_of}
        return (
            {**params, **{name: self.learned[name] for name in self.parameters_of}},
            {**buffers, **(_shared(stored) if shared else stored)},
        )

    def on(self, model: TaskModel, stored: bool) -> PerStepModel:
        """Return a model on one task that uses the slots; its parameters and buffers come from `put`.

        Args:
            model: the model without slots.
            stored: whether running statistics stay as they are stored, for predictions.
        """
        fixed = dict(model.fixed)
        slots = {name: fixed.pop(name).unbind() for name in self.parameters_of}
        return PerStepModel(model.stateless, fixed, model.joint, slots, self.buffers_of, stored)

    @torch.no_grad()
    def renew(self, seen: Params) -> None:
        """Store the mean of the buffers over some tasks, where it is finite.

        Args:
            seen: the mean of every buffer over the tasks, ``[K, ...]``.
        """
        for name, tensor in seen.items():
            stored = self.get_buffer(name.replace(".", "/"))
            stored.copy_(torch.where(torch.isfinite(tensor), tensor, stored))

    def extra_repr(self) -> str:
        """Return what ``repr`` shows, the names of the parameters and buffers with slots."""
        return ", ".join((*self.parameters_of, *self.buffers_of))


@dataclass(frozen=True)
class PerStepModel(TaskModel):
    """A model on one task with slots: an inner step, and evaluations after it, use the slots of that step.

    The buffers of a task hold the stored slots, ``[K, ...]``, under the names of the buffers, and the buffers after
    each step of this task under separate names.

    Attributes:
        slots: the per-step parameters, K tensors each.
        buffer_slots: the names of the buffers with slots.
        stored: whether calls leave the slots of buffers as they are stored, for predictions.
    """

    slots: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)
    buffer_slots: tuple[str, ...] = ()
    stored: bool = False

    def fixed_at(self, step: int) -> Params:
        """Return the parameters that the inner loop does not move, with the slots of an inner step."""
        return {**self.fixed, **{name: _slot(tensor, step) for name, tensor in self.slots.items()}}

    def buffers_at(self, buffers: Params, step: int) -> Params:
        """Return the module's buffers, with the slots of an inner step."""
        own = {
            n: buffers[at] if (at := _left(n, step)) in buffers else _slot(buffers[n], step) for n in self.buffer_slots
        }
        return {**{name: tensor for name, tensor in buffers.items() if LEFT not in name}, **own}

    def renewed(self, buffers: Params, after: Params, step: int) -> Params:
        """Return the task's buffers, updated by the buffers ``after`` a call in an inner step."""
        rest = {name: tensor for name, tensor in after.items() if name not in self.buffer_slots}
        left = {} if self.stored else {_left(name, step): after[name] for name in self.buffer_slots}
        return {**buffers, **rest, **left}

    def seen(self, buffers: Params, after: Params, step: int) -> Params:
        """Return the task's buffers, where the slots of an inner step have also seen the query set."""
        names = [left for name in self.buffer_slots if (left := _left(name, step)) in after]
        return {**buffers, **{name: after[name].detach() for name in names}}

    def left(self, buffers: Params, steps: int) -> Params:
        """Return the buffers after each of the steps, ``[K, ...]``, detached."""
        each = [self.buffers_at(buffers, step) for step in range(max(steps, 1))] if self.buffer_slots else []
        return {name: torch.stack([own[name].detach() for own in each]) for name in self.buffer_slots}


LEFT = ".."
"""A separator that no buffer name contains."""


def _left(name: str, step: int) -> str:
    """Return the name of a buffer after an inner step."""
    return f"{name}{LEFT}{step}"


def _slot(slots: Tensor | tuple[Tensor, ...], step: int) -> Tensor:
    """Return the slot of an inner step; steps past the last use the last slot."""
    return slots[min(step, len(slots) - 1)]


def _repeat(tensor: Tensor, slots: int) -> Tensor:
    return tensor.expand(slots, *tensor.shape).clone()


def _shared(stored: Params) -> Params:
    """Replace the statistics of every step by the statistics of all steps together."""
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
    """Average over tasks; integers, which count batches, are those of the first task."""
    return {name: t.mean(0) if t.is_floating_point() or t.is_complex() else t[0] for name, t in left.items()}
