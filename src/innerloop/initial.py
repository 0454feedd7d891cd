"""Where a task's adapted parameters start, when not at the meta-parameters themselves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .inner import Episode
from .select import head_name
from .task import Params


class Initialisation(ABC):
    """``episode -> start``: the adapted parameters before the first step, from the task's support set."""

    citation: ClassVar[str] = ""

    @abstractmethod
    def __call__(self, episode: Episode) -> Params:
        """The start, under the same names as ``episode.start``, differentiable in the meta-parameters."""


class Prototypes(Initialisation):
    """A linear head made from class means: weight ``2 c_k`` and bias ``-||c_k||^2``, ``c_k`` being the mean feature of
    class k (Triantafillou et al. 2020, section 3). Its logits are, up to a constant, minus the squared distances to the
    prototypes (Snell et al. 2017, Eq. 8).

    Args:
        model: the model whose head is initialised.
        head: the qualified name of its linear head; the last submodule with parameters if not given.

    Raises:
        ValueError: the head is not an ``nn.Linear`` with a bias.
    """

    citation = "Snell, Swersky, Zemel. Prototypical Networks for Few-shot Learning. NeurIPS 2017. arXiv:1703.05175"

    def __init__(self, model: nn.Module, head: str | None = None) -> None:
        self.head = head or head_name(model)
        layer = model.get_submodule(self.head)
        if not isinstance(layer, nn.Linear) or layer.bias is None:
            raise ValueError(f"prototypes need a head that is an nn.Linear with a bias; {self.head!r} is {layer}")

    def __call__(self, episode: Episode) -> Params:
        labels, weight = episode.task.support.y, episode.start[f"{self.head}.weight"]
        features = self._features(episode)
        member = (labels[:, None] == torch.arange(len(weight), device=labels.device)).to(features.dtype)
        centres = member.T @ features / member.sum(0)[:, None].clamp(min=1)
        prototypes = {f"{self.head}.weight": 2 * centres, f"{self.head}.bias": -centres.square().sum(1)}
        return {**episode.start, **prototypes}

    def _features(self, episode: Episode) -> Tensor:
        """``[S, D]``: what enters the head on the support set."""
        caught: list[Tensor] = []

        def catch(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            caught.append(inputs[0])

        hook = episode.model.model.get_submodule(self.head).register_forward_pre_hook(catch)
        try:
            episode.output(episode.start, episode.task.support.x)
        finally:
            hook.remove()
        return caught[-1].flatten(1)
