"""Experiments as a whole: what they would take, traces, the same numbers to the bit, resuming under another recipe."""

from __future__ import annotations

import json
import re
import warnings

import pytest
import torch

from innerloop import cli
from innerloop.recipe import config, experiment

pytestmark = pytest.mark.usefixtures("own_plans")

TINY = ["--set", "train.iterations=20", "--set", "train.tasks=3", "--set", "train.val_tasks=3", "--set",
        "evaluate.num_tasks=5", "--set", "train.log_every=5", "--set", "model.sizes=[1, 8, 1]", "--quiet"]  # fmt: skip


def call(capsys, *words):
    code = cli.run(list(map(str, words)))
    out, err = capsys.readouterr()
    return code, out, err


def train(capsys, run, *words):
    return call(capsys, "train", "sinusoid-maml", *TINY, "--run", run, *words)


@pytest.fixture
def as_before():
    """Torch's settings are those of the whole process."""
    yield
    torch.use_deterministic_algorithms(False)


def test_a_dry_run_writes_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = call(capsys, "train", "sinusoid-maml", *TINY, "--dry-run", "--hourly", "3.6")
    assert code == 0
    assert re.search(r"an iteration takes \S+ s: training \d+:\d\d:\d\d\n", out)
    assert re.search(r"validations \d+:\d\d:\d\d, test \d+:\d\d:\d\d\n", out)
    assert re.search(r"total \d+:\d\d:\d\d, peak memory [\d,]+ MiB\n", out)
    assert re.search(r"cost at 3.6 per hour: .+\n", out)
    assert list(tmp_path.iterdir()) == []


def test_plans_are_kept_shown_and_measured_anew(capsys, tmp_path):
    assert call(capsys, "train", "sinusoid-maml", *TINY, "--quiet", "--run", str(tmp_path / "one"))[0] == 0
    made = json.loads((tmp_path / "one" / "plans.json").read_text())
    assert any(name.startswith("meta-gradient") and "size" in decision for name, decision in made.items())
    code, out, _ = call(capsys, "plans", "--json")
    assert code == 0
    shown = json.loads(out)
    assert {entry["for"] for entry in shown["plans"]} >= set(made)
    assert call(capsys, "plans")[1].startswith(f"{len(shown['plans'])} plans in ")
    assert call(capsys, "train", "sinusoid-maml", *TINY, "--quiet", "--run", str(tmp_path / "two"))[0] == 0
    assert json.loads((tmp_path / "two" / "plans.json").read_text()) == made
    words = ("train", "sinusoid-maml", *TINY, "--quiet", "--replan", "--run", str(tmp_path / "three"))
    assert call(capsys, *words)[0] == 0
    assert json.loads((tmp_path / "three" / "plans.json").read_text()).keys() == made.keys()
    assert call(capsys, "plans", "--clear")[1].startswith("removed ")
    assert json.loads(call(capsys, "plans", "--json")[1])["plans"] == []


@pytest.mark.parametrize("content", ["", "[", "[]", '{"meta-gradient": {"size": -1}}', '{"x": 3}'])
def test_damaged_plans_of_a_run_are_measured_again(content, capsys, tmp_path):
    run = ("train", "sinusoid-maml", *TINY, "--quiet", "--run", str(tmp_path / "run"))
    assert call(capsys, *run)[0] == 0
    path = tmp_path / "run" / "plans.json"
    path.write_text(content)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        code, _, err = call(capsys, *run, "--resume", "--accept-changes", "--set", "train.iterations=22")
    assert code == 0
    assert any(name.startswith("meta-gradient") for name in json.loads(path.read_text()))
    assert ("plans.json cannot be read" in err) == (content in ("", "["))


def test_a_price_is_a_number_of_people():
    found = experiment.Estimate(iteration=0.002, training=1.0, validations=0.0, test=0.0, memory=300.0)
    assert found.lines() == found.lines(0.0)
    for hourly, cost in ((3.6, "less than 0.01"), (36.0, "0.01"), (3600.0, "1.00")):
        assert found.lines(hourly)[-1] == f"cost at {hourly:g} per hour: {cost}"


