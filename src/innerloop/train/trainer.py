"""Meta-training: an outer optimizer, validation on fixed tasks, checkpoints, and a record."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..common.ranges import require_at_least
from ..learner import MetaLearner
from ..objectives import Outcome
from ..schedules import Schedule
from ..task import InteractiveSource, Source, draw, to
from .checkpoint import Checkpoints, differences, holds_run
from .claim import claimed
from .evaluate import Evaluation, evaluate, rehearse
from .faults import Faults, NonFinite, NonFiniteError, enough_memory
from .loggers import Logger, made
from .metrics import Judged, chosen
from .outer import LR, Optimizer, outer_step
from .planned import planned
from .progress import Progress
from .record import Metrics, environment, write_results
from .recorder import Phases, Recorder, due
from .signals import Stop, stopping
from .world import World

SHAPING = ("innerloop", "torch", "cpu", "threads", "device")
"""Environment fields that can change low-order bits."""


@dataclass(frozen=True)
class Result:
    """The result of a training.

    Attributes:
        iterations: the number of updates.
        seconds: the time spent training, over all sessions of the run, without validations.
        best: the best validations with finite scores, best first: ``{"iteration", "score", "ci95"}``.
        validation: the evaluation of the weights that the learner now has; ``None`` if it was in an earlier session.
    """

    iterations: int
    seconds: float
    best: tuple[dict[str, Any], ...]
    validation: Evaluation | None

    @property
    def score(self) -> float:
        """The score of the best validation.

        Raises:
            NonFiniteError: no validation has a finite score.
        """
        if not self.best:
            raise NonFiniteError("no validation score is finite: a smaller inner lr often helps")
        return float(self.best[0]["score"])


@runtime_checkable
class Stateful(Protocol):
    """A task source with its own state besides the generator's, such as a simulator's, kept in checkpoints."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors and plain values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state."""
        ...


