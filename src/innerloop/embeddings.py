"""Embedding from indexing, for which torch's batching rules are right.

Torch's rule for ``embedding`` puts the tables of all tasks below one another and forgets that each has a padding row:
only the first task's is left alone (torch 2.13).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """``torch.nn.functional.embedding``, with gradients that are never sparse.

    Raises:
        ValueError: ``max_norm`` or ``scale_grad_by_freq`` is given.
    """
    _require_plain(max_norm, scale_grad_by_freq)
    out = F.embedding(input, weight)
    if padding_idx is None:
        return out
    if not -len(weight) <= padding_idx < len(weight):
        raise ValueError(f"padding_idx={padding_idx} is none of the {len(weight)} rows of the embedding")
    return torch.where((input == padding_idx % len(weight))[..., None], out.detach(), out)


def torch_embedding(
    weight: Tensor, indices: Tensor, padding_idx: int = -1, scale_grad_by_freq: bool = False, sparse: bool = False
) -> Tensor:
    """``torch.embedding``, whose arguments come in another order, and for which -1 is no padding."""
    padding = None if padding_idx < 0 else padding_idx
    return embedding(indices, weight, padding, scale_grad_by_freq=scale_grad_by_freq)


def _require_plain(max_norm: float | None, scale_grad_by_freq: bool) -> None:
    if max_norm is not None:
        raise ValueError(
            f"an embedding with max_norm={max_norm} rescales its weights in place while it is called, which would "
            "change the model: use max_norm=None, and rescale what the embedding returns"
        )
    if scale_grad_by_freq:
        raise ValueError(
            "an embedding with scale_grad_by_freq=True gives what is no gradient of the loss, and torch differentiates "
            "it wrongly: use scale_grad_by_freq=False"
        )
