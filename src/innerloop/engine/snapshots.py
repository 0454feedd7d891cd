"""Snapshots of what a run may change, to detect changes and to undo them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .observing import RandomState
from .state import State


class Snapshot:
    """A snapshot of the Python state that code can reach, the values of tensors, and the random states.

    Args:
        state: the Python state.
        own: more tensors, by name.

    Attributes:
        random: the random states.
    """

    def __init__(self, state: State, own: Mapping[str, Tensor]) -> None:
        self.random, self._state = RandomState(), state
        self._tensors = {**state.tensors, **own}
        self._values = {name: tensor.detach().clone() for name, tensor in self._tensors.items()}

    def change(self) -> str | None:
        """Return the name of something that has changed, or ``None``; random states do not count."""
        changed = (name for name, tensor in self._tensors.items() if not _identical(tensor, self._values[name]))
        return self._state.change() or next(changed, None)

    def undone(self, run: Callable[[], Any]) -> str | None:
        """Run a function, undo its changes, and return the name of something that it changed, or ``None``."""
        try:
            run()
            return self.change()
        finally:
            self.restore()

    def restore(self) -> None:
        """Restore everything."""
        self._state.restore()
        self.random.restore()
        with torch.no_grad():
            for name, tensor in self._tensors.items():
                if not _identical(tensor, self._values[name]):
                    tensor.copy_(self._values[name])


def _identical(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors have equal values, with NaN in the same places."""
    same = a.shape == b.shape and a.dtype == b.dtype
    with torch.no_grad():
        return same and (a.layout != torch.strided or bool(((a == b) | ((a != a) & (b != b))).all()))
