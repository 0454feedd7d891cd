"""Run a recipe in a run directory: train, then test. Or estimate the time and memory that this takes."""

from __future__ import annotations

import os
import shlex
import statistics
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..common.disk import read_text, replacing, writing
from ..learner import MetaLearner
from ..task import InteractiveSource, Source, Tasks, draw
from ..train import Evaluation, Logger, Result, Stateful, Trainer, World, evaluate
from ..train.calibration import temperature_on
from ..train.checkpoint import Checkpoints, holds_run
from ..train.claim import claimed
from ..train.evaluate import rehearse
from ..train.progress import clock
from ..train.record import environment, peak_memory, write_results
from . import config
from .imports import from_elsewhere, references
from .refusals import blaming

PROFILED = (5, 3)
"""The number of iterations before the profiled ones, and the number of profiled ones."""


@dataclass(frozen=True)
class Place:
    """Where and how an experiment runs, which is not part of its recipe.

    Attributes:
        data: the folder of the data; by default ``$INNERLOOP_DATA``, then the cache.
        device: ``"cpu"``, ``"cuda"``, ... or ``"auto"``.
        download: whether to download missing data.
        world: the processes that train together.
    """

    data: str | Path | None = None
    device: str = "cpu"
    download: bool = False
    world: World = field(default_factory=World)


def conduct(
    settings: config.Config,
    run: Path,
    place: Place,
    *,
    command: str = "",
    resume: bool = False,
    accept_changes: bool = False,
    profile: bool = False,
    replan: bool = False,
    test: bool = True,
    loggers: Sequence[Logger] = (),
    progress: bool = True,
) -> tuple[Result, Evaluation | None]:
    """Train a resolved recipe, evaluate the model on the test split, and write ``results.json``.

    Raises what `require_free`, `Trainer.fit` and `evaluate` raise.

    Args:
        settings: from `innerloop.recipe.config.load_recipe`.
        run: the run directory.
        place: where and how to run.
        command: the command line that starts the run, for the results.
        resume: resume from the newest checkpoint in the directory, if it has any.
        accept_changes: resume even if the run was started with another recipe.
        profile: write a trace of some iterations to ``profile.json``, for chrome://tracing and Perfetto.
        replan: measure again which execution plan is fastest, and ignore stored plans.
        test: whether to evaluate at the end.
        loggers: receive the metrics of the training; see `Trainer`.
        progress: whether to show progress on standard error.
    """
    world = place.world
    with blaming(config.source_of(settings), run), ExitStack() as stack:
        if world.first:
            require_free(run, settings, resume, accept_changes)
            stack.enter_context(claimed(run))
        learner, sources = config.build(settings, place.data, place.device, place.download)
        learner.engine.plans.fresh, train = replan, sources.train
        train = stack.enter_context(profiled(train, run / "profile.json")) if profile and world.first else train
        options, judging = config.arguments(settings, "train"), config.arguments(settings, "evaluate")
        if test:  # raise an error for a metric that does not fit before training
            rehearse(learner, sources.test, **judging)
        trainer = Trainer(learner, train, sources.val, run, seed=settings["seed"], config=settings, world=world,
                          loggers=[*loggers, Recipe()], progress=progress, **options)  # fmt: skip
        result = trainer.fit(resume, accept_changes=True)  # require_free has compared the whole recipes
        tested = evaluate(learner, sources.test, world=world, **judging) if test else None
        if world.first:
            temperature = temperature_on(learner, sources.val, settings["train"]["val_tasks"]) if test else None
            write_results(run, results(settings, command, learner, result, tested, temperature, trainer.device, world))
    return result, tested


