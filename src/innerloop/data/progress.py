"""A progress bar on a terminal, if rich is installed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..common import streams


@contextmanager
def progress(description: str, total: int | None) -> Iterator[Callable[[int], object]]:
    """Yield a function that advances the bar; it does nothing without rich, or if stderr is not a terminal."""
    try:
        from rich.console import Console
        from rich.markup import escape
        from rich.progress import Progress
    except ImportError:
        yield lambda amount: None
        return
    with Progress(console=Console(stderr=True), transient=True, disable=not streams.is_terminal(sys.stderr)) as bar:
        task = bar.add_task(escape(streams.shown(description)), total=total)
        yield lambda amount: bar.advance(task, amount)
