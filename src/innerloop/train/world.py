"""Several processes that train one learner, each on its share of the tasks of every meta-batch.

Every process draws the whole meta-batch, so that tasks do not depend on the number of processes, and takes its share.
One all-reduce per iteration sums the results in a flat tensor. All processes then make the same outer step.
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
"""How long a process waits for the others, which may be compiling, before it considers them lost. A process that ended
is noticed at once."""

_OLD = {"told": "broadcast", "everybody": "all_gather"}


class LostProcessError(ConnectionError):
    """Another process of the training ended, or cannot be reached."""


class World:
    """The processes of a training; by default there is only one.

    Args:
        rank: the number of this process, from 0; only process 0 writes files and prints.
        size: the number of processes.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @classmethod
    def current(cls) -> World:
        """Return the default group of ``torch.distributed`` if it is initialized, else a single process."""
        on = dist.is_available() and dist.is_initialized()
        return cls(dist.get_rank(), dist.get_world_size()) if on else cls()

    def __getattr__(self, name: str) -> Any:
        if (new := _OLD.get(name)) is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        warn_of_old_name(f"train.World.{name}", f"train.World.{new}")
        return getattr(self, new)

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes files and prints."""
        return self.rank == 0

    def bounds(self, total: int) -> slice:
        """Return the range of tasks of this process, out of ``total`` tasks.

        Raises:
            ValueError: there are fewer tasks than processes.
        """
        if total < self.size:
            raise ValueError(f"{self.size} processes need meta-batches of at least as many tasks, got tasks={total}")
        return slice(self.rank * total // self.size, (self.rank + 1) * total // self.size)

    def share(self, tasks: Tasks) -> Tasks:
        """Return this process's share of a meta-batch."""
        part: Tasks = tasks if self.size == 1 else select(tasks, self.bounds(count(tasks)))
        return part

    def join(
        self, total: int, grads: Params, outcome: Outcome, moved: Mapping[str, Tensor], flag: bool
    ) -> tuple[Params, Outcome, bool]:
        """Combine the results of all processes on a meta-batch.

        Args:
            total: the number T of tasks of all processes together.
            grads: the gradient of the mean objective of this process's tasks.
            outcome: the outcome of this process's tasks.
            moved: statistics, means over this process's tasks, which are replaced by the means over all tasks.
            flag: a flag of this process.

        Returns:
            The gradient of the mean objective of all T tasks; their outcome, except ``output``, which stays that of
            this process's tasks; and whether any process set its flag.
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
        """Return means over all T tasks, from means over this process's tasks."""
        if self.size == 1:
            return means
        own = self.bounds(total)
        weight = (own.stop - own.start) / total
        return dict(zip(means, self._all_reduce([weight * mean.detach() for mean in means.values()]), strict=True))

    def whole(self, own: Tensor, total: int) -> Tensor:
        """Return the values of all T tasks ``[T, ...]``, from the values of this process's tasks."""
        return own if self.size == 1 else self._all_reduce([_placed(own, self.bounds(total), total)])[0]

    def _all_reduce(self, tensors: list[Tensor]) -> list[Tensor]:
        """Sum tensors over all processes, with one collective operation."""
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with _losses():
            dist.all_reduce(flat)
        parts = flat.split_with_sizes([tensor.numel() for tensor in tensors])
        return [part.view_as(t).to(t.dtype) for part, t in zip(parts, tensors, strict=True)]

    def broadcast(self, value: Any) -> Any:
        """Return the value of the first process, in all processes."""
        if self.size == 1:
            return value
        box = [value if self.first else None]
        with _losses():
            dist.broadcast_object_list(box, 0)
        return box[0]

    def all_gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, in order of their ranks."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        with _losses():
            dist.all_gather_object(values, value)
        return values


def _placed(part: Tensor, own: slice, total: int) -> Tensor:
    """Return zeros ``[T, ...]`` with the part ``[t, ...]`` in its place."""
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
            f"another process of this training ended or cannot be reached ({reason}). Its own message says why; to "
            "resume from the last checkpoint, run the same command with --resume"
        ) from error


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """Join the processes that torchrun (or its environment variables) describes; without these there is only one.

    Raises:
        LostProcessError: the other processes cannot be reached.
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
            # After a restart torchrun on one host gives the same store, with entries of the dead processes.
            store = PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    try:
        yield World.current()
        # A process that leaves while others communicate with it can abort them, so they leave together. This process
        # is done, so it does not matter if another leaves the barrier first and closes the connection.
        with suppress(RuntimeError):
            dist.barrier()
    finally:
        dist.destroy_process_group()


def restarted() -> bool:
    """Return whether torchrun has restarted the processes after one of them failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
