"""Several learners that answer together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn
from torch.utils import _pytree as pytree

from ..episode import Loss
from ..learner import MetaLearner
from ..task import Tasks


class Ensemble:
    """Learners of one kind whose outputs are averaged: each adapts to a task by itself.

    The published accuracies of MAML++ are those of an ensemble of the best validated weights of a run, whose logits are
    averaged: five in the authors' code, three at first.

    Args:
        learners: at least one.
    """

    def __init__(self, learners: Sequence[MetaLearner]) -> None:
        if not learners:
            raise ValueError("an ensemble needs at least one learner")
        self.learners = tuple(learners)

    @property
    def loss(self) -> Loss:
        """The outer loss, which all have."""
        return self.learners[0].loss

    @property
    def depends_on_query_set(self) -> bool:
        """Whether a prediction depends on the other query examples; see `MetaLearner.depends_on_query_set`."""
        return self.learners[0].depends_on_query_set

    def parameters(self) -> Iterator[nn.Parameter]:
        """Those of all learners."""
        for learner in self.learners:
            yield from learner.parameters()

    def predict(self, tasks: Tasks, steps: int | None = None, transductive: bool = True) -> Any:
        """The mean of the learners' outputs; see `MetaLearner.predict`."""
        outputs = [learner.predict(tasks, steps, transductive) for learner in self.learners]
        return pytree.tree_map(lambda *each: sum(each) / len(each), *outputs)
