"""Hyperparameter sweeps of a recipe, by Optuna. The same command on several machines shares one study.

A space is a TOML file with the ranges or choices of hyperparameters::

    learner.lr = {low = 0.001, high = 1.0, log = true}
    learner.steps = {low = 1, high = 5}
    train.optimizer = {choices = ["adam", "sgd"]}

A trial trains in its own run directories, such as ``trial-0007-seed0``, and is judged by its best meta-validation; it
has no meta-test. Trials whose validations are bad are pruned early. If a worker is killed, another worker, or the same
command run again, resumes its trial from the last checkpoint.
"""

from __future__ import annotations

import errno
import inspect
import math
import os
import random
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.disk import read_text, refuse_link, refuse_linked_database
from ..common.interrupts import raise_interrupt_behind
from ..common.streams import brief, is_utf8, shown
from ..functional.undisturbed import guarded
from ..train import Interrupted
from ..train.claim import is_claimed
from ..train.evaluate import judged_by
from ..train.trainer import derive_seed
from . import config, experiment
from .trials import override, reason, said
from .trials import summary as summary

STALE = int(os.environ.get("INNERLOOP_SWEEP_STALE", "60"))
"""Seconds without a heartbeat after which the worker of a trial counts as dead."""
POLL = 2.0
ATTEMPTS = 4
"""The number of attempts to open a storage."""
DEATHS = 3
"""The number of workers that may die during a trial before it is abandoned."""
OF_THE_MACHINE = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EROFS, errno.EIO)
"""Errors that would also stop the next trial, such as a full disk."""
AGAIN = "goes_on_with"
"""The attribute of a trial that resumes an earlier one in its run directories: the number of the earlier trial."""


@dataclass(frozen=True)
class Domain:
    """The domain of one hyperparameter: from low to high, on a logarithmic scale or not, or a list of choices."""

    low: Any = None
    high: Any = None
    log: bool = False
    choices: tuple[Any, ...] = ()

    @classmethod
    def of(cls, key: str, given: Mapping[str, Any]) -> Domain:
        """Parse the domain of a key.

        Raises:
            ValueError: it is not valid.
        """
        if unknown := [name for name in given if name not in ("low", "high", "log", "choices")]:
            raise ValueError(f"{key}: unknown {', '.join(unknown)}; a domain has low, high and log, or choices")
        if "choices" in given:
            if len(given) > 1 or not isinstance(given["choices"], list) or not given["choices"]:
                raise ValueError(
                    f"{key}: choices must be a non-empty list, without low, high and log, got {brief(given)}"
                )
            return cls(choices=tuple(given["choices"]))
        low, high, log = (given.get(name, default) for name, default in (("low", None), ("high", None), ("log", False)))
        if not {type(low), type(high)} <= {int, float} or low >= high or (log and low <= 0):
            raise ValueError(
                f"{key}: low and high must be numbers with low < high, and above 0 for log = true, got {brief(given)}"
            )
        return cls(low, high, bool(log))

    def as_dict(self) -> dict[str, Any]:
        """Return the domain as in the TOML file."""
        if self.choices:
            return {"choices": list(self.choices)}
        return {"low": self.low, "high": self.high, "log": self.log}

    @property
    def examples(self) -> tuple[Any, ...]:
        """The ends or all choices, to check the recipe with."""
        return self.choices or (self.low, self.high)

    def suggest(self, trial: Any, key: str) -> Any:
        """Suggest a value for an Optuna trial."""
        if self.choices:
            return trial.suggest_categorical(key, self.choices)
        if {type(self.low), type(self.high)} == {int}:
            return trial.suggest_int(key, self.low, self.high, log=self.log)
        return trial.suggest_float(key, self.low, self.high, log=self.log)


Space = dict[str, Domain]


