"""The model on one task: a pure function of the adapted parameters and of the task's own buffers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from .functional.stateless import Stateless
from .support_norm import support_first
from .task import Params, rows


@dataclass(frozen=True)
class TaskModel:
    """A model on one task, ``(params, buffers, x, step) -> (output, new buffers)``.

    All methods take the index of the inner step that a call belongs to, because some parameters and buffers may be
    per-step (`innerloop.per_step.PerStepModel`).

    Attributes:
        stateless: the module as a pure function of all its parameters.
        fixed: its parameters that the inner loop does not move.
        joint: whether it needs the support set in the same batch as other examples.
    """

    stateless: Stateless
    fixed: Params
    joint: bool = False

    def __call__(self, params: Params, buffers: Params, x: Any, step: int) -> tuple[Any, Params]:
        """Return the output on ``x`` with the adapted parameters ``params``, and the buffers after the call."""
        output, after = self.stateless(self.parameters(params, step), self.buffers_at(buffers, step), x)
        return output, self.renewed(buffers, after, step)

    def beside(self, support: Any, params: Params, buffers: Params, x: Any, step: int) -> tuple[Any, Params]:
        """Return the same, calling the module on the support examples and ``x`` in one batch."""
        number = rows(support)
        together = pytree.tree_map(lambda *parts: torch.cat(parts), support, x)
        with support_first(number):
            output, after = self(params, buffers, together, step)
        return pytree.tree_map(lambda out: out[number:], output), after

    def parameters(self, params: Params, step: int) -> Params:
        """Return all parameters of the module, with the adapted ones in place."""
        return {**self.fixed_at(step), **params}

    def fixed_at(self, step: int) -> Params:
        """Return the parameters that the inner loop does not move, at an inner step."""
        return self.fixed

    def buffers_at(self, buffers: Params, step: int) -> Params:
        """Return the module's buffers at an inner step."""
        return buffers

    def renewed(self, buffers: Params, after: Params, step: int) -> Params:
        """Return the task's buffers, given the module's buffers ``after`` a call in an inner step."""
        return after

    def seen(self, buffers: Params, after: Params, step: int) -> Params:
        """Return the task's buffers for the rest of the path, given the buffers ``after`` a call on the query set."""
        return buffers
