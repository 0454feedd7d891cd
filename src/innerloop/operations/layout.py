"""The memory layout of stacks of images for the kernels: the task axis is merged with the channels, channels last.

Images may have any number of axes ``...`` after the channels.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor

aten: Any = torch.ops.aten


def fold(stack: Tensor) -> Tensor:
    """``[T, N, C, ...] -> [N, T * C, ...]``, channels last in memory; a view of a result of `unfold`."""
    tasks, n, channels, *space = stack.shape
    shape = (n, tasks * channels, *space)
    if stack.stride() == _unfolded_strides(shape, channels):
        return stack.as_strided(shape, _channels_last_strides(shape))
    return _channels_last(stack.permute(1, *range(3, stack.ndim), 0, 2), shape)


def unfold(x: Tensor, tasks: int) -> Tensor:
    """``[N, T * C, ...] -> [T, N, C, ...]``."""
    n, channels, *space = x.shape
    if x.stride() != _channels_last_strides(x.shape):
        x = _channels_last(x.permute(0, *range(2, x.ndim), 1), x.shape)
    channels //= tasks
    return x.as_strided((tasks, n, channels, *space), _unfolded_strides(x.shape, channels))


def result(x: Tensor, tasks: int) -> Tensor:
    """`unfold` for the result of an autograd function.

    The result is not a view, so that the next operation may write to it, as ``nn.ReLU(inplace=True)`` does.
    """
    stack = unfold(x, tasks)
    return aten._unsafe_view(stack, stack.shape)  # type: ignore[no-any-return]


def fold_weight(stack: Tensor) -> Tensor:
    """``[T, O, C, ...] -> [T * O, C, ...]``, channels last in memory."""
    tasks, out, channels, *kernel = stack.shape
    return _channels_last(stack.permute(0, 1, *range(3, stack.ndim), 2), (tasks * out, channels, *kernel))


def unfold_weight(weight: Tensor, tasks: int) -> Tensor:
    """``[T * O, C, ...] -> [T, O, C, ...]``, a view."""
    return weight.view(tasks, -1, *weight.shape[1:])


def _channels_last(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """View values in memory order as images.

    The strides are those of channels last even for one channel, because torch chooses its memory layout by them.
    """
    return values.contiguous().as_strided(shape, _channels_last_strides(shape))


@lru_cache(maxsize=1000)
def _channels_last_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    _, channels, *space = shape
    within = [channels * prod(space[axis + 1 :]) for axis in range(len(space))]
    return channels * prod(space), 1, *within


def _unfolded_strides(shape: tuple[int, ...], each: int) -> tuple[int, ...]:
    """Return the strides of ``[T, N, C, ...]`` with C = ``each`` in the memory of folded images of a shape."""
    return each, *_channels_last_strides(shape)


def column(vector: Tensor) -> Tensor:
    """``[T, C]`` or ``[T * C] -> [1, T * C, 1, 1]``."""
    return vector.reshape(1, -1, 1, 1)


def pieces(x: Tensor, pixels: float) -> tuple[Tensor, ...]:
    """Split images into pieces of about ``pixels`` pixels."""
    number = max(1, round(x.numel() / x.shape[1] / pixels))
    return x.split(-(-len(x) // number))  # type: ignore[no-any-return, no-untyped-call]
