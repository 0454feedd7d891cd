"""An experiment in a run directory, by a recipe: training, then the test. What it would take can be asked before."""

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
"""Iterations before those that are profiled, and how many of them."""


@dataclass(frozen=True)
class Place:
    """Where and how an experiment runs, which its recipe says nothing of.

    Attributes:
        data: where the data are; else ``$INNERLOOP_DATA`` and the cache.
        device: ``"cpu"``, ``"cuda"``, ... or ``"auto"``.
        download: whether data that are not there are fetched.
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
    """Train by a resolved recipe, evaluate on the test split as it says, and write ``results.json``.

    Raises what `require_free`, `Trainer.fit` and `evaluate` raise.

    Args:
        settings: from `innerloop.recipe.config.load_recipe`.
        run: the run directory.
        place: where and how.
        command: what starts it, for the results.
        resume: go on from the newest checkpoint in the directory, if it has any.
        accept_changes: resume even if the run was begun with another recipe.
        profile: write a trace of some iterations to ``profile.json``, for chrome://tracing and Perfetto.
        replan: measure anew how tasks run quickest, whatever was found before.
        test: whether there is an evaluation at the end.
        loggers: receive the numbers of the training; see `Trainer`.
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
        if test:  # a metric that does not fit is an error before training
            rehearse(learner, sources.test, **judging)
        trainer = Trainer(learner, train, sources.val, run, seed=settings["seed"], config=settings, world=world,
                          loggers=[*loggers, Recipe()], progress=progress, **options)  # fmt: skip
        result = trainer.fit(resume, accept_changes=True)  # or refused above, in terms of whole recipes
        found = evaluate(learner, sources.test, world=world, **judging) if test else None
        if world.first:
            tempered = temperature_on(learner, sources.val, settings["train"]["val_tasks"]) if test else None
            write_results(run, results(settings, command, learner, result, found, tempered, trainer.device, world))
    return result, found


class Recipe:
    """A logger that writes the recipe beside the record, once training begins by it."""

    def begin(self, run: Path | None, settings: Mapping[str, Any], iteration: int) -> None:
        """Write ``config.toml``, all or nothing."""
        if run is not None:
            with writing(run / "config.toml") as file:
                file.write(config.dumps(settings).encode())

    def log(self, iteration: int, values: Mapping[str, float]) -> None:
        """Nothing is of interest."""

    def close(self) -> None:
        """Nothing is left."""


def results(
    settings: config.Config,
    command: str,
    learner: MetaLearner,
    result: Result,
    found: Evaluation | None,
    temperature: float | None,
    device: torch.device,
    world: World,
) -> dict[str, Any]:
    """What ``results.json`` says."""
    told: dict[str, Any] = {
        "command": command,
        "seed": settings["seed"],
        "iterations": result.iterations,
        "seconds": result.seconds,
        "validation": list(result.best),
    }
    if found is not None:
        told["test"] = {**found.as_dict(), "scores": [round(score, 4) for score in found.scores[:, -1].tolist()]}
        told["temperature"] = temperature
    told |= {"citations": list(learner.citations), "environment": environment(device)}
    return told | ({"processes": world.size} if world.size > 1 else {})


def command(
    recipe: str,
    overrides: Sequence[str],
    run: Path,
    seed: int | None,
    data: str | Path | None = None,
    device: str = "cpu",
    deterministic: bool = False,
) -> str:
    """The command line that starts a run; with ``--resume``, that goes on with it."""
    words = ["innerloop", "train", recipe]
    words += [word for override in overrides for word in ("--set", override)]
    words += ["--run", str(run)]
    words += ["--data", str(data)] if data else []
    words += ["--device", device] if device != "cpu" else []
    words += ["--seed", str(seed)] if seed is not None else []
    words += ["--deterministic"] if deterministic else []
    return shlex.join(words)


