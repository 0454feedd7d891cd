"""Split meta-batches into parts, and concatenate the results of parts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..task import Params, Task, count, select


def parts_of(tasks: Task, size: int, start: int, most: int | None = None) -> list[Task]:
    """Split the tasks from index ``start`` on into parts of ``size`` tasks; return at most ``most`` parts."""
    starts = range(start, count(tasks), size)[:most]
    return [select(tasks, slice(i, i + size)) for i in starts]


def copies(tensors: Params, number: int) -> Params:
    """Expand each tensor by a new first axis of length ``number``, one entry for every item.

    Each item needs its own entry because buffers are updated in place and inner gradients are taken for each item.
    Images and their filters are laid out with channels last, as the kernels require.
    """
    last = {n: t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for n, t in tensors.items()}
    return {name: tensor.expand(number, *tensor.shape) for name, tensor in last.items()}


def shapes_of(tasks: Task) -> str:
    """Return the shapes of the tasks as a string."""
    leaves = [leaf for leaf in pytree.tree_leaves(tasks) if isinstance(leaf, Tensor)]
    return " ".join("x".join(map(str, leaf.shape)) for leaf in leaves)


def concatenated(chunks: list[Any]) -> Any:
    """Concatenate pytrees of tensors along the first axis, leaf by leaf."""
    return pytree.tree_map(lambda *parts: parts[0] if len(parts) == 1 else torch.cat(parts), *chunks)
