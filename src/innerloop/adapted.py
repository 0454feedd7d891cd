"""A model that was adapted to one task."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap

from .inner import BATCH_NORMS, Episode, Stateless, Statistics, arguments, in_mode, stack
from .operations import TaskOperations, TasksDifferError
from .supported import joint
from .task import Params, select, size


class Adapted:
    """A model adapted to one task: call it on inputs.

    Attributes:
        parameters: all parameters of the model, by name, the adapted ones in place.
        losses: ``[K + 1]``; support loss before each step and after the last.
    """

    def __init__(
        self, model: nn.Module, statistics: Statistics, episode: Episode, losses: Tensor, output: Callable[[Any], Any]
    ) -> None:
        self._model, self._statistics, self._episode, self._output = model, statistics, episode, output
        self.losses = losses
        self.parameters: Params = {**episode.fixed, **episode.start}

    @torch.no_grad()
    def __call__(self, x: Any) -> Any:
        """The outputs on inputs ``x``: ``[N, ...]``."""
        with in_mode(self._model, self._statistics, training=False):
            return self._output(x)

    def module(self) -> nn.Module:
        """A plain copy of the model with the adapted parameters, in ``eval()`` mode.

        Its other buffers are the task's own. Batch norm that keeps running statistics has those of the support set, if
        the learner normalises by batch statistics: in ``eval()`` mode predictions are then inductive.

        Raises:
            ValueError: the model judges inputs by the support set.
        """
        refuse_joint(self._model)
        module = copy.deepcopy(self._model)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.copy_(self.parameters[name])
            for name, buffer in module.named_buffers():
                buffer.copy_(self._episode.buffers[name])
        module.eval()
        if self._statistics == "batch":
            gather_statistics(module, self._episode.task.support.x)
        return module


def refuse_joint(model: nn.Module) -> None:
    """Refuse a model that judges inputs by the support set.

    Raises:
        ValueError: it has a ``SupportNorm2d``.
    """
    if joint(model):
        raise ValueError(
            "a model with a SupportNorm2d needs the support set beside every input, so adapted parameters alone do not "
            "make a model: call what `adapt` returns"
        )


class AdaptedTasks:
    """A model adapted to T tasks: call it on the inputs of all of them.

    Attributes:
        parameters: all parameters of the model, by name, ``[T, ...]``.
    """

    def __init__(self, model: Stateless, statistics: Statistics, parameters: Params, buffers: Params) -> None:
        self._model, self._statistics, self.parameters, self._buffers = model, statistics, parameters, buffers

    @torch.no_grad()
    def __call__(self, x: Any) -> Any:
        """The outputs ``[T, N, ...]`` on inputs ``[T, N, ...]``."""

        def one(params: Params, buffers: Params, x: Any) -> Any:
            return self._model(params, buffers, x)[0]

        every = self.parameters, self._buffers, x
        with in_mode(self._model.model, self._statistics, training=False):
            try:
                with TaskOperations(vectorised=True, kernels=False):
                    return vmap(one)(*every)
            except TasksDifferError:
                return stack([one(*select(every, index)) for index in range(size(every))])


@torch.no_grad()
def gather_statistics(module: nn.Module, x: Any) -> None:
    """Give the batch-norm layers that keep running statistics those of the inputs ``x``."""
    layers = [m for m in module.modules() if isinstance(m, BATCH_NORMS) and m.running_mean is not None]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain average: of one batch, its own statistics
        layer.training = True
    if layers:
        args, kwargs = arguments(x)
        module(*args, **kwargs)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum, layer.training = momentum, False
