"""Tasks: a learner adapts on the support set of a task and is evaluated on its query set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .metrics import Scale

Params = dict[str, Tensor]
"""Tensors by qualified parameter name."""


class Batch(NamedTuple):
    """Inputs and targets.

    Each is a tensor or a pytree (tuples, lists, dicts) of tensors with equal lengths. Any other leaf (``None`` for
    targets that a loss does not need, a number) is the same for all tasks and examples.
    """

    x: Any
    y: Any


class Task(NamedTuple):
    """A support set to adapt on and a query set to evaluate on, each with a leading task axis.

    With T tasks, S support and Q query examples: ``support.x`` is ``[T, S, ...]``, ``query.x`` is ``[T, Q, ...]``.
    A meta-batch is one such `Task`; a single task is the same thing without the leading axis.
    """

    support: Batch
    query: Batch


@runtime_checkable
class TaskSource(Protocol):
    """Anything that draws tasks.

    Your own source takes five lines:

    >>> class Steps:
    ...     def sample(self, n, generator):
    ...         x = torch.rand(n, 10, 1, generator=generator)
    ...         y = (x > torch.rand(n, 1, 1, generator=generator)).float()
    ...         return Task(Batch(x[:, :5], y[:, :5]), Batch(x[:, 5:], y[:, 5:]))
    >>> isinstance(Steps(), TaskSource)
    True
    """

    def sample(self, n: int, generator: torch.Generator) -> Task:
        """Draw ``n`` tasks; all randomness comes from ``generator``, so the same state gives the same tasks."""
        ...


@runtime_checkable
class InteractiveSource(Protocol):
    """Draws tasks in which the learner acts, as in reinforcement learning or imitation learning.

    The learner collects its own data, or is evaluated on episodes in which it acts. Any function that takes a
    `TaskSource` also takes an interactive source.

    Attributes:
        metric: the name, direction and unit of the score, such as `innerloop.metrics.RETURN` or ``SUCCESS``.
    """

    metric: Scale

    def require(self, learner: Any) -> None:
        """Refuse, with a ``ValueError``, a learner that cannot act in these tasks."""
        ...

    def collect(self, learner: Any, n: int, generator: torch.Generator) -> Task:
        """Draw ``n`` tasks, act in them if the data come from that, and return support and query sets."""
        ...

    def returns(self, learner: Any, n: int, steps: int | None, generator: torch.Generator) -> Tensor:
        """Return the scores of the learner in ``n`` tasks after 0, 1, ..., K inner steps, ``[n, K + 1]``."""
        ...

    def report(self) -> Mapping[str, Any]:
        """Return the results of the last meta-batch, as plain values for the record."""
        ...


Source = TaskSource | InteractiveSource


def draw(source: Source, learner: Any, n: int, generator: torch.Generator) -> Task:
    """Draw a meta-batch of ``n`` tasks for a learner."""
    if isinstance(source, InteractiveSource):
        return source.collect(learner, n, generator)
    return source.sample(n, generator)


def tensors_of(tasks: Any) -> list[Tensor]:
    """Return the tensors in tasks, a batch or inputs, in the order of their leaves; fast for plain tensors."""
    tensors: list[Tensor] = []
    for part in tasks if isinstance(tasks, tuple) else (tasks,):
        for leaf in part if isinstance(part, Batch) else (part,):
            if isinstance(leaf, Tensor):
                tensors.append(leaf)
            elif leaf is not None:
                tensors += [t for t in pytree.tree_leaves(leaf) if isinstance(t, Tensor)]
    return tensors


def count(tasks: Task) -> int:
    """Return the number of tasks T in a meta-batch.

    Raises:
        ValueError: the leading axes differ or are missing, or there is no tensor, or no task.
        TypeError: an array is not a tensor, so it could not be split by task.
    """
    for leaf in pytree.tree_leaves(tasks):
        if not isinstance(leaf, Tensor) and getattr(leaf, "shape", None):
            raise TypeError(
                f"a meta-batch contains a {type(leaf).__name__} of shape {tuple(leaf.shape)}, but tasks are made of "
                "tensors: convert it with torch.as_tensor"
            )
    shapes = [tuple(leaf.shape) for leaf in pytree.tree_leaves(tasks) if isinstance(leaf, Tensor)]
    sizes = {shape[0] if len(shape) > 1 else 0 for shape in shapes}
    if len(sizes) != 1 or sizes == {0}:
        raise ValueError(
            "a meta-batch needs one leading task axis shared by all its tensors, followed by an axis of examples "
            f"([T, S, ...]); got shapes {shapes}. For a single task add the axis with `tensor[None]`"
        )
    return sizes.pop()


def require_batch(support: Any) -> Batch:
    """Return the support set if it is one; a whole task is an error.

    Raises:
        TypeError: it is not a `Batch`.
    """
    if not isinstance(support, Batch):
        hint = "give its support set, task.support" if isinstance(support, Task) else "give Batch(x, y)"
        raise TypeError(f"adapting takes the support set of one task, a Batch, got a {type(support).__name__}: {hint}")
    return support


def select(tasks: Any, index: int | slice) -> Any:
    """Return one task (an int) or some tasks (a slice) of a meta-batch."""
    return pytree.tree_map_only(Tensor, lambda leaf: leaf[index], tasks)


def to(tasks: Any, device: torch.device | str) -> Any:
    """Move a meta-batch to a device."""
    return pytree.tree_map_only(Tensor, lambda leaf: leaf.to(device), tasks)


def rows(x: Any) -> int:
    """Return the number of examples in inputs that will be indexed or concatenated by example.

    Raises:
        ValueError: a tensor does not have one row for each example.
    """
    number = size(x)
    if odd := [tuple(leaf.shape) for leaf in tensors_of(x) if leaf.shape[:1] != (number,)]:
        raise ValueError(
            f"the inputs have {number} examples, but one of their tensors has shape {odd[0]}: mini-batches "
            "(batch_size=) and predictions for one example at a time (transductive=False, or a single query) index "
            f"every tensor by example, so its first axis must have length {number}. Repeat what all examples share "
            "along that axis, or make it a buffer of the model"
        )
    return number


def size(x: Any) -> int:
    """Return the number of examples in the inputs (or targets) of one task; 0 if there are no tensors."""
    return next((int(leaf.shape[0]) for leaf in pytree.tree_leaves(x) if isinstance(leaf, Tensor)), 0)


def stack(items: Sequence[Any]) -> Any:
    """Stack pytrees of tensors along a new first axis."""
    return pytree.tree_map(lambda *leaves: torch.stack(leaves), *items)