def test_the_estimate_is_of_the_whole_recipe(monkeypatch):
    monkeypatch.setattr(experiment, "_evaluation", lambda learner, source, number, options: 0.5)
    short = config.load_recipe("sinusoid-maml", ["train.iterations=1000", "model.sizes=[1, 8, 1]"])
    long = config.load_recipe("sinusoid-maml", ["train.iterations=100000", "model.sizes=[1, 8, 1]"])
    few, many = (experiment.estimate(settings, experiment.Place()) for settings in (short, long))
    assert many.training == pytest.approx(100_000 * many.iteration)
    assert few.training == pytest.approx(1_000 * few.iteration)
    assert (few.validations, many.validations) == (1 * 0.5, 100 * 0.5)  # one for each 1,000 iterations
    assert few.test == many.test == 0.5
    assert many.seconds == pytest.approx(many.training + many.validations + many.test)


def test_a_profile_is_a_trace_of_some_iterations(capsys, tmp_path):
    code, _, err = train(capsys, tmp_path / "run", "--profile")
    assert code == 0, err
    events = json.loads((tmp_path / "run" / "profile.json").read_text())["traceEvents"]
    names = [event.get("name", "") for event in events]
    steps = {name for name in names if name.startswith("ProfilerStep")}
    assert len(steps) == experiment.PROFILED[1]
    assert any(name.startswith("aten::") for name in names)


def test_a_run_too_short_for_a_trace_says_so(capsys, tmp_path):
    code, _, err = train(capsys, tmp_path / "run", "--profile", "--set", "train.iterations=3")
    assert code == 0
    assert "profile.json was not written: the profiler traces iterations 6 to 8, but fewer were left to train" in err
    assert not (tmp_path / "run" / "profile.json").exists()


def test_the_price_of_an_hour_without_an_estimate_is_wrong_usage(capsys, tmp_path):
    code, _, err = train(capsys, tmp_path / "run", "--hourly", "2")
    assert code == 2
    assert "--dry-run" in err
    assert not (tmp_path / "run").exists()


def test_deterministic_runs_are_equal_to_the_bit(capsys, tmp_path, as_before):
    for name in ("one", "other"):
        assert train(capsys, tmp_path / name, "--deterministic")[0] == 0
    results = json.loads((tmp_path / "one" / "results.json").read_text())
    assert results["command"].endswith("--deterministic")
    code, _, err = train(capsys, tmp_path / "one", "--deterministic", "--resume", "--set", "train.lr=0.5")
    assert code == 1
    assert f"--run {tmp_path / 'one'} --resume --deterministic`" in err
    for path in sorted((tmp_path / "one" / "checkpoints").iterdir()):
        one, other = (torch.load(tmp_path / n / "checkpoints" / path.name, weights_only=True) for n in ("one", "other"))
        assert all(torch.equal(one["learner"][name], other["learner"][name]) for name in one["learner"])


def test_resuming_under_another_recipe_is_refused_unless_told(capsys, tmp_path):
    run = tmp_path / "run"
    assert train(capsys, run)[0] == 0
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    code, _, err = train(capsys, run, "--set", "train.iterations=30", "--set", "train.lr=0.01", "--resume")
    assert code == 1
    assert re.search(r"was started with another train.iterations, train.lr; .* by --resume --accept-changes", err)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    code, _, err = train(capsys, run, "--set", "train.iterations=30", "--resume", "--accept-changes")
    assert code == 0, err
    assert json.loads((run / "results.json").read_text())["iterations"] == 30
    assert config.load_recipe(run / "config.toml")["train"]["iterations"] == 30


def test_a_finished_run_is_not_told_to_have_been_another(capsys, tmp_path):
    run = tmp_path / "run"
    assert train(capsys, run)[0] == 0
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    code, _, err = train(capsys, run, "--set", "train.lr=0.01", "--resume", "--accept-changes")
    assert code == 1
    assert re.search(
        r"has finished its 20 iterations, so another train.lr would have no effect: give more train.iter", err
    )
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_recipe_that_cannot_be_built_leaves_nothing(capsys, tmp_path):
    code, _, err = call(capsys, "train", "omniglot-20w1s-maml", "--data", tmp_path / "none", "--run", tmp_path / "run")
    assert code == 1
    assert err.startswith("error: ")
    assert list(tmp_path.iterdir()) == []
