"""Tasks from several sources."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from ..task import InteractiveSource, Task, Tasks, TaskSource, joined, singles


class Mixture:
    """Draws each task from one of several sources, its sets (Triantafillou et al. 2020, section 3.2.1).

    An evaluation also gives the result on each set (`innerloop.Evaluation.sets`). Its tasks are shared out by the
    weights (see `order`), and it ends with the last task of a finite set.

    Args:
        sources: the sources, by the names of the sets. Sizes of tasks may differ.
        weights: how often each set is drawn, in proportion; by default all are equally likely.

    Raises:
        ValueError: there is no source, or a weight is missing, is not that of a source, or is not positive.
        TypeError: the learner acts in the tasks of a source.

    >>> from innerloop.data import Linear, Sinusoid
    >>> mixture = Mixture({"waves": Sinusoid(), "lines": Linear()}, {"waves": 3, "lines": 1})
    >>> mixture.order(5)
    ['waves', 'waves', 'lines', 'waves', 'waves']
    """

    def __init__(self, sources: Mapping[str, TaskSource], weights: Mapping[str, float] | None = None) -> None:
        if not sources:
            raise ValueError('a mixture needs at least one source: {"name": source, ...}')
        if acting := [name for name, source in sources.items() if isinstance(source, InteractiveSource)]:
            raise TypeError(f"the learner acts in the tasks of {acting[0]!r}: only tasks with data can be mixed")
        self.sources = dict(sources)
        self.weights = _weights(self.sources, weights)

    def sample(self, n: int, generator: torch.Generator) -> Tasks:
        """Draw ``n`` tasks, each from a set that is drawn by the weights."""
        names, weights = list(self.sources), torch.tensor(list(self.weights.values()), dtype=torch.float64)
        drawn = torch.multinomial(weights, n, replacement=True, generator=generator).tolist()
        tasks: list[list[Task]] = []  # of one set at once, so that a finite one gives different tasks
        for index, name in enumerate(names):
            number = drawn.count(index)
            tasks.append(singles(self.sources[name].sample(number, generator)) if number else [])
        return joined([tasks[index].pop(0) for index in drawn])

    def order(self, n: int) -> list[str]:
        """Return the sets of the first ``n`` tasks of an evaluation.

        Nothing in it is random: after every task, each set has had its share of them, give or take one.
        """
        had, order = dict.fromkeys(self.sources, 0), list[str]()
        for number in range(1, n + 1):
            order.append(max(had, key=lambda name: self.weights[name] * number - had[name]))
            had[order[-1]] += 1
        return order

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the sources that have one (`innerloop.train.Stateful`), by set."""
        stateful = {name: source for name, source in self.sources.items() if hasattr(source, "load_state_dict")}
        return {name: source.state_dict() for name, source in stateful.items()}  # type: ignore[attr-defined]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state of the sources."""
        for name, each in state.items():
            self.sources[name].load_state_dict(each)  # type: ignore[attr-defined]


def _weights(sources: Mapping[str, TaskSource], weights: Mapping[str, float] | None) -> dict[str, float]:
    """Check weights, and scale them to a sum of 1."""
    given = dict.fromkeys(sources, 1.0) if weights is None else dict(weights)
    if given.keys() != sources.keys():
        raise ValueError(f"weights are needed for the sets {', '.join(sources)}, and given for {', '.join(given)}")
    if wrong := [name for name, weight in given.items() if not (weight > 0 and math.isfinite(weight))]:
        raise ValueError(f"the weight of {wrong[0]!r} must be positive, got {given[wrong[0]]}: leave out other sets")
    total = sum(given.values())
    return {name: given[name] / total for name in sources}
