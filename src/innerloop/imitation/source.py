"""The task source of imitation, and the evaluation of a robot's attempts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from ..common.errors import takes_old_argument, warn_of_old_name
from ..learner import MetaLearner
from ..metrics import SUCCESS
from ..task import Batch, Task, to
from .environments import Demonstration, Environment, Split
from .presets import cloning

Shown = Literal["video", "robot"]


class Imitation:
    """One-shot imitation: the support set is a demonstration, the query set one by an expert who controls the robot.

    A task's support set is ``x = {"images": [T, 1, frames, 3, h, w]}`` with empty targets ``[T, 1, 0]``; with
    ``shown="robot"`` it has states, too, and the targets are actions. Its query set is ``x = {"images": [T, 1, moments,
    3, h, w], "state": ..., "demonstration": ...}`` with actions ``[T, 1, moments, A]`` as targets; only policies that
    read the demonstration get it.

    Args:
        environment: the environment in which the robot acts.
        split: the split of objects and demonstrators: ``"train"``, ``"val"`` or ``"test"``.
        shown: ``"video"`` shows images of a demonstrator without actions and states; ``"robot"`` shows the robot
            itself, with images, states and actions.

    Raises:
        ValueError: ``shown`` is neither.
    """

    metric = SUCCESS

    @takes_old_argument("world", "environment")
    def __init__(self, environment: Environment, split: Split = "train", shown: Shown = "video") -> None:
        if shown not in ("video", "robot"):
            raise ValueError(f'shown must be "video" or "robot", got {shown!r}')
        self.environment, self.split, self.shown = environment, split, shown

    @property
    def world(self) -> Environment:
        """The environment by its former name."""
        warn_of_old_name("imitation.Imitation.world", "imitation.Imitation.environment")
        return self.environment

    def require(self, learner: MetaLearner) -> None:
        """Refuse a learner that cannot act or adapt here.

        Raises:
            ValueError: the policy's state or actions are not those of the robot, or it takes inner steps on
                demonstrations that it cannot adapt to.
        """
        for name in ("state", "actions"):
            has, wanted = getattr(learner.model, name, None), getattr(self.environment, name)
            if has is not None and has != wanted:
                raise ValueError(
                    f"model.{name} = {has}, but the robot of {type(self.environment).__name__} has {wanted}"
                )
        if learner.steps and _reads(learner):
            raise ValueError(
                f"{type(learner.model).__name__} reads the demonstration and cannot take inner steps on it: use the "
                'preset "cloned"'
            )
        if learner.steps and learner.inner_loss is cloning and self.shown == "video":
            raise ValueError(
                'a video has no actions to clone: use the preset "daml", which learns the inner loss, or shown="robot" '
                "(tasks.shown)"
            )

    def collect(self, learner: MetaLearner, n: int, generator: torch.Generator) -> Task:
        """Draw ``n`` tasks, with the inputs that the learner's policy reads."""
        tasks = self.environment.tasks(n, self.split, generator)
        if self.shown == "robot":
            both = self.environment.demonstration(tasks, 2, generator)
            support, query = (_batch(Demonstration(*(part[:, at] for part in both))) for at in (slice(1), slice(1, 2)))
        else:
            support, query = self.shows(tasks, generator), _batch(self.environment.demonstration(tasks, 1, generator))
        query.x.update(_read(learner, support))
        return Task(support if learner.steps else query, query)  # without inner steps the support set is not used

    def shows(self, tasks: Any, generator: torch.Generator) -> Batch:
        """Return the demonstrations of tasks as support sets."""
        if self.shown == "robot":
            return _batch(self.environment.demonstration(tasks, 1, generator))
        video = self.environment.video(tasks, generator)
        return Batch({"images": video}, torch.zeros(*video.shape[:2], 0))

    def returns(self, learner: MetaLearner, n: int, steps: int | None, generator: torch.Generator) -> Tensor:
        """Return 100 for a task that the policy solved and 0 otherwise, after 0, 1, ..., K inner steps, ``[n, K + 1]``.

        Every number of steps starts from the same state. K is ``steps``, or 0 if the policy was trained without inner
        steps.
        """
        tasks = self.environment.tasks(n, self.split, generator)
        support = self.shows(tasks, generator)
        begin = generator.get_state()
        scores = []
        for step in range(self.steps(learner, steps) + 1):
            for _ in self.attempt(learner, tasks, support, step, generator.set_state(begin)):
                pass
            scores.append(100.0 * self.environment.success()[:, 0])
        return torch.stack(scores, 1)

    @staticmethod
    def steps(learner: MetaLearner, wanted: int | None) -> int:
        """Return the number of inner steps: ``wanted``, or the trained number if that is None.

        It is 0 for a policy that was trained without inner steps, which may have no loss to adapt with.
        """
        return learner.steps if wanted is None or not learner.steps else wanted

    def attempt(
        self, learner: MetaLearner, tasks: Any, support: Batch, steps: int, generator: torch.Generator
    ) -> Iterator[Tensor]:
        """Attempt each task once after ``steps`` inner steps.

        Yields the robot's images ``[T, 3, h, w]``, ``horizon + 1`` times. Afterwards, `Environment.success` returns
        whether each attempt succeeded.
        """
        there = next(learner.parameters()).device
        support = to(support, there)
        policy, read = learner.adapt_all(support, steps), _read(learner, support)
        seen = self.environment.reset(tasks, 1, generator)
        yield seen.images[:, 0]
        for _ in range(self.environment.horizon):
            now = {"images": seen.images[:, :, None], "state": seen.state[:, :, None]}
            seen = self.environment.step(policy({**to(now, there), **read}).actions[:, :, 0].cpu())
            yield seen.images[:, 0]

    def report(self) -> Mapping[str, Any]:
        """Return nothing, because there are no numbers besides those of every training."""
        return {}


def _batch(demonstration: Demonstration) -> Batch:
    """Convert a demonstration to images and states with actions as targets."""
    return Batch({"images": demonstration.images, "state": demonstration.state}, demonstration.actions)


def _reads(learner: MetaLearner) -> bool:
    return bool(getattr(learner.model, "reads_demonstration", False))


def _read(learner: MetaLearner, support: Batch) -> dict[str, Tensor]:
    """Return the demonstration as an input, if the policy reads it."""
    return {"demonstration": support.x["images"]} if _reads(learner) else {}
