"""Search for the fastest plan to run a meta-batch, by timing."""

from __future__ import annotations

from collections.abc import Generator
from typing import NamedTuple

QUICK = 0.05
"""Seconds. A meta-batch that takes less time runs all at once, without further timing."""
AT_ONCE = 8
"""The number of tasks at once that is tried first."""
ONE_BY_ONE = 0
HELPS = 0.97
"""The search continues in a direction if the time drops below this fraction."""


class Plan(NamedTuple):
    """How a meta-batch runs.

    Attributes:
        size: the number of tasks at once, or `ONE_BY_ONE`.
        threads: the number of threads side by side.
    """

    size: int
    threads: int = 1

    def __str__(self) -> str:
        at_once = f"{self.size} at once" if self.size else "one by one"
        return at_once if self.threads == 1 else f"{at_once} in each of {self.threads} threads"


def quick(seconds: float) -> bool:
    """Return whether a meta-batch takes too little time for plans to matter."""
    return seconds < QUICK


class Search:
    """A search for the fastest plan.

    It starts with 8 tasks at once and doubles, or else halves, the number as long as that helps. Then it tries one by
    one, and then the best number in more and more threads.

    Args:
        number: the number of tasks in a meta-batch.
        threads: the most threads that may be used.
        loop: whether to try one by one.

    Attributes:
        plan: the plan for the next meta-batch.
        done: whether the search is over.
    """

    def __init__(self, number: int, threads: int = 1, loop: bool = True) -> None:
        self.times: dict[Plan, float] = {}
        self.done = False
        self._steps = self._search(number, threads, loop)
        self.plan = next(self._steps)

    def took(self, seconds: float) -> None:
        """Record the time of a meta-batch with the present plan; infinity if it runs out of memory."""
        self.times[self.plan] = seconds
        try:
            self.plan = next(self._steps)
        except StopIteration as stop:
            self.plan, self.done = stop.value, True

    def stop(self) -> None:
        """End the search with the best plan so far."""
        self.plan, self.done = (self._best() if self.times else self.plan), True

    def _search(self, number: int, threads: int, loop: bool) -> Generator[Plan, None, Plan]:
        start = Plan(min(AT_ONCE, number))
        yield start
        if quick(self.times[start]):
            return Plan(number)
        best = yield from self._climb(start, 2, number)
        if best == start:
            yield from self._climb(start, 0.5, number)
        if loop:
            yield Plan(ONE_BY_ONE)
        best, number_of = self._best(), 2
        while best.size and best.threads * 2 == number_of <= min(threads, number):
            most = -(-number // number_of)
            start = Plan(min(best.size, most), number_of)
            yield start
            yield from self._climb(start, 2, most)
            best, number_of = self._best(), 2 * number_of
        return best

    def _climb(self, best: Plan, factor: float, most: int) -> Generator[Plan, None, Plan]:
        """Change the number of tasks at once as long as that helps; return the best plan."""
        while (size := int(min(best.size * factor, most))) >= 1 and size != best.size:
            plan = best._replace(size=size)
            yield plan
            if self.times[plan] >= HELPS * self.times[best]:
                break
            best = plan
        return best

    def _best(self) -> Plan:
        return min(self.times, key=lambda plan: self.times[plan])

    def __str__(self) -> str:
        return f"{self.plan} ({', '.join(f'{plan} {1e3 * t:.1f} ms' for plan, t in self.times.items())})"
