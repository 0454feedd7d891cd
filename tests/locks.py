"""Whether a lock is free, and a lock that tests can wait at."""

from __future__ import annotations

import threading

from innerloop.common.interrupts import Lock


def others_can_take(lock: Lock) -> bool:
    """Whether another thread could acquire a lock now."""
    found = list[bool]()

    def take() -> None:
        if lock._lock.acquire(blocking=False):
            found.append(True)
            lock._lock.release()

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    return bool(found)


class Noting:
    """A lock that notes which threads came to it, whether they have it or wait for it.

    Args:
        number: of threads that are expected.

    Attributes:
        complete: set when all of them have come.
    """

    def __init__(self, number: int) -> None:
        self.complete = threading.Event()
        self._lock, self._number, self._came = threading.RLock(), number, set[int]()

    def note(self) -> None:
        """This thread has come."""
        self._came.add(threading.get_ident())
        if len(self._came) == self._number:
            self.complete.set()

    def __enter__(self) -> None:
        self.note()
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()
