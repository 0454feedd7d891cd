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
"""What a closed terminal sends, where there is such a signal."""


class Interrupted(KeyboardInterrupt):
    """A signal stopped the training after a whole iteration, and a checkpoint was saved.

    Attributes:
        signal: its number; the command line exits with 128 more (129 after SIGHUP, 130 after Ctrl-C,
            143 after SIGTERM).
        reason: after which iteration it stopped.
    """

    def __init__(self, reason: str, remedy: str, signal: int) -> None:
        super().__init__(f"{reason}{remedy}")
        self.reason, self.signal = reason, signal


class Stop:
    """Whether to stop, for a signal; true or false as such.

    Args:
        alone: whether a signal to this process is enough. Else it is only asked for, until all processes agree.

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
        """There was a signal."""
        self.asked, self._got = True, number
        self.agree(self.alone)

    def agree(self, asked: bool) -> None:
        """Stop if any process was asked to."""
        if asked:
            self.signal = self._got

    def raise_if_set(self, iteration: int, run: Path | None) -> None:
        """Raise `Interrupted` if a signal came."""
        if self.signal is not None:
            saved = f"; go on from {run} with fit(resume=True)" if run else ""
            raise Interrupted(f"stopped after iteration {iteration}", saved, self.signal)


@contextmanager
def stopping(alone: bool = True) -> Iterator[Stop]:
    """Within, the first SIGINT, SIGTERM or SIGHUP sets the flag, and a second one does what it did before.

    A terminal that is closed sends SIGHUP twice (the shell passes it on), so it goes on to be expected after the first.
    Under ``nohup`` it is ignored.
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

    if threading.current_thread() is threading.main_thread():  # elsewhere Python installs no handlers
        for number in (signal.SIGINT, signal.SIGTERM, HANGUP):
            if number is not None and not (number == HANGUP and signal.getsignal(number) == signal.SIG_IGN):
                before[number] = signal.signal(number, handle)
    try:
        yield stop
    finally:
        restore()
