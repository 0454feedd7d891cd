"""Tasks: a learner adapts on the support set of a task and is evaluated on its query set."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

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


if TYPE_CHECKING:

    class Padded(Batch):
        """A set that may stand where a `Batch` does; a named tuple cannot inherit from another one that has fields."""

        mask: Tensor

        def __new__(cls, x: Any, y: Any, mask: Tensor) -> Padded: ...  # noqa: D102
        def _replace(self, **fields: Any) -> Padded: ...

else:

    class Padded(NamedTuple):
        """Examples of T tasks of different sizes, filled up to the largest one.

        What the examples that fill up hold does not matter: they change no result. In a `Task`, a padded set may stand
        where a `Batch` does.

        Attributes:
            x: as of a `Batch`: ``[T, S, ...]``, S being the size of the largest task.
            y: likewise.
            mask: ``[T, S]``, true for the examples of a task and false for those that fill up.
        """

        x: Any
        y: Any
        mask: Tensor


class Task(NamedTuple):
    """A support set to adapt on and a query set to evaluate on, each with a leading task axis.

    With T tasks, S support and Q query examples: ``support.x`` is ``[T, S, ...]``, ``query.x`` is ``[T, Q, ...]``.
    A meta-batch is one such `Task`; a single task is the same thing without the leading axis. A meta-batch of tasks of
    different sizes is a list of single tasks, or one `Task` of `Padded` sets.
    """

    support: Batch
    query: Batch


Tasks = Task | list[Task]
"""A meta-batch: tasks of equal sizes, stacked along a leading axis, or a list of single tasks."""


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

    def sample(self, n: int, generator: torch.Generator) -> Tasks:
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


@runtime_checkable
class FiniteSource(Protocol):
    """A source of a fixed number of tasks. An evaluation takes each of them once at most.

    A source of this kind is also a `TaskSource`.
    """

    def __len__(self) -> int:
        """Return the number of tasks."""
        ...

    def task(self, index: int, generator: torch.Generator) -> Task:
        """Return one task, without a leading axis; ``generator`` draws what is random in it."""
        ...


@runtime_checkable
class MixedSource(Protocol):
    """A source that draws each task from one of several sets. An evaluation also gives the result on each set.

    A source of this kind is also a `TaskSource`.

    Attributes:
        sources: the source of each set, by name.
    """

    sources: Mapping[str, TaskSource]

    def order(self, n: int) -> list[str]:
        """Return the sets of the first ``n`` tasks of an evaluation."""
        ...


def draw(source: Source, learner: Any, n: int, generator: torch.Generator) -> Tasks:
    """Draw a meta-batch of ``n`` tasks for a learner; tasks of equal sizes are stacked."""
    if isinstance(source, InteractiveSource):
        return source.collect(learner, n, generator)
    tasks = source.sample(n, generator)
    return tasks if is_stacked(tasks) else joined(singles(tasks))


def is_stacked(tasks: Any) -> bool:
    """Whether a meta-batch is one `Task` of equal tasks without padding."""
    return not isinstance(tasks, list) and not any(isinstance(part, Padded) for part in tasks)


def singles(tasks: Tasks) -> list[Task]:
    """Take a meta-batch apart into single tasks without padding.

    Raises:
        ValueError: there is no task, or a mask does not fit.
        TypeError: an entry of a list is no `Task`.
    """
    if not isinstance(tasks, list):
        return [Task(*map(unpadded, select(tasks, index))) for index in range(count(tasks))]
    if not tasks:
        raise ValueError("a meta-batch needs at least one task, got an empty list")
    if strange := [type(task).__name__ for task in tasks if not isinstance(task, Task)]:
        raise TypeError(f"a list of tasks holds Task(Batch(x, y), Batch(x, y)) for each task, got a {strange[0]}")
    return [Task(*map(unpadded, task)) for task in tasks]


def unpadded(part: Batch) -> Batch:
    """Return the examples of one task without those that fill up.

    Raises:
        ValueError: the mask is no vector of booleans with an entry for each example, or leaves no example.
    """
    if not isinstance(part, Padded):
        return part
    number, mask = size(part.x), part.mask
    if mask.dtype != torch.bool or mask.shape != (number,) or not bool(mask.any()):
        raise ValueError(
            f"the mask of a padded set has a boolean for each example, at least one of which is true; got "
            f"{int(mask.sum())} true ones in {tuple(mask.shape)} of {mask.dtype} for {number} examples of a task"
        )
    return Batch(*pytree.tree_map_only(Tensor, lambda leaf: leaf[mask], (part.x, part.y)))


def joined(tasks: Sequence[Task]) -> Tasks:
    """Stack single tasks if their shapes are equal; else return them as a list."""
    return stack(tasks) if len({layout(task) for task in tasks}) == 1 else list(tasks)


def layout(task: Task, axes: int = 0) -> Hashable:
    """Return the shapes and types of the tensors in a task, without the first axes, and whatever else it holds."""
    leaves, structure = [leaf for part in task for leaf in part], ""
    if not all(isinstance(leaf, Tensor) for leaf in leaves):  # flattening takes its time
        leaves, spec = pytree.tree_flatten(task)
        structure = str(spec)
    plain = [(leaf.shape[axes:], leaf.dtype) if isinstance(leaf, Tensor) else repr(leaf) for leaf in leaves]
    return structure, tuple(plain)


def tensors_of(tasks: Any) -> list[Tensor]:
    """Return the tensors in tasks, a batch or inputs, in the order of their leaves; fast for plain tensors."""
    tensors: list[Tensor] = []
    if isinstance(tasks, list) and all(isinstance(task, Task) for task in tasks):
        return [tensor for task in tasks for tensor in tensors_of(task)]
    for part in tasks if isinstance(tasks, tuple) else (tasks,):
        for leaf in part if isinstance(part, Batch) else (part,):
            if isinstance(leaf, Tensor):
                tensors.append(leaf)
            elif leaf is not None:
                tensors += [t for t in pytree.tree_leaves(leaf) if isinstance(t, Tensor)]
    return tensors


def kind_of(task: Task) -> Hashable:
    """Return what two tasks share that differ in their sizes alone."""
    return layout(task, axes=1)


def count(tasks: Tasks) -> int:
    """Return the number of tasks T in a meta-batch.

    Raises:
        ValueError: the leading axes differ or are missing, or there is no tensor, or no task.
        TypeError: an array is not a tensor, so it could not be split by task.
    """
    if isinstance(tasks, list):
        return len(tasks)
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
    if isinstance(support, Padded):
        return unpadded(support)
    if not isinstance(support, Batch):
        hint = "give its support set, task.support" if isinstance(support, Task) else "give Batch(x, y)"
        raise TypeError(f"adapting takes the support set of one task, a Batch, got a {type(support).__name__}: {hint}")
    return support


def select(tasks: Any, index: int | slice) -> Any:
    """Return one task (an int) or some tasks (a slice) of a meta-batch."""
    if isinstance(tasks, list) and tasks and isinstance(tasks[0], Task):
        return tasks[index]
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
    leaves = [x] if isinstance(x, Tensor) else pytree.tree_leaves(x)  # flattening takes its time
    return next((int(leaf.shape[0]) for leaf in leaves if isinstance(leaf, Tensor)), 0)


def stack(items: Sequence[Any]) -> Any:
    """Stack pytrees of tensors along a new first axis. Of other leaves, the first one is taken."""
    return pytree.tree_map(lambda *leaves: torch.stack(leaves) if isinstance(leaves[0], Tensor) else leaves[0], *items)
