from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import innerloop as il
from innerloop import cli
from innerloop.__main__ import main
from innerloop.recipe import config
from innerloop.train.record import MACHINE_FIELDS
from tests.forked import python

TINY = ["--set", "train.iterations=20", "--set", "train.tasks=3", "--set", "train.val_tasks=3", "--set",
        "evaluate.num_tasks=5", "--set", "train.log_every=5", "--set", "model.sizes=[1, 8, 1]"]  # fmt: skip


def command(*words, cwd, env=()):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **dict(env)}
    return python("-m", "innerloop", *words), {"cwd": cwd, "env": environment}


def innerloop(*words, cwd, env=()):
    arguments, options = command(*words, cwd=cwd, env=env)
    return subprocess.run(arguments, capture_output=True, text=True, timeout=600, **options)


def call(capsys, *words):
    """The command line in this process: (exit code, standard output, standard error)."""
    code = cli.run(list(map(str, words)))
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    cwd = tmp_path_factory.mktemp("cli")
    done = innerloop("train", "sinusoid-maml", *TINY, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd, done


def test_a_run_directory_holds_everything(trained):
    cwd, done = trained
    run = cwd / "runs" / "sinusoid-maml-seed0"
    assert "iteration 20/20" in done.stderr
    assert "test: mse " in done.stdout
    assert "inductive]" in done.stdout  # an mlp has no norms
    written = {"checkpoints", "config.toml", "metrics.jsonl", "plans.json", "results.json"}
    assert {path.name for path in run.iterdir()} == written
    results = json.loads((run / "results.json").read_text())
    assert results["command"].startswith("innerloop train sinusoid-maml --set train.iterations=20 ")
    assert (results["seed"], results["iterations"], results["test"]["num_tasks"]) == (0, 20, 5)
    assert {"torch", "innerloop", "python", "cpu", "threads"} <= set(results["environment"])
    assert isinstance(results["seconds"], float)


def test_evaluate_json(trained):
    cwd, _ = trained
    run = "runs/sinusoid-maml-seed0"
    done = innerloop("evaluate", run, "--tasks", 6, "--steps", 3, "--inductive", "--json", cwd=cwd)
    assert done.returncode == 0, done.stderr
    (last,), text = done.stdout.splitlines(), done.stderr
    found = json.loads(last)
    assert {"metric", "mean", "ci95", "num_tasks", "steps", "transductive", "split"} <= set(found)
    assert (found["metric"], found["num_tasks"], found["transductive"], found["split"]) == ("mse", 6, False, "test")
    assert len(found["steps"]) == 4
    assert found["mean"] == found["steps"][-1]
    assert "inductive" in text


def test_an_ensemble_is_printed_beside_the_best(trained, tmp_path, capsys):
    words = [*TINY, "--set", "train.validate_every=5", "--set", "train.keep_best=3"]
    run = tmp_path / "run"
    assert call(capsys, "train", "sinusoid-maml", *words, "--run", run, "--quiet")[0] == 0
    code, out, err = call(capsys, "evaluate", run, "--ensemble", 3, "--json")
    assert code == 0
    assert "test: mse" in err
    assert "test, ensemble of 3: mse" in err
    found = json.loads(out)
    alone = json.loads(call(capsys, "evaluate", run, "--json")[1])
    assert {key: found[key] for key in alone} == alone
    assert found["ensemble"]["size"] == 3
    assert found["ensemble"]["mean"] != alone["mean"]
    learners, sources, _ = config.load_ensemble(run, 3)
    options = config.arguments(config.load_recipe(run / "config.toml"), "evaluate")
    assert il.evaluate(learners, sources.test, **options).mean == found["ensemble"]["mean"]
    code, _, err = call(capsys, "evaluate", run, "--ensemble", 4)
    assert code == 1
    assert "train.keep_best = 4" in err


PER_STEP = """
description = "norms of each step's own"
extends = "strokes-5w1s-maml"
[model]
width = 4
running = true
[learner]
preset = "maml-plus-plus"
steps = 2
multi_step = 0
first_order = 0
[train]
iterations = 8
tasks = 4
val_tasks = 2
[evaluate]
num_tasks = 20
steps = 2
"""


def test_a_run_is_evaluated_by_other_statistics(tmp_path, capsys):
    (tmp_path / "own.toml").write_text(PER_STEP)
    run = tmp_path / "run"
    assert call(capsys, "train", tmp_path / "own.toml", "--run", run, "--quiet")[0] == 0
    found = {}
    for statistics in ("batch", "running", "shared"):
        code, out, err = call(capsys, "evaluate", run, "--json", "--set", f"learner.statistics={statistics}")
        assert code == 0, err
        found[statistics] = json.loads(out)
    assert found["running"]["overrides"] == ["learner.statistics=running"]
    assert len({tuple(each["steps"]) for each in found.values()}) == 3
    plain = json.loads(call(capsys, "evaluate", run, "--json")[1])
    assert "overrides" not in plain
    assert plain["steps"] == found["batch"]["steps"]
    code, _, err = call(capsys, "evaluate", run, "--set", "model.width=5")
    assert code == 1
    assert "do not fit model.width=5" in err
    code, _, err = call(capsys, "evaluate", run, "--set", "learner.steps=3")
    assert code == 1
    assert "do not fit learner.steps=3: size mismatch" in err
    assert len(err.splitlines()) == 1
    for override in ("seed=3", "train.iterations=9"):
        code, _, err = call(capsys, "evaluate", run, "--set", override)
        assert code == 1
        assert f"{override.split('=')[0]} only affects training" in err
    assert call(capsys, "evaluate", run, "--set", "learner.statistics=stored")[0] == 1


def test_rates_that_are_not_learned_may_be_others_at_test(trained, capsys):
    found = {}
    for lr in (None, 0.0, 0.5):
        words = ["--set", f"learner.lr={lr}"] if lr is not None else []
        run = trained[0] / "runs" / "sinusoid-maml-seed0"
        code, out, err = call(capsys, "evaluate", run, "--tasks", "4", "--json", *words)
        assert code == 0, err
        found[lr] = json.loads(out.splitlines()[-1])["steps"]
    assert found[0.0][0] == found[0.0][-1]  # nothing is adapted at a rate of zero
    assert found[None] != found[0.5]
    assert found[None][0] == found[0.5][0] == found[0.0][0]


def test_evaluate_repeats_the_test_of_training(trained, capsys):
    cwd, _ = trained
    run = cwd / "runs" / "sinusoid-maml-seed0"
    code, out, _ = call(capsys, "evaluate", run, "--json")
    assert code == 0
    test = json.loads((run / "results.json").read_text())["test"]
    assert len(test.pop("scores")) == test["num_tasks"]
    assert {key: json.loads(out.splitlines()[-1])[key] for key in test} == test


def test_the_written_config_repeats_the_run(trained, tmp_path, capsys):
    cwd, _ = trained
    run = cwd / "runs" / "sinusoid-maml-seed0"
    code, _, err = call(capsys, "train", run / "config.toml", "--run", tmp_path / "again", "--quiet")
    assert (code, err) == (0, "")
    first, second = (json.loads((path / "results.json").read_text()) for path in (run, tmp_path / "again"))
    assert first["test"] == second["test"]


def test_an_existing_run_is_refused_untouched(trained, capsys):
    cwd, _ = trained
    run = cwd / "runs" / "sinusoid-maml-seed0"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for words in (["sinusoid-maml", *TINY], ["linear-maml"], [run / "config.toml"]):
        code, out, err = call(capsys, "train", *words, "--run", run)
        assert (code, out) == (1, "")
        assert err == f"error: {run} already has a run: add --resume to resume it, or give another --run\n"
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_resuming_under_another_recipe_names_the_keys(trained, capsys):
    cwd, _ = trained
    run = cwd / "runs" / "sinusoid-maml-seed0"
    words = ["train", "sinusoid-maml", *TINY, "--set", "learner.lr=0.5", "--run", run, "--resume"]
    code, _, err = call(capsys, *words)
    assert code == 1
    assert f"error: {run} was started with another learner.lr; resume it with" in err


def records(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{key: v for key, v in json.loads(line).items() if key not in MACHINE_FIELDS} for line in lines]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_goes_on_to_the_same_end(tmp_path, monkeypatch, capsys, number, code):
    monkeypatch.chdir(tmp_path)
    words = ["train", "sinusoid-maml", *TINY, "--set", "train.iterations=300"]
    _, options = command(cwd=tmp_path)
    program = python(Path(__file__).parent / "signalled.py", int(number), 100, *words, "--run", "run")
    done = subprocess.run(program, capture_output=True, text=True, timeout=600, **options)
    err = done.stderr
    assert done.returncode == code, err
    assert "Traceback" not in err
    assert "resume with: innerloop train sinusoid-maml --set train.iterations=20 " in err
    assert err.rstrip().endswith("--run run --resume")
    assert call(capsys, *words, "--run", "run", "--resume", "--quiet")[0] == 0
    assert call(capsys, *words, "--run", "whole", "--quiet")[0] == 0
    first, second = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("whole", "run"))
    assert first["test"] == second["test"]
    assert records(tmp_path / "whole") == records(tmp_path / "run")


