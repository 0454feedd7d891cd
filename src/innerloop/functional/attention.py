"""Run attention with the kernel that supports derivatives of every order.

Torch has one switch for all threads of a process. So users of the math kernel are counted: the first one to enter
turns the fast kernels off, and the last one to leave restores them.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any

import torch

from ..common.interrupts import Lock

_cuda: Any = torch.backends.cuda
_SWITCHES = (
    (_cuda.flash_sdp_enabled, _cuda.enable_flash_sdp, False),
    (_cuda.mem_efficient_sdp_enabled, _cuda.enable_mem_efficient_sdp, False),
    (_cuda.cudnn_sdp_enabled, _cuda.enable_cudnn_sdp, False),
    (_cuda.math_sdp_enabled, _cuda.enable_math_sdp, True),
)


class _ByMathematics(threading.local):
    """A context in which only the math kernel runs. It can be entered any number of times, from any thread.

    Attributes:
        depth: the number of times that this thread is inside.
    """

    depth = 0

    def __enter__(self) -> None:
        global _before
        with _lock:
            if not any(_depths.values()):
                _before = [enabled() for enabled, _, _ in _SWITCHES]
                for (_, enable, wanted), was in zip(_SWITCHES, _before, strict=True):
                    if was != wanted:
                        enable(wanted)
            self.depth += 1
            _depths[threading.get_ident()] = self.depth

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        self.leave(self.depth - 1)

    def leave(self, depth: int) -> None:
        """Leave until this thread is inside ``depth`` times."""
        global _before
        with _lock:
            self.depth = depth
            _depths[threading.get_ident()] = depth  # not a running sum, which an interrupt could leave wrong
            if not any(_depths.values()):
                _depths.clear()
                for (enabled, enable, _), was in zip(_SWITCHES, _before, strict=False):  # empty if nobody entered
                    if enabled() != was:
                        enable(was)
                _before = []


_lock = Lock()
_depths: dict[int, int] = {}
_before: list[bool] = []
"""The switches before the first thread entered, while any thread is inside."""
by_mathematics = _ByMathematics()
