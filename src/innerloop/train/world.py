"""Several processes that train one learner, each on its share of the tasks of every meta-batch.

Every process draws the whole meta-batch, so the stream of tasks does not depend on how many there are, and takes its
part; what the parts come to is added up in one flat tensor, once an iteration. All then make the same outer step.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from ..common.errors import warn_of_old_name
from ..objectives import Outcome
from ..task import Params, Tasks, count, select

PATIENCE = timedelta(minutes=10)
"""How long a process waits for the others, who may be compiling, before it takes them for lost. One that ended is
missed at once."""

_OLD = {"told": "broadcast", "everybody": "all_gather"}


class LostProcessError(ConnectionError):
    """Another process of the training ended, or cannot be reached."""


class World:
    """The processes of a training, which is one alone if nothing else is said.

    Args:
        rank: the number of this one, from 0, which alone writes and speaks.
        size: how many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @classmethod
    def current(cls) -> World:
        """The default group of ``torch.distributed``, if it is initialized."""
        on = dist.is_available() and dist.is_initialized()
        return cls(dist.get_rank(), dist.get_world_size()) if on else cls()

    def __getattr__(self, name: str) -> Any:
        if (new := _OLD.get(name)) is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        warn_of_old_name(f"train.World.{name}", f"train.World.{new}")
        return getattr(self, new)

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    def bounds(self, total: int) -> slice:
        """Which of so many tasks are this process's.

        Raises:
            ValueError: there are not enough for all processes.
        """
        if total < self.size:
            raise ValueError(f"{self.size} processes need meta-batches of at least as many tasks, got tasks={total}")
        return slice(self.rank * total // self.size, (self.rank + 1) * total // self.size)

    def share(self, tasks: Tasks) -> Tasks:
        """This process's part of a meta-batch."""
        part: Tasks = tasks if self.size == 1 else select(tasks, self.bounds(count(tasks)))
        return part

    def join(
        self, total: int, grads: Params, outcome: Outcome, moved: Mapping[str, Tensor], flag: bool
    ) -> tuple[Params, Outcome, bool]:
        """What all parts of a meta-batch come to.

        Args:
            total: T, the tasks of all processes together.
            grads: of the mean objective of this one's.
            outcome: of this one's.
            moved: statistics, means over this one's tasks, which become the means over all.
            flag: whatever one process has to tell the others.

        Returns:
            The gradient of the mean objective of all T tasks; their outcome, but for ``output``, which stays that of
            this process's; and whether any process raised its flag.
        """
        if self.size == 1:
            return grads, outcome, flag
        own, device = self.bounds(total), outcome.loss.device
        weight = (own.stop - own.start) / total
        reals = [torch.view_as_real(m) if m.is_complex() else m for m in moved.values()]
        means = [*grads.values(), *(m for m in reals if m.is_floating_point())]
        each = [outcome.objective, outcome.loss, outcome.steps]
        parts = [weight * mean.detach() for mean in means] + [_placed(part, own, total) for part in each]
        summed = self._all_reduce([*parts, torch.tensor(float(flag), device=device)])
        for mean, value in zip(means[len(grads) :], summed[len(grads) :], strict=False):
            mean.copy_(value)
        objective, loss, steps, flags = summed[len(means) :]
        whole = Outcome(objective, loss, outcome.output, steps)
        return dict(zip(grads, summed, strict=False)), whole, bool(flags > 0)

    def mean(self, total: int, means: Params) -> Params:
        """Means over all T tasks, from means over this process's."""
        if self.size == 1:
            return means
        own = self.bounds(total)
        weight = (own.stop - own.start) / total
        return dict(zip(means, self._all_reduce([weight * mean.detach() for mean in means.values()]), strict=True))

    def whole(self, own: Tensor, total: int) -> Tensor:
        """Of T tasks ``[T, ...]``, from what this process has of its own."""
        return own if self.size == 1 else self._all_reduce([_placed(own, self.bounds(total), total)])[0]

    def _all_reduce(self, tensors: list[Tensor]) -> list[Tensor]:
        """Over all processes, by one collective operation."""
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with _losses():
            dist.all_reduce(flat)
        parts = flat.split_with_sizes([tensor.numel() for tensor in tensors])
        return [part.view_as(t).to(t.dtype) for part, t in zip(parts, tensors, strict=True)]

    def broadcast(self, value: Any) -> Any:
        """What the first process has, in all of them."""
        if self.size == 1:
            return value
        box = [value if self.first else None]
        with _losses():
            dist.broadcast_object_list(box, 0)
        return box[0]

    def all_gather(self, value: Any) -> list[Any]:
        """What each process has, in order of their ranks."""
        if self.size == 1:
            return [value]
        found = [None] * self.size
        with _losses():
            dist.all_gather_object(found, value)
        return found


def _placed(part: Tensor, own: slice, total: int) -> Tensor:
    """The part ``[t, ...]`` in its place among zeros ``[T, ...]``."""
    whole = part.new_zeros(total, *part.shape[1:])
    whole[own] = part
    return whole


@contextmanager
def _losses() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise LostProcessError(
            f"another process of this training ended or cannot be reached ({reason}). Its own message says why; the "
            "same command with --resume goes on from the last checkpoint"
        ) from error


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """The processes that torchrun, or who sets its environment variables, started; without these one alone.

    Raises:
        LostProcessError: the others cannot be reached.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World()
        return
    from torch.distributed import PrefixStore, rendezvous  # type: ignore[attr-defined]

    with _losses():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        store, rank, size = next(rendezvous("env://", timeout=PATIENCE))
        if os.environ.get("GROUP_WORLD_SIZE") == "1":
            # After a restart torchrun on one host hands out the same store, and what died is still in it.
            store = PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    try:
        yield World.current()
        # One that leaves while others still talk to it can abort them, so they leave together. All that this one had to
        # do is done, so it does not matter if another leaves the barrier first, and with it closes the connection.
        with suppress(RuntimeError):
            dist.barrier()
    finally:
        dist.destroy_process_group()


def restarted() -> bool:
    """Whether torchrun has started the processes anew after one of them failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
