"""Intervals of what runs came to, and of differences between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from innerloop.report import Run
from innerloop.report.differences import change, difference, score

T95_2, T95_4 = 4.302653, 2.776445  # Student's t, 97.5 %, by degrees of freedom


def run(scores: Sequence[float], seed: int = 0, tasks: int = 0, keep: bool = True) -> Run:
    """A run that was tested on some tasks."""
    values = torch.tensor(scores, dtype=torch.float64)
    half = 1.96 * float(values.std()) / math.sqrt(len(scores))
    test: dict[str, Any] = {"metric": "accuracy", "mean": float(values.mean()), "ci95": half, "num_tasks": len(scores)}
    test |= {"steps": [0.0], "steps_ci95": [0.0], "transductive": False}
    test |= {"scores": list(scores)} if keep else {}
    config = {"seed": seed, "tasks": {"name": "some"}, "evaluate": {"seed": tasks}, "train": {}}
    return Run(Path(f"some-seed{seed}"), {}, config, {"test": test})


def test_one_run_is_judged_over_its_tasks() -> None:
    found = score([run([80.0, 90.0])])
    assert found is not None
    assert (found.mean, found.over) == (85.0, "2 tasks")
    assert found.high - found.mean == pytest.approx(1.96 * math.sqrt(50) / math.sqrt(2))
    assert score([Run(Path("none"), {}, {}, {})]) is None


def test_several_seeds_are_judged_over_seeds() -> None:
    found = score([run([mean, mean], seed) for seed, mean in enumerate((80.0, 82.0, 84.0))])
    assert found is not None
    assert (found.mean, found.over) == (82.0, "3 seeds")
    assert found.mean - found.low == pytest.approx(T95_2 * 2 / math.sqrt(3), rel=1e-5)


def test_the_difference_of_several_seeds_is_welchs() -> None:
    first, second = ([run([mean, mean]) for mean in means] for means in ((80.0, 82.0, 84.0), (90.0, 92.0, 94.0)))
    found = difference(first, second)
    assert found is not None
    assert (found.mean, found.over, found.holds_zero) == (10.0, "3 and 3 seeds", False)
    assert found.high - found.mean == pytest.approx(T95_4 * math.sqrt(4 / 3 + 4 / 3), rel=1e-5)


def test_the_same_tasks_are_compared_task_by_task() -> None:
    hard = [20.0, 40.0, 60.0, 80.0, 100.0]
    first, second = run(hard), run([value + gain for value, gain in zip(hard, (4, 6, 5, 4, 6), strict=True)])
    found = difference([first], [second])
    assert found is not None
    assert found.mean == pytest.approx(5.0)
    assert found.over == "5 tasks, the same for both"
    assert found.high - found.mean == pytest.approx(T95_4 * math.sqrt(1.0 / 5), rel=1e-5)
    for other in (run(second.results["test"]["scores"], tasks=1), run(second.results["test"]["scores"], keep=False)):
        apart = difference([first], [other])
        assert apart is not None
        assert (apart.over, apart.holds_zero) == ("tasks of each", True)


def test_one_seed_against_several_is_no_surer_than_they_vary() -> None:
    several = [run([mean, mean], seed) for seed, mean in enumerate((80.0, 82.0, 84.0))]
    found = difference(several, [run([88.0, 88.0, 88.0])])
    assert found is not None
    assert (found.mean, found.over) == (6.0, "3 seeds, against one")
    assert found.high - found.mean == pytest.approx(T95_2 * 2 * math.sqrt(1 + 1 / 3), rel=1e-5)
    assert found.holds_zero
    back = difference([run([88.0, 88.0, 88.0])], several)
    assert back is not None
    assert (back.mean, back.low) == (-found.mean, pytest.approx(-found.high))


def test_a_judgement_that_lacks_something_is_none() -> None:
    damaged = run([1.0, 2.0])
    del damaged.results["test"]["steps"]
    assert score([damaged]) is None
    assert difference([damaged], [run([1.0, 2.0])]) is None


def test_tasks_without_a_finite_score_are_not_paired() -> None:
    whole, lacking = run([1.0, 2.0, 4.0]), run([1.5, 2.0, 3.0])
    for missing in (None, float("nan")):
        lacking.results["test"]["scores"][1] = missing
        for pair in ([whole], [lacking]), ([lacking], [whole]):
            found = difference(*pair)
            assert found is not None
            assert found.over == "tasks of each"
        assert change(whole.results["test"], lacking.results["test"]).over == "tasks of each"


def test_what_does_not_vary_has_no_width() -> None:
    found = difference([run([1.0, 1.0])], [run([3.0, 3.0])])
    assert found is not None
    assert (found.low, found.mean, found.high) == (2.0, 2.0, 2.0)


def test_an_interval_of_the_difference_holds_the_true_one_19_times_of_20() -> None:
    generator = torch.Generator().manual_seed(0)
    hits = 0
    for _ in range(400):
        first, second = (torch.randn(4, generator=generator, dtype=torch.float64) + mean for mean in (0.0, 1.0))
        found = difference([run([v, v]) for v in first.tolist()], [run([v, v]) for v in second.tolist()])
        assert found is not None
        hits += found.low <= 1.0 <= found.high
    assert 0.92 < hits / 400 < 0.98


def test_a_run_changes_from_one_validation_to_a_later_one() -> None:
    first, last = (run(scores).results["test"] for scores in ([50.0, 60.0, 70.0], [61.0, 70.0, 81.0]))
    found = change(first, last)
    assert found.mean == pytest.approx(32 / 3)
    assert not found.holds_zero
    old = {key: value for key, value in last.items() if key != "scores"}
    assert change(first, old).over == "tasks of each"