class Trainer:
    """Meta-trains a learner.

    Args:
        learner: the learner, which is trained in place on its device.
        train: the source of training tasks.
        val: the source of validation tasks, which are the same every time; ``None`` does not validate.
        run: the run directory for checkpoints, ``metrics.jsonl`` and ``results.json``; ``None`` writes nothing.
        iterations: the number of outer updates.
        tasks: the number of tasks in a meta-batch.
        optimizer: the outer optimizer: ``"adam"``, ``"sgd"`` or a function from the parameters to an optimizer.
        lr: the outer learning rate, or its schedule.
        momentum: the momentum of SGD.
        clip: each element of the meta-gradient is clamped to ``[-clip, clip]``.
        clip_norm: the meta-gradient is scaled to at most this norm (after ``clip``).
        validate_every, checkpoint_every, log_every: intervals in iterations; each also happens at the end.
        trace_every: the interval, in iterations, of recording the inner loops of some tasks and the learned rates; 0
            for never, ``None`` for as often as validation. See `innerloop.train.trace.trace`.
        trace_tasks: the number of tasks of the meta-batch to record.
        trace_steps: the number of inner steps between evaluations of recorded tasks.
        val_tasks, val_steps, val_seed, transductive, metric: arguments of the validation; see `innerloop.evaluate`.
        keep_best: the number of best weights to keep.
        non_finite: what to do about a loss or a gradient that is not finite: ``"stop"``, or ``"skip"`` the update.
        max_skipped: the number of skipped updates after which training stops anyway.
        seed: the seed of the training tasks, and of randomness in the learner, such as dropout.
        config: plain values to store in checkpoints, such as the recipe.
        loggers: loggers besides the record: names such as ``"tensorboard"``
            (`innerloop.train.LOGGERS`), or objects of your own; see `innerloop.train.loggers`.
        world: the processes to train with, each of which makes its own trainer; see `innerloop.train.world`.
        progress: whether to show progress on standard error.

    Raises:
        ValueError: a number is out of range, or the optimizer is unknown.
    """

    iteration = 0
    _best: Evaluation | None = None
    _outer_report: Mapping[str, float] = MappingProxyType({})

    def __init__(
        self,
        learner: MetaLearner,
        train: Source,
        val: Source | None = None,
        run: str | Path | None = None,
        *,
        iterations: int = 10_000,
        tasks: int = 16,
        optimizer: Optimizer = "adam",
        lr: Schedule[float] = LR,
        momentum: float = 0.0,
        clip: float | None = None,
        clip_norm: float | None = None,
        validate_every: int = 500,
        val_tasks: int = 100,
        val_steps: int | None = None,
        val_seed: int = 0,
        transductive: bool = True,
        metric: Judged | None = None,
        checkpoint_every: int = 500,
        keep_best: int = 3,
        log_every: int = 10,
        trace_every: int | None = None,
        trace_tasks: int = 4,
        trace_steps: int = 1,
        non_finite: NonFinite = "stop",
        max_skipped: int = 100,
        seed: int = 0,
        config: Mapping[str, Any] | None = None,
        loggers: Sequence[Logger | str] = (),
        world: World | None = None,
        progress: bool = True,
    ) -> None:
        require_at_least(0, iterations=iterations)
        require_at_least(1, tasks=tasks, validate_every=validate_every, checkpoint_every=checkpoint_every)
        require_at_least(2, val_tasks=val_tasks)
        self.learner, self.train, self.val, self.world = learner, train, val, world or World()
        self.run = Path(run) if run is not None and self.world.first else None
        self.iterations, self.tasks, self.seed, self.config = iterations, tasks, seed, dict(config or {})
        self.validate_every, self.val_tasks, self.checkpoint_every = validate_every, val_tasks, checkpoint_every
        self._judging: dict[str, Any] = {"steps": val_steps, "metric": chosen(metric, learner.loss)}
        self._judging |= {"transductive": transductive, "seed": derive_seed("validation", val_seed)}
        self.generator = torch.Generator().manual_seed(derive_seed("tasks", seed))
        self.outer = outer_step(learner, partial(self.world.mean, tasks), optimizer, lr, momentum, clip, clip_norm)
        self.checkpoints, self.phases = Checkpoints(self.run, keep_best) if self.run else None, Phases()
        self.faults = Faults(learner, self.world, self.checkpoints, non_finite, max_skipped)
        self.show, every = progress and self.world.first, validate_every if trace_every is None else trace_every
        metrics = Metrics(self.run, made(loggers) if self.world.first else (), self.config)
        self.recorder = Recorder(metrics, learner, iterations, log_every, every, trace_tasks, trace_steps)

    @property
    def device(self) -> torch.device:
        """The device of the learner."""
        return next(self.learner.parameters()).device

    def fit(self, resume: bool = False, accept_changes: bool = False) -> Result:
        """Train up to the given number of iterations.

        Afterwards the learner has the best validated weights if there is a run directory and a validation, else the
        last weights.

        On Ctrl-C, SIGTERM or SIGHUP the current iteration is finished and a checkpoint is saved. A run that was
        interrupted in any way and then resumed gives the same result as an uninterrupted run, on the CPU bit for bit.
        Torch's global random state stays as it was.

        Args:
            resume: resume from the newest checkpoint in the run directory, if it has any.
            accept_changes: resume even if the run was started with another ``config``.

        Raises:
            FileExistsError: the run directory already holds a run and ``resume`` is false; nothing was changed.
            BlockingIOError: another process trains in the run directory.
            NonFiniteError: a loss or gradient is not finite.
            OutOfMemoryError: a meta-batch does not fit into memory.
            LostProcessError: another process of the training ended.
            Interrupted: a signal stopped the training; its checkpoint is saved.
            ValueError: the checkpoints are damaged, or belong to another learner, optimizer or ``config``; or the
                metric does not fit the validation, which is tried on two tasks before the first iteration.
        """
        self.world.bounds(self.tasks)
        if isinstance(self.train, InteractiveSource):
            self.train.require(self.learner)
        if self.run is not None and not resume and holds_run(self.run):
            raise FileExistsError(
                f"{self.run} already holds a run: resume it (fit(resume=True)) or use another directory"
            )
        self._rehearse()
        cuda = [self.device] if self.device.type == "cuda" else []
        with ExitStack() as stack:
            if self.run is not None:
                stack.enter_context(claimed(self.run))
            stack.enter_context(torch.random.fork_rng(cuda))
            stop = stack.enter_context(stopping(self.world.size == 1))
            progress = stack.enter_context(Progress(self.iterations, self.show))
            stack.callback(self.recorder.metrics.close)
            plans = self._begin(accept_changes)
            stack.enter_context(planned(self.learner, self.run, plans))
            self._loop(stop, progress)
        stop.raise_if_set(self.iteration, self.run)
        return self._finish()

    def _loop(self, stop: Stop, progress: Progress) -> None:
        """Run the outer loop."""
        rate, shown, begun = 0.0, set[str](), self.iteration
        while self.iteration < self.iterations and not stop:
            before = self.phases.training
            with enough_memory(self.learner, self.tasks, self.iteration + 1):
                outcome, norm, lr = self._iterate(stop)
            seconds = self.phases.training - before
            rate = 0.9 * (rate or self.tasks / seconds) + 0.1 * self.tasks / seconds
            self.recorder.train(self.iteration, outcome, norm, lr, rate, self.phases, self._report())
            progress.advance(self.iteration, rate, outcome.loss, self._report())
            for choice in self.learner.choices:
                if choice not in shown:
                    progress.note(choice)
                    shown.add(choice)
            if self.iteration > begun + 1:  # the first iteration may have measured plans
                progress.timed(self.iteration, seconds)
            if self.val is not None and self._due(self.validate_every):
                with self.phases("validation"):
                    self._validate(progress)
            if self.checkpoints and self._due(self.checkpoint_every):
                self._save()
        if self.checkpoints and stop:
            self._save()

    def _iterate(self, stop: Stop) -> tuple[Outcome, Tensor, float]:
        """Do one update; return the outcome of the tasks of all processes, the norm of the meta-gradient, the rate."""
        with self.phases("tasks"):
            tasks = draw(self.train, self.learner, self.tasks, self.generator)
            own = to(self.world.share(tasks), self.device)
        if self.world.size > 1:  # otherwise processes would draw the same numbers, and a resumed run other numbers
            torch.manual_seed(derive_seed(f"iteration {self.iteration} process {self.world.rank}", self.seed))
        with self.phases("gradient"):
            self.learner.compiler.steps_to_come = self.iterations - self.iteration
            grads, outcome = self.learner.meta_gradient(own, self.iteration)
            moved = self.learner.carried
            grads, outcome, asked = self.world.join(self.tasks, grads, outcome, moved, stop.asked)
            norm = torch.linalg.vector_norm(torch.stack([g.norm() for g in grads.values()]))
            usable = self.faults.usable(self.iteration + 1, tasks, grads, outcome, norm)
        with self.phases("record"):  # with the parameters before the update
            self.recorder.tasks(self.iteration + 1, tasks, grads, outcome)
        with self.phases("update"):
            lr = self.outer(grads, own, self.iteration) if usable else 0.0
            self._outer_report = dict(self.outer.told) if usable else {}
        self.iteration += 1
        stop.agree(asked)
        return outcome, norm, lr

    def _report(self) -> dict[str, Any]:
        """Return more numbers about the last iteration: of the source, of the outer step, and skipped updates."""
        acting = self.train.report() if isinstance(self.train, InteractiveSource) else {}
        skipped = {"skipped": self.faults.skipped} if self.faults.skipped else {}
        return {**acting, **self._outer_report, **skipped}

    def _due(self, every: int) -> bool:
        return due(self.iteration, every, self.iterations)

    def _rehearse(self) -> None:
        """Try a validation, so that a metric that does not fit is an error before training or writing starts."""
        if self.val is None or not self.iterations:
            return
        before = self.val.state_dict() if isinstance(self.val, Stateful) else {}
        rehearse(self.learner, self.val, **self._judging)
        if isinstance(self.val, Stateful):
            self.val.load_state_dict(before)

    def _validate(self, progress: Progress) -> None:
        assert self.val is not None
        result = evaluate(self.learner, self.val, self.val_tasks, world=self.world, **self._judging)
        self.recorder.validation(self.iteration, result, self.phases)
        entry = {"iteration": self.iteration, "score": result.mean, "ci95": result.ci95}
        if self.checkpoints and self.checkpoints.consider(self.learner.state_dict(), entry, result.higher_is_better):
            self._best = result
        progress.validated(self.iteration, result)

    def _begin(self, accept_changes: bool) -> Mapping[str, Any]:
        """Restore the newest checkpoint if there is one, else save the first; return its plans."""
        self.learner.train()
        torch.manual_seed(derive_seed("learner", self.seed))
        state = None
        if self.checkpoints and self.checkpoints.iterations():
            state = self.checkpoints.newest()
            if not accept_changes and (changed := differences(state.get("config", {}), self.config)):
                raise ValueError(
                    f"{self.run} was started with another {', '.join(changed)}: resume it with the old values, or with "
                    "fit(resume=True, accept_changes=True), or use another directory"
                )
            self.checkpoints.drop_states(state["iteration"])
        elif self.checkpoints and (self.checkpoints.directory.parent / "metrics.jsonl").exists():
            raise FileNotFoundError(f"{self.run} has metrics but no checkpoint to resume from: use another directory")
        elif self.checkpoints:
            self.checkpoints.make()
            self._save()
        if state:
            self._compare(state.get("environment", {}))
        if self.world.size > 1:  # all processes start with the state of the first
            state = self.world.broadcast(state or self._state())
        if state:
            self._restore(state)
        self.recorder.begin(self.iteration, self.tasks, self.device)
        return dict((state or {}).get("plans", {}))

    def _compare(self, before: Mapping[str, Any]) -> None:
        """Warn if the run is resumed in another environment."""
        now = environment(self.device)
        changed = [f"{key} {before[key]}, now {now[key]}" for key in SHAPING if before.get(key, now[key]) != now[key]]
        if changed:
            warnings.warn(
                f"{self.run} was computed with {'; '.join(changed)}: results will be the same only up to rounding",
                stacklevel=4,
            )

    def _state(self) -> dict[str, Any]:
        """Return everything that a resumed run depends on."""
        state = {
            "iteration": self.iteration,
            "learner": self.learner.state_dict(),
            "optimizer": self.outer.state_dict(),
            "tasks": self.generator.get_state(),
            "random": torch.get_rng_state(),
            "config": self.config,
            "plans": dict(sorted(self.learner.engine.plans.made.items())),
            "skipped": self.faults.skipped,
            "environment": environment(self.device),
            "phases": self.phases.seconds,
        }
        if self.device.type == "cuda":
            state["cuda_random"] = torch.cuda.get_rng_state(self.device)
        if isinstance(self.train, Stateful):
            state["source"] = self.train.state_dict()
        return state

    def _save(self) -> None:
        """Save a checkpoint."""
        assert self.checkpoints is not None
        self.recorder.metrics.sync()
        self.checkpoints.save(self._state())

    def _restore(self, state: Mapping[str, Any]) -> None:
        try:
            self.learner.load_state_dict(state["learner"])
            self.outer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"the checkpoints in {self.run} are from another learner or optimizer: {error}") from error
        try:
            self.generator.set_state(state["tasks"])
            torch.set_rng_state(state["random"])
            if self.device.type == "cuda" and "cuda_random" in state:
                torch.cuda.set_rng_state(state["cuda_random"], self.device)
            if isinstance(self.train, Stateful) and "source" in state:
                self.train.load_state_dict(state["source"])
            phases = state["phases"] if "phases" in state else {"gradient": state["seconds"]}
            self.phases.seconds = {str(name): float(seconds) for name, seconds in phases.items()}
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"the checkpoints in {self.run} cannot be resumed from: {error}") from error
        self.iteration, self.faults.skipped = state["iteration"], state.get("skipped", 0)

    def _finish(self) -> Result:
        best = self.world.broadcast(self.checkpoints.best if self.checkpoints else [])
        result = Result(self.iteration, self.phases.training, tuple(best), self._best)
        if best:
            self.learner.load_state_dict(
                self.world.broadcast(self.checkpoints and self.checkpoints.weights()["learner"])
            )
        if self.run is not None:
            results = {"iterations": self.iteration, "seconds": self.phases.training, "validation": list(best)}
            write_results(self.run, {**results, "environment": environment(self.device)})
        return result


def derive_seed(purpose: str, seed: int) -> int:
    """Derive a seed for each purpose, so that random streams from one number are independent."""
    return int.from_bytes(hashlib.sha256(f"{purpose} {seed}".encode()).digest()[:6], "big")
