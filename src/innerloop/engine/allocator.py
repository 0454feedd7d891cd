"""Memory that a process keeps instead of giving it back between steps."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache, lru_cache
from typing import Any

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -3, -4, -8  # glibc, malloc.h
MMAP_MAX = 65536  # glibc's default
MAPPED = 4 * 2**20


@lru_cache(maxsize=1)  # again for a learner that wants it otherwise than the one before
def keep_freed_memory(grow: bool = True) -> bool:
    """Have the C library keep freed memory for the next allocation; whether it does.

    By default glibc maps every large tensor anew and unmaps it afterwards, and the kernel zeroes each of its pages on
    first use: a third of the time of a convolutional meta-step. The process then stays as large as it ever was.
    Threads that start later share this memory, for of that of their own they would give large pieces back. Set
    ``INNERLOOP_KEEP_MEMORY=0`` to leave the C library alone, as other C libraries are.

    Args:
        grow: for tensors that fit nowhere; otherwise those of more than 4 MiB get memory that goes back with them.
    """
    library = _c_library()
    if library is None:
        return False
    mapping = ((M_MMAP_MAX, 0),) if grow else ((M_MMAP_THRESHOLD, MAPPED), (M_MMAP_MAX, MMAP_MAX))
    return all(library.mallopt(*s) for s in (*mapping, (M_TRIM_THRESHOLD, 2**31 - 1), (M_ARENA_MAX, 1)))


def give_back_freed_memory() -> None:
    """What was freed goes back to the system once, since what comes next may not fit where it was."""
    if (library := _c_library()) is not None:
        library.malloc_trim(0)


@cache
def _c_library() -> Any:
    """The C library, if it is glibc and may be told; else ``None``."""
    if os.environ.get("INNERLOOP_KEEP_MEMORY", "1") == "0" or not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
