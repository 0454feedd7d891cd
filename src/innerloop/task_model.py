"""The model as one task has it: a pure function of the adapted parameters and of the task's own buffers."""

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

    Inner steps may have parameters and buffers of their own (`innerloop.per_step.PerStepModel`), so all methods are
    given the index of the inner step that a call belongs to.

    Attributes:
        stateless: the module as a pure function of all its parameters.
        fixed: its parameters that the inner loop does not move.
        joint: whether it judges other examples by the support set, which then has to be handed to it with them.
    """

    stateless: Stateless
    fixed: Params
    joint: bool = False

    def __call__(self, params: Params, buffers: Params, x: Any, step: int) -> tuple[Any, Params]:
        """The output on ``x`` with the adapted parameters ``params``, and the buffers after it."""
        output, after = self.stateless(self.parameters(params, step), self.buffers_at(buffers, step), x)
        return output, self.renewed(buffers, after, step)

    def beside(self, support: Any, params: Params, buffers: Params, x: Any, step: int) -> tuple[Any, Params]:
        """The same, the module being handed the support examples and ``x`` in one batch."""
        number = rows(support)
        together = pytree.tree_map(lambda *parts: torch.cat(parts), support, x)
        with support_first(number):
            output, after = self(params, buffers, together, step)
        return pytree.tree_map(lambda out: out[number:], output), after

    def parameters(self, params: Params, step: int) -> Params:
        """All parameters of the module, the adapted ones in place."""
        return {**self.fixed_at(step), **params}

    def fixed_at(self, step: int) -> Params:
        """The parameters that the inner loop does not move, as an inner step has them."""
        return self.fixed

    def buffers_at(self, buffers: Params, step: int) -> Params:
        """The module's buffers, as an inner step has them."""
        return buffers

    def renewed(self, buffers: Params, after: Params, step: int) -> Params:
        """The task's buffers, of which ``after`` is what a call in an inner step left in the module's."""
        return after

    def seen(self, buffers: Params, after: Params, step: int) -> Params:
        """The task's buffers as the path goes on with them after a call on the query set, which left ``after``."""
        return buffers
