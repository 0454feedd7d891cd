"""Stopping cleanly on Ctrl-C, SIGTERM and SIGHUP."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

HANGUP: int | None = getattr(signal, "SIGHUP", None)
"""The signal that a closed terminal sends, if the system has it."""


class Interrupted(KeyboardInterrupt):
    """A signal stopped the training after a whole iteration, and a checkpoint was saved.

    Attributes:
        signal: the number of the signal; the command line exits with 128 more (129 after SIGHUP, 130 after Ctrl-C,
            143 after SIGTERM).
        reason: a message with the iteration after which training stopped.
    """

    def __init__(self, reason: str, remedy: str, signal: int) -> None:
        super().__init__(f"{reason}{remedy}")
        self.reason, self.signal = reason, signal


class Stop:
    """Whether to stop because of a signal; use it as a truth value.

    Args:
        alone: whether a signal to this process is enough; otherwise all processes must agree first.

    Attributes:
        asked: whether there was a signal.
        signal: the number of the signal to stop for.
    """

    def __init__(self, alone: bool = True) -> None:
        self.alone, self.asked = alone, False
        self.signal: int | None = None
        self._got: int = signal.SIGTERM

    def __bool__(self) -> bool:
        return self.signal is not None

    def ask(self, number: int) -> None:
        """Record a signal."""
        self.asked, self._got = True, number
        self.agree(self.alone)

    def agree(self, asked: bool) -> None:
        """Stop if any process got a signal."""
        if asked:
            self.signal = self._got

    def raise_if_set(self, iteration: int, run: Path | None) -> None:
        """Raise `Interrupted` if a signal came."""
        if self.signal is not None:
            saved = f"; resume from {run} with fit(resume=True)" if run else ""
            raise Interrupted(f"stopped after iteration {iteration}", saved, self.signal)


@contextmanager
def stopping(alone: bool = True) -> Iterator[Stop]:
    """While entered, the first SIGINT, SIGTERM or SIGHUP sets the flag, and a second one has its usual effect.

    A closed terminal sends SIGHUP twice (the shell passes it on), so SIGHUP is also handled after the first. Under
    ``nohup`` it is ignored.
    """
    stop = Stop(alone)
    before: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, frame: FrameType | None) -> None:
        if not stop.asked:
            stop.ask(number)
        for other, handler in before.items():
            if other != HANGUP:
                signal.signal(other, handler)

    if threading.current_thread() is threading.main_thread():  # Python allows handlers only in the main thread
        for number in (signal.SIGINT, signal.SIGTERM, HANGUP):
            if number is not None and not (number == HANGUP and signal.getsignal(number) == signal.SIG_IGN):
                before[number] = signal.signal(number, handle)
    try:
        yield stop
    finally:
        restore()
