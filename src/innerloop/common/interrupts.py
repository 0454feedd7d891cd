"""Safety against interrupts, which can come between any two instructions.

A ``KeyboardInterrupt`` may come while a context manager is entered or left. The exit can then raise another error,
which must not be mistaken for an error of the model. An interrupt may also come after a lock was acquired and before
the block that releases it was entered, and then every other thread would wait forever.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

_outside: ContextVar[BaseException | None] = ContextVar("the exception handled when a call began", default=None)
_releasing: ContextVar[bool] = ContextVar("whether an outer call releases locks", default=False)


class _Left(threading.local):
    """The locks that this thread has to release when its call ends."""

    def __init__(self) -> None:
        self.releases: set[Callable[[], object]] = set()


_left = _Left()


class Lock:
    """A reentrant lock for ``with`` statements, which is released when a call under `releasing` ends."""

    def __init__(self) -> None:
        self._lock: Any = threading.RLock()

    def __enter__(self) -> None:
        if not self._lock._is_owned():
            release_at_end(self._release)
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        if self._lock._is_owned():  # otherwise an interrupt came in `wait_for`
            self._lock.release()

    def condition(self) -> threading.Condition:
        """Return a condition to wait for while holding this lock."""
        return threading.Condition(self._lock)

    def _release(self) -> None:
        while self._lock._is_owned():
            self._lock.release()


def release_at_end(release: Callable[[], object]) -> None:
    """Register a function to call when this thread's call under `releasing` ends, however it ends.

    Args:
        release: releases what is about to be acquired, and does nothing if it is not held.
    """
    _left.releases.add(release)


def releasing(function: Callable[[], Any]) -> Any:
    """Call a function, and release every `Lock` that it acquired, even after an interrupt.

    Run it in a copy of the context. In nested calls, only the outer one releases.
    """
    if _releasing.get():
        return function()
    _releasing.set(True)
    _left.releases.clear()  # locks that were acquired earlier do not belong to this call
    try:
        try:
            return function()
        finally:
            _release()
    except BaseException:  # an interrupt may also have come in the lines above
        _release()
        raise


def _release() -> None:
    for release in tuple(_left.releases):
        release()
    _left.releases.clear()


def mark_call() -> None:
    """Record the exception that the caller is handling, so that it does not count as a cause of this call's errors."""
    _outside.set(sys.exc_info()[1])


def chain(error: BaseException) -> list[BaseException]:
    """Return an error and those that were being handled when it was raised, the last first."""
    errors, outside = [error], _outside.get()
    while (earlier := errors[-1].__context__) is not None and earlier is not outside and earlier not in errors:
        errors.append(earlier)
    return errors


def interrupt_behind(error: BaseException) -> BaseException | None:
    """Return the interrupt that an error is, or that was being handled when it was raised; else ``None``."""
    return next((one for one in chain(error) if not isinstance(one, Exception | GeneratorExit)), None)


def raise_interrupt_behind(error: BaseException) -> None:
    """Raise the interrupt that led to an error, if there is one.

    Call this first wherever errors of user code are handled.

    Raises:
        BaseException: that interrupt.
    """
    if (interrupt := interrupt_behind(error)) is not None:
        raise interrupt
