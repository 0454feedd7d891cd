"""How much memory tensors hold, counted exactly."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class Held(TorchDispatchMode):
    """The bytes of tensors that were made within this context and still exist.

    Unlike the memory of the process, they do not depend on what ran before.

    Attributes:
        now: at this moment.
        most: at most so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen = weakref.WeakKeyDictionary[Any, int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(result):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self._seen:
                self._seen[storage] = storage.nbytes()
                self.now += storage.nbytes()
                weakref.finalize(storage, self._gone, storage.nbytes())
        self.most = max(self.most, self.now)
        return result

    def _gone(self, size: int) -> None:
        self.now -= size
