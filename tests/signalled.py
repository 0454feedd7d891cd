"""The command line, in a process that sends itself a signal at a task: python signalled.py SIGNAL DRAW WORD [WORD ...]

From outside, a signal can come too late: a short training may have ended by then. Sinusoids are counted.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch

from innerloop.__main__ import main
from innerloop.data import Sinusoid
from innerloop.task import Task


def signalled(number: int, draw: int) -> None:
    """Send this process a signal when so many meta-batches have been drawn."""
    sample, draws = Sinusoid.sample, list[int]()

    def counted(self: Sinusoid, tasks: int, generator: torch.Generator) -> Task:
        draws.append(tasks)
        if len(draws) == draw:
            os.kill(os.getpid(), number)
        return sample(self, tasks, generator)

    patched: Any = Sinusoid
    patched.sample = counted


if __name__ == "__main__":
    signalled(int(sys.argv[1]), int(sys.argv[2]))
    del sys.argv[1:3]
    main()
