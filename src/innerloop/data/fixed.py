"""Tasks that are given one by one, such as one for each patient, assay or user, whose sizes may differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..common.ranges import require_at_least
from ..task import Batch, Padded, Task, Tasks, joined, singles, size, tensors_of


def from_tasks(tasks: Sequence[Any], shots: int | None = None, queries: int | None = None) -> FixedTasks:
    """Make a source of tasks that are given one by one. Their support and query sets may have any sizes.

    Args:
        tasks: for each task ``(support x, support y, query x, query y)`` or a `Task` without a task axis; with
            ``shots``, all its examples ``(x, y)``. Inputs and targets are tensors, NumPy arrays, numbers or lists of
            numbers, or, for models of several inputs, tuples or dicts of tensors; targets may be ``None``. Their first
            axis is that of examples. Floating-point numbers that are no tensors get torch's default type.
        shots: support examples, drawn at random from the examples of a task each time that the task is drawn; the
            others are its query set.
        queries: at most so many of the others.

    Raises:
        ValueError: there is no task, a task has no example for one of its sets, or inputs and targets of different
            lengths.
        TypeError: a task is something else.

    >>> tasks = [(torch.rand(n, 1), torch.rand(n, 1)) for n in (5, 8, 30)]
    >>> source = from_tasks(tasks, shots=3)
    >>> [len(task.query.x) for task in source.sample(3, torch.Generator().manual_seed(0))]
    [27, 2, 5]
    """
    if shots is None:
        if queries is not None:
            raise ValueError(f"queries={queries} is for tasks that are split at random: give shots=, too")
        return FixedTasks([_whole(task, number) for number, task in enumerate(tasks)])
    require_at_least(1, shots=shots, queries=queries)
    return SplitTasks([_examples(task, number, shots) for number, task in enumerate(tasks)], shots, queries)


class FixedTasks:
    """A source of given tasks, each equally likely.

    An evaluation takes each task once at most.

    Args:
        tasks: single tasks.
    """

    def __init__(self, tasks: Sequence[Any]) -> None:
        if not tasks:
            raise ValueError("a source needs at least one task, got none")
        self._tasks = list(tasks)

    def __len__(self) -> int:
        """Return the number of tasks."""
        return len(self._tasks)

    def task(self, index: int, generator: torch.Generator) -> Task:
        """Return a task, without a leading axis. Nothing in it is random."""
        task: Task = self._tasks[index]
        return task

    def sample(self, n: int, generator: torch.Generator) -> Tasks:
        """Draw ``n`` tasks: different ones if there are so many."""
        order = torch.randperm(len(self), generator=generator)[:n].tolist()
        order += torch.randint(len(self), (n - len(order),), generator=generator).tolist()
        return joined([self.task(index, generator) for index in order])


class SplitTasks(FixedTasks):
    """A source of given tasks whose examples are split at random.

    Args:
        tasks: all examples of each task.
        shots: support examples.
        queries: query examples at most; ``None`` takes all others.
    """

    def __init__(self, tasks: Sequence[Batch], shots: int, queries: int | None = None) -> None:
        super().__init__(tasks)
        self.shots, self.queries = shots, queries

    def task(self, index: int, generator: torch.Generator) -> Task:
        """Return a task, without a leading axis, as ``generator`` splits it."""
        examples: Batch = self._tasks[index]
        order = torch.randperm(size(examples.x), generator=generator)
        end = None if self.queries is None else self.shots + self.queries
        support, query = (
            Batch(*pytree.tree_map_only(Tensor, lambda leaf: leaf[part], tuple(examples)))  # noqa: B023
            for part in (order[: self.shots], order[self.shots : end])
        )
        return Task(support, query)


# -- reading what is given --------------------------------------------------------------------------------------------


def _whole(task: Any, number: int) -> Task:
    if isinstance(task, Task):
        return _checked(
            Task(*(part if isinstance(part, Padded) else _batch(part.x, part.y, number) for part in task)), number
        )
    if not isinstance(task, (tuple, list)) or len(task) != 4:
        hint = "; for pairs (x, y) give shots= as well" if isinstance(task, (tuple, list)) and len(task) == 2 else ""
        raise TypeError(
            f"task {number} is a Task or (support x, support y, query x, query y), got {_described(task)}{hint}"
        )
    return _checked(Task(_batch(task[0], task[1], number), _batch(task[2], task[3], number)), number)


def _checked(task: Task, number: int) -> Task:
    (task,) = singles([task])
    for name, part in task._asdict().items():
        if not size(part.x):
            raise ValueError(f"the {name} set of task {number} is empty: leave the task out")
    return task


def _examples(task: Any, number: int, shots: int) -> Batch:
    if not isinstance(task, (tuple, list)) or len(task) != 2:
        raise TypeError(f"with shots=, task {number} is (x, y), all examples of the task; got {_described(task)}")
    examples = _batch(task[0], task[1], number)
    if size(examples.x) <= shots:
        raise ValueError(
            f"task {number} has {size(examples.x)} examples, and shots={shots} leaves none for its query set: give "
            "fewer shots, or leave the task out"
        )
    return examples


def _batch(x: Any, y: Any, number: int) -> Batch:
    batch = Batch(_tensors(x), None if y is None else _tensors(y))
    lengths = {leaf.shape[0] if leaf.ndim else None for leaf in tensors_of(batch)}
    if len(lengths) != 1 or None in lengths:
        shapes = [tuple(leaf.shape) for leaf in tensors_of(batch)]
        raise ValueError(
            f"the inputs and targets of task {number} need one first axis, that of examples; got shapes {shapes}"
        )
    return batch


def _tensors(values: Any) -> Any:
    """Make tensors of arrays and lists of numbers, also within tuples and dicts."""
    if isinstance(values, dict):
        return {key: _tensors(value) for key, value in values.items()}
    if isinstance(values, tuple):
        return tuple(map(_tensors, values))
    if isinstance(values, list) and any(isinstance(value, Tensor) or hasattr(value, "shape") for value in values):
        return [_tensors(value) for value in values]
    if isinstance(values, Tensor):
        return values
    tensor = torch.as_tensor(values)
    return tensor.to(torch.get_default_dtype()) if tensor.is_floating_point() else tensor


def _described(task: Any) -> str:
    length = f" of {len(task)}" if isinstance(task, (tuple, list)) else ""
    return f"a {type(task).__name__}{length}"
