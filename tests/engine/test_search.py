"""The search for the quickest plan, with times that are given."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from innerloop.engine.search import ONE_BY_ONE, Plan, Search


def searched(number: int, seconds: Callable[[Plan], float], threads: int = 1) -> tuple[Search, list[Plan]]:
    search, tried = Search(number, threads), []
    while not search.done:
        tried.append(search.plan)
        search.took(seconds(search.plan))
    return search, tried


@pytest.mark.parametrize(
    ("times", "best"),
    [
        ({8: 4.0, 16: 3.0, 32: 2.0, 0: 9.0}, 32),
        ({8: 4.0, 16: 3.0, 32: 3.5, 0: 9.0}, 16),
        ({8: 4.0, 16: 5.0, 4: 3.0, 2: 3.5, 0: 9.0}, 4),
        ({8: 4.0, 16: 5.0, 4: 3.0, 2: 2.0, 1: 1.0, 0: 0.5}, ONE_BY_ONE),
        ({8: 4.0, 16: 3.99, 4: 5.0, 0: 9.0}, 16),
    ],
)
def test_a_search_finds_the_quickest_size(times: dict[int, float], best: int) -> None:
    search, tried = searched(32, lambda plan: times[plan.size])
    assert search.plan == Plan(best)
    assert sorted({plan.size for plan in tried}) == sorted(times)
    assert f"{best} at once" in str(search) or "one by one" in str(search)


@pytest.mark.parametrize(
    ("times", "best"),
    [
        ({(8, 2): 4.0, (16, 2): 3.0, (16, 4): 3.5, (8, 4): 3.5}, (16, 2)),
        ({(8, 2): 4.0, (16, 2): 4.5, (8, 4): 2.0, (4, 8): 1.0}, (4, 8)),
        ({(8, 2): 9.0, (16, 2): 8.0}, (8, 1)),
    ],
)
def test_then_more_and_more_threads_are_tried(times: dict[tuple[int, int], float], best: tuple[int, int]) -> None:
    known = {Plan(8): 5.0, Plan(16): 6.0, Plan(4): 6.0, Plan(ONE_BY_ONE): 7.0} | {Plan(*p): t for p, t in times.items()}
    search, tried = searched(32, known.__getitem__, threads=8)
    assert search.plan == Plan(*best)
    assert {plan for plan in tried if plan.threads > 1} <= {Plan(*plan) for plan in times}
    assert ("threads" in str(search.plan)) == (best[1] > 1)


def test_threads_share_the_tasks() -> None:
    _, tried = searched(5, lambda plan: 1.0 / plan.threads, threads=16)
    assert {plan for plan in tried if plan.threads > 1} == {Plan(3, 2), Plan(2, 4)}


def test_one_by_one_takes_no_threads() -> None:
    search, tried = searched(8, lambda plan: float(plan.size + 1), threads=2)
    assert search.plan == Plan(ONE_BY_ONE)
    assert all(plan.threads == 1 for plan in tried)


def test_one_by_one_need_not_be_tried() -> None:
    search = Search(8, loop=False)
    while not search.done:
        assert search.plan.size
        search.took(1.0 + search.plan.size)
    assert search.plan == Plan(1)


def test_what_does_not_work_ends_the_search() -> None:
    search = Search(8, threads=2)
    while search.plan.threads == 1:
        search.took(9.0 - search.plan.size)
    search.stop()
    assert search.done
    assert search.plan == Plan(8)


def test_what_does_not_fit_into_memory_is_not_chosen() -> None:
    search, tried = searched(32, lambda plan: float("inf") if plan.size > 8 else 9.0 - plan.size)
    assert search.plan == Plan(8)
    assert Plan(32) not in tried


def test_what_is_quick_is_not_searched() -> None:
    search, tried = searched(25, lambda plan: 0.01, threads=2)
    assert (search.plan, tried) == (Plan(25), [Plan(8)])
