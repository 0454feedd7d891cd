"""Calls from many threads take turns: as many work at the same time as there are cores.

A thread takes Python's lock again after each of torch's operations. Where more threads than cores compete for it, they
spend more time on handing it over than on working.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

PATIENCE = 1.0
"""Seconds after which a call starts anyway. It may be short and the others long, or they may wait for it."""


def _cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


CORES = _cores()
_changed = threading.Condition()
_working: set[int] = set()  # threads, not their number, which an interrupt could leave wrong for good
_has_turn: ContextVar[bool] = ContextVar("whether this call has its turn", default=False)


@contextmanager
def turn() -> Iterator[None]:
    """Wait for a turn. A call within a call does not wait."""
    if _has_turn.get():
        yield
        return
    this = threading.get_ident()
    with _changed:
        _changed.wait_for(lambda: len(_working - {this}) < CORES, PATIENCE)
        _working.add(this)
    token = _has_turn.set(True)
    try:
        yield
    finally:
        _has_turn.reset(token)
        with _changed:
            _working.discard(this)
            _changed.notify()


def _after_fork() -> None:
    global _changed
    _changed = threading.Condition()
    _working.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)  # threads do not come along
