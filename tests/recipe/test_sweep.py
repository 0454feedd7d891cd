"""Sweeps: what is looked for, and that nothing finished is lost when workers die."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from innerloop.recipe import experiment, sweep
from innerloop.recipe.sweep import Domain, load_space
from innerloop.train import Interrupted
from tests.forked import python

optuna = pytest.importorskip("optuna")

SPACE = "learner.lr = {low = 0.0001, high = 1.0, log = true}\n"
SHORT = ("train.iterations=150", "train.validate_every=50", "train.checkpoint_every=50", "train.val_tasks=50",
         "learner.vectorize=true", "learner.compile=false", "model.sizes=[1, 20, 20, 1]")  # fmt: skip


# -- spaces -----------------------------------------------------------------------------------------------------------


def space(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "space.toml"
    path.write_text(text)
    return path


def test_a_space(tmp_path):
    text = """
    learner.lr = {low = 0.001, high = 1.0, log = true}
    learner.steps = {low = 1, high = 5}
    [train]
    optimizer = {choices = ["adam", "sgd"]}
    """
    assert load_space(space(tmp_path, text), "sinusoid-maml") == {
        "learner.lr": Domain(0.001, 1.0, True),
        "learner.steps": Domain(1, 5),
        "train.optimizer": Domain(choices=("adam", "sgd")),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it has no domain"),
        ("learner.lr = 0.1", r"learner.lr = 0.1 is not a domain.*\{low = 1, high = 5\}"),
        ("learner.lr = {low = 1, high = 0.1}", "learner.lr: low and high must be numbers with low < high"),
        ("learner.lr = {low = 0, high = 1, log = true}", "above 0 for log = true"),
        ("learner.lr = {low = 0.1, hihg = 1}", "learner.lr: unknown hihg; a domain has low, high and log, or choices"),
        ("learner.lr = {choices = []}", "must be a non-empty list"),
        ("learner.lrr = {low = 0.1, high = 1}", "lrr"),
        ("learner.steps = {low = 0.5, high = 1.5}", "learner.steps"),
        (
            "learner.steps = {low = -2, high = 2}",
            r"sinusoid-maml does not accept learner.steps = -2: \[learner\] steps must be an integer of at least 0",
        ),
        ('train.optimizer = {choices = ["adam", "adagrad"]}', "adagrad"),
        ("learner.lr = {low", "space.toml"),
    ],
)
def test_wrong_spaces_are_refused_before_any_work(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        load_space(space(tmp_path, text), "sinusoid-maml")


# -- sweeping ---------------------------------------------------------------------------------------------------------


def worker(
    folder: Path, url: str, trials: int, *more: str, program: Sequence[str] | None = None, stale: int = 600
) -> subprocess.Popen[str]:
    words = ["sweep", "sinusoid-maml", "--space", str(folder / "space.toml"), "--trials", str(trials), "--json",
             "--storage", url, "--folder", str(folder / "runs"), *more]  # fmt: skip
    words += [word for override in SHORT for word in ("--set", override)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "INNERLOOP_SWEEP_STALE": str(stale)}
    pipe = subprocess.PIPE
    program = program or python("-m", "innerloop")
    return subprocess.Popen([*program, *words], env=environment, stdout=pipe, stderr=pipe, text=True)


def finish(process: subprocess.Popen[str]) -> dict:
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


def until(condition, seconds: float = 600.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def finished(runs: Path) -> set[str]:
    """Run directories of trials that came to their end."""
    return {path.parent.name for path in runs.glob("*/results.json")}


def text(path: Path) -> str:
    """Of a file that may go at any moment."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def survive(tmp_path: Path, url: str, trials: int = 20) -> float:
    """Two workers, one of which is killed in the midst of a trial, and is not replaced; the best score."""
    space(tmp_path, SPACE)
    itself = sys.executable, "-m", "innerloop"  # which the kill is to hit
    doomed, other = (worker(tmp_path, url, trials, program=itself, stale=6) for _ in range(2))
    runs = tmp_path / "runs"
    until(lambda: len(finished(runs)) >= 3)

    interrupted: list[str] = []

    def stopped_at_work() -> bool:
        """Stop the worker, so that it stays where it is; let it go on if that is not in a trial."""
        doomed.send_signal(signal.SIGSTOP)
        assert os.WIFSTOPPED(os.waitpid(doomed.pid, os.WUNTRACED)[1]), doomed.communicate()[1]
        locks = [lock for lock in runs.glob("*/.lock") if f"process {doomed.pid} " in text(lock)]
        interrupted[:] = [lock.parent.name for lock in locks]
        if not interrupted:
            doomed.send_signal(signal.SIGCONT)
        return bool(interrupted)

    until(stopped_at_work)
    doomed.send_signal(signal.SIGKILL)
    doomed.wait()
    before = finished(runs)
    told = finish(other)
    done = [trial for trial in told["trials"] if trial["state"] in ("complete", "pruned")]
    assert len(done) == trials
    kept = {Path(run).name for trial in done for run in trial["runs"]}
    assert before <= kept
    assert set(interrupted) <= kept
    scores = [trial["score"] for trial in done if trial["state"] == "complete"]
    assert told["best"]["score"] == min(scores)
    assert told["direction"] == "minimize"
    again = finish(worker(tmp_path, url, trials))  # nothing is left to do
    assert again["best"] == told["best"]
    assert len(again["trials"]) == len(told["trials"])
    return told["best"]["score"]


