"""Meta-batches of tasks of different sizes: which tasks run at once, and how results are put together.

Tasks of equal shapes form a group, which runs as any meta-batch of equal tasks does. Where padding changes nothing but
rounding (`innerloop.padding`), tasks of similar sizes are filled up and form one group, too.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .objectives import Outcome
from .task import (
    Batch,
    Padded,
    Params,
    Task,
    Tasks,
    count,
    is_stacked,
    joined,
    kind_of,
    layout,
    require_batch,
    select,
    singles,
    size,
    stack,
    tensors_of,
)


class Group(NamedTuple):
    """Some tasks of a meta-batch that run at once.

    Attributes:
        places: where they are in the meta-batch.
        tasks: stacked, their sets `Padded` if their sizes differ.
        queries: the number of query examples of each.
        kind: the name under which the engine keeps plans for groups like this one, whose shapes hardly come twice;
            empty for a whole meta-batch of equal tasks, whose shapes name it.
    """

    places: list[int]
    tasks: Task
    queries: list[int]
    kind: str = ""

    @classmethod
    def of_equal(cls, tasks: Task) -> Group:
        """Make a group of a whole meta-batch of equal tasks."""
        number = count(tasks)
        queries = next((leaf.shape[1] for leaf in tensors_of(tasks.query.x)), 0)
        return cls(list(range(number)), tasks, [queries] * number)


def prepared(tasks: Tasks) -> Tasks:
    """Take padding out of a meta-batch, and stack tasks of equal sizes."""
    return tasks if is_stacked(tasks) else joined(singles(tasks))


def equal_groups(tasks: Sequence[Task]) -> list[Group]:
    """Group tasks by their shapes, in the order of the first task of each group."""
    places: dict[Hashable, list[int]] = {}
    for place, task in enumerate(tasks):
        places.setdefault(layout(task), []).append(place)
    return [_group(tasks, group) for group in places.values()]


def by_kind(tasks: Sequence[Task]) -> dict[Hashable, list[int]]:
    """Return where the tasks are that differ in their sizes alone, by what they share."""
    kinds: dict[Hashable, list[int]] = {}
    for place, task in enumerate(tasks):
        kinds.setdefault(kind_of(task), []).append(place)
    return kinds


def padded_groups(tasks: Sequence[Task], number: int) -> list[Group]:
    """Form so many groups of similar tasks that as few examples as possible are filled up.

    Tasks that differ in more than their sizes, such as in the shape of an example, are never in one group.
    """
    kinds = by_kind(tasks).values()
    sizes = [(size(task.support.x), size(task.query.x)) for task in tasks]
    return [
        _group(tasks, sorted(places))
        for kind in kinds
        for places in _partition(sorted(kind, key=lambda place: (sum(sizes[place]), place)), sizes, number)
    ]


def _partition(places: list[int], sizes: Sequence[tuple[int, int]], number: int) -> list[list[int]]:
    """Cut sorted tasks into at most so many runs, by dynamic programming over where the runs end."""
    total = len(places)
    costs = [_costs([sizes[place] for place in places[begin:]]) for begin in range(total if number > 1 else 1)]
    least = [0, *costs[0]]

    def up_to(end: int, begin: int) -> int:
        return least[begin] + costs[begin][end - begin - 1]

    cuts: list[list[int]] = []  # for each further run, where it begins at best if it ends after 1, 2, ... tasks
    for _ in range(min(number, total) - 1):
        begins = [min(range(end), key=partial(up_to, end)) for end in range(1, total + 1)]
        least = [0, *(up_to(end, begin) for end, begin in enumerate(begins, 1))]
        cuts.append(begins)
    runs, end = list[list[int]](), total
    while end:
        begin = cuts.pop()[end - 1] if cuts else 0
        runs.append(places[begin:end])
        end = begin
    return runs[::-1]


def _costs(sizes: Sequence[tuple[int, int]]) -> list[int]:
    """Return the number of examples in the first task, the first two tasks, ..., when they are filled up."""
    supports, queries = (itertools.accumulate(own, max) for own in zip(*sizes, strict=True))
    return [number * sum(largest) for number, largest in enumerate(zip(supports, queries, strict=True), 1)]


def _group(tasks: Sequence[Task], places: list[int]) -> Group:
    """Stack some tasks, and fill them up if their shapes differ."""
    own = [tasks[place] for place in places]
    queries = [size(task.query.x) for task in own]
    equal = len({layout(task) for task in own}) == 1
    stacked = stack(own) if equal else Task(*map(filled, zip(*own, strict=True)))
    return Group(places, stacked, queries, name_of(own[0]))


def name_of(task: Task) -> str:
    """Return the name of plans for tasks that differ from this one in their sizes alone."""
    examples = ("x".join(map(str, leaf.shape[1:])) or "number" for leaf in tensors_of(task))
    return f"unequal {' '.join(examples)}"


def filled(parts: Sequence[Batch]) -> Padded:
    """Fill sets up to the size of the largest one, and stack them.

    The last example of a set is repeated, so that no value is an unusual one.
    """
    sizes, device = torch.tensor([size(part.x) for part in parts]), tensors_of(parts[0])[0].device
    places = torch.arange(int(sizes.max())).expand(len(parts), -1)
    rows = (sizes.cumsum(0) - sizes)[:, None] + places.minimum(sizes[:, None] - 1)
    rows, mask = rows.to(device), (places < sizes[:, None]).to(device)
    x, y = pytree.tree_map(
        lambda *leaves: torch.cat(leaves)[rows] if isinstance(leaves[0], Tensor) else leaves[0], *map(tuple, parts)
    )
    return Padded(x, y, mask)


# -- results ----------------------------------------------------------------------------------------------------------


def in_order(groups: Sequence[Group], results: Sequence[Sequence[Any]]) -> list[Any]:
    """One result for each task, in the order of the meta-batch, from the results of each group's tasks."""
    both = ((place, result) for group, own in zip(groups, results, strict=True)
            for place, result in zip(group.places, own, strict=True))  # fmt: skip
    return [result for _, result in sorted(both, key=lambda pair: pair[0])]


