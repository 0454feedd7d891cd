"""Ensembles of learners."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn
from torch.utils import _pytree as pytree

from ..episode import Loss
from ..learner import MetaLearner
from ..task import Tasks


class Ensemble:
    """Averages the outputs of learners of one kind, each of which adapts to a task by itself.

    The published accuracies of MAML++ are those of an ensemble of the best validated weights of a run, with averaged
    logits: five in the authors' current code, three in their first.

    Args:
        learners: the learners, at least one.

    Raises:
        ValueError: there is no learner.
    """

    def __init__(self, learners: Sequence[MetaLearner]) -> None:
        if not learners:
            raise ValueError("an ensemble needs at least one learner")
        self.learners = tuple(learners)

    @property
    def loss(self) -> Loss:
        """The outer loss, the same for all learners."""
        return self.learners[0].loss

    @property
    def depends_on_query_set(self) -> bool:
        """Whether predictions depend on the other query examples; see `MetaLearner.depends_on_query_set`."""
        return self.learners[0].depends_on_query_set

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of all learners."""
        for learner in self.learners:
            yield from learner.parameters()

    def predict(self, tasks: Tasks, steps: int | None = None, transductive: bool = True) -> Any:
        """Return the mean of the learners' outputs; see `MetaLearner.predict`."""
        outputs = [learner.predict(tasks, steps, transductive) for learner in self.learners]
        return pytree.tree_map(lambda *each: sum(each) / len(each), *outputs)
