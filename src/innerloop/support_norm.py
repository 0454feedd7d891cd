"""Normalization by statistics that are inferred from a task's support set alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

_support: ContextVar[int | None] = ContextVar("support examples", default=None)


@contextmanager
def support_first(examples: int) -> Iterator[None]:
    """Modules are called on batches of which the first examples are the support set."""
    token = _support.set(examples)
    try:
        yield
    finally:
        _support.reset(token)


class SupportNorm2d(nn.Module):
    """Normalizes each channel by statistics that a small network infers from those of the support set.

    The statistics are a mean and a deviation, and are the same for support and query examples (in the manner of
    MetaNorm; Du et al. 2021, section 3).

    So a query example is judged the same whatever stands beside it, and no statistics of other tasks are needed, which
    small meta-batches give a poor estimate of. The network, one for all channels, starts at giving what it is given:
    at first this is batch norm by the support set's statistics. The paper's network reads single examples, and a
    Kullback-Leibler term draws what is inferred from the support set to what would be from the query set; here the
    meta-gradient alone trains it. Inner steps leave it alone, unless a selection names it: being one for all channels
    and pixels, it has gradients that would throw the statistics far off at the rates of the other parameters.

    Args:
        channels: of the images.
        hidden: units of the network.
        eps: added to the variance.
    """

    meta_learned_only = ("infer",)
    citation = "Du, Zhen, Shao, Snoek. MetaNorm: Learning to Normalize Few-Shot Batches Across Domains. ICLR 2021"

    def __init__(self, channels: int, hidden: int = 16, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        last = nn.Linear(hidden, 2)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.infer = nn.Sequential(nn.Linear(2, hidden), nn.Tanh(), last)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]``, of which the support examples come first if there are others."""
        first = _support.get()
        support = x if first is None else x[:first]
        mean = support.mean((0, 2, 3))
        variance = (support - mean[:, None, None]).square().mean((0, 2, 3))
        deviation = torch.sqrt(variance + self.eps)
        shift, stretch = self.infer(torch.stack([mean, torch.log(deviation)], 1)).unbind(1)
        mean, deviation = mean + deviation * shift, deviation * torch.exp(stretch)
        scale = self.weight / deviation
        out: Tensor = x * scale[:, None, None] + (self.bias - mean * scale)[:, None, None]
        return out


def joint(model: nn.Module) -> bool:
    """Whether a model judges query examples by the support set, so that both have to be handed to it together."""
    return any(isinstance(module, SupportNorm2d) for module in model.modules())
