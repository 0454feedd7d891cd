"""Threads that work on separate tasks side by side, each with an equal share of torch's threads.

Torch spreads one operation over all cores. If operations are short, the cores wait for each other and for Python, but
threads with separate tasks do not. Each thread works on a copy of the module, because all threads would see a task's
parameters in a shared module.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from queue import SimpleQueue
from typing import TypeVar

import torch
from torch import nn

from ..common import private
from ..functional.stacks import place
from ..functional.stand_ins import mine, present, replica, standing_in

Item = TypeVar("Item")
Result = TypeVar("Result")


def available() -> int:
    """Return the number of threads that may run at the same time: the number that torch uses, or 1.

    It is 1 if modes or transforms are active in this thread, which would not apply in other threads.
    """
    modes = private.number_of_function_modes() + private.number_of_dispatch_modes()
    special = modes or place() != "plain" or torch.is_autocast_enabled("cpu") or torch.is_inference_mode_enabled()
    return 1 if special or not _own_numbers() else torch.get_num_threads()


def side_by_side(
    work: Callable[[Item], Result], items: Sequence[Item], threads: int, model: nn.Module
) -> Iterator[Result]:
    """Yield the results of all items, in order.

    Args:
        work: a function of an item, which runs in the threads; there `mine` returns a copy of the model.
        items: what to work on.
        threads: the number of threads; each gets an equal share of torch's threads.
        model: the module.
    """
    copies: SimpleQueue[nn.Module] = SimpleQueue()
    for _ in range(threads):
        copies.put(replica(mine(model)))
    grad, stand_ins = torch.is_grad_enabled(), present()

    def run(item: Item) -> Result:
        stand_in = copies.get()
        try:
            with torch.set_grad_enabled(grad), standing_in({**stand_ins, id(model): stand_in}):
                return work(item)
        finally:
            copies.put(stand_in)

    pool = _pool(threads, max(1, torch.get_num_threads() // threads))
    futures = [pool.submit(run, item) for item in items]
    try:
        while futures:
            yield futures.pop(0).result()
    finally:
        for future in futures:
            future.cancel()
        wait(futures)


@cache
def _own_numbers() -> bool:
    """Return whether every thread has its own number of torch threads."""
    return "parallel backend: OpenMP" in torch.__config__.parallel_info()


@cache
def _pool(threads: int, share: int) -> ThreadPoolExecutor:
    every, started = torch.get_num_threads(), threading.Barrier(threads + 1)

    def start() -> None:
        torch.set_num_threads(share)
        torch.get_num_threads()  # the first call in a thread takes over the number that was set last in any thread
        started.wait()

    pool = ThreadPoolExecutor(threads, "innerloop", initializer=start)
    for _ in range(threads):
        pool.submit(int)
    started.wait()
    torch.set_num_threads(every)  # restore the default of new threads, which the started ones have changed
    return pool


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # the child has no other threads
