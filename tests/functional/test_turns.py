"""As many calls work at the same time as there are cores, and none waits for good."""

from __future__ import annotations

import os
import threading

import pytest
import torch
from torch import nn

import innerloop as il
from innerloop.functional import turns
from innerloop.functional.turns import Turn


def at_once(threads: int, work: object) -> None:
    """Call a function in threads, to their end."""
    started = [threading.Thread(target=work, daemon=True) for _ in range(threads)]  # type: ignore[arg-type]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join(600)
        assert not thread.is_alive()


@pytest.mark.parametrize("cores", [1, 2])
def test_no_more_work_than_there_are_cores(monkeypatch: pytest.MonkeyPatch, cores: int) -> None:
    monkeypatch.setattr(turns, "CORES", cores)
    monkeypatch.setattr(turns, "PATIENCE", 60.0)
    inside, seen = list[int](), list[int]()

    def work() -> None:
        for _ in range(20):
            with Turn():
                inside.append(1)
                seen.append(len(inside))
                torch.randn(64, 64) @ torch.randn(64, 64)
                inside.pop()

    at_once(4, work)
    assert len(seen) == 80
    assert max(seen) <= cores
    assert not turns._working


def test_calls_within_calls_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "CORES", 1)
    monkeypatch.setattr(turns, "PATIENCE", 60.0)
    with Turn(), Turn():
        assert len(turns._working) == 1
    assert not turns._working


def test_calls_that_wait_for_each_other_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "CORES", 1)
    monkeypatch.setattr(turns, "PATIENCE", 0.05)
    meeting, met = threading.Barrier(3), list[int]()

    def work() -> None:
        with Turn():
            met.append(meeting.wait(600))

    at_once(3, work)
    assert sorted(met) == [0, 1, 2]
    assert not turns._working


def test_an_interrupt_does_not_lose_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "CORES", 1)
    monkeypatch.setattr(turns, "PATIENCE", 60.0)
    turns._working.add(threading.get_ident())  # as after an interrupt between taking the turn and working
    with Turn():
        pass
    assert not turns._working


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_fork_begins_without_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "CORES", 1)
    turns._working.add(0)  # of a thread that does not come along
    try:
        child = os.fork()
        if child == 0:
            os._exit(len(turns._working))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        turns._working.clear()


def test_predictions_and_adaptations_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "CORES", 1)
    monkeypatch.setattr(turns, "PATIENCE", 60.0)
    inside, most = list[int](), list[int]()

    class Counting(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            inside.append(1)
            most.append(len(inside))
            output = super().forward(x)
            inside.pop()
            return output

    maml = il.maml(Counting(3, 1), 0.1, loss=nn.MSELoss())
    support = il.Batch(torch.randn(5, 3), torch.randn(5, 1))
    at_once(4, lambda: [maml.adapt(support)(support.x) for _ in range(10)])
    assert most
    assert max(most) == 1
