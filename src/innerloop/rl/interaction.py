"""Task sources of reinforcement learning: the policy acts in tasks, and adapts to its own episodes.

A task's support set holds the episodes of all inner steps, one after the other: the meta-learned policy collects those
of the first step, the policy after the first step those of the next, and so on. ``batch_size`` is the number of
episodes of a step, so that the inner loop takes each step on its own episodes. The whole adaptation can then be
differentiated, repeated and evaluated like that of any other task.
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
    """The episodes of the policies of T tasks after some inner steps.

    Attributes:
        policy: the policies, ``[T, E, O]`` -> distributions over actions.
        episodes: their episodes.
        batch: the episodes as training data.
    """

    policy: Callable[[Tensor], Any]
    episodes: Rollout
    batch: Batch


class Interaction:
    """A task source in which the learner's policy collects the data by acting.

    Args:
        environment: the family of tasks.
        discount: the discount of rewards, gamma.
        trace: lambda of generalized advantage estimation.
        baseline: predicts expected returns; by default a `LinearBaseline`.
        eval_episodes: number of episodes of each task per inner step in `returns`; by default as many as in training.

    Attributes:
        environment_steps: number of environment steps taken for training.

    Raises:
        ValueError: a number is out of range.
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
            raise ValueError(f"discount must be in (0, 1] and trace in [0, 1], got {discount} and {trace}")
        if eval_episodes is not None and eval_episodes < 1:
            raise ValueError(f"eval_episodes must be at least 1, got {eval_episodes}")
        self.environment, self.discount, self.trace = environment, discount, trace
        self.baseline, self.eval_episodes = baseline or LinearBaseline(), eval_episodes
        self.environment_steps = 0
        self._report: dict[str, Any] = {}

    def require(self, learner: MetaLearner) -> None:
        """Refuse a learner that cannot act here.

        Raises:
            ValueError: the policy's observations or actions are not those of the environment, or ``batch_size`` is not
                set.
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
        rollouts, (*support, query) = [part.episodes for part in parts], [part.batch for part in parts]
        for episodes in rollouts:
            self.baseline.learn(episodes, discounted(episodes.rewards, self.discount))
        steps, seconds = sum(episodes.steps for episodes in rollouts), time.perf_counter() - start
        self.environment_steps += steps
        self._report = {
            "returns": [episodes.returns.mean().item() for episodes in rollouts],
            "environment_steps": self.environment_steps,
            "environment_steps_per_second": steps / seconds,
        }
        return Task(_joined(support) if support else query, query)  # without inner steps the support set is not used

    def episodes(
        self, learner: MetaLearner, tasks: Any, steps: int, generator: torch.Generator, number: int | None = None
    ) -> Iterator[Experience]:
        """Collect episodes of given tasks after 0, 1, ..., ``steps`` inner steps, and their training data.

        Each step adapts to the episodes before it.

        Args:
            learner: the learner; its policy acts.
            tasks: T tasks of the environment.
            steps: inner steps, which may exceed the trained number.
            generator: the source of all randomness.
            number: number of episodes of each task; by default as many as in training.
        """
        number, like = number or episodes_of(learner), next(learner.parameters())
        nothing = torch.zeros(len(pytree.tree_leaves(tasks)[0]), 1)
        support: list[Batch] = []
        for step in range(steps + 1):
            adapted = learner.adapt_all(_joined(support) if support else Batch(nothing, nothing), step, number)

            def policy(observation: Tensor, adapted: AdaptedTasks = adapted) -> Any:
                return adapted(observation.to(like))

            episodes = rollout(self.environment, policy, tasks, number, generator)
            support.append(pytree.tree_map(partial(_like, like), self._batch(episodes)))
            yield Experience(policy, episodes, support[-1])

    def returns(self, learner: MetaLearner, n: int, steps: int | None, generator: torch.Generator) -> Tensor:
        """Return the mean returns of ``n`` new tasks after 0, 1, ..., ``steps`` inner steps, ``[n, steps + 1]``.

        Training does not learn from these episodes.
        """
        steps = learner.steps if steps is None else steps
        tasks = self.environment.tasks(n, generator)
        parts = self.episodes(learner, tasks, steps, generator, self.eval_episodes)
        return torch.stack([part.episodes.returns.mean(1) for part in parts], 1)

    def report(self) -> Mapping[str, Any]:
        """Return mean returns after 0, 1, ... inner steps of the last meta-batch, and environment steps so far."""
        return self._report

    def _batch(self, episodes: Rollout) -> Batch:
        """Convert episodes to training data."""
        values = self.baseline(episodes, discounted(episodes.rewards, self.discount))
        advantages = generalized(episodes.rewards, values, episodes.alive, self.discount, self.trace)
        plain, spread = normalized(advantages, episodes.alive)
        y = Decisions(episodes.actions, plain, episodes.alive, episodes.behaviour, _worth(episodes) / spread)
        return Batch(episodes.observations, y)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that changes in training."""
        return {"environment_steps": self.environment_steps, "baseline": self.baseline.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load this state."""
        self.environment_steps = state["environment_steps"]
        self.baseline.load_state_dict(state["baseline"])


def _worth(episodes: Rollout) -> Tensor:
    """Return the reward per step of each episode minus that of the other tasks' episodes, ``[T, E, 1]``."""
    each = episodes.rewards.sum(2, keepdim=True) / episodes.alive.sum(2, keepdim=True)
    tasks = each.mean(1, keepdim=True)
    others = (tasks.sum() - tasks) / max(1, len(tasks) - 1)
    return each - others


def episodes_of(learner: MetaLearner) -> int:
    """Return the number of episodes of a task per inner step.

    Raises:
        ValueError: the learner has no ``batch_size``.
    """
    if learner.batch_size is None:
        raise ValueError("a learner with a policy needs batch_size=, the number of episodes per inner step")
    return learner.batch_size


def _like(parameter: Tensor, leaf: Tensor) -> Tensor:
    """Move a tensor to the device of a parameter, and to its type if it is floating-point."""
    return leaf.to(parameter) if leaf.is_floating_point() else leaf.to(parameter.device)


def _joined(parts: list[Batch]) -> Batch:
    """Join the episodes of several steps into one support set."""
    joined: Batch = pytree.tree_map(lambda *leaves: torch.cat(leaves, 1), *parts)
    return joined