def default(tmp_path: Path) -> float:
    """The score of the recipe as it is."""
    words = ["train", "sinusoid-maml", "--run", str(tmp_path / "default"), "--quiet"]
    words += [word for override in SHORT for word in ("--set", override)]
    subprocess.run(python("-m", "innerloop", *words), check=True, capture_output=True)
    return json.loads((tmp_path / "default" / "results.json").read_text())["validation"][0]["score"]


def test_a_killed_worker_loses_nothing(tmp_path):
    assert 0 < survive(tmp_path, f"sqlite:///{tmp_path / 'sweep.db'}", trials=7) < math.inf


@pytest.mark.slow
def test_sqlite_survives_a_killed_worker_and_finds_a_better_rate(tmp_path):
    assert survive(tmp_path, f"sqlite:///{tmp_path / 'sweep.db'}") < default(tmp_path)


@pytest.mark.slow
def test_a_journal_survives_a_killed_worker_and_finds_a_better_rate(tmp_path):
    assert survive(tmp_path, f"journal:{tmp_path / 'journal.log'}") < default(tmp_path)


@pytest.mark.slow
def test_postgresql_survives_a_killed_worker_and_finds_a_better_rate(tmp_path, postgresql):
    assert survive(tmp_path, postgresql) < default(tmp_path)


