"""Where the tasks of a policy come from: it lives through them, and adapts to what it has lived through.

A task's support set is the episodes of all inner steps, one after the other: those of the first step were lived by the
policy as it is meta-learned, those of the next by the policy after the first step, and so on. With ``batch_size`` the
episodes of a step, the learner's inner loop then takes each step on its own, and the whole adaptation can be
differentiated, repeated and judged like that of any other task.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..adapted import AdaptedTasks
from ..learner import MetaLearner
from ..metrics import RETURN
from ..task import Batch, Task
from .advantages import Baseline, LinearBaseline, discounted, generalized, normalized
from .environments import Environment
from .losses import Decisions
from .rollouts import Rollout, rollout


class Experience(NamedTuple):
    """What the policies of T tasks lived through after some inner steps.

    Attributes:
        policy: ``[T, E, O]`` -> distributions over actions.
        episodes: its episodes.
        batch: what is learned from them.
    """

    policy: Callable[[Tensor], Any]
    episodes: Rollout
    batch: Batch


class Interaction:
    """Tasks that a learner's policy collects by acting.

    Args:
        environment: the family of tasks.
        discount: of rewards, gamma.
        trace: of generalized advantage estimation, lambda.
        baseline: what returns are expected; the linear one unless given.
        eval_episodes: episodes of each task that an inner step is taken on when returns are asked for; as many as in
            training unless given.

    Attributes:
        environment_steps: how many were taken for training.
    """

    metric = RETURN

    def __init__(
        self,
        environment: Environment,
        discount: float = 0.99,
        trace: float = 1.0,
        baseline: Baseline | None = None,
        eval_episodes: int | None = None,
    ) -> None:
        if not (0 < discount <= 1 and 0 <= trace <= 1):
            raise ValueError(f"discount is in (0, 1] and trace in [0, 1], got {discount} and {trace}")
        if eval_episodes is not None and eval_episodes < 1:
            raise ValueError(f"eval_episodes must be at least 1, got {eval_episodes}")
        self.environment, self.discount, self.trace = environment, discount, trace
        self.baseline, self.eval_episodes = baseline or LinearBaseline(), eval_episodes
        self.environment_steps = 0
        self._told: dict[str, Any] = {}

    def require(self, learner: MetaLearner) -> None:
        """Refuse a learner that cannot act here.

        Raises:
            ValueError: its policy's observations or actions are not the environment's, or it does not say of how many
                episodes an inner step is.
        """
        for name in ("observations", "actions", "discrete"):
            has, wanted = getattr(learner.model, name, None), getattr(self.environment, name)
            if has is not None and has != wanted:
                what = type(self.environment).__name__
                raise ValueError(f"model.{name} = {has}, but {what} has {wanted}")
        episodes_of(learner)

    def collect(self, learner: MetaLearner, n: int, generator: torch.Generator) -> Task:
        """Draw ``n`` tasks, and collect episodes before every inner step and after the last.

        Each collection has ``learner.batch_size`` episodes of each task; those before the inner steps are the support
        set, those after the last step the query set.
        """
        start = time.perf_counter()
        tasks = self.environment.tasks(n, generator)
        parts = list(self.episodes(learner, tasks, learner.steps, generator))
        lived, (*support, query) = [part.episodes for part in parts], [part.batch for part in parts]
        for found in lived:
            self.baseline.learn(found, discounted(found.rewards, self.discount))
        steps, seconds = sum(found.steps for found in lived), time.perf_counter() - start
        self.environment_steps += steps
        self._told = {
            "returns": [found.returns.mean().item() for found in lived],
            "environment_steps": self.environment_steps,
            "environment_steps_per_second": steps / seconds,
        }
        return Task(_joined(support) if support else query, query)  # of which no step is taken

    def episodes(
        self, learner: MetaLearner, tasks: Any, steps: int, generator: torch.Generator, number: int | None = None
    ) -> Iterator[Experience]:
        """Collect episodes of given tasks after 0, 1, ..., ``steps`` inner steps, and their training data.

        Each step uses the episodes before it.

        Args:
            learner: whose policy acts.
            tasks: T of the environment's.
            steps: inner steps, which may exceed the trained number.
            generator: of all randomness.
            number: episodes of each task; as many as in training unless given.
        """
        number, like = number or episodes_of(learner), next(learner.parameters())
        nothing = torch.zeros(len(pytree.tree_leaves(tasks)[0]), 1)
        support: list[Batch] = []
        for step in range(steps + 1):
            adapted = learner.adapt_all(_joined(support) if support else Batch(nothing, nothing), step, number)

            def policy(observation: Tensor, adapted: AdaptedTasks = adapted) -> Any:
                return adapted(observation.to(like))

            found = rollout(self.environment, policy, tasks, number, generator)
            support.append(pytree.tree_map(partial(_like, like), self._batch(found)))
            yield Experience(policy, found, support[-1])

    def returns(self, learner: MetaLearner, n: int, steps: int | None, generator: torch.Generator) -> Tensor:
        """Mean returns of ``n`` new tasks after 0, 1, ..., ``steps`` inner steps, ``[n, steps + 1]``.

        Training does not learn from these episodes.
        """
        steps = learner.steps if steps is None else steps
        tasks = self.environment.tasks(n, generator)
        lived = self.episodes(learner, tasks, steps, generator, self.eval_episodes)
        return torch.stack([part.episodes.returns.mean(1) for part in lived], 1)

    def report(self) -> Mapping[str, Any]:
        """Of the last meta-batch: mean returns after 0, 1, ... inner steps, and environment steps so far."""
        return self._told

    def _batch(self, found: Rollout) -> Batch:
        """Episodes as examples."""
        values = self.baseline(found, discounted(found.rewards, self.discount))
        advantages = generalized(found.rewards, values, found.alive, self.discount, self.trace)
        plain, spread = normalized(advantages, found.alive)
        y = Decisions(found.actions, plain, found.alive, found.behaviour, _worth(found) / spread)
        return Batch(found.observations, y)

    def state_dict(self) -> dict[str, Any]:
        """What of it changes in training."""
        return {"environment_steps": self.environment_steps, "baseline": self.baseline.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it up."""
        self.environment_steps = state["environment_steps"]
        self.baseline.load_state_dict(state["baseline"])


def _worth(found: Rollout) -> Tensor:
    """How much more reward a step an episode had than those of the other tasks, ``[T, E, 1]``."""
    each = found.rewards.sum(2, keepdim=True) / found.alive.sum(2, keepdim=True)
    tasks = each.mean(1, keepdim=True)
    others = (tasks.sum() - tasks) / max(1, len(tasks) - 1)
    return each - others


def episodes_of(learner: MetaLearner) -> int:
    """How many episodes of a task an inner step is taken on.

    Raises:
        ValueError: the learner does not say.
    """
    if learner.batch_size is None:
        raise ValueError("a policy's learner needs batch_size=, the number of episodes that an inner step is taken on")
    return learner.batch_size


def _like(parameter: Tensor, leaf: Tensor) -> Tensor:
    """Where the learner is, and as precise."""
    return leaf.to(parameter) if leaf.is_floating_point() else leaf.to(parameter.device)


def _joined(parts: list[Batch]) -> Batch:
    """Episodes of several steps as one support set."""
    joined: Batch = pytree.tree_map(lambda *leaves: torch.cat(leaves, 1), *parts)
    return joined
