"""Meta-training: an outer optimiser, validation on fixed tasks, checkpoints, and a record of it all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..inner import stack
from ..learner import MetaLearner, Outcome
from ..schedules import Schedule, value
from ..task import Params, Task, TaskSource, select, to
from .checkpoint import Checkpoints, holds_run, save
from .evaluate import Evaluation, Metric, evaluate
from .loggers import Logger
from .progress import Progress
from .record import Metrics, environment, write_results
from .recorder import Phases, Recorder, due
from .signals import Stop, stopping

Optimizer = Literal["adam", "sgd"] | Callable[[list[nn.Parameter]], torch.optim.Optimizer]
"""By name, or a function from the meta-parameters, whose own rate is overridden by the trainer's."""


class NonFiniteError(ArithmeticError):
    """A loss or a gradient that is not a finite number. Training stopped before it could reach the parameters."""


@dataclass(frozen=True)
class Result:
    """What a training came to.

    Attributes:
        iterations: updates done.
        seconds: spent training, in all lives of the run; validations are not counted.
        best: the best validations, best first: ``{"iteration", "score", "ci95"}``.
        validation: the evaluation that validated the weights which the learner now has, where it was in this life.
    """

    iterations: int
    seconds: float
    best: tuple[dict[str, Any], ...]
    validation: Evaluation | None