@pytest.fixture
def postgresql(tmp_path_factory):
    """A server of the test's own."""
    pytest.importorskip("psycopg")
    found = [*map(Path, filter(None, [shutil.which("initdb")])), *Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if not found:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    programs, folder = found[-1].parent, tmp_path_factory.mktemp("postgresql")
    data, user = folder / "data", {}
    if os.geteuid() == 0:  # as whom the server refuses to run
        user = {"user": "postgres", "group": "postgres"}
        for path in (folder, *folder.parents):
            if path.owner() == "root" and path != Path("/tmp") and path.is_relative_to("/tmp"):
                path.chmod(0o755)
        shutil.chown(folder, "postgres", "postgres")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    quiet = {"check": True, "capture_output": True, "cwd": folder, **user}
    subprocess.run([programs / "initdb", "-D", data, "-A", "trust", "-U", "postgres"], **quiet)
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
    start = [programs / "pg_ctl", "-D", data, "-w", "-l", folder / "log", "-o", options, "start"]
    subprocess.run(start, check=True, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **user)
    yield f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres"
    subprocess.run([programs / "pg_ctl", "-D", data, "-m", "immediate", "stop"], **quiet)


@pytest.mark.slow
def test_an_interrupted_worker_goes_on_with_its_trial(tmp_path):
    space(tmp_path, SPACE)
    url, runs = f"sqlite:///{tmp_path / 'sweep.db'}", tmp_path / "runs"
    signalled = python(Path(__file__).parents[1] / "signalled.py", int(signal.SIGTERM), 20)
    first = worker(tmp_path, url, 3, program=signalled)
    _, err = first.communicate(timeout=600)
    assert first.returncode == 143, err
    assert "run the same command to resume the study" in err
    assert json.loads((runs / "sweep.json").read_text())["trials"][0]["state"] == "fail"
    told = finish(worker(tmp_path, url, 3))
    assert [trial["state"] for trial in told["trials"]].count("fail") == 1
    done = [trial for trial in told["trials"] if trial["state"] in ("complete", "pruned")]
    assert len(done) == 3
    assert {Path(run).name for trial in done for run in trial["runs"]} >= {"trial-0000-seed0"}
    assert not any((run / "results.json").exists() and "test" in json.loads((run / "results.json").read_text())
                   for run in runs.iterdir())  # fmt: skip


def test_trials_under_several_seeds_and_several_jobs(tmp_path):
    space(tmp_path, "learner.lr = {choices = [0.01, 0.001]}\n")
    told = finish(worker(tmp_path, f"sqlite:///{tmp_path / 'sweep.db'}", 2, "--seeds", "2", "--jobs", "2"))
    for trial in told["trials"]:
        if trial["state"] == "complete":
            assert [Path(run).name[-5:] for run in trial["runs"]] == ["seed0", "seed1"]
            assert trial["score"] == pytest.approx(sum(trial["scores"]) / 2)
            assert len(trial["scores"]) == 2


def test_a_study_of_another_recipe_is_refused(tmp_path):
    space(tmp_path, "learner.lr = {choices = [0.01, 0.001]}\n")
    url = f"sqlite:///{tmp_path / 'sweep.db'}"
    finish(worker(tmp_path, url, 1))
    other = worker(tmp_path, url, 1, "--set", "train.tasks=3")
    _, err = other.communicate(timeout=600)
    assert other.returncode == 1
    assert "the study sinusoid-maml has another train.tasks: give another --name" in err


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        (".".join("a" * 3000) + " = 1", "nested too deeply"), ("learner.lr = {choices = [[[[1]]]]}", "does not accept"),
        ("learner.steps = {low = 1, high = 9223372036854775808}", "more than 64 bits"),
        ("learner.lr = {low = 1, high = 2, choices = [" + "1," * 9000 + "]}", "without low, high and log"),
        ("learner = 3", "is not a domain"),
    ],
)  # fmt: skip
def test_odd_spaces_are_one_short_line_that_names_the_file(tmp_path, text, wrong):
    space(tmp_path, text)
    with pytest.raises(ValueError, match=wrong) as caught:
        sweep.load_space(tmp_path / "space.toml", "sinusoid-maml")
    assert str(tmp_path / "space.toml") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_the_name_of_a_study_is_text(tmp_path):
    work = sweep.Sweep("sinusoid-maml", (), {"train.lr": Domain(choices=(0.1,))}, tmp_path, experiment.Place())
    with pytest.raises(
        ValueError, match=r"sinusoid-maml: the name of a study must be UTF-8, got a\\xff: give another --name"
    ):
        work.study(f"sqlite:///{tmp_path / 'sweep.db'}", "a\udcff")