class Recipe:
    """A logger that writes the recipe into the run directory when training starts."""

    def begin(self, run: Path | None, settings: Mapping[str, Any], iteration: int) -> None:
        """Write ``config.toml`` atomically."""
        if run is not None:
            with writing(run / "config.toml") as file:
                file.write(config.dumps(settings).encode())

    def log(self, iteration: int, values: Mapping[str, float]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def results(
    settings: config.Config,
    command: str,
    learner: MetaLearner,
    result: Result,
    tested: Evaluation | None,
    temperature: float | None,
    device: torch.device,
    world: World,
) -> dict[str, Any]:
    """Return the content of ``results.json``."""
    values: dict[str, Any] = {
        "command": command,
        "seed": settings["seed"],
        "iterations": result.iterations,
        "seconds": result.seconds,
        "validation": list(result.best),
    }
    if tested is not None:
        values["test"] = {**tested.as_dict(), "scores": [round(score, 4) for score in tested.scores[:, -1].tolist()]}
        values["temperature"] = temperature
    values |= {"citations": list(learner.citations), "environment": environment(device)}
    return values | ({"processes": world.size} if world.size > 1 else {})


def command(
    recipe: str,
    overrides: Sequence[str],
    run: Path,
    seed: int | None,
    data: str | Path | None = None,
    device: str = "cpu",
    deterministic: bool = False,
) -> str:
    """Return the command line that starts a run; with ``--resume`` added, it resumes the run."""
    words = ["innerloop", "train", recipe]
    words += [word for override in overrides for word in ("--set", override)]
    words += ["--run", str(run)]
    words += ["--data", str(data)] if data else []
    words += ["--device", device] if device != "cpu" else []
    words += ["--seed", str(seed)] if seed is not None else []
    words += ["--deterministic"] if deterministic else []
    return shlex.join(words)


def require_free(run: Path, settings: config.Config, resume: bool, accept_changes: bool = False) -> None:
    """Reject a directory that has a run already, or a resumed run with another recipe, before any file changes.

    Raises:
        FileExistsError, ValueError: it is rejected; the message says what to do instead.
    """
    saved = run / "config.toml"
    if not resume and (saved.exists() or holds_run(run)):
        raise FileExistsError(f"{run} already has a run: add --resume to resume it, or give another --run")
    if resume and saved.exists() and (changed := config.differences(_saved(saved, settings), settings)):
        done = max(Checkpoints(run).iterations(), default=0)
        if accept_changes and done >= settings["train"]["iterations"]:  # the saved recipe would be wrong
            raise ValueError(
                f"{run} has finished its {done} iterations, so another {', '.join(changed)} would have no effect: give "
                "more train.iterations, or another --run"
            )
        if not accept_changes:
            again = shlex.join(["innerloop", "train", str(saved), "--run", str(run), "--resume"])
            again += " --deterministic" if torch.are_deterministic_algorithms_enabled() else ""
            raise ValueError(
                f"{run} was started with another {', '.join(changed)}; resume it with `{again}`, or with the new "
                "recipe by --resume --accept-changes, or give another --run"
            )


def _saved(path: Path, settings: config.Config) -> config.Config:
    """The recipe of a run. What the user's recipe does not name is not imported for it."""
    plain, known = config.parse(read_text(path)), references(settings)
    if not references(plain) <= known:
        return plain
    with from_elsewhere(known):
        return config.load_recipe(path)


def make_deterministic() -> None:
    """Make torch's results reproducible to the bit; operations that cannot be will raise an error."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


# -- looking at iterations --------------------------------------------------------------------------------------------


class Counted:
    """A task source that calls a function for every meta-batch, that is at the start of each iteration."""

    def __init__(self, source: Source, on_draw: Any) -> None:
        self._source, self._on_draw = source, on_draw
        if isinstance(source, InteractiveSource):
            self.require, self.report = source.require, source.report
            self.collect, self.returns = self._collect, source.returns
        if isinstance(source, Stateful):
            self.state_dict, self.load_state_dict = source.state_dict, source.load_state_dict

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def sample(self, n: int, generator: torch.Generator) -> Tasks:
        """Draw tasks from the source."""
        return self._collect(None, n, generator)

    def _collect(self, learner: Any, n: int, generator: torch.Generator) -> Tasks:
        self._on_draw()
        return draw(self._source, learner, n, generator)


@contextmanager
def profiled(source: Source, path: Path) -> Iterator[Source]:
    """Yield a source; some iterations of a training that draws from it are profiled."""
    from torch.profiler import ProfilerActivity, profile, schedule

    cuda = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
    (before, number), written = PROFILED, list[Path]()

    def write(profiler: Any) -> None:
        with replacing(path) as temporary:
            profiler.export_chrome_trace(str(temporary))
        written.append(path)

    with profile(
        activities=[ProfilerActivity.CPU, *cuda],
        schedule=schedule(wait=before - 1, warmup=1, active=number, repeat=1),
        on_trace_ready=write,
    ) as profiler:
        yield Counted(source, profiler.step)
    if not written:
        few = f"the profiler traces iterations {before + 1} to {before + number}, but fewer were left to train"
        warnings.warn(f"{path} was not written: {few}", stacklevel=3)


@dataclass(frozen=True)
class Estimate:
    """The estimated time and memory of an experiment, measured on a few of its iterations.

    Attributes:
        iteration: seconds per iteration, the median of those measured, without the first.
        training, validations, test: total seconds of each.
        memory: peak memory in MiB: of the GPU if the learner is on one, else of the process.
    """

    iteration: float
    training: float
    validations: float
    test: float
    memory: float

    @property
    def seconds(self) -> float:
        """The total of training, validations and test."""
        return self.training + self.validations + self.test

    def lines(self, hourly: float = 0.0) -> list[str]:
        """Return the estimate in words, with the cost if the machine has an hourly price."""
        lines = [
            f"an iteration takes {self.iteration:.3g} s: training {clock(self.training)}",
            f"validations {clock(self.validations)}, test {clock(self.test)}",
            f"total {clock(self.seconds)}, peak memory {self.memory:,.0f} MiB",
        ]
        cost = hourly * self.seconds / 3600
        plain = f"{cost:.2f}" if cost >= 0.01 else "less than 0.01"
        return lines + ([f"cost at {hourly:g} per hour: {plain}"] if hourly else [])


def estimate(settings: config.Config, place: Place, patience: float = 10.0) -> Estimate:
    """Run the first iterations of an experiment without writing anything.

    The first iteration shows that it works. The next ones are timed, one to five of them, until ``patience`` seconds
    have passed. They do not use the fastest execution plan yet, so a long training tends to take less time.

    Args:
        settings: a resolved recipe.
        place: where and how to run.
        patience: in seconds.

    Raises:
        Exception: as `conduct`; the message names the recipe.
    """
    with blaming(config.source_of(settings)):
        return _estimate(settings, place, patience)


def _estimate(settings: config.Config, place: Place, patience: float) -> Estimate:
    learner, sources = config.build(settings, place.data, place.device, place.download)
    options, tests = config.arguments(settings, "train"), config.arguments(settings, "evaluate")
    iterations, device = options.pop("iterations"), next(learner.parameters()).device
    trainer = Trainer(learner, sources.train, seed=settings["seed"], progress=False, iterations=0, **options)

    def iteration() -> float:
        before, trainer.iterations = trainer.phases.training, trainer.iterations + 1
        trainer.fit()
        return trainer.phases.training - before

    iteration()
    times, start = [iteration()], time.perf_counter()
    while len(times) < 5 and time.perf_counter() - start < patience:
        times.append(iteration())
    each, every = statistics.median(times), min(options["validate_every"], max(1, iterations))
    validations = -(-iterations // every) if sources.val is not None else 0
    val = {"steps": options.get("val_steps"), "transductive": options["transductive"], "metric": options.get("metric")}
    validation = _evaluation(learner, sources.val, options["val_tasks"], val) if validations else 0.0
    test_options = {key: value for key, value in tests.items() if key != "num_tasks"}
    test = _evaluation(learner, sources.test, tests["num_tasks"], test_options)
    return Estimate(each, each * iterations, validations * validation, test, peak_memory(device))


def _evaluation(learner: MetaLearner, source: Source, number: int, options: dict[str, Any]) -> float:
    """Estimate the seconds of an evaluation from one over at most 10 tasks."""
    few, start = min(number, 10), time.perf_counter()
    evaluate(learner, source, few, **options)
    return number / few * (time.perf_counter() - start)