def require_free(run: Path, settings: config.Config, resume: bool, accept_changes: bool = False) -> None:
    """Refuse a directory that holds a run, or to resume a run under another recipe, before anything is touched.

    Raises:
        FileExistsError, ValueError: it is refused; the message says what would go.
    """
    saved = run / "config.toml"
    if not resume and (saved.exists() or holds_run(run)):
        raise FileExistsError(f"{run} already holds a run: add --resume to go on with it, or give another --run")
    if resume and saved.exists() and (changed := config.differences(_saved(saved, settings), settings)):
        done = max(Checkpoints(run).iterations(), default=0)
        if accept_changes and done >= settings["train"]["iterations"]:  # else its recipe would tell of what never was
            raise ValueError(
                f"{run} has trained {done} iterations, so nothing would come of another {', '.join(changed)}: give "
                "more train.iterations, or another --run"
            )
        if not accept_changes:
            again = shlex.join(["innerloop", "train", str(saved), "--run", str(run), "--resume"])
            again += " --deterministic" if torch.are_deterministic_algorithms_enabled() else ""
            raise ValueError(
                f"{run} was started with another {', '.join(changed)}; resume it with `{again}`, or go on under the "
                "new recipe with --resume --accept-changes, or give another --run"
            )


def _saved(path: Path, settings: config.Config) -> config.Config:
    """The recipe of a run. What the user's recipe does not name is not imported for it."""
    plain, known = config.parse(read_text(path)), references(settings)
    if not references(plain) <= known:
        return plain
    with from_elsewhere(known):
        return config.load_recipe(path)


def make_deterministic() -> None:
    """Have torch compute the same to the bit whenever it computes the same, or raise where it cannot."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which cuBLAS reads when it is first used
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


# -- looking at iterations --------------------------------------------------------------------------------------------


class Counted:
    """A task source that tells of every meta-batch drawn, which is where an iteration begins."""

    def __init__(self, source: Source, tell: Any) -> None:
        self._source, self._tell = source, tell
        if isinstance(source, InteractiveSource):
            self.require, self.report = source.require, source.report
            self.collect, self.returns = self._collect, source.returns
        if isinstance(source, Stateful):
            self.state_dict, self.load_state_dict = source.state_dict, source.load_state_dict

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def sample(self, n: int, generator: torch.Generator) -> Tasks:
        """As the source does."""
        return self._collect(None, n, generator)

    def _collect(self, learner: Any, n: int, generator: torch.Generator) -> Tasks:
        self._tell()
        return draw(self._source, learner, n, generator)


@contextmanager
def profiled(source: Source, path: Path) -> Iterator[Source]:
    """The source; within, some iterations of the training that draws from it are profiled."""
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
        few = f"a trace is of iterations {before + 1} to {before + number}, and fewer were left to train"
        warnings.warn(f"{path} was not written: {few}", stacklevel=3)


@dataclass(frozen=True)
class Estimate:
    """What an experiment is expected to take, by a few of its iterations.

    Attributes:
        iteration: seconds of one, the median of those measured; the first is not among them.
        training, validations, test: seconds of all of them.
        memory: the most so far, in MiB: of the GPU where the learner is on one, else of the process.
    """

    iteration: float
    training: float
    validations: float
    test: float
    memory: float

    @property
    def seconds(self) -> float:
        """Of everything."""
        return self.training + self.validations + self.test

    def lines(self, hourly: float = 0.0) -> list[str]:
        """In words, with the price of the machine by the hour if there is one."""
        told = [
            f"an iteration takes {self.iteration:.3g} s: training {clock(self.training)}",
            f"validations {clock(self.validations)}, test {clock(self.test)}",
            f"together {clock(self.seconds)}, with {self.memory:,.0f} MiB of memory at the most",
        ]
        cost = hourly * self.seconds / 3600
        plain = f"{cost:.2f}" if cost >= 0.01 else "less than 0.01"
        return told + ([f"at {hourly:g} an hour: {plain}"] if hourly else [])


def estimate(settings: config.Config, place: Place, patience: float = 10.0) -> Estimate:
    """Run the first iterations of an experiment, and nothing of it is written anywhere.

    The first iteration shows that it works. Those after it are timed, for as long as the patience lasts: five at most,
    and one at least. They run as yet without knowing how tasks run quickest, so a long training tends to take less.

    Args:
        settings: a resolved recipe.
        place: where and how.
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
    wanted = {key: value for key, value in tests.items() if key != "num_tasks"}
    test = _evaluation(learner, sources.test, tests["num_tasks"], wanted)
    return Estimate(each, each * iterations, validations * validation, test, peak_memory(device))


def _evaluation(learner: MetaLearner, source: Source, number: int, options: dict[str, Any]) -> float:
    """Seconds of an evaluation over so many tasks, by one over a few."""
    few, start = min(number, 10), time.perf_counter()
    evaluate(learner, source, few, **options)
    return number / few * (time.perf_counter() - start)