@pytest.mark.parametrize("choices", [[1e38], [1e38, 0.001]])
def test_a_trial_that_fails_does_not_end_the_sweep(tmp_path, choices):
    """An outer rate of 1e38 overflows in the optimizer, which is an error of torch's."""
    space(tmp_path, f"train.lr = {{choices = {choices}}}\n")
    process = worker(tmp_path, f"sqlite:///{tmp_path / 'sweep.db'}", 3, "--set", "train.iterations=3")
    out, err = process.communicate(timeout=600)
    told = json.loads(out.splitlines()[-1])
    assert len(told["trials"]) == 3
    assert "Traceback" not in err
    failed = [trial for trial in told["trials"] if trial["failed"]]
    assert all("train.lr = 1e+38 is too large" in trial["why"] for trial in failed)
    assert len(failed) == sum(trial["values"]["train.lr"] == 1e38 for trial in told["trials"])
    assert ("best" in told) is (len(failed) < 3)
    assert process.returncode == (len(failed) == 3), err
    assert ("error: all 3 trials of sinusoid-maml failed" in err) is (len(failed) == 3)


@pytest.mark.parametrize(
    ("error", "goes_on"),
    [(RuntimeError("first\nsecond"), True), (PermissionError(13, "no"), True), (OSError(28, "full", "f"), False)],
)
def test_only_what_the_next_trial_would_meet_too_ends_a_sweep(tmp_path, monkeypatch, error, goes_on):
    def fail(*_, **__):
        raise error

    work = sweep.Sweep("sinusoid-maml", (), {"train.lr": Domain(choices=(0.1,))}, tmp_path, experiment.Place())
    study, lines = work.study(f"sqlite:///{tmp_path / 'sweep.db'}", "mine"), []
    monkeypatch.setattr(experiment, "conduct", fail)
    if goes_on:
        work.run(study, 2, lines.append)
        assert len(lines) == 2
        assert all("failed: " in line and "\n" not in line for line in lines)
    else:
        with pytest.raises(OSError, match="full"):
            work.run(study, 2, lines.append)


@pytest.mark.slow
def test_a_study_of_another_space_is_refused(tmp_path):
    space(tmp_path, "learner.lr = {choices = [0.01, 0.001]}\n")
    url = f"sqlite:///{tmp_path / 'sweep.db'}"
    finish(worker(tmp_path, url, 1))
    space(tmp_path, "learner.lr = {low = 0.001, high = 0.1}\n")
    other = worker(tmp_path, url, 1)
    _, err = other.communicate(timeout=600)
    assert other.returncode == 1
    assert "the study sinusoid-maml has another space of learner.lr: give another --name" in err


@pytest.mark.parametrize(
    ("overrides", "direction", "metric"),
    [
        ((), "maximize", {"metric": "accuracy", "unit": "%"}),
        (("train.metric=cross_entropy",), "minimize", {"metric": "cross_entropy", "unit": ""}),
    ],
)
def test_the_direction_is_that_of_the_metric(tmp_path, overrides, direction, metric):
    work = sweep.Sweep("strokes-5w1s-maml", overrides, {}, tmp_path, experiment.Place())
    study = work.study(f"sqlite:///{tmp_path / 'sweep.db'}", "mine")
    assert study.direction.name.lower() == direction
    told = sweep.summary(study, "strokes-5w1s-maml", [])
    assert {key: told[key] for key in metric} == metric
    other = sweep.Sweep("sinusoid-maml", (), {}, tmp_path, experiment.Place())
    if direction == "maximize":
        with pytest.raises(
            ValueError,
            match="the study mine is set to maximize its score, but the recipe needs to minimize mse: give",
        ):
            other.study(f"sqlite:///{tmp_path / 'sweep.db'}", "mine")


def test_a_storage_that_cannot_be_used():
    with pytest.raises(ConnectionError, match=r"the storage .* cannot be used"):
        sweep.storage("sqlite:////nowhere/at/all.db")