def stacked_in_order(groups: Sequence[Group], results: Sequence[Tensor]) -> Tensor:
    """The same for tensors ``[t, ...]`` of each group: one tensor ``[T, ...]``."""
    order = torch.tensor([place for group in groups for place in group.places], device=results[0].device)
    return torch.cat(list(results))[order.argsort()]


def outputs_of(group: Group, outputs: Any, axis: int = 0) -> Iterator[Any]:
    """Take the outputs ``[t, ...]`` of a group apart by task, and leave out those on examples that fill up.

    If nothing is filled up, outputs may have any shape.

    Args:
        group: the group.
        outputs: a pytree of tensors.
        axis: the axis of examples in what is left for each task.
    """
    for index, number in enumerate(group.queries):
        own = select(outputs, index)
        if isinstance(group.tasks.query, Padded):
            own = pytree.tree_map_only(Tensor, lambda leaf: leaf.narrow(axis, 0, number), own)  # noqa: B023
        yield own


def weighted_mean(groups: Sequence[Group], means: Sequence[Params]) -> Params:
    """Means over all tasks from means over the tasks of each group; of whole numbers, those of any group."""
    total = sum(len(group.places) for group in groups)
    weights = [len(group.places) / total for group in groups]

    def mean(*parts: Tensor) -> Tensor:
        if not (parts[0].is_floating_point() or parts[0].is_complex()):
            return parts[0]
        return torch.stack([weight * part for weight, part in zip(weights, parts, strict=True)]).sum(0)

    return {name: mean(*(each[name] for each in means)) for name in means[0]}


def together(groups: Sequence[Group], outcomes: Sequence[Outcome]) -> Outcome:
    """Put the outcomes of groups together, with a list of the outputs of each task."""
    objective, loss, steps = (
        stacked_in_order(groups, [getattr(outcome, name) for outcome in outcomes])
        for name in ("objective", "loss", "steps")
    )
    outputs = [list(outputs_of(group, outcome.output)) for group, outcome in zip(groups, outcomes, strict=True)]
    return Outcome(objective, loss, in_order(groups, outputs), steps)


def tasks_of(support: Batch | list[Batch]) -> Tasks:
    """Make tasks of support sets alone, to adapt to."""
    if isinstance(support, list):
        return [Task(part, part) for part in map(require_batch, support)]
    return Task(support, support) if isinstance(support, Padded) else Task(require_batch(support), support)
