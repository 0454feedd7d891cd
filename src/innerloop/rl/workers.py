"""Environments of Gymnasium's in worker processes, for simulators that know neither batches nor threads."""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import Any

import numpy as np


class WorkerError(RuntimeError):
    """A worker process ended, failed or did not answer in time. The message says which, and why as far as known."""


class Workers:
    """So many copies of an environment as one vector environment, each worker process stepping its share of them.

    An episode that has ended is not stepped until the next reset: its observation stays and its reward is 0.

    Args:
        make: makes one environment, whose ``unwrapped`` has ``set_task(task)``; it has to be picklable by cloudpickle.
        num_envs: how many.
        workers: processes; 0 steps all of them in this one.
        timeout: seconds after which a worker that does not answer is given up.

    Raises:
        WorkerError: a worker fails, ends, or does not answer; all of them are ended then.
        TypeError: the environment has no ``set_task``.
    """

    def __init__(self, make: Callable[[], Any], num_envs: int, workers: int = 0, timeout: float = 60.0) -> None:
        if num_envs < 1 or workers < 0 or timeout <= 0:
            raise ValueError(
                f"num_envs >= 1, workers >= 0 and timeout > 0 are wanted, got {num_envs}, {workers} and {timeout}"
            )
        probe = make()
        if not hasattr(probe.unwrapped, "set_task"):
            raise TypeError(f"{type(probe.unwrapped).__name__} has no set_task(task), so its task cannot be set")
        self.single_observation_space, self.single_action_space = probe.observation_space, probe.action_space
        probe.close()
        self.num_envs, self.timeout, number = num_envs, timeout, min(workers, num_envs)
        bounds = np.linspace(0, num_envs, max(1, number) + 1).astype(int)
        self._parts = [slice(a, b) for a, b in pairwise(bounds)]
        self._connections: list[Connection] = []
        self._processes: list[Any] = []
        self._own = None if number else Group(make, num_envs)
        context = multiprocessing.get_context("spawn")
        for part in self._parts if number else []:
            ours, theirs = context.Pipe()
            arguments = (_portable(make), part.stop - part.start, theirs)
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._connections.append(ours)
            self._processes.append(process)

    def set_task(self, tasks: Sequence[Any]) -> None:
        """One for each environment."""
        self._all("set_task", [tasks[part] for part in self._parts])

    def reset(self, seed: Sequence[int]) -> tuple[Any, dict[str, Any]]:
        """Begin an episode in each environment, by a seed of its own."""
        return np.concatenate(self._all("reset", [seed[part] for part in self._parts])), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Observations, rewards, whether episodes terminated, whether they were cut off."""
        found = zip(*self._all("step", [actions[part] for part in self._parts]), strict=True)
        observations, rewards, ended, cut = (np.concatenate(parts) for parts in found)
        return observations, rewards, ended, cut, {}

    def close(self) -> None:
        """End the workers."""
        for connection in self._connections:
            connection.close()  # at which they end by themselves
        for process in self._processes:
            process.join(1)
            if process.is_alive():
                process.kill()
        self._connections, self._processes = [], []
        if self._own is not None:
            self._own.close()

    def _all(self, name: str, arguments: Iterable[Any]) -> list[Any]:
        """Have all workers do the same at the same time."""
        if self._own is not None:
            return [getattr(self._own, name)(argument) for argument in arguments]
        try:
            for number, (connection, argument) in enumerate(zip(self._connections, arguments, strict=True)):
                try:
                    connection.send((name, argument))
                except OSError as error:
                    raise self._ended(number) from error
            end = time.monotonic() + self.timeout
            return [self._answer(number, end) for number in range(len(self._connections))]
        except WorkerError:
            self.close()
            raise

    def _answer(self, number: int, end: float) -> Any:
        connection = self._connections[number]
        if not connection.poll(max(0.0, end - time.monotonic())):
            raise WorkerError(f"worker {number} of {len(self._processes)} did not answer within {self.timeout:g} s")
        try:
            failed, answer = connection.recv()
        except (EOFError, OSError) as error:
            raise self._ended(number) from error
        if failed:
            raise WorkerError(f"worker {number} of {len(self._processes)} failed: {answer}")
        return answer

    def _ended(self, number: int) -> WorkerError:
        process = self._processes[number]
        process.join(1)
        return WorkerError(f"worker {number} of {len(self._processes)} ended (exit code {process.exitcode})")


class Group:
    """Some environments, stepped one after the other."""

    def __init__(self, make: Callable[[], Any], number: int) -> None:
        self._environments = [make() for _ in range(number)]
        self._over = np.zeros(number, dtype=bool)
        self._seen: list[Any] = [None] * number

    def set_task(self, tasks: Sequence[Any]) -> None:
        """One for each."""
        for environment, task in zip(self._environments, tasks, strict=True):
            environment.unwrapped.set_task(task)

    def reset(self, seeds: Sequence[int]) -> Any:
        """The first observations."""
        self._over[:] = False
        for number, (environment, seed) in enumerate(zip(self._environments, seeds, strict=True)):
            self._seen[number] = environment.reset(seed=int(seed))[0]
        return np.stack(self._seen)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any]:
        """Observations, rewards, terminations, cuts."""
        rewards, ended, cut = np.zeros(len(actions)), self._over.copy(), np.zeros(len(actions), dtype=bool)
        for number in np.flatnonzero(~self._over):
            seen, reward, terminated, truncated, _ = self._environments[number].step(actions[number])
            self._seen[number], rewards[number] = seen, reward
            ended[number], cut[number] = terminated, truncated
        self._over |= ended | cut
        return np.stack(self._seen), rewards, ended, cut

    def close(self) -> None:
        """Close each."""
        for environment in self._environments:
            environment.close()


def _portable(make: Callable[[], Any]) -> bytes:
    import cloudpickle  # Gymnasium brings it

    return cloudpickle.dumps(make)  # type: ignore[no-any-return]


def _serve(make: bytes, number: int, connection: Connection) -> None:
    """What a worker does: answer until nobody asks."""
    import pickle

    group: Group | None = None
    while True:
        try:
            name, argument = connection.recv()
        except (EOFError, OSError, KeyboardInterrupt):
            return
        try:
            group = group or Group(pickle.loads(make), number)
            connection.send((False, getattr(group, name)(argument)))
        except KeyboardInterrupt:
            return
        except Exception as error:  # of anybody's environment
            where = traceback.extract_tb(error.__traceback__)[-1]
            connection.send((True, f"{type(error).__name__}: {error} ({where.name}, line {where.lineno})"))
