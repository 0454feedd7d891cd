"""Interrupts that have turned into errors.

A ``KeyboardInterrupt`` may come while a context manager is entered or left. What that leaves open can raise an error of
its own on the way out, and code that deals with errors would take that for one of the model's.
"""

from __future__ import annotations

import sys
from contextvars import ContextVar

_outside: ContextVar[BaseException | None] = ContextVar("what was being handled when a call began", default=None)


def begin() -> None:
    """Note that a call begins. What its caller is handling, such as an interrupt after which it saves something, is not
    behind errors of the call."""
    _outside.set(sys.exc_info()[1])


def chain(error: BaseException) -> list[BaseException]:
    """An error and those that were being handled when it was raised, the last first."""
    found, outside = [error], _outside.get()
    while (earlier := found[-1].__context__) is not None and earlier is not outside and earlier not in found:
        found.append(earlier)
    return found


def interrupt_behind(error: BaseException) -> BaseException | None:
    """The interrupt that an error is, or that was being handled when it was raised."""
    return next((one for one in chain(error) if not isinstance(one, Exception)), None)


def go_on_with_interrupt(error: BaseException) -> None:
    """For the start of code that deals with an error.

    Raises:
        BaseException: the interrupt behind the error, if there is one.
    """
    if (interrupt := interrupt_behind(error)) is not None:
        raise interrupt
