"""Losses, ``(output, y) -> scalar``, averaged over the examples of one task: named losses and learned losses.

A learned loss is a module that is passed to a learner as ``inner_loss=``. The inner loop minimizes it, and the
meta-gradient trains it through the inner loop. It moves the parameters that the learner's selection names
(``adapt=``); parameters that its value does not depend on stay where they are.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .common.ranges import require_at_least

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": F.cross_entropy,
    "binary_cross_entropy": F.binary_cross_entropy_with_logits,
    "mse": F.mse_loss,
    "l1": F.l1_loss,
}
"""The losses that a recipe can name; the first two take logits."""


class TemporalLoss(nn.Module):
    """A learned loss on a policy's activations, for demonstrations without actions; it needs no targets.

    It convolves the activations over time and takes the mean square of the result (Yu et al. 2018).

    Args:
        heads: the number of features of each part of the output that the loss reads: one head is ``{"hidden": 64}``,
            two are ``{"points": 32, "actions": 2}``. Each part has its own network, and the loss is the sum. The parts
            are attributes of the output, ``[S, H, features]``: S sequences of H steps.
        channels: channels of the hidden convolutions.
        kernel: width of the convolutions in steps, an odd number.
        layers: number of convolutions; the last one has width 1.

    Raises:
        ValueError: ``kernel`` is even, or a number is below 1.
    """

    citation = (
        "Yu, Finn, Xie, Dasari, Zhang, Abbeel, Levine. One-Shot Imitation from Observing Humans via Domain-Adaptive "
        "Meta-Learning. RSS 2018. arXiv:1802.01557"
    )

    def __init__(self, heads: Mapping[str, int], channels: int = 32, kernel: int = 5, layers: int = 3) -> None:
        super().__init__()
        require_at_least(1, heads=len(heads), channels=channels, kernel=kernel, layers=layers)
        if kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, so that the number of steps stays the same, got {kernel}")
        self.heads = nn.ModuleDict(
            {name: _temporal(features, channels, kernel, layers) for name, features in heads.items()}
        )

    def forward(self, output: Any, y: Any = None) -> Tensor:
        """Return the loss, a scalar, of an output that has the parts of all heads; targets are ignored."""
        return torch.stack([values.mean() for values in self.over_time(output).values()]).sum()

    def over_time(self, output: Any) -> dict[str, Tensor]:
        """Return the loss of each head at every step, ``[S, H]``."""
        parts = {name: getattr(output, name) for name in self.heads}
        return {name: head(parts[name].mT).square().mean(1) for name, head in self.heads.items()}


def _temporal(features: int, channels: int, kernel: int, layers: int) -> nn.Sequential:
    sizes = [features, *[channels] * layers]
    parts: list[nn.Module] = []
    for number, (inputs, outputs) in enumerate(pairwise(sizes), 1):
        size = kernel if number < layers else 1
        parts += [nn.Conv1d(inputs, outputs, size, padding=size // 2), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


class OutputLoss(nn.Module):
    """A learned loss: a small network on the output, and optionally the target, of each example (Bechtle et al. 2021).

    Args:
        outputs: number of elements of an example's output.
        targets: number of elements of an example's target; 0 for a loss without targets.
        hidden: number of hidden units.
    """

    citation = (
        "Bechtle, Molchanov, Chebotar, Grefenstette, Righetti, Sukhatme, Meier. Meta-Learning via Learned Loss. ICPR "
        "2021. arXiv:1906.05374"
    )

    def __init__(self, outputs: int, targets: int = 0, hidden: int = 40) -> None:
        super().__init__()
        require_at_least(1, outputs=outputs, hidden=hidden)
        require_at_least(0, targets=targets)
        self.targets = targets
        self.judge = nn.Sequential(
            nn.Linear(outputs + targets, hidden), nn.Softplus(), nn.Linear(hidden, hidden), nn.Softplus(),
            nn.Linear(hidden, 1), nn.Softplus(),
        )  # fmt: skip

    def forward(self, output: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar, of outputs ``[..., outputs]`` and targets ``[..., targets]``.

        Raises:
            ValueError: the targets are missing or have another size.
        """
        if self.targets and (y is None or y.shape[-1] != self.targets):
            raise ValueError(
                f"this loss takes targets of size {self.targets}, got {'none' if y is None else y.shape[-1]}"
            )
        seen = torch.cat([output, y], -1) if self.targets and y is not None else output
        return self.judge(seen).mean()  # type: ignore[no-any-return]


EXTRAS = ("params", "start", "step", "query", "model")
"""The keyword-only parameters that an inner loss may have."""


def extras_of(loss: Any) -> tuple[str, ...]:
    """Return the keyword-only parameters of an inner loss, as in ``def loss(output, y, *, params, start)``.

    The learner passes what these names stand for:

    - ``params``: the adapted parameters that the output was computed with, by name; ``start``: the adapted parameters
      before the first inner step;
    - ``step``: the index of the inner step, from 0;
    - ``query``: the inputs of the query set; ``model``: a function of inputs, the model's output with ``params``.

    The learner does not pass parameters that a ``functools.partial`` fixes.

    Raises:
        ValueError: the loss has another keyword-only parameter, without a default.
    """
    fixed = set[str]()
    while isinstance(loss, partial):
        fixed, loss = fixed | loss.keywords.keys(), loss.func
    try:
        parameters = inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss).parameters.values()
    except (TypeError, ValueError):  # functions of torch that are written in C have none
        return ()
    named = [p for p in parameters if p.kind == p.KEYWORD_ONLY and p.name not in fixed]
    strange = [p.name for p in named if p.name not in EXTRAS and p.default is p.empty]
    if strange:
        raise ValueError(
            f"the inner loss has the keyword-only parameter {strange[0]!r}, but only {', '.join(EXTRAS)} are passed: "
            f"give {strange[0]!r} a default, or fix it with functools.partial"
        )
    return tuple(p.name for p in named if p.name in EXTRAS)


def refuse_extras(loss: Any) -> None:
    """Refuse an outer loss with keyword-only parameters that only inner losses get.

    Raises:
        ValueError: the loss has such a parameter.
    """
    if asked := extras_of(loss):
        raise ValueError(
            f"the outer loss has the parameters {', '.join(asked)}, which only an inner loss gets: pass it as "
            "inner_loss=, and give a loss= of output and targets"
        )


def refuse_query_inputs(extras: Collection[str]) -> None:
    """Refuse to adapt to a support set alone with a loss that reads query inputs.

    Raises:
        ValueError: the loss reads them.
    """
    if "query" in extras:
        raise ValueError(
            "the inner loss reads the inputs of the query set (its keyword query), which adapt and adapt_all do not "
            "get: use predict(tasks)"
        )
