"""What a learner learns from: a task is a support set to adapt on and a query set to be judged on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .metrics import Scale

Params = dict[str, Tensor]
"""Qualified parameter name -> tensor: the currency of the whole library."""


class Batch(NamedTuple):
    """Inputs and targets.

    Each is a tensor or a pytree (tuples, lists, dicts) of tensors with equal lengths. Any other leaf (``None`` for
    targets that a loss does not need, a number) is the same for all tasks and examples.
    """

    x: Any
    y: Any


class Task(NamedTuple):
    """A support set (adapted on) and a query set (judged on), each with a leading task axis.

    With T tasks, S support and Q query examples: ``support.x`` is ``[T, S, ...]``, ``query.x`` is ``[T, Q, ...]``.
    A meta-batch is one such `Task`; a single task is the same thing without the leading axis.
    """

    support: Batch
    query: Batch


@runtime_checkable
class TaskSource(Protocol):
    """Anything that draws tasks.

    The five lines of a source of one's own:

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
    """Tasks in which the learner acts, such as those of reinforcement learning or of a robot that imitates.

    The learner's data are its own episodes, or it is evaluated by them. Any function that takes a `TaskSource` also
    takes one of these.

    Attributes:
        metric: what it is judged by: name, direction and unit, such as `innerloop.metrics.RETURN` or ``SUCCESS``.
    """

    metric: Scale

    def require(self, learner: Any) -> None:
        """Refuse, with a ``ValueError``, a learner that cannot act in these tasks."""
        ...

    def collect(self, learner: Any, n: int, generator: torch.Generator) -> Task:
        """Draw ``n`` tasks, and act in them where data are to come from that; what to adapt on and to be judged on."""
        ...

    def returns(self, learner: Any, n: int, steps: int | None, generator: torch.Generator) -> Tensor:
        """How well the learner does in ``n`` tasks after 0, 1, ..., K inner steps, ``[n, K + 1]``."""
        ...

    def report(self) -> Mapping[str, Any]:
        """What the last meta-batch came to, as plain values for the record."""
        ...


Source = TaskSource | InteractiveSource


def draw(source: Source, learner: Any, n: int, generator: torch.Generator) -> Task:
    """A meta-batch of ``n`` tasks for a learner."""
    if isinstance(source, InteractiveSource):
        return source.collect(learner, n, generator)
    return source.sample(n, generator)


def tensors_of(tasks: Any) -> list[Tensor]:
    """The tensors in tasks, a batch or inputs, in the order of their leaves; quick where these are plain tensors."""
    found: list[Tensor] = []
    for part in tasks if isinstance(tasks, tuple) else (tasks,):
        for leaf in part if isinstance(part, Batch) else (part,):
            if isinstance(leaf, Tensor):
                found.append(leaf)
            elif leaf is not None:
                found += [t for t in pytree.tree_leaves(leaf) if isinstance(t, Tensor)]
    return found


def count(tasks: Task) -> int:
    """The number of tasks T in a meta-batch.

    Raises:
        ValueError: the leading axes disagree or lack, or there is no tensor, or no task.
        TypeError: there is an array that is no tensor, which nothing would split by tasks.
    """
    for leaf in pytree.tree_leaves(tasks):
        if not isinstance(leaf, Tensor) and getattr(leaf, "shape", None):
            raise TypeError(
                f"a meta-batch has a {type(leaf).__name__} of shape {tuple(leaf.shape)} in it, and tasks are made of "
                "tensors: convert it with torch.as_tensor"
            )
    shapes = [tuple(leaf.shape) for leaf in pytree.tree_leaves(tasks) if isinstance(leaf, Tensor)]
    sizes = {shape[0] if len(shape) > 1 else 0 for shape in shapes}
    if len(sizes) != 1 or sizes == {0}:
        raise ValueError(
            "a meta-batch needs one leading task axis shared by all its tensors, and behind it one of examples "
            f"([T, S, ...]); got shapes {shapes}. For a single task add the axis with `tensor[None]`"
        )
    return sizes.pop()


def require_batch(support: Any) -> Batch:
    """The support set, which it is an error to give together with the query set.

    Raises:
        TypeError: it is not a `Batch`.
    """
    if not isinstance(support, Batch):
        hint = "give its support set, task.support" if isinstance(support, Task) else "give Batch(x, y)"
        raise TypeError(f"to adapt takes the support set of one task, a Batch, got a {type(support).__name__}: {hint}")
    return support


def select(tasks: Any, index: int | slice) -> Any:
    """One task (an int) or some of them (a slice) of a meta-batch."""
    return pytree.tree_map_only(Tensor, lambda leaf: leaf[index], tasks)


def to(tasks: Any, device: torch.device | str) -> Any:
    """The same meta-batch on another device."""
    return pytree.tree_map_only(Tensor, lambda leaf: leaf.to(device), tasks)


def rows(x: Any) -> int:
    """The number of examples in what is to be taken apart, or put together, example by example.

    Raises:
        ValueError: some tensor has not a row for each.
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
    """The number of examples in the inputs (or targets) of one task; 0 if there are no tensors."""
    return next((int(leaf.shape[0]) for leaf in pytree.tree_leaves(x) if isinstance(leaf, Tensor)), 0)


def stack(items: Sequence[Any]) -> Any:
    """Pytrees of tensors, stacked along a new first axis."""
    return pytree.tree_map(lambda *leaves: torch.stack(leaves), *items)
