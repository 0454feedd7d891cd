"""Distributions over actions, as named tuples of tensors, which run under every function transform.

``torch.distributions`` checks values, which does not work under ``vmap``, and its objects are not pytrees.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Gaussian(NamedTuple):
    """Independent normal distributions.

    Attributes:
        mean: the means of A continuous actions, ``[..., A]``.
        log_std: the logarithms of their standard deviations, ``[..., A]``.
    """

    mean: Tensor
    log_std: Tensor

    def log_prob(self, action: Tensor) -> Tensor:
        """Return the log density ``[...]`` of actions ``[..., A]``."""
        z = (action - self.mean) * (-self.log_std).exp()
        return (-0.5 * z.square() - self.log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def kl(self, other: Gaussian) -> Tensor:
        """Return ``KL(self || other)``, ``[...]``, in nats."""
        precision = (-2 * other.log_std).exp()
        spread = (2 * self.log_std).exp() + (self.mean - other.mean).square()
        return (other.log_std - self.log_std + 0.5 * (spread * precision - 1)).sum(-1)

    def entropy(self) -> Tensor:
        """Return the entropy, ``[...]``, in nats."""
        return (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draw actions ``[..., A]``."""
        noise = torch.randn(self.mean.shape, generator=generator, dtype=self.mean.dtype)
        return self.mean + self.log_std.exp() * noise.to(self.mean.device)

    def mode(self) -> Tensor:
        """Return the most likely actions ``[..., A]``."""
        return self.mean


class Categorical(NamedTuple):
    """Distributions over discrete actions.

    Attributes:
        logits: the logits of A actions, ``[..., A]``; they need not be normalized.
    """

    logits: Tensor

    def log_prob(self, action: Tensor) -> Tensor:
        """Return the log probability ``[...]`` of action indices ``[...]``."""
        return F.log_softmax(self.logits, -1).gather(-1, action.long()[..., None])[..., 0]

    def kl(self, other: Categorical) -> Tensor:
        """Return ``KL(self || other)``, ``[...]``, in nats."""
        own, its = F.log_softmax(self.logits, -1), F.log_softmax(other.logits, -1)
        return (own.exp() * (own - its)).sum(-1)

    def entropy(self) -> Tensor:
        """Return the entropy, ``[...]``, in nats."""
        own = F.log_softmax(self.logits, -1)
        return -(own.exp() * own).sum(-1)

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draw action indices ``[...]``."""
        uniform = torch.rand(self.logits.shape, generator=generator, dtype=self.logits.dtype)
        gumbel = -torch.log(-torch.log(uniform.clamp_min(torch.finfo(uniform.dtype).tiny)))
        return (self.logits + gumbel.to(self.logits.device)).argmax(-1)

    def mode(self) -> Tensor:
        """Return the most likely action indices ``[...]``."""
        return self.logits.argmax(-1)


Distribution = Gaussian | Categorical
