"""Measuring inside a worker: time, memory, arithmetic, and the machine's own rate."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

KINDS = {
    "products": ("convolution", "mm", "addmm", "bmm", "baddbmm"),
    "pooling": ("max_pool2d", "gather"),
    "statistics": ("native_batch_norm", "batch_norm", "sum", "mean", "var"),
}
"""Operations of a profile, by how their names begin; all others count as "others"."""
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def seconds(call: Callable[[], object], times: int = 1) -> float:
    """What one of some successive calls takes on average."""
    _synchronize()
    start = time.perf_counter()
    for _ in range(times):
        call()
    _synchronize()
    return (time.perf_counter() - start) / times


def flops(call: Callable[[], object]) -> int:
    """The operations of a call's matrix products and convolutions, a multiplication and an addition counting two."""
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def profile(call: Callable[[], object], repeats: int = 3) -> dict[str, float]:
    """Where the time of a call goes on a single core, in seconds: the median of some calls.

    Returns:
        ``core``: the whole call, undisturbed. Of that, the time inside of operations by `KINDS` and ``others``, and
        what is left, ``between``: Python, autograd and the starting of operations.
    """
    found: dict[str, list[float]] = defaultdict(list)
    with _one_thread():
        call()
        for _ in range(repeats):
            found["core"].append(seconds(call))
            with _Times() as times:
                call()
            for kind in (*KINDS, "others"):
                found[kind].append(times.seconds[kind])
    medians = {kind: statistics.median(values) for kind, values in found.items()}
    return {**medians, "between": 2 * medians["core"] - sum(medians.values())}


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Times(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The time inside of operations, by their kind."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seconds: dict[str, float] = defaultdict(float)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        kind = next((kind for kind, names in KINDS.items() if name.startswith(names)), "others")
        start = time.perf_counter()
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.seconds[kind] += time.perf_counter() - start


class Peak:
    """The most memory held since this was made, above what was held then.

    On the CPU it is the process's resident memory: Linux keeps the peak of a process's own address space, which
    ``getrusage`` mixes with that of the process that started it.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            with suppress(OSError):  # forget the peak of importing
                CLEAR.write_text("5")
        self.before = torch.cuda.memory_allocated() if device == "cuda" else self._highest()

    def bytes(self) -> int:
        return self._highest() - self.before

    def _highest(self) -> int:
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated()
        if STATUS.exists():
            line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
            return 1024 * int(line.split()[1])
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class MatrixProduct:
    """The machine's rate at float32 matrix products, the ceiling that every row is held against."""

    def __init__(self, device: str, quick: bool) -> None:
        size = 256 if quick else 8192 if device == "cuda" else 2048
        self.left, self.right = (torch.randn(size, size, device=device) for _ in range(2))
        self.flops = 2 * size**3

    def rate(self, repeats: int = 3) -> float:
        """Operations in a second: the best of some products."""
        return self.flops / min(seconds(lambda: self.left @ self.right) for _ in range(repeats))


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
