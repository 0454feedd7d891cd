"""What a report says in words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from innerloop.report import Run, answers


def run(
    name: str, before: float = 20.0, after: float = 90.0, half: float = 1.0, shots: int = 1, metric: str = "accuracy",
    validations: tuple[float, ...] = (40.0, 80.0), tasks: Any = None, **config: Any,
) -> Run:  # fmt: skip
    judged = {"metric": metric, "ci95": half, "num_tasks": 600, "transductive": False}
    test = {**judged, "mean": after, "steps": [before, after], "steps_ci95": [half, half]}
    lines = [
        {"kind": "validation", "iteration": 10 * (i + 1), **judged, "mean": mean, "steps": [before, mean],
         "steps_ci95": [half, half]}
        for i, mean in enumerate(validations)
    ]  # fmt: skip
    tasks = {"name": "some", "ways": 5, "shots": shots} if tasks is None else tasks
    recipe = {"tasks": tasks, "train": {"iterations": 20}, **config}
    return Run(Path(name), {"validation": lines}, recipe, {"iterations": 20, "test": test})


@pytest.mark.parametrize(
    ("after", "metric", "verdict", "sentence"),
    [
        (90.0, "accuracy", "learns", "yes"),
        (20.5, "accuracy", "may be noise", "there is no clear change; the difference may be noise"),
        (10.0, "accuracy", "gets worse", "no, it gets worse"),
        (10.0, "mse", "learns", "yes"),
    ],
)
def test_the_inner_loop(after: float, metric: str, verdict: str, sentence: str) -> None:
    found = answers.inner({"a": run("a", after=after, metric=metric)})
    assert found.sentence == f"On unseen tasks, comparing before and after the inner steps: {sentence}."
    assert found.rows[0][4] == verdict
    assert found.rows[0][5] == "some, 5-way 1-shot, 1 step, 600 tasks, inductive"


def test_the_outer_loop() -> None:
    good, flat, bad = run("a"), run("b", validations=(50.0, 50.5)), run("c", validations=(80.0, 70.0))
    lost = run("e", validations=(50.0, 80.0, 49.0))
    found = answers.outer({"a": good, "b": flat, "c": bad, "d": run("d", validations=(50.0,)), "e": lost})
    assert found.sentence.endswith(
        "for 4 runs: gets worse (1), learns (1), learns, then gets worse again (1), may be noise (1)."
    )
    verdicts = ["learns", "may be noise", "gets worse", "fewer than two validations", "learns, then gets worse again"]
    assert [row[-1] for row in found.rows] == verdicts
    assert found.rows[0][1] == "40.00 ± 1.00 % at 10"


def test_recipes_are_compared_with_the_first_where_they_are_judged_alike() -> None:
    runs = {
        "a": run("a", model={"width": 1}),
        "b": run("b", after=95.0, model={"width": 2}),
        "c": run("c", after=90.5, model={"width": 3}),
        "d": run("d", after=99.0, model={"width": 4}, shots=5),
        "e": run("e", after=99.0, model={"width": 5}),
        "f": run("f", after=99.0, model={"width": 6}, tasks={}),
    }
    runs["e"].results["test"]["transductive"] = True
    found = answers.comparison(runs)
    assert [row[-1] for row in found.rows] == ["", "better", "may be noise", *["not comparable"] * 3]
    assert found.sentence.startswith(
        "Better than a: b (one seed each, so this holds only for these weights). No clear difference from a: c"
    )
    assert found.rows[1][4].startswith("5.00 % [3.")
    differing = answers.recipes(runs)
    assert ["model.width", "1", "2", "3", "4", "5", "6"] in differing.rows


def test_the_steps_of_learned_rates_are_told_and_rates_that_are_not_finite() -> None:
    learned = run("a")
    learned.lines["rates"] = [{"kind": "rates", "iteration": 20, "rates": {"w": [0.1, None, 0.4], "b": [0.2]}}]
    empty = run("b")
    empty.lines["rates"] = [{"kind": "rates", "iteration": 20, "rates": {"w": [None]}}]
    found = answers.rates({"a": learned, "b": empty}).sentence
    assert found.startswith(
        "a: learned rates range from 0.1 (w, step 1) to 0.4 (w, step 3) at iteration 20. b: no learned"
    )


def test_runs_that_were_not_tested_are_compared_by_validations_and_it_says_so() -> None:
    runs = {"a": run("a", model={"width": 1}), "b": run("b", model={"width": 2})}
    del runs["b"].results["test"]
    found = answers.comparison(runs)
    assert "which are too optimistic" in found.sentence
    assert found.rows[0][2].startswith("80.00 %")


def test_errors_are_better_when_lower() -> None:
    runs = {"a": run("a", metric="mse", model={"width": 1}), "b": run("b", after=10.0, metric="mse")}
    assert answers.comparison(runs).rows[1][-1] == "better"


def named(found: Run, **changes: Any) -> Run:
    """The same run, judged by a metric that a user named."""
    own = {"metric": "f1", "higher_is_better": True, "unit": "points", **changes}
    for line in (*found.lines["validation"], found.results["test"]):
        line.update(own)
    return found


@pytest.mark.parametrize(("higher", "verdict"), [(True, "learns"), (False, "gets worse")])
def test_a_metric_of_ones_own_has_its_direction_and_its_unit(higher: bool, verdict: str) -> None:
    found = named(run("a"), higher_is_better=higher)
    assert answers.inner({"a": found}).rows[0][4] == verdict
    assert answers.inner({"a": found}).rows[0][3] == "90 ± 1 points"
    assert answers.outer({"a": found}).rows[0][-1] == verdict
    runs = {"a": found, "b": named(run("b", after=95.0, model={"width": 2}), higher_is_better=higher)}
    assert answers.comparison(runs).rows[1][-1] == ("better" if higher else "worse")
    best = found.best
    assert best is not None
    assert best["mean"] == (80.0 if higher else 40.0)


def test_different_metrics_are_not_compared() -> None:
    assert "different metrics" in answers.comparison({"a": run("a"), "b": run("b", metric="mse")}).sentence
    runs = {"a": named(run("a")), "b": named(run("b", model={"width": 2}), higher_is_better=False)}
    assert "different metrics" in answers.comparison(runs).sentence


def test_the_sets_of_a_mixture() -> None:
    def mixed(name: str, **means: Any) -> Run:
        made = run(name)
        parts = {title: {"mean": mean, "ci95": 1.5, "num_tasks": 30} for title, mean in means.items()}
        return replace(made, results={**made.results, "test": {**made.results["test"], "sets": parts}})

    lost = mixed("c", birds=None, cars=40.0)
    alone = mixed("d", birds=50.0)
    alone.results["test"]["sets"]["birds"] |= {"ci95": None, "num_tasks": 1}
    runs = {"a": mixed("a", birds=60.0, cars=80.25, planes=70.0), "b": run("b"), "c": lost, "d": alone}
    found = answers.sets(runs)
    assert found.sentence == "a: best on cars (80.25 %), worst on birds (60.00 %)."
    assert [list(row) for row in found.rows] == [
        ["a", "birds", "60.00 ± 1.50 %", "30", "the test"],
        ["a", "cars", "80.25 ± 1.50 %", "30", "the test"],
        ["a", "planes", "70.00 ± 1.50 %", "30", "the test"],
        ["c", "birds", "not finite", "30", "the test"],
        ["c", "cars", "40.00 ± 1.50 %", "30", "the test"],
        ["d", "birds", "50.00 %", "1", "the test"],
    ]
    assert answers.sets({"b": run("b")}).rows == []
