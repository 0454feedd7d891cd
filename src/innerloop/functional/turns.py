"""Calls from many threads take turns: at most as many work at the same time as there are cores.

A thread takes Python's lock again after each of torch's operations. If more threads than cores compete for it, they
spend more time on passing the lock than on work.
"""

from __future__ import annotations

import os
import threading
from contextvars import ContextVar

from ..common.interrupts import Lock, release_at_end

PATIENCE = 1.0
"""Seconds after which a call starts anyway: it may be short and the others long, or the others may wait for it."""


def _cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


CORES = _cores()
_lock = Lock()
_changed = _lock.condition()
_working: set[int] = set()  # threads, since an interrupt could leave their number wrong
_has_turn: ContextVar[bool] = ContextVar("whether this call has its turn", default=False)


class Turn:
    """A context that waits for a turn, and holds it while entered. A call within a call does not wait."""

    def __enter__(self) -> None:
        self._outer = _has_turn.get()
        if self._outer:
            return
        this = threading.get_ident()
        release_at_end(_end)
        with _lock:
            _changed.wait_for(lambda: len(_working - {this}) < CORES, PATIENCE)
            _working.add(this)
        _has_turn.set(True)

    def __exit__(self, *error: object) -> None:
        if not self._outer:
            _has_turn.set(False)
            _end()


def _end() -> None:
    with _lock:
        _working.discard(threading.get_ident())
        _changed.notify()


def _after_fork() -> None:
    global _lock, _changed
    _lock = Lock()
    _changed = _lock.condition()
    _working.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)  # the child has no other threads