class Trainer:
    """Meta-trains a learner.

    Args:
        learner: trained in place, on the device it is on.
        train: where the tasks come from.
        val: where validation tasks come from, the same ones every time; ``None`` does not validate.
        run: the run directory, for checkpoints, ``metrics.jsonl`` and ``results.json``; ``None`` writes nothing.
        iterations: outer updates.
        tasks: tasks in a meta-batch.
        optimizer: the outer one: ``"adam"``, ``"sgd"`` or a function from the parameters to an optimizer.
        lr: the outer rate, or its schedule.
        momentum: of SGD.
        clip: each element of the meta-gradient is clamped to ``[-clip, clip]``.
        clip_norm: the meta-gradient is scaled to at most this norm (after ``clip``).
        validate_every, checkpoint_every, log_every: in iterations; each also happens at the end.
        trace_every: in iterations: how often the record tells what happens within tasks, step by step, and the learned
            rates; 0 for never, ``None`` for as often as validation. See `innerloop.train.trace.trace`.
        trace_tasks: of how many tasks of the meta-batch.
        trace_steps: whole support and query sets are judged after every so many inner steps.
        val_tasks, val_steps, val_seed, transductive, metric: of the validation; see `innerloop.evaluate`.
        keep_best: how many best weights are kept.
        seed: of the training tasks, and of what is random in the learner, such as dropout.
        config: plain values to store in checkpoints, such as the recipe.
        loggers: who is told of the training besides the record; see `innerloop.train.loggers`.
        progress: whether to show progress on standard error.

    Raises:
        ValueError: a number out of range or an unknown optimizer.
    """

    iteration = 0
    _best: Evaluation | None = None

    def __init__(
        self,
        learner: MetaLearner,
        train: TaskSource,
        val: TaskSource | None = None,
        run: str | Path | None = None,
        *,
        iterations: int = 10_000,
        tasks: int = 16,
        optimizer: Optimizer = "adam",
        lr: Schedule[float] = 1e-3,
        momentum: float = 0.0,
        clip: float | None = None,
        clip_norm: float | None = None,
        validate_every: int = 500,
        val_tasks: int = 100,
        val_steps: int | None = None,
        val_seed: int = 0,
        transductive: bool = True,
        metric: str | Metric | None = None,
        checkpoint_every: int = 500,
        keep_best: int = 3,
        log_every: int = 10,
        trace_every: int | None = None,
        trace_tasks: int = 4,
        trace_steps: int = 1,
        seed: int = 0,
        config: Mapping[str, Any] | None = None,
        loggers: Sequence[Logger] = (),
        progress: bool = True,
    ) -> None:
        require_at_least(0, iterations=iterations, trace_every=trace_every)
        require_at_least(1, tasks=tasks, keep_best=keep_best, trace_tasks=trace_tasks, trace_steps=trace_steps)
        require_at_least(1, validate_every=validate_every, checkpoint_every=checkpoint_every, log_every=log_every)
        require_at_least(2, val_tasks=val_tasks)
        require_at_least(1e-30, clip=clip, clip_norm=clip_norm)
        self.learner, self.train, self.val = learner, train, val
        self.run = None if run is None else Path(run)
        self.iterations, self.tasks, self.lr, self.seed, self.val_seed = iterations, tasks, lr, seed, val_seed
        self.clip, self.clip_norm, self.config, self.show = clip, clip_norm, dict(config or {}), progress
        self.validate_every, self.checkpoint_every = validate_every, checkpoint_every
        metrics, every = Metrics(self.run, loggers, self.config), validate_every if trace_every is None else trace_every
        self.recorder = Recorder(metrics, learner, iterations, log_every, every, trace_tasks, trace_steps)
        self._evaluate = partial(
            evaluate, num_tasks=val_tasks, steps=val_steps, transductive=transductive, metric=metric
        )
        self.generator = torch.Generator().manual_seed(derive_seed("tasks", seed))
        self.parameters = {name: p for name, p in learner.named_parameters() if p.requires_grad}
        self.optimizer = make_optimizer(optimizer, list(self.parameters.values()), value(lr, 0), momentum)
        self.checkpoints, self.phases = Checkpoints(self.run, keep_best) if self.run else None, Phases()

    @property
    def device(self) -> torch.device:
        """Where the learner is."""
        return next(iter(self.parameters.values())).device

    def fit(self, resume: bool = False) -> Result:
        """Train up to the given number of iterations. Afterwards the learner has the best validated weights, if there
        is a run directory and a validation, else the last.

        On Ctrl-C or SIGTERM the current iteration is finished and a checkpoint saved. A run that was interrupted, in
        whatever way, and then resumed computes what an undisturbed one would have, on the CPU bit for bit (to rounding,
        if the learner was still measuring how tasks run quickest: give ``vectorize`` and ``compile`` to prevent that).
        Torch's global random state is left as it was.

        Args:
            resume: go on from the newest checkpoint in the run directory, if it has any.

        Raises:
            FileExistsError: the run directory already holds a run and ``resume`` is false; nothing was touched.
            NonFiniteError: a loss or gradient is not finite.
            Interrupted: a signal stopped the training; its checkpoint is saved.
        """
        if self.run is not None and not resume and holds_run(self.run):
            raise FileExistsError(
                f"{self.run} already holds a run: resume it (fit(resume=True)) or use another directory"
            )
        cuda = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(cuda), stopping() as stop, Progress(self.iterations, self.show) as progress:
            try:
                self._begin()
                self._loop(stop, progress)
            finally:
                self.recorder.metrics.close()
        stop.raise_if_set(self.iteration, self.run)
        return self._finish()

    def _loop(self, stop: Stop, progress: Progress) -> None:
        """The outer loop."""
        rate, told = 0.0, 0
        self.learner.compiler.steps_to_come = self.iterations - self.iteration
        while self.iteration < self.iterations and not stop:
            before = self.phases.training
            tasks, outcome, norm, lr = self._iterate()
            seconds = self.phases.training - before
            rate = 0.9 * (rate or self.tasks / seconds) + 0.1 * self.tasks / seconds
            self.recorder.train(self.iteration, outcome, norm, lr, rate, self.phases)
            progress.advance(self.iteration, rate, outcome.loss)
            for choice in self.learner.choices[told:]:
                progress.note(choice)
                told += 1
            if self.learner.engine.settled(tasks, "meta-gradient"):
                progress.timed(self.iteration, seconds)
            if self.val is not None and self._due(self.validate_every):
                with self.phases("validation"):
                    self._validate(progress)
            if self.checkpoints and self._due(self.checkpoint_every):
                self._save()
        if self.checkpoints and stop:
            self._save()

    def _iterate(self) -> tuple[Task, Outcome, Tensor, float]:
        """One update: its tasks, what they came to, the norm of the meta-gradient, and the rate it was taken at."""
        with self.phases("tasks"):
            tasks = to(self.train.sample(self.tasks, self.generator), self.device)
        with self.phases("gradient"):
            grads, outcome = self.learner.meta_gradient(tasks, self.iteration)
            norm = torch.linalg.vector_norm(torch.stack([g.norm() for g in grads.values()]))
            self._require_finite(tasks, grads, outcome, norm)
        with self.phases("record"):  # before the update, of which the tasks know nothing yet
            self.recorder.tasks(self.iteration + 1, tasks, grads, outcome)
        with self.phases("update"):
            lr = self._update(grads)
        self.iteration += 1
        return tasks, outcome, norm, lr

    def _due(self, every: int) -> bool:
        return due(self.iteration, every, self.iterations)

    def _update(self, grads: Params) -> float:
        """One step of the outer optimiser; the rate it was taken at."""
        lr = value(self.lr, self.iteration)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        for name, parameter in self.parameters.items():
            grad = grads[name]
            parameter.grad = grad if self.clip is None else grad.clamp(-self.clip, self.clip)
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(list(self.parameters.values()), self.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return lr

    def _validate(self, progress: Progress) -> None:
        assert self.val is not None
        found = self._evaluate(self.learner, self.val, seed=derive_seed("validation", self.val_seed))
        self.recorder.validation(self.iteration, found, self.phases)
        entry = {"iteration": self.iteration, "score": found.mean, "ci95": found.ci95}
        if self.checkpoints and self.checkpoints.consider(self.learner.state_dict(), entry, found.higher_is_better):
            self._best = found
        progress.validated(self.iteration, found)

    def _require_finite(self, tasks: Task, grads: Params, outcome: Outcome, norm: Tensor) -> None:
        """Stop, naming the tasks at fault, before they spoil the parameters."""
        if bool(torch.isfinite(torch.stack([outcome.objective.sum(), outcome.loss.sum(), norm])).all()):
            return
        finite = torch.isfinite(outcome.objective) & torch.isfinite(outcome.loss)
        what = "the loss"
        if bool(finite.all()):
            if all(bool(torch.isfinite(grad).all()) for grad in grads.values()):
                return  # it was only the norm, or a sum, that overflowed
            what, alone = "the gradient", []
            self.learner.training = False  # itself alone, not its modules: statistics stay as they are
            for index in range(len(finite)):
                grads, _ = self.learner.meta_gradient(select(tasks, slice(index, index + 1)), self.iteration)
                alone.append(all(bool(torch.isfinite(grad).all()) for grad in grads.values()))
            self.learner.training = True
            finite = torch.tensor(alone, device=finite.device)
        indices = (~finite).nonzero().flatten().tolist() or list(range(len(finite)))
        names = f"task{'s' if len(indices) > 1 else ''} {', '.join(map(str, indices))}"
        message = f"iteration {self.iteration + 1}: {what} of {names} (counted from 0) of the meta-batch is not finite"
        raise NonFiniteError(
            f"{message}{self._keep_failure(tasks, indices)}. A smaller lr, inner or outer, often helps"
        )

    def _keep_failure(self, tasks: Task, indices: list[int]) -> str:
        if self.run is None or self.checkpoints is None:
            return ""
        failed = to(stack([select(tasks, index) for index in indices]), "cpu")
        plain = {name: part._asdict() for name, part in failed._asdict().items()}
        path, last = self.run / "failed_task.pt", self.checkpoints.iterations()[-1]
        save(path, {"iteration": self.iteration + 1, "tasks": plain, "learner": self.learner.state_dict()})
        return f"; see {path}. The last good checkpoint, of iteration {last}, is kept"

    def _begin(self) -> None:
        """The state of the newest checkpoint if there is one, else the first."""
        self.learner.train()
        torch.manual_seed(derive_seed("learner", self.seed))
        if self.checkpoints and self.checkpoints.iterations():
            self._restore(self.checkpoints.newest())
        elif self.checkpoints and (self.checkpoints.directory.parent / "metrics.jsonl").exists():
            raise FileNotFoundError(f"{self.run} has metrics but no checkpoint to go on from: use another directory")
        elif self.checkpoints:
            self.checkpoints.directory.mkdir(parents=True, exist_ok=True)
            self._save()
        self.recorder.begin(self.iteration, self.tasks, self.device)

    def _save(self) -> None:
        """A checkpoint of everything that shapes the future."""
        assert self.checkpoints is not None
        self.recorder.metrics.sync()
        state = {
            "iteration": self.iteration,
            "learner": self.learner.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "tasks": self.generator.get_state(),
            "random": torch.get_rng_state(),
            "config": self.config,
            "settled": self.learner.settled,
            "environment": environment(self.device),
            "phases": self.phases.seconds,
        }
        if self.device.type == "cuda":
            state["cuda_random"] = torch.cuda.get_rng_state(self.device)
        self.checkpoints.save(state)

    def _restore(self, state: Mapping[str, Any]) -> None:
        try:
            self.learner.load_state_dict(state["learner"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"the checkpoints in {self.run} are of another learner or optimizer: {error}") from error
        self.learner.settle(state.get("settled", {}))
        self.generator.set_state(state["tasks"])
        torch.set_rng_state(state["random"])
        if self.device.type == "cuda" and "cuda_random" in state:
            torch.cuda.set_rng_state(state["cuda_random"], self.device)
        self.iteration = state["iteration"]
        self.phases.seconds = dict(state["phases"] if "phases" in state else {"gradient": state["seconds"]})

    def _finish(self) -> Result:
        best = self.checkpoints.best if self.checkpoints else []
        result = Result(self.iteration, self.phases.training, tuple(best), self._best)
        if self.run is None or self.checkpoints is None:
            return result
        if best:
            self.learner.load_state_dict(self.checkpoints.weights()["learner"])
        results = {"iterations": self.iteration, "seconds": self.phases.training, "validation": list(best)}
        write_results(self.run, {**results, "environment": environment(self.device)})
        return result


def make_optimizer(
    optimizer: Optimizer, parameters: list[nn.Parameter], lr: float, momentum: float
) -> torch.optim.Optimizer:
    """The outer optimiser by its name or factory."""
    if momentum and optimizer != "sgd":
        raise ValueError(f'momentum is of optimizer="sgd"; {optimizer!r} does not take it')
    if optimizer == "adam":
        return torch.optim.Adam(parameters, lr)
    if optimizer == "sgd":
        return torch.optim.SGD(parameters, lr, momentum)
    if callable(optimizer):
        return optimizer(parameters)
    raise ValueError(f'optimizer is "adam", "sgd" or a function from the parameters, got {optimizer!r}')


def require_at_least(least: float, **numbers: float | None) -> None:
    """Raise a ValueError that names the number which is below the least one."""
    for name, number in numbers.items():
        if number is not None and number < least:
            raise ValueError(f"{name} must be at least {least}, got {number}")


def derive_seed(purpose: str, seed: int) -> int:
    """A seed for each purpose, so that streams seeded by one number have nothing in common."""
    return int.from_bytes(hashlib.sha256(f"{purpose} {seed}".encode()).digest()[:6], "big")
