"""Interrupts that have turned into errors.

A ``KeyboardInterrupt`` may come while a context manager is entered or left. The exit can then raise an error of its
own, which must not be taken for an error of the model.
"""

from __future__ import annotations

import sys
from contextvars import ContextVar

_outside: ContextVar[BaseException | None] = ContextVar("what was being handled when a call began", default=None)


def mark_call() -> None:
    """Record the exception that the caller is handling, so that it is not taken for the cause of this call's errors."""
    _outside.set(sys.exc_info()[1])


def chain(error: BaseException) -> list[BaseException]:
    """An error and those that were being handled when it was raised, the last first."""
    found, outside = [error], _outside.get()
    while (earlier := found[-1].__context__) is not None and earlier is not outside and earlier not in found:
        found.append(earlier)
    return found


def interrupt_behind(error: BaseException) -> BaseException | None:
    """The interrupt that an error is, or that was being handled when it was raised."""
    return next((one for one in chain(error) if not isinstance(one, Exception | GeneratorExit)), None)


def raise_interrupt_behind(error: BaseException) -> None:
    """Raise the interrupt that led to an error, if there is one.

    Call it first wherever errors of a user's code are handled.

    Raises:
        BaseException: that interrupt.
    """
    if (interrupt := interrupt_behind(error)) is not None:
        raise interrupt
