"""What a run may change, to tell whether it did, and to undo it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .observing import RandomState
from .state import State


class Snapshot:
    """The Python state that a run's code can reach, the values of tensors, and where random numbers come from.

    Args:
        state: the Python state.
        own: tensors beside those in it, by name.

    Attributes:
        random: the random states.
    """

    def __init__(self, state: State, own: Mapping[str, Tensor]) -> None:
        self.random, self._state = RandomState(), state
        self._tensors = {**state.tensors, **own}
        self._values = {name: tensor.detach().clone() for name, tensor in self._tensors.items()}

    def change(self) -> str | None:
        """The name of something that is not what it was, if there is anything; random states apart."""
        changed = (name for name, tensor in self._tensors.items() if not _identical(tensor, self._values[name]))
        return self._state.change() or next(changed, None)

    def undone(self, run: Callable[[], Any]) -> str | None:
        """Run something, and make everything what it was; the name of what that changed, if there is anything."""
        try:
            run()
            return self.change()
        finally:
            self.restore()

    def restore(self) -> None:
        """Make everything what it was."""
        self._state.restore()
        self.random.restore()
        with torch.no_grad():
            for name, tensor in self._tensors.items():
                if not _identical(tensor, self._values[name]):
                    tensor.copy_(self._values[name])


def _identical(a: Tensor, b: Tensor) -> bool:
    """Whether values are the same, and those that are not numbers in the same places."""
    same = a.shape == b.shape and a.dtype == b.dtype
    with torch.no_grad():
        return same and (a.layout != torch.strided or bool(((a == b) | ((a != a) & (b != b))).all()))