def test_list(capsys):
    code, out, _ = call(capsys, "list", "--json")
    found = json.loads(out.splitlines()[-1])
    assert code == 0
    assert set(found) == {"recipes", "presets", "data", "models", "trained"}
    assert set(found["recipes"]) == set(config.recipes())
    assert all(text for shelf in found.values() for text in shelf.values())
    code, out, _ = call(capsys, "list")
    assert code == 0
    assert "omniglot-5w1s-quick" in out


def test_version_and_help(capsys):
    assert call(capsys, "--version")[:2] == (0, f"innerloop {il.__version__}\n")
    for words, word in (([], "train"), (["train"], "--resume"), (["evaluate"], "--inductive"), (["list"], "--json")):
        code, out, _ = call(capsys, *words, "--help")
        assert code == 0
        assert word in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "sinusoid-mmal"], "did you mean 'sinusoid-maml'?"),
        (["train", "none.toml"], "there is no recipe none.toml"),
        (["train", "sinusoid-maml", "--set", "train.iteratoins=3"], "did you mean 'iterations'?"),
        (["train", "sinusoid-maml", "--set", "train.nope=3"], "unknown key train.nope. Keys of [train]"),
        (["train", "sinusoid-maml", "--set", "learner.lr=fast"], "expected a number"),
        (
            ["train", "sinusoid-maml", "--set", "learner.steps=-1"],
            "[learner] steps must be an integer of at least 0, got -1",
        ),
        (["train", "sinusoid-maml", "--set", "train.tasks=0"], "tasks must be at least 1"),
        (["train", "sinusoid-maml", "--set", "tasks.shots=0"], "shots=0"),
        (["train", "sinusoid-maml", "--device", "warp"], "device 'warp' is not available here"),
        (["train", "omniglot-5w1s-quick", "--data", "nowhere"], "no Omniglot in"),
        (["train", "omniglot-5w1s-quick", "--set", "tasks.split=vinyls"], 'expected "random" or'),
        (
            ["train", "navigation-maml-trpo", "--set", "model.observations=3"],
            "model.observations = 3, but Navigation has 2",
        ),
        (["train", "navigation-maml-trpo", "--set", "train.lr=0.1"], "moves its meta-parameters by TRPO"),
        (["train", "navigation-maml-trpo", "--set", "learner.max_kl=0"], "[learner] TRPO needs max_kl > 0"),
        (["train", "half-cheetah-direction-quick", "--set", "tasks.goal=speed"], 'expected "direction" or "velocity"'),
        (["evaluate", "nowhere"], "is not a run directory"),
        (["evaluate", "nowhere", "--json"], "is not a run directory"),
    ],
)
def test_mistakes_are_one_message_before_anything_is_written(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("INNERLOOP_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    code, out, err = call(capsys, *words)
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_traceback_only_when_asked(capsys):
    assert call(capsys, "train", "nothing")[0] == 1
    with pytest.raises(ValueError, match="unknown recipe"):
        cli.run(["--debug", "train", "nothing"])


def test_wrong_usage(capsys):
    assert call(capsys, "train")[0] == 2
    assert call(capsys, "frobnicate")[0] == 2
    assert call(capsys, "evaluate", "x", "--split", "dev")[0] == 2


def test_a_non_finite_loss_stops_and_keeps_the_run(tmp_path, capsys):
    run = tmp_path / "run"
    words = ["train", "sinusoid-maml", *TINY, "--set", "learner.lr=1e30", "--run", run]
    code, _, err = call(capsys, *words, "--quiet")
    assert code == 1
    assert err.startswith("error: iteration 1: the ")
    assert (run / "failed_task.pt").is_file()
    assert (run / "checkpoints" / "state-00000000.pt").is_file()


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_a_missing_extra_is_named(missing, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    for name in [name for name in sys.modules if name.startswith(("innerloop.cli", f"{missing}."))]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == f"error: the command line needs {missing}: pip install 'innerloop[cli]'"
