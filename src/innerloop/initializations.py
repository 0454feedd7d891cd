"""Initializations: the adapted parameters of a task start elsewhere than at the meta-parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from .common import private
from .episode import Episode
from .functional.stacks import of_all_tasks
from .functional.stand_ins import mine
from .select import head_name
from .task import Params


class Initialization(ABC):
    """Computes the adapted parameters before the first step from the task's support set: ``episode -> start``."""

    citation: ClassVar[str] = ""

    @abstractmethod
    def __call__(self, episode: Episode) -> Params:
        """Return the start: the same names as ``episode.start.params``, differentiable in the meta-parameters."""


class Prototypes(Initialization):
    """A linear head made from class means (Triantafillou et al. 2020, section 3).

    Its weight is ``2 c_k`` and its bias ``-||c_k||^2``, where ``c_k`` is the mean feature of class k. Its logits are,
    up to a constant, minus the squared distances to the prototypes (Snell et al. 2017, Eq. 8). A class without a
    support example has no mean: its weight is zero and its bias is far below any logit. So it is never predicted, and
    inner steps with cross-entropy do not change that.

    Labels are class indices ``[S]``. An example with the label -100, which cross-entropy ignores, belongs to no class.

    Args:
        model: the model whose head is initialized.
        head: the qualified name of its linear head; by default the last submodule with parameters.

    Raises:
        ValueError: the head is not an ``nn.Linear`` with a bias.
    """

    citation = "Snell, Swersky, Zemel. Prototypical Networks for Few-shot Learning. NeurIPS 2017. arXiv:1703.05175"

    def __init__(self, model: nn.Module, head: str | None = None) -> None:
        self.head = head or head_name(model)
        layer = model.get_submodule(self.head)
        if not isinstance(layer, nn.Linear) or layer.bias is None or is_parametrized(layer):
            raise ValueError(f"prototypes need a head that is a plain nn.Linear with a bias; {self.head!r} is {layer}")

    def __call__(self, episode: Episode) -> Params:
        """Return the start, with a head that is made from class means.

        Raises:
            ValueError: the support set's targets are not class indices, or the head has too few classes for them.
        """
        labels, weight = episode.task.support.y, episode.start.params[f"{self.head}.weight"]
        require_classes(labels, len(weight), self.head)
        features = self._features(episode).to(weight.dtype)
        member = (labels[:, None] == torch.arange(len(weight), device=labels.device)).to(features.dtype)
        examples = member.sum(0)
        centres = member.T @ features / examples[:, None].clamp(min=1)
        bias = torch.where(examples > 0, -centres.square().sum(1), max(-1e18, torch.finfo(weight.dtype).min / 2))
        return {**episode.start.params, f"{self.head}.weight": 2 * centres, f"{self.head}.bias": bias}

    def _features(self, episode: Episode) -> Tensor:
        """Return the inputs of the head on the support set, ``[S, D]``."""
        features: list[Tensor] = []

        def catch(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            features.append(inputs[0])

        hook = mine(episode.model.stateless.model).get_submodule(self.head).register_forward_pre_hook(catch)
        try:
            episode.output(episode.start, episode.task.support.x)
        finally:
            hook.remove()
        return features[-1].flatten(1)


def require_classes(labels: Any, outputs: int, head: str) -> None:
    """Refuse targets that are not indices of a head's classes.

    Args:
        labels: the labels of one task, ``[S]``; under ``vmap`` the labels of all tasks are checked.
        outputs: the number of classes.
        head: the head's name.

    Raises:
        ValueError: the shape or the type is another, or a label is neither from 0 to ``outputs - 1`` nor -100.
    """
    if not isinstance(labels, Tensor) or labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
        kind = f"{labels.dtype} {list(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise ValueError(f"prototypes need class indices (integers [S]) as the support set's targets; got {kind}")
    labels = of_all_tasks(labels)
    if private.number_of_dispatch_modes():  # a recording has no values
        return
    wrong = labels[((labels < 0) | (labels >= outputs)) & (labels != -100)]
    if len(wrong):
        raise ValueError(
            f"the support set has the label {int(wrong[0])}, but the head {head!r} has {outputs} outputs, so labels "
            f"must be from 0 to {outputs - 1}: number the classes of each task from 0, or give the head more outputs"
        )
