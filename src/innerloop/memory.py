"""Memory that a process keeps instead of giving it back between steps."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # glibc, malloc.h


@cache
def keep_freed_memory() -> bool:
    """Have the C library keep freed memory for the next allocation; whether it does.

    By default glibc maps every large tensor anew and unmaps it afterwards, and the kernel zeroes each of its pages on
    first use: a third of the time of a convolutional meta-step. The process then stays as large as it ever was.
    Threads that start later share this memory, for of that of their own they would give large pieces back. Set
    ``INNERLOOP_KEEP_MEMORY=0`` to leave the C library alone, as other C libraries are.
    """
    if os.environ.get("INNERLOOP_KEEP_MEMORY", "1") == "0" or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_ARENA_MAX, 1))
    return mallopt is not None and all(mallopt(*setting) for setting in settings)


def give_back_freed_memory() -> None:
    """What was freed goes back to the system once, since what comes next may not fit where it was."""
    if keep_freed_memory():
        ctypes.CDLL(None).malloc_trim(0)
