"""What a report says in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from innerloop.report import Run, answers


def run(
    name: str, before: float = 20.0, after: float = 90.0, half: float = 1.0, shots: int = 1, metric: str = "accuracy",
    validations: tuple[float, ...] = (40.0, 80.0), **config: Any,
) -> Run:  # fmt: skip
    judged = {"metric": metric, "ci95": half, "num_tasks": 600, "transductive": False}
    test = {**judged, "mean": after, "steps": [before, after], "steps_ci95": [half, half]}
    lines = [
        {"kind": "validation", "iteration": 10 * (i + 1), **judged, "mean": mean, "steps": [before, mean],
         "steps_ci95": [half, half]}
        for i, mean in enumerate(validations)
    ]  # fmt: skip
    recipe = {"tasks": {"name": "some", "ways": 5, "shots": shots}, "train": {"iterations": 20}, **config}
    return Run(Path(name), {"validation": lines}, recipe, {"iterations": 20, "test": test})


@pytest.mark.parametrize(
    ("after", "metric", "verdict", "sentence"),
    [
        (90.0, "accuracy", "learns", "Yes, on unseen tasks."),
        (20.5, "accuracy", "may be noise", "Not that it could be told from noise on unseen tasks."),
        (10.0, "accuracy", "gets worse", "No, it gets worse on unseen tasks."),
        (10.0, "mse", "learns", "Yes, on unseen tasks."),
    ],
)
def test_the_inner_loop(after: float, metric: str, verdict: str, sentence: str) -> None:
    found = answers.inner({"a": run("a", after=after, metric=metric)})
    assert found.sentence == sentence
    assert found.rows[0][4] == verdict
    assert found.rows[0][5] == "some, 5-way 1-shot, 1 step, 600 tasks, inductive"


def test_the_outer_loop() -> None:
    good, flat, bad = run("a"), run("b", validations=(50.0, 50.5)), run("c", validations=(80.0, 70.0))
    found = answers.outer({"a": good, "b": flat, "c": bad, "d": run("d", validations=(50.0,))})
    assert found.sentence == "In 1 of 3 runs, by meta-validation."
    assert [row[-1] for row in found.rows] == ["learns", "may be noise", "gets worse", "fewer than two validations"]
    assert found.rows[0][1] == "40.00 ± 1.00 % at 10"


def test_recipes_are_compared_with_the_first_where_they_are_judged_alike() -> None:
    runs = {
        "a": run("a", model={"width": 1}),
        "b": run("b", after=95.0, model={"width": 2}),
        "c": run("c", after=90.5, model={"width": 3}),
        "d": run("d", after=99.0, model={"width": 4}, shots=5),
    }
    found = answers.comparison(runs)
    assert [row[-1] for row in found.rows] == ["the first", "better", "may be noise", "judged by other tasks"]
    assert found.sentence.startswith("b is better than a; the difference of c from a may be noise.")
    assert found.rows[1][4].startswith("5.00 % [3.")
    differing = answers.recipes(runs)
    assert differing.rows == [["model.width", "1", "2", "3", "4"], ["tasks.shots", "1", "1", "1", "5"]]


def test_runs_that_were_not_tested_are_compared_by_validations_and_it_says_so() -> None:
    runs = {"a": run("a", model={"width": 1}), "b": run("b", model={"width": 2})}
    del runs["b"].results["test"]
    found = answers.comparison(runs)
    assert "which flatter" in found.sentence
    assert found.rows[0][2].startswith("80.00 %")


def test_errors_are_better_when_lower() -> None:
    runs = {"a": run("a", metric="mse", model={"width": 1}), "b": run("b", after=10.0, metric="mse")}
    assert answers.comparison(runs).rows[1][-1] == "better"


def test_different_metrics_are_not_compared() -> None:
    assert "different metrics" in answers.comparison({"a": run("a"), "b": run("b", metric="mse")}).sentence
