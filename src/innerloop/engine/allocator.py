"""Keep freed memory in the process instead of returning it to the system between steps."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache, lru_cache
from typing import Any

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -3, -4, -8  # glibc, malloc.h
MMAP_MAX = 65536  # glibc's default
MAPPED = 4 * 2**20


@lru_cache(maxsize=1)  # called again if the next learner needs another setting
def keep_freed_memory(grow: bool = True) -> bool:
    """Make the C library keep freed memory for the next allocation; return whether it does.

    By default glibc maps and unmaps memory for every large tensor, and the kernel zeroes each page on first use, which
    takes a third of a convolutional meta-step. With this setting the process keeps its peak memory. Threads that start
    later share this memory, because separate arenas would return large pieces. Set ``INNERLOOP_KEEP_MEMORY=0`` to leave
    glibc unchanged; other C libraries are never changed.

    Args:
        grow: extend the heap for large tensors; otherwise tensors above 4 MiB get memory that is returned with them.
    """
    library = _c_library()
    if library is None:
        return False
    mapping = ((M_MMAP_MAX, 0),) if grow else ((M_MMAP_THRESHOLD, MAPPED), (M_MMAP_MAX, MMAP_MAX))
    return all(library.mallopt(*s) for s in (*mapping, (M_TRIM_THRESHOLD, 2**31 - 1), (M_ARENA_MAX, 1)))


def give_back_freed_memory() -> None:
    """Return freed memory to the system once, since the next allocations may not fit into its pieces."""
    if (library := _c_library()) is not None:
        library.malloc_trim(0)


@cache
def _c_library() -> Any:
    """Return the C library if it is glibc and may be configured; else ``None``."""
    if os.environ.get("INNERLOOP_KEEP_MEMORY", "1") == "0" or not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
