"""How a per-task function runs over a meta-batch: vectorised, or one task after another. Both give the same numbers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import nn
from torch.func import vmap
from torch.utils import _pytree as pytree

from .inner import stack
from .operations import TaskOperations
from .task import Params, Task, count, select

Vectorize = Literal["auto"] | bool

PerTask = Callable[[Task, Params, Params], Any]
"""``(one task, its own parameters, its own buffers) -> pytree of tensors``."""


class Engine:
    """Maps a per-task function over tasks, and remembers whether the module can be vectorised.

    Args:
        model: the module, for its name in messages.
        vectorize: ``True`` runs all tasks at once under ``torch.vmap``, ``False`` one by one, ``"auto"`` vectorises
            unless the module cannot be, and then says so once.
    """

    def __init__(self, model: nn.Module, vectorize: Vectorize = "auto") -> None:
        if vectorize not in ("auto", True, False):
            raise ValueError(f'vectorize is "auto", True or False, got {vectorize!r}')
        self.model, self.vectorize = model, vectorize
        self._fallback = False

    @property
    def vectorised(self) -> bool:
        """Whether tasks run at once."""
        return self.vectorize is not False and not self._fallback

    def map(self, function: PerTask, tasks: Task, params: Params, buffers: Params) -> Any:
        """The function's results for every task, stacked along a leading task axis."""
        return _concatenate([result for result, _ in self.chunks(function, tasks, params, buffers)])

    def chunks(self, function: PerTask, tasks: Task, params: Params, buffers: Params) -> Iterator[tuple[Any, int]]:
        """Stacked results for some tasks at a time, with the number of tasks: all at once when vectorised, one by one
        when looping, so that whoever differentiates each chunk needs the memory of one."""
        number = count(tasks)
        if self.vectorised:
            random_state = torch.get_rng_state()
            try:
                result = _vectorised(function, tasks, params, buffers, number)
            except torch.OutOfMemoryError:
                raise  # which says nothing of the module
            except Exception as error:
                if self.vectorize is True:
                    raise ValueError(
                        _explain(error, self.model, "and vectorize=True forbids to run tasks one by one")
                    ) from error
                torch.set_rng_state(random_state)
                self._fall_back(function, tasks, params, buffers, error)
                torch.set_rng_state(random_state)
            else:
                yield result, number
                return
        for index in range(number):
            with TaskOperations(vectorised=False):
                result = function(select(tasks, index), params, buffers)
            yield stack([result]), 1

    def _fall_back(self, function: PerTask, tasks: Task, params: Params, buffers: Params, error: Exception) -> None:
        """Loop from now on, if every task runs alone; a mistake of the caller's raises here, in its own words."""
        self._fallback = True
        try:
            with torch.no_grad():
                for index in range(count(tasks)):
                    function(select(tasks, index), params, buffers)
        except Exception as plain:
            self._fallback = False
            raise plain from None
        warnings.warn(_explain(error, self.model, "so tasks run one by one"), stacklevel=5)


def _vectorised(function: PerTask, tasks: Task, params: Params, buffers: Params, number: int) -> Any:
    with TaskOperations(vectorised=True):
        return vmap(function, randomness="different")(tasks, copies(params, number), copies(buffers, number))


def copies(tensors: Params, number: int) -> Params:
    """Each tensor with a new first axis, one for every item: buffers are updated in place, and inner gradients are
    taken for each. Images and their filters are laid out with channels last, as the kernels want them."""
    last = {n: t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for n, t in tensors.items()}
    return {name: tensor.expand(number, *tensor.shape) for name, tensor in last.items()}


def _concatenate(chunks: list[Any]) -> Any:
    return pytree.tree_map(lambda *parts: parts[0] if len(parts) == 1 else torch.cat(parts), *chunks)


def _explain(error: Exception, model: nn.Module, remedy: str) -> str:
    """Torch's error, in terms of the module in whose ``forward`` it arose."""
    names = {id(module): name or "the model itself" for name, module in model.named_modules()}
    where, trace = type(model).__name__, error.__traceback__
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and id(owner) in names:
            where = f"{type(owner).__name__} ({names[id(owner)]})"
        trace = trace.tb_next
    return f"{where} cannot be vectorised over tasks, {remedy}. Torch said: {str(error).splitlines()[0]}"
