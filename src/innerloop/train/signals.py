"""Stopping cleanly on Ctrl-C and SIGTERM."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any


class Interrupted(KeyboardInterrupt):
    """A signal stopped the training after a whole iteration, and a checkpoint was saved.

    Attributes:
        signal: its number; the command line exits with 128 more (130 after Ctrl-C, 143 after SIGTERM).
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


class Stop:
    """Whether a signal has asked to stop; true or false as such."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def raise_if_set(self, iteration: int, run: Path | None) -> None:
        """Raise `Interrupted` if a signal came."""
        if self.signal is not None:
            saved = f"; go on from {run} with fit(resume=True)" if run else ""
            raise Interrupted(f"stopped after iteration {iteration}{saved}", self.signal)


@contextmanager
def stopping() -> Iterator[Stop]:
    """Within, the first SIGINT or SIGTERM sets the flag, and a second one does what it did before."""
    stop = Stop()
    before: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, frame: FrameType | None) -> None:
        stop.signal = number
        restore()

    if threading.current_thread() is threading.main_thread():  # elsewhere Python installs no handlers
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, handle)
    try:
        yield stop
    finally:
        restore()
