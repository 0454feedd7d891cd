"""The numbers in the documents are those of the result files."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from innerloop.recipe import config

ROOT = Path(__file__).parents[1]


def table(root: Path, *options: str) -> int:
    return subprocess.run([sys.executable, root / "experiments" / "table.py", *options], timeout=600).returncode


@pytest.mark.parametrize("folder", ["experiments", "benchmarks"])
def test_results_are_written_whole_or_not_at_all(folder: str) -> None:
    """By `innerloop.disk`, so that what is interrupted leaves no half of a file."""
    for path in (ROOT / folder).glob("*.py"):
        text = path.read_text().replace('CLEAR.write_text("5")', "")  # which is the kernel's
        assert not re.search(r"\.write_(text|bytes)\(|savefig\((?!temporary)", text), path.name


def test_no_number_is_stale() -> None:
    assert table(ROOT) == 0


def test_a_stale_number_is_found(tmp_path: Path) -> None:
    shutil.copy(ROOT / "README.md", tmp_path)
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    result = next((tmp_path / "experiments" / "results").glob("*.json"))
    content = json.loads(result.read_text())
    content["tests"][0]["mean"] += 1
    result.write_text(json.dumps(content))
    assert table(tmp_path) == 2
    assert table(tmp_path, "--write") == 0
    assert table(tmp_path) == 0


def test_the_page_on_imitation_has_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    questions = importlib.import_module("questions")
    assert questions.table(json.loads(questions.RESULT.read_text())) in questions.PAGE.read_text()


def test_the_page_on_using_a_model_has_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    heads = importlib.import_module("heads")
    assert heads.table(json.loads(heads.RESULT.read_text())) in heads.PAGE.read_text()


def test_the_page_of_the_study_has_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    study = importlib.import_module("alphabet_pairs")
    text = study.PAGE.read_text()
    assert study.filled(text) == text
    assert study.filled(text.replace("problems", "tasks")) != text.replace("problems", "tasks")
    for picture in re.findall(r"\]\(([^)]+\.png)\)", text):
        assert (study.HERE / picture).stat().st_size > 10_000


def test_results_tell_their_command_protocol_and_machine() -> None:
    for path in (ROOT / "experiments" / "results").rglob("*.json"):
        result = json.loads(path.read_text())
        assert result["command"].startswith("innerloop train ")
        assert {"seed", "iterations", "seconds", "environment", "config"} <= set(result)
        for test in result["tests"]:
            assert test["num_tasks"] >= {"return": 100, "success": 200}.get(test["metric"], 600)
            assert len(test["steps"]) == len(test["steps_ci95"])
            assert isinstance(test["transductive"], bool)


def test_results_of_families_are_of_the_recipes_as_they_are() -> None:
    families = config.parse((ROOT / "experiments" / "families.toml").read_text())
    files = {Path(recipe).stem: ROOT / recipe for family in families.values() for recipe in family["seeds"]}
    for path in (ROOT / "experiments" / "results").glob("*/*.json"):
        result = json.loads(path.read_text())
        recipe = path.stem.removesuffix(f"-seed{result['seed']}")
        recipe = files[recipe] if files.get(recipe, ROOT).suffix == ".toml" else recipe
        before = config.resolve(result["config"])  # options that came later, at their defaults
        changed = config.differences(before, config.load_recipe(recipe, (), result["seed"]))
        assert not changed, f"{path.name} is of another {', '.join(changed)}"


# -- run.py -----------------------------------------------------------------------------------------------------------

RECIPES = Path("src", "innerloop", "recipes")
TINY = """# innerloop train tiny
# Hardware and time not yet measured; expected: not yet measured; published 12.3.
description = "tiny"
extends = "strokes-5w1s-maml"
[model]
width = 4
[train]
iterations = 5
tasks = 2
val_tasks = 2
validate_every = 1
log_every = 1
keep_best = 5
[evaluate]
num_tasks = 3
"""
FAMILY = """
[tiny]
title = "Two tiny recipes"
[tiny.seeds]
"src/innerloop/recipes/plain.toml" = [1]
"src/innerloop/recipes/wide.toml" = [0]
[tiny.published]
"src/innerloop/recipes/wide.toml" = "12.3"
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree with a family of two tiny recipes, which no result is there of."""
    (tmp_path / "experiments" / "results").mkdir(parents=True)
    for script in (ROOT / "experiments").glob("*.py"):
        shutil.copy(script, tmp_path / "experiments")
    (tmp_path / "experiments" / "families.toml").write_text(FAMILY)
    for folder in (tmp_path, tmp_path / "experiments"):
        (folder / "README.md").write_text("<!-- family tiny -->\n<!-- /family -->\n")
    (tmp_path / RECIPES).mkdir(parents=True)
    (tmp_path / RECIPES / "plain.toml").write_text(TINY)
    (tmp_path / RECIPES / "wide.toml").write_text(TINY.replace("width = 4", "width = 8"))
    return tmp_path


def family(tree: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "experiments/run.py", "tiny", *options]
    return subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_a_family_is_run_gone_on_with_and_told(tree: Path) -> None:
    assert "not run" in subprocess.run(
        [sys.executable, "-c", "import table; print(table.family('tiny'))"],
        cwd=tree / "experiments", capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    found = family(tree, "--jobs", "2")
    assert found.returncode == 0, found.stderr
    results = sorted(path.stem for path in (tree / "experiments" / "results" / "tiny").iterdir())
    assert results == ["plain-seed1", "wide-seed0"]
    assert (tree / "experiments" / "tiny.png").stat().st_size > 1000
    result = json.loads((tree / "experiments" / "results" / "tiny" / "plain-seed1.json").read_text())
    assert [at for at, *_ in result["curves"]["validation"]] == [1, 2, 3, 4, 5]
    assert [at for at, _ in result["curves"]["train"]] == [1, 2, 3, 4, 5]
    tests = result["tests"]
    assert [(test["transductive"], test.get("ensemble")) for test in tests] == [(True, None), (False, None), (True, 5)]
    rows = [row.split(" | ") for row in (tree / "README.md").read_text().splitlines() if row.startswith("| `")]
    scores = [f"{test['mean']:.2f} ± {test['ci95']:.2f}" for test in tests]
    minutes = f"{result['seconds'] / 60:.1f}"
    assert rows[0] == [f"| `{RECIPES}/plain.toml`", "1", *scores, "", f"{minutes} |"]
    assert rows[1][:2] + rows[1][5:6] == [f"| `{RECIPES}/wide.toml`", "0", "12.3"]
    comment = (tree / RECIPES / "plain.toml").read_text().splitlines()[1]
    told = f"1 CPU core: {minutes} minutes a run; accuracy {scores[0].replace('±', '+-')} % in one seed, transductive"
    assert comment == f"# {told}; published 12.3."

    assert family(tree).stdout == ""  # all is there
    (tree / "experiments" / "results" / "tiny" / "wide-seed0.json").unlink()
    again = family(tree)
    assert again.returncode == 0, again.stderr
    assert "wide-seed0" in again.stdout
    assert "plain" not in again.stdout
    (tree / RECIPES / "wide.toml").write_text(TINY.replace("width = 4", "width = 6"))
    other = family(tree)
    assert other.returncode == 1
    assert other.stdout == "wide-seed0: its result is of another model.width\n"
    assert "wide-seed0 is of another model.width: move it away" in other.stderr


def test_a_document_that_asks_for_another_family_is_told_before_any_run(tree: Path) -> None:
    (tree / "README.md").write_text("<!-- family huge -->\n<!-- /family -->\n")
    found = family(tree)
    assert found.returncode == 1
    assert found.stderr == "a table of the family huge is asked for, but families.toml has tiny\n"
    assert not (tree / "runs").exists()


def test_what_fails_is_named_and_the_rest_is_run(tree: Path) -> None:
    (tree / RECIPES / "wide.toml").write_text(TINY.replace("strokes-5w1s-maml", "omniglot-5w1s-quick"))
    found = family(tree, "--jobs", "2", "--data", str(tree))
    assert found.returncode == 1
    assert "wide-seed0: failed with exit code 1" in found.stderr
    assert "no " in (tree / "runs" / "wide-seed0.log").read_text()
    assert (tree / "experiments" / "results" / "tiny" / "plain-seed1.json").is_file()


POLICY = """# innerloop train policy
# Hardware and time not yet measured; expected: not yet measured
description = "tiny"
extends = "navigation-maml-trpo"
[learner]
episodes = 3
[tasks]
horizon = 5
eval_episodes = 3
[train]
iterations = 2
tasks = 2
val_tasks = 2
validate_every = 1
[evaluate]
num_tasks = 4
steps = 2
"""


@pytest.mark.slow
def test_a_family_of_policies_is_told_by_returns(tree: Path) -> None:
    recipe = "src/innerloop/recipes/policy.toml"
    (tree / recipe).write_text(POLICY)
    text = f'[tiny]\ntitle = "A policy"\nkind = "acting"\n[tiny.seeds]\n"{recipe}" = [0, 1]\n'
    (tree / "experiments" / "families.toml").write_text(text + f'[tiny.published]\n"{recipe}" = "-40, -12, -3"\n')
    found = family(tree)
    assert found.returncode == 0, found.stderr
    rows = [row.strip("| ").split(" | ") for row in (tree / "README.md").read_text().splitlines() if row[:1] == "|"]
    header, _, own, published = rows
    assert header[5:8] == ["before", "after 1", "after 2"]
    assert own[1:5] == ["navigation", "5", "maml-trpo", "0, 1"]
    results = [json.loads(path.read_text()) for path in (tree / "experiments" / "results" / "tiny").iterdir()]
    for step in range(3):
        mean = sum(result["tests"][0]["steps"][step] for result in results) / 2
        assert own[5 + step].startswith(f"{mean:.2f} ± ")
    assert all(0 < result["environment_steps"] <= 2 * 2 * 3 * 5 * 2 for result in results)
    assert published[5:8] == ["-40", "-12", "-3"]
    comment = (tree / recipe).read_text().splitlines()[1]
    assert " minutes a run; returns " in comment
    assert comment.endswith(" before and after each step in 2 seeds")
    assert "validations apart, on" in (tree / "README.md").read_text()