def test_the_same_seed_gives_the_same_trials(tmp_path):
    """Beyond the first ten, too, whose values depend on the scores before."""
    domains = {"learner.lr": Domain(0.001, 0.1, log=True), "learner.steps": Domain(1, 3),
               "train.optimizer": Domain(choices=("adam", "sgd"))}  # fmt: skip
    short = ("train.iterations=1", "train.tasks=2", "train.val_tasks=2", "model.sizes=[1, 4, 1]",
             "learner.vectorize=true", "learner.compile=false")  # fmt: skip
    found = []
    for place, seed in (("a", 0), ("b", 0), ("c", 1)):
        work = sweep.Sweep("sinusoid-maml", (*short, f"seed={seed}"), domains, tmp_path / place, experiment.Place())
        study = work.study(f"sqlite:///{tmp_path / place}.db", "mine")
        work.run(study, 13, lambda _: None)
        found.append([(trial.params, trial.value) for trial in study.trials])
    once, again, otherwise = found
    assert once == again
    assert not [params for params, _ in otherwise if params in [params for params, _ in once]]
    drawn = [params["learner.lr"] for params, _ in once]
    assert len(set(drawn)) == len(drawn)


def reports(*_, loggers, **__):
    for logger in loggers:
        logger.log(1, {"validation/mse": 1.0})
    raise AssertionError("a trial that others have taken over takes no reports")


def ends_well(*_, **__):
    return SimpleNamespace(score=1.0), None


def ends_badly(*_, **__):
    raise RuntimeError("no")


@pytest.mark.parametrize("goes_on", [reports, ends_well, ends_badly])
def test_a_worker_that_was_taken_for_dead_goes_on_with_other_trials(tmp_path, monkeypatch, goes_on):
    work = sweep.Sweep("sinusoid-maml", (), {"train.lr": Domain(choices=(0.1,))}, tmp_path, experiment.Place())
    study, lines = work.study(f"sqlite:///{tmp_path / 'sweep.db'}", "mine"), []

    def conduct(*words, **options):
        if len(study.trials) > 1:
            return ends_well()
        study.tell(
            0, state=optuna.trial.TrialState.FAIL
        )  # as another worker does, after a long time without a heartbeat
        sweep._again(study, study.trials[0])
        return goes_on(*words, **options)

    monkeypatch.setattr(experiment, "conduct", conduct)
    work.run(study, 2, lines.append)
    first, second, third = study.trials
    assert (first.state.name, second.state.name, third.state.name) == ("FAIL", "COMPLETE", "COMPLETE")
    assert second.user_attrs[sweep.AGAIN] == 0
    assert "trial 0: another worker took it over, after 60 s without a heartbeat" in lines


def test_an_interrupt_does_not_begin_again_what_another_worker_goes_on_with(tmp_path, monkeypatch):
    work = sweep.Sweep("sinusoid-maml", (), {"train.lr": Domain(choices=(0.1,))}, tmp_path, experiment.Place())
    study = work.study(f"sqlite:///{tmp_path / 'sweep.db'}", "mine")

    def conduct(*_, **__):
        study.tell(0, state=optuna.trial.TrialState.FAIL)
        sweep._again(study, study.trials[0])
        raise Interrupted("stopped", "", signal.SIGTERM)

    monkeypatch.setattr(experiment, "conduct", conduct)
    with pytest.raises(Interrupted):
        work.run(study, 2, lambda _: None)
    assert [trial.state.name for trial in study.trials] == ["FAIL", "WAITING"]


def test_a_trial_that_another_worker_still_trains_is_waited_for(tmp_path, monkeypatch):
    work = sweep.Sweep("sinusoid-maml", (), {"train.lr": Domain(choices=(0.1,))}, tmp_path, experiment.Place())
    study, lines, held = work.study(f"sqlite:///{tmp_path / 'sweep.db'}", "mine"), [], [True, True, True, False]
    study.enqueue_trial({"train.lr": 0.1}, user_attrs={sweep.AGAIN: 7})
    monkeypatch.setattr(sweep, "is_claimed", lambda run: held.pop(0))
    monkeypatch.setattr(sweep, "POLL", 0.0)
    monkeypatch.setattr(experiment, "conduct", ends_well)
    work.run(study, 1, lines.append)
    assert held == []
    assert lines[0].startswith("trial 0: waiting for the process that trains in ")
    assert "trial-0007-seed0" in lines[0]
    assert study.trials[0].value == 1.0
