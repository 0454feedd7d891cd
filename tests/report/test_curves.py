"""Figures of the record show the numbers that are in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from innerloop.report import (
    NothingToDrawError,
    Run,
    compare,
    final_support_loss,
    inner_loss,
    learned_rates,
    meta_loss,
    new_figure,
    smooth,
    task_grid,
    validation,
)
from innerloop.report.series import by_recipe


def tasks(iteration: int, epochs: list[int], number: int = 2) -> dict[str, Any]:
    """A record of tasks whose losses tell where they belong."""
    steps = [[[iteration + t + e + s / 10 for s in range(n)] for e, n in enumerate(epochs)] for t in range(number)]
    after = [0, sum(epochs)]
    losses = [[iteration + t + 0.5, iteration + t + 0.25] for t in range(number)]
    about = {"kind": "tasks", "iteration": iteration, "steps": steps, "after": after}
    return {**about, "support_loss": losses, "query_loss": losses, "grad_norms": {"w": 1.0}}


def run(name: str = "plain-seed0", seed: int = 0, better: float = 0.0, epochs: Sequence[int] = (3, 3)) -> Run:
    validations = [
        {
            "kind": "validation", "iteration": i, "metric": "accuracy", "mean": 50.0 + i + better, "ci95": 1.0,
            "num_tasks": 9, "transductive": True, "steps": [], "scores": [],
        }
        for i in (10, 20, 30)
    ]  # fmt: skip
    lines = {
        "train": [{"kind": "train", "iteration": i, "loss": 1 / i} for i in range(1, 31)],
        "tasks": [tasks(i, list(epochs)) for i in (10, 20, 30)],
        "rates": [{"kind": "rates", "iteration": i, "rates": {"a": [i, 1.0], "b": [2.0, -1.0]}} for i in (0, 20, 30)],
        "validation": validations,
    }
    return Run(Path(name), lines, {"seed": seed, "model": {"width": 8 + int(better)}}, {})


def axes() -> Any:
    return new_figure(5, 4).subplots()


def drawn(axes: Any) -> dict[str, tuple[list[float], list[float]]]:
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}


def test_a_problem_is_drawn_step_by_step_with_its_epochs_set_off() -> None:
    found = inner_loss(axes(), run(), iteration=19, task=1, window=3)
    raw = [21.0, 21.1, 21.2, 22.0, 22.1, 22.2]
    lines = drawn(found)
    assert lines["raw"] == (list(range(6)), pytest.approx(raw))
    assert lines["mean of 3 points"][1] == pytest.approx(smooth(raw, 3))
    assert "task 1 of iteration 20" in found.get_title()
    assert [x for x, _ in lines.values()].count([2.5, 2.5]) == 1
    whole = inner_loss(axes(), run(epochs=[1, 1, 1]))
    assert drawn(whole)["raw"] == ([0, 3], [30.5, 30.25])
    assert drawn(inner_loss(axes(), run(epochs=[])))["raw"] == ([0, 0], [30.5, 30.25])
    with pytest.raises(ValueError, match="has 2 tasks recorded at iteration 30, so there is no task 5"):
        inner_loss(axes(), run(), task=5)


@pytest.mark.parametrize("what", ["support", "query"])
def test_a_grid_has_iterations_down_and_tasks_across(what: Any) -> None:
    figure = task_grid(new_figure(6, 6), run(), what)
    panels = figure.axes
    assert len(panels) == 3 * 2
    assert [panel.get_ylabel() for panel in panels[::2]] == ["10", "20", "30"]
    assert [panel.get_title() for panel in panels[:2]] == ["task 0", "task 1"]
    first = drawn(panels[3])["raw"][1][0]
    assert first == pytest.approx(21.0 if what == "support" else 21.5)


def test_curves_over_meta_training() -> None:
    assert drawn(final_support_loss(axes(), run()))["raw"] == ([10, 20, 30], [10.75, 20.75, 30.75])
    lines = drawn(meta_loss(axes(), run(), window=5))
    assert lines["raw"][1] == pytest.approx([1 / i for i in range(1, 31)])
    assert lines["mean of 5 points"][1][10] == pytest.approx(fmean(1 / i for i in range(9, 14)))
    found = validation(axes(), run())
    assert drawn(found)["best: 80 at 30"] == ([30], [80.0])
    assert "9 tasks, 95 % interval, transductive" in found.get_title()


def test_learned_rates_are_those_of_the_best_validation_unless_told_otherwise() -> None:
    assert drawn(learned_rates(axes(), run()))["a"] == ([1, 2], [30, 1.0])
    found = learned_rates(axes(), run(), iteration=3)
    assert drawn(found)["a"][1] == [0, 1.0]
    assert found.get_title().endswith("iteration 0")


def test_rates_that_are_one_for_all_steps_are_bars() -> None:
    one = run()
    one.lines["rates"] = [{"kind": "rates", "iteration": 0, "rates": {"a": [0.25], "": [-0.5]}}]
    found = learned_rates(axes(), one)
    assert [label.get_text() for label in found.get_yticklabels()] == ["a", "all parameters"]
    assert [bar.get_width() for bar in found.patches] == [0.25, -0.5]


def test_runs_that_differ_in_their_seed_are_one_line_with_a_band() -> None:
    runs = [run(), run("plain-seed1", 1), run("wide-seed0", 0, 4.0)]
    runs[1].lines["validation"][0]["mean"] = 64.0
    assert {name: len(members) for name, members in by_recipe(runs).items()} == {"plain": 2, "wide": 1}
    found = compare(axes(), runs)
    lines = drawn(found)
    assert lines["plain (2 seeds)"] == ([10, 20, 30], [62.0, 70.0, 80.0])
    assert lines["wide"][1] == [64.0, 74.0, 84.0]
    band = found.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (60.0, 80.0)


def test_runs_of_one_name_are_both_compared_and_metrics_are_not_mixed() -> None:
    runs = [run("a/same-seed0"), run("b/same-seed0", better=1.0)]
    assert list(by_recipe(runs)) == ["same", "b/same-seed0"]
    runs[1].lines["validation"] = [{**line, "metric": "mse"} for line in runs[1].lines["validation"]]
    with pytest.raises(NothingToDrawError, match="different metrics: accuracy, mse"):
        compare(axes(), runs)
    many = [run(f"r{i}", better=float(i)) for i in range(9)]
    styles = {(line.get_color(), line.get_linestyle()) for line in compare(axes(), many).lines}
    assert len(styles) == 9


def test_a_metric_of_ones_own_has_its_direction_and_its_unit() -> None:
    found = run()
    for line in found.lines["validation"]:
        line |= {"metric": "f1", "higher_is_better": False, "unit": "points"}
    assert found.best is not None
    assert found.best["iteration"] == 10
    for drawn_on in (validation(axes(), found), compare(axes(), [found, found])):
        assert drawn_on.get_ylabel() == "meta-validation f1 (points)"
    other = run("other", better=1.0)
    for line in other.lines["validation"]:
        line |= {"metric": "f1", "higher_is_better": True, "unit": "points"}
    with pytest.raises(NothingToDrawError, match=r"f1 \(points\), higher is better, f1 \(points\), lower is better"):
        compare(axes(), [found, other])


def test_what_is_not_recorded_is_told() -> None:
    empty = Run(Path("runs/bare"), {"run": [{"kind": "run", "iteration": 0}]}, {}, {})
    for draw in (inner_loss, final_support_loss, meta_loss, validation, learned_rates):
        with pytest.raises(NothingToDrawError, match="runs/bare has no"):
            draw(axes(), empty)
    with pytest.raises(NothingToDrawError, match="no validations"):
        compare(axes(), [empty, run()])


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40), st.integers(1, 50))
def test_smoothing_is_a_mean_within_the_range_of_what_it_covers(values: list[float], window: int) -> None:
    found = smooth(values, window)
    assert len(found) == len(values)
    assert all(min(values) - 1e-6 <= value <= max(values) + 1e-6 for value in found)
    assert smooth(values, 1) == values
    assert smooth([2.0] * len(values), window) == [2.0] * len(values)


def test_smoothing_leaves_out_what_is_no_number() -> None:
    assert smooth([1.0, math.nan, 3.0], 3) == [1.0, 2.0, 3.0]
    assert math.isnan(smooth([math.nan], 3)[0])
    with pytest.raises(ValueError, match="got 0"):
        smooth([1.0], 0)
