"""Embeddings by indexing, for which torch's batching rules are correct.

Torch's rule for ``embedding`` concatenates the tables of all tasks and ignores that each has a padding row: only that
of the first task gets no gradient. It does not detect indices out of range either, which select a row of another task's
table (torch 2.13).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..functional.stacks import place
from .elementary import in_range


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
    out = F.embedding(input if place() == "plain" else in_range(input, len(weight)), weight)
    if padding_idx is None:
        return out
    if not -len(weight) <= padding_idx < len(weight):
        raise ValueError(f"padding_idx={padding_idx} is not one of the {len(weight)} rows of the embedding")
    return torch.where((input == padding_idx % len(weight))[..., None], out.detach(), out)


def torch_embedding(
    weight: Tensor, indices: Tensor, padding_idx: int = -1, scale_grad_by_freq: bool = False, sparse: bool = False
) -> Tensor:
    """``torch.embedding``, which has another order of arguments, and for which -1 means no padding."""
    padding = None if padding_idx < 0 else padding_idx
    return embedding(indices, weight, padding, scale_grad_by_freq=scale_grad_by_freq)


def _require_plain(max_norm: float | None, scale_grad_by_freq: bool) -> None:
    if max_norm is not None:
        raise ValueError(
            f"an embedding with max_norm={max_norm} rescales its weights in place when it is called, which would "
            "change the model: use max_norm=None, and rescale the embedding's output"
        )
    if scale_grad_by_freq:
        raise ValueError(
            "an embedding with scale_grad_by_freq=True does not return the gradient of the loss, and torch's "
            "derivative of it is wrong: use scale_grad_by_freq=False"
        )


def embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """``torch.nn.functional.embedding_bag``, with derivatives of every order, which torch's own lacks.

    Raises:
        ValueError: ``max_norm`` or ``scale_grad_by_freq`` is given, or the arguments do not fit together.
    """
    _require_plain(max_norm, scale_grad_by_freq)
    if mode not in ("sum", "mean", "max"):
        raise ValueError(f'mode must be "sum", "mean" or "max", got {mode!r}')
    if input.ndim not in (1, 2) or (input.ndim == 1) != (offsets is not None):
        raise ValueError(f"input must be [B, L], or [N] with offsets, got {tuple(input.shape)} and offsets {offsets}")
    if per_sample_weights is not None and (mode != "sum" or per_sample_weights.shape != input.shape):
        raise ValueError(f'per_sample_weights need mode="sum" and the shape of input, got mode={mode!r}')
    rows = embedding(input, weight)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights[..., None]
    counts = torch.ones_like(input, dtype=torch.bool)
    if padding_idx is not None:
        counts = input != padding_idx % len(weight)
    if offsets is None:
        return _bags(rows, counts[..., None], mode)
    at = torch.arange(len(input), device=input.device)[:, None]
    ends = offsets[1:] if include_last_offset else torch.cat([offsets[1:], offsets.new_full((1,), len(input))])
    starts = offsets[: len(ends)]
    member = (at >= starts) & (at < ends) & counts[:, None]
    return _bags(rows[None], member.T[..., None], mode)


def _bags(rows: Tensor, counts: Tensor, mode: str) -> Tensor:
    """Reduce the rows ``[B, L, D]`` that count, ``[B, L, 1]``, to one row per bag, ``[B, D]``; 0 for empty bags."""
    if mode == "max":
        least = torch.where(counts, rows.detach(), -torch.inf).argmax(1, keepdim=True)
        picked = rows.expand(len(counts), -1, -1).gather(1, least)[:, 0]
        return torch.where(counts.any(1), picked, 0)
    total = torch.where(counts, rows, 0).sum(1)
    return total if mode == "sum" else total / counts.sum(1).clamp(min=1)
