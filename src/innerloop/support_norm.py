"""Normalization with statistics that are inferred from a task's support set alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

_support: ContextVar[int | None] = ContextVar("support examples", default=None)


@contextmanager
def support_first(examples: int) -> Iterator[None]:
    """While entered, modules take the first ``examples`` of a batch as the support set."""
    token = _support.set(examples)
    try:
        yield
    finally:
        _support.reset(token)


class SupportNorm2d(nn.Module):
    """Normalizes each channel with statistics that a small network infers from those of the support set.

    The statistics are a mean and a deviation, the same for support and query examples (similar to MetaNorm; Du et al.
    2021, section 3). So a prediction on a query example does not depend on the other query examples. Statistics of
    other tasks, which small meta-batches estimate poorly, are not needed.

    All channels share one network. It starts as the identity, so the layer starts as batch norm with the support set's
    statistics. The paper's network reads single examples, and a Kullback-Leibler term pulls the statistics inferred
    from the support set towards those inferred from the query set; here only the meta-gradient trains the network.
    Inner steps do not change it unless a selection names it: its gradients sum over all channels and pixels, and at
    the rates of the other parameters they would throw the statistics far off.

    Args:
        channels: channels of the images.
        hidden: hidden units of the network.
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
        """Normalize images ``[N, C, H, W]``; the support examples come first if there are others."""
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
    """Return whether a model needs the support set in the same batch as query examples."""
    return any(isinstance(module, SupportNorm2d) for module in model.modules())
