"""Faults in training: numbers that are not finite, and running out of memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..common.errors import is_out_of_memory
from ..common.ranges import require_at_least
from ..learner import MetaLearner
from ..objectives import Outcome
from ..task import Batch, Params, Task, Tasks, count, joined, select, to
from .checkpoint import Checkpoints, load, save
from .world import World

NonFinite = Literal["stop", "skip"]

FAILED = "failed_task.pt"


class NonFiniteError(ArithmeticError):
    """A loss or a gradient is not finite. Training stopped before it could reach the parameters."""


class OutOfMemoryError(MemoryError):
    """A meta-batch did not fit into memory. The message names settings that reduce memory."""


class Faults:
    """Checks the results of every meta-batch.

    Args:
        learner: the learner that is trained.
        world: the processes of the training.
        checkpoints: the checkpoints of the run, if any; failed tasks are saved in the run directory.
        policy: what to do about numbers that are not finite: ``"stop"``, or ``"skip"`` the update.
        most: the largest number of skipped updates.

    Attributes:
        skipped: the number of skipped updates so far.

    Raises:
        ValueError: ``policy`` is neither.
    """

    def __init__(
        self, learner: MetaLearner, world: World, checkpoints: Checkpoints | None, policy: NonFinite, most: int
    ) -> None:
        if policy not in get_args(NonFinite):
            raise ValueError(f'non_finite must be "stop" or "skip", got {policy!r}')
        require_at_least(0, max_skipped=most)
        self.learner, self.world, self.checkpoints, self.policy, self.most = learner, world, checkpoints, policy, most
        self.skipped = 0

    def usable(self, iteration: int, tasks: Tasks, grads: Params, outcome: Outcome, norm: Tensor) -> bool:
        """Return whether to make an update; false skips it.

        Args:
            iteration: the number of the update, from 1.
            tasks: the whole meta-batch.
            grads: the meta-gradient, by name.
            outcome: the losses and outputs of the meta-batch.
            norm: the norm of the meta-gradient, a scalar.

        Raises:
            NonFiniteError: numbers are not finite and the update must not be skipped. The message names the tasks at
                fault, which are saved in ``failed_task.pt``.
        """
        if bool(torch.isfinite(torch.stack([outcome.objective.sum(), outcome.loss.sum(), norm])).all()):
            return True
        finite = torch.isfinite(outcome.objective) & torch.isfinite(outcome.loss)
        what = "the loss"
        if bool(finite.all()):
            if all(bool(torch.isfinite(grad).all()) for grad in grads.values()):
                return True  # only the norm, or a sum, overflowed
            what, finite = "the gradient", self._each(tasks, iteration)
        indices = (~finite).nonzero().flatten().tolist() or list(range(len(finite)))
        names = f"task{'s' if len(indices) > 1 else ''} {', '.join(map(str, indices))}"
        message = f"iteration {iteration}: {what} of {names} (counted from 0) of the meta-batch is not finite"
        if self.policy == "skip" and self.skipped < self.most:
            self.skipped += 1
            return False
        if self.policy == "skip":
            message += f", after {self.skipped} skipped updates, the limit max_skipped"
        raise NonFiniteError(
            f"{message}{self._keep(iteration, tasks, indices)}. A smaller lr, inner or outer, often helps"
        )

    def _each(self, tasks: Tasks, iteration: int) -> Tensor:
        """Return whether the gradient of each task by itself is finite."""
        own, device, alone = self.world.bounds(count(tasks)), next(self.learner.parameters()).device, []
        self.learner.training = False  # not in its modules: only statistics must stay as they are
        for index in range(own.start, own.stop):
            task = to(select(tasks, slice(index, index + 1)), device)
            grads, _ = self.learner.meta_gradient(task, iteration - 1)
            alone.append(all(bool(torch.isfinite(grad).all()) for grad in grads.values()))
        self.learner.training = True
        return self.world.whole(torch.tensor(alone, dtype=torch.float32, device=device), count(tasks)) > 0

    def _keep(self, iteration: int, tasks: Tasks, indices: list[int]) -> str:
        """Save the tasks at fault for inspection and another attempt; return where, for the message."""
        if self.checkpoints is None:
            return ""
        failed = to(joined([select(tasks, index) for index in indices]), "cpu")
        plain = [_plain(task) for task in failed] if isinstance(failed, list) else _plain(failed)
        path, last = self.checkpoints.directory.parent / FAILED, self.checkpoints.iterations()[-1]
        save(path, {"iteration": iteration, "tasks": plain, "learner": self.learner.state_dict()})
        return f"; see {path}. The last good checkpoint is that of iteration {last}"


def _plain(task: Task) -> dict[str, Any]:
    return {name: part._asdict() for name, part in task._asdict().items()}


def load_failed(run: Path) -> tuple[Tasks, Params, int]:
    """Load the tasks that stopped a training, the state of its learner then, and the outer iteration.

    This is all that you need to repeat the step. The iteration is counted from 0, as in `MetaLearner.meta_gradient`.

    Raises:
        FileNotFoundError: no task has failed.
        ValueError: the file is damaged.
    """
    found = load(run / FAILED)
    kept, tasks = found["tasks"], list[Task]()
    for each in kept if isinstance(kept, list) else [kept]:
        tasks.append(Task(*(Batch(**each[part]) for part in Task._fields)))
    return tasks if isinstance(kept, list) else tasks[0], found["learner"], found["iteration"] - 1


@contextmanager
def enough_memory(learner: MetaLearner, tasks: int, iteration: int) -> Iterator[None]:
    """While entered, turn out-of-memory errors into ones that name settings which reduce memory."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        advice = [f"a smaller meta-batch (tasks={max(1, tasks // 2)})"] if tasks > 1 else []
        if learner.engine.vectorize != 1:
            advice.append("fewer tasks at once (vectorize=1)")
        if learner.memory != "constant" and learner.steps > 1:
            advice.append(f'memory="constant", which keeps only one of the {learner.steps} inner steps at a time')
        if learner.precision == "float32":
            advice.append('precision="bfloat16"')
        if getattr(learner.objective, "order", 1) != 1:
            advice.append("first order")
        advice.append("a smaller model, or fewer query examples")
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise OutOfMemoryError(
            f"iteration {iteration}: a meta-batch of {tasks} tasks does not fit into memory ({reason}). These reduce "
            f"memory: {'; '.join(advice)}"
        ) from error