def load_space(path: Path, recipe: str, overrides: Sequence[str] = ()) -> Space:
    """Read a space, and check that the recipe and its learner accept all keys, ends and choices.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not valid, or the recipe rejects a value.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no space file {path}")
    try:
        space = {key: Domain.of(key, given) for key, given in _domains(config.parse(read_text(path)))}
    except RecursionError as error:
        raise ValueError(f"{path}: its tables are nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    config.load_recipe(recipe, overrides)  # so that errors of the recipe do not blame the space
    if not space:
        raise ValueError(f"{path}: it has no domain, such as learner.lr = {{low = 0.001, high = 1.0, log = true}}")
    for key, domain in space.items():
        for example in domain.examples:
            try:
                config.build_learner(config.load_recipe(recipe, [*overrides, override(key, example)]))
            except ValueError as error:
                raise ValueError(f"{path}: {recipe} does not accept {key} = {brief(example)}: {error}") from error
    return space


def _domains(table: Mapping[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, dict[str, Any]]]:
    domains: list[tuple[str, dict[str, Any]]] = []
    for name, value in table.items():
        key = (*path, *name.split("."))
        if not isinstance(value, dict):
            raise ValueError(f"{'.'.join(key)} = {brief(value)} is not a domain, such as {{low = 1, high = 5}}")
        is_domain = bool({"low", "high", "log", "choices"} & value.keys())
        domains += [(".".join(key), value)] if is_domain else _domains(value, key)
    return domains


# -- the study --------------------------------------------------------------------------------------------------------


def optuna() -> Any:
    """Import Optuna.

    Raises:
        ImportError: it is not installed; the message says how to install it.
    """
    try:
        import optuna as module
    except ImportError as error:
        raise ImportError("sweeps need Optuna: pip install 'innerloop[sweep]'") from error
    module.logging.set_verbosity(module.logging.ERROR)  # innerloop reports why a trial failed, without a traceback
    warnings.filterwarnings("ignore", category=module.exceptions.ExperimentalWarning)
    return module


def storage(url: str) -> Any:
    """Open the Optuna storage of a study.

    It is ``sqlite:///FILE``, ``postgresql://...``, another database that SQLAlchemy supports, or ``journal:FILE`` on a
    file system that all workers share.

    Raises:
        ImportError: the driver of the database is not installed.
        ConnectionError: the database cannot be reached.
    """
    module = optuna()
    refuse_linked_database(url)
    if url.startswith("journal:"):
        from optuna.storages.journal import JournalFileBackend

        return module.storages.JournalStorage(JournalFileBackend(url.removeprefix("journal:")))
    engine = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    kind = module.storages.RDBStorage
    known = "heartbeat_stale_trial_callback" in inspect.signature(kind).parameters  # the name from Optuna 4.9 on
    callback = {"heartbeat_stale_trial_callback" if known else "failed_trial_callback": _again}
    for attempt in range(ATTEMPTS):
        try:
            return kind(
                url, engine_kwargs=engine, heartbeat_interval=max(1, STALE // 3), grace_period=STALE, **callback
            )
        except ImportError as error:
            driver = f"the driver of {url.split(':')[0]} is not installed ({error})"
            raise ImportError(f"{driver}: pip install 'psycopg[binary]'") from error
        except Exception as error:  # SQLAlchemy passes on any error of its drivers
            if attempt + 1 < ATTEMPTS:  # another worker may be creating the tables right now
                time.sleep(random.uniform(0.2, 1.0))
                continue
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ConnectionError(f"the storage {url.split('@')[-1]} cannot be used: {reason}") from error
    raise AssertionError


def _again(study: Any, trial: Any, died: bool = True) -> None:
    """Enqueue an unfinished trial to be resumed, unless too many of its workers have died."""
    deaths = trial.user_attrs.get("deaths", 0) + died
    if deaths <= DEATHS:
        goes_on = {AGAIN: trial.user_attrs.get(AGAIN, trial.number), "deaths": deaths}
        study.enqueue_trial(trial.params, user_attrs=goes_on)


def _lost(study: Any, trial: Any) -> bool:
    """Return whether other workers took over this trial because its worker seemed dead."""
    return study.get_trials(deepcopy=False)[trial.number].state.name == "FAIL"  # type: ignore[no-any-return]


class Pruning:
    """A logger that reports validations to an Optuna trial, and ends the trial if they are bad.

    Args:
        trial: the Optuna trial.
        before: the scores of the earlier seeds.
        offset: the number of iterations of the earlier seeds.
    """

    def __init__(self, trial: Any, before: Sequence[float], offset: int) -> None:
        self.trial, self.before, self.offset = trial, before, offset

    def begin(self, run: Path | None, config: Mapping[str, Any], iteration: int) -> None:
        """Do nothing."""

    def log(self, iteration: int, values: Mapping[str, float]) -> None:
        """Report a validation score; ignore other values."""
        for name, value in values.items():
            if name.startswith("validation/") and name != "validation/ci95":
                scores = [*self.before, value]
                self.trial.report(sum(scores) / len(scores), self.offset + iteration)
                if self.trial.should_prune():
                    raise optuna().TrialPruned(f"pruned at iteration {iteration}")

    def close(self) -> None:
        """Do nothing."""


# -- sweeping ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sweep:
    """A hyperparameter sweep.

    Attributes:
        recipe, overrides: the recipe.
        space: the domains of its hyperparameters.
        folder: the folder of the run directories.
        place: where and how trials run.
        seeds: the number of seeds per trial, counted up from the recipe's; the trial is judged by their mean score.
    """

    recipe: str
    overrides: tuple[str, ...]
    space: Space
    folder: Path
    place: experiment.Place
    seeds: int = 1

    def study(self, url: str, name: str) -> Any:
        """Create the study, or open it if it exists."""
        module = optuna()
        if not is_utf8(name):
            raise ValueError(
                f"{self.recipe}: the name of a study must be UTF-8, got {shown(name)}: give another --name"
            )
        settings = config.load_recipe(self.recipe, self.overrides)
        learner, sources = config.build(settings, self.place.data, self.place.device, self.place.download)
        if sources.val is None:
            raise ValueError(f"{self.recipe} has no meta-validation, which a sweep needs to judge trials")
        scale = judged_by(learner, sources.val, config.arguments(settings, "train").get("metric"))
        direction = "maximize" if scale.higher_is_better else "minimize"
        study = module.create_study(
            study_name=name,
            storage=storage(url),
            pruner=module.pruners.MedianPruner(),
            direction=direction,
            load_if_exists=True,
        )
        if (begun := study.direction.name.lower()) != direction:
            raise ValueError(
                f"the study {name} is set to {begun} its score, but the recipe needs to {direction} {scale.name}: give "
                "another --name"
            )
        study.set_user_attr("metric", {"metric": scale.name, "unit": scale.unit})
        self._require_same(study, "recipe", settings)
        self._require_same(study, "space", {key: domain.as_dict() for key, domain in self.space.items()})
        return study

    def _require_same(self, study: Any, what: str, now: Mapping[str, Any]) -> None:
        """Require that a study has one recipe and one space, so that its trials can be compared."""
        before = study.user_attrs.get(what)
        if before is None:
            study.set_user_attr(what, config.dumps(now))
            return
        saved, now = config.parse(before), config.parse(config.dumps(now))
        if what == "space":
            changed = [f"space of {key}" for key in {**saved, **now} if saved.get(key) != now.get(key)]
        else:
            changed = config.differences(saved, now)
        if changed:
            raise ValueError(f"the study {study.study_name} has another {', '.join(changed)}: give another --name")

    @guarded
    def run(self, study: Any, trials: int, tell: Callable[[str], None]) -> None:
        """Run trials until all workers together have finished this number.

        Raises:
            Interrupted: a signal stopped the trial, which the next worker resumes.
        """
        while True:
            self._bury(study)
            finished, running = counts(study)
            if finished >= trials:
                return
            if finished + running >= trials:  # other workers run the last trials, which may still have to be resumed
                time.sleep(POLL)
                continue
            self._work(study, tell)

    def _work(self, study: Any, tell: Callable[[str], None]) -> None:
        """Run one trial.

        A worker that was slow, or whose machine slept, may learn at the end that the others counted it as dead and
        resumed its trial in the same run directories.
        """
        lost: list[int] = []
        interrupts: list[BaseException] = []

        def objective(trial: Any) -> float:
            try:
                return self._objective(study, trial, tell)
            except KeyboardInterrupt as interrupt:
                interrupts.append(interrupt)
                raise
            finally:
                if _lost(study, trial):
                    lost.append(trial.number)

        try:
            study.optimize(objective, n_trials=1)
        except Exception as error:
            raise_interrupt_behind(error)
            if interrupts:  # for a lost trial, Optuna raises its own error instead of the interrupt
                raise interrupts[0] from None
            if not lost or isinstance(error, OSError):
                raise
            tell(f"trial {lost[0]}: another worker took it over, after {STALE} s without a heartbeat")

    def _bury(self, study: Any) -> None:
        """Mark the trials of dead workers as failed, so that they are resumed."""
        module = optuna()
        if isinstance(study._storage, module.storages.JournalStorage):
            return self._bury_unclaimed(study)
        module.storages.fail_stale_trials(study)
        return None

    def _bury_unclaimed(self, study: Any) -> None:
        """Do the same for a storage without heartbeats: its dead trials are those with unclaimed run directories."""
        module = optuna()
        for trial in study.get_trials(deepcopy=False, states=[module.trial.TrialState.RUNNING]):
            begun = trial.datetime_start is not None and time.time() - trial.datetime_start.timestamp() > STALE
            if begun and not any(is_claimed(run) for run in self.runs(trial)):
                study.tell(trial.number, state=module.trial.TrialState.FAIL)
                _again(study, trial)

    def runs(self, trial: Any) -> list[Path]:
        """Return the run directories of a trial."""
        number = trial.user_attrs.get(AGAIN, trial.number)
        first = config.load_recipe(self.recipe, self.overrides)["seed"]
        return [self.folder / f"trial-{number:04d}-seed{first + i}" for i in range(self.seeds)]

    def _sampler(self, number: int) -> Any:
        """Return the sampler of one trial: given the same earlier trials, it draws the same values in any worker."""
        seed = config.load_recipe(self.recipe, self.overrides)["seed"]
        derived = derive_seed(f"trial {number}", seed) % 2**32  # the range that NumPy accepts
        return optuna().samplers.TPESampler(seed=derived, constant_liar=True)  # it considers running trials, too

    def _objective(self, study: Any, trial: Any, tell: Callable[[str], None]) -> float:
        study.sampler = self._sampler(trial.number)
        values = {key: domain.suggest(trial, key) for key, domain in self.space.items()}
        overrides = [*self.overrides, *(override(key, value) for key, value in values.items())]
        runs, scores = self.runs(trial), list[float]()
        trial.set_user_attr("runs", [str(run) for run in runs])
        try:
            for run in map(refuse_link, runs):
                if AGAIN in trial.user_attrs and is_claimed(run):
                    tell(f"trial {trial.number}: waiting for the process that trains in {shown(run)}")
                    while is_claimed(run):
                        time.sleep(POLL)
                seed = int(run.name.rpartition("seed")[2])
                settings = dict(
                    config.load_recipe(self.recipe, overrides, seed)
                )  # a plain dict, so that errors do not name the recipe again
                offset = len(scores) * settings["train"]["iterations"]
                command = experiment.command(self.recipe, overrides, run, seed, self.place.data, self.place.device)
                result, _ = experiment.conduct(
                    settings, run, self.place, command=command, resume=True, test=False, progress=False,
                    loggers=[Pruning(trial, scores, offset)],
                )  # fmt: skip
                scores.append(result.score)
        except Interrupted:
            if not _lost(study, trial):
                _again(study, study.trials[trial.number], died=False)
            raise
        except optuna().TrialPruned:
            tell(f"trial {trial.number}: {said(values)}: pruned")
            raise
        except Exception as error:  # other trials may succeed, whatever error these values cause
            raise_interrupt_behind(error)
            busy = isinstance(error, BlockingIOError)  # another process trains in the run directory
            if busy or (isinstance(error, OSError) and error.errno in OF_THE_MACHINE):
                if not _lost(study, trial):
                    _again(study, study.trials[trial.number], died=False)
                raise
            why = reason(error)
            trial.set_user_attr("why", why)
            tell(f"trial {trial.number}: {said(values)}: failed: {why}")
            raise optuna().TrialPruned(why) from error
        score = sum(scores) / len(scores)
        trial.set_user_attr("scores", scores)
        if not math.isfinite(score):
            trial.set_user_attr("why", "its validation score is not finite")
            tell(f"trial {trial.number}: {said(values)}: failed: its validation score is not finite")
            raise optuna().TrialPruned
        tell(f"trial {trial.number}: {said(values)}: {score:.4g}")
        return score


def counts(study: Any) -> tuple[int, int]:
    """Return the number of finished trials (completed or pruned), and of running ones."""
    states = optuna().trial.TrialState
    now = [trial.state for trial in study.get_trials(deepcopy=False)]
    return sum(s in (states.COMPLETE, states.PRUNED) for s in now), sum(s == states.RUNNING for s in now)
