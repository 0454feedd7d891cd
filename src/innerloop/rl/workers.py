"""Gymnasium environments as families of tasks, optionally in worker processes."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..common.ranges import require_at_least
from .environments import Step


class VectorTasks:
    """A family of tasks in a Gymnasium vector environment; each episode of each task is a sub-environment.

    Args:
        make: ``number -> vector environment`` with ``number`` sub-environments, ``set_task(tasks)`` for an array
            ``[number, ...]``, ``reset(seed=[...])`` and ``step(actions)``; see `Workers` for plain environments.
        draw: ``(n, generator) -> tasks [n, ...]``, a tensor.
        horizon: number of steps of an episode.

    Raises:
        TypeError: the vector environment has no ``set_task``, or has spaces that policies do not support.
    """

    def __init__(
        self, make: Callable[[int], Any], draw: Callable[[int, torch.Generator], Tensor], horizon: int = 200
    ) -> None:
        import gymnasium

        require_at_least(1, horizon=horizon)
        self._make, self._draw, self.horizon = make, draw, horizon
        self._vectors = {1: make(1)}
        self._vector = self._vectors[1]
        if not hasattr(self._vector, "set_task"):
            raise TypeError(f"{type(self._vector).__name__} has no set_task(tasks), so its tasks cannot be set")
        seen, acted = self._vector.single_observation_space, self._vector.single_action_space
        self.discrete = isinstance(acted, gymnasium.spaces.Discrete)
        if not isinstance(seen, gymnasium.spaces.Box) or not (self.discrete or isinstance(acted, gymnasium.spaces.Box)):
            raise TypeError(
                f"policies support Box observations and Box or Discrete actions, got {seen} and {acted}: wrap the "
                "environment"
            )
        self.observations = int(np.prod(seen.shape))
        self.actions = int(acted.n) if self.discrete else int(np.prod(acted.shape))
        self._first = int(acted.start) if self.discrete else 0

    def tasks(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw tasks ``[n, ...]``."""
        return self._draw(n, generator)

    def reset(self, tasks: Tensor, episodes: int, generator: torch.Generator) -> Tensor:
        """Start episodes, each with its own seed; see `Environment`."""
        number = len(tasks) * episodes
        if number not in self._vectors:  # training and evaluation have different numbers
            self._vectors[number] = self._make(number)
        self._vector = self._vectors[number]
        self._shape = (len(tasks), episodes)
        seeds = torch.randint(2**31 - 1, (number,), generator=generator).tolist()
        self._vector.set_task(tasks.repeat_interleave(episodes, 0).numpy())
        return self._tensor(self._vector.reset(seed=seeds)[0])

    def step(self, action: Tensor) -> Step:
        """Take a step; see `Environment`. Continuous actions are clipped to their space."""
        taken, space = action.flatten(0, 1).numpy(), self._vector.single_action_space
        if self.discrete:
            taken = taken + self._first
        else:
            taken = np.clip(taken.reshape(-1, *space.shape), space.low, space.high).astype(space.dtype)
        observation, reward, ended, cut, _ = self._vector.step(taken)
        done = torch.as_tensor(np.asarray(ended) | np.asarray(cut)).view(self._shape)
        return Step(self._tensor(observation), torch.as_tensor(np.asarray(reward)).float().view(self._shape), done)

    def _tensor(self, observation: Any) -> Tensor:
        # A copy, because environments may return the same memory every time.
        return torch.tensor(np.asarray(observation), dtype=torch.float32).reshape(*self._shape, self.observations)

    def close(self) -> None:
        """Close the vector environments."""
        for vector in self._vectors.values():
            vector.close()


STARTING = 60.0
"""Additional seconds for processes to start."""


class WorkerError(RuntimeError):
    """A worker process ended, failed or did not answer in time. The message says which one, and why if it is known."""


class Workers:
    """A vector environment of many copies of an environment; each worker process steps its share of them.

    An episode that has ended is not stepped until the next reset: its observation stays and its reward is 0. Workers
    import the main module of the program, so the program must run its own code under ``if __name__ == "__main__":``.

    Args:
        make: makes one environment, whose ``unwrapped`` has ``set_task(task)``; cloudpickle must be able to pickle it.
        num_envs: number of environments.
        workers: number of worker processes; 0 steps all environments in this process.
        timeout: seconds after which a worker that does not answer counts as failed; before its first answer it has one
            minute more, to start.

    Raises:
        WorkerError: a worker fails, ends, or does not answer; then all workers are ended.
        TypeError: the environment has no ``set_task``.
        ValueError: a number is out of range.
    """

    def __init__(self, make: Callable[[], Any], num_envs: int, workers: int = 0, timeout: float = 60.0) -> None:
        if num_envs < 1 or workers < 0 or timeout <= 0:
            raise ValueError(
                f"Workers needs num_envs >= 1, workers >= 0 and timeout > 0, got {num_envs}, {workers} and {timeout}"
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
        self._begun = False
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
        """Set the task of each environment."""
        self._all("set_task", [tasks[part] for part in self._parts])

    def reset(self, seed: Sequence[int]) -> tuple[Any, dict[str, Any]]:
        """Start an episode in each environment, each with its own seed."""
        return np.concatenate(self._all("reset", [seed[part] for part in self._parts])), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Take a step; return observations, rewards, and whether episodes terminated or were truncated."""
        results = zip(*self._all("step", [actions[part] for part in self._parts]), strict=True)
        observations, rewards, ended, cut = (np.concatenate(parts) for parts in results)
        return observations, rewards, ended, cut, {}

    def close(self) -> None:
        """End the workers."""
        for connection in self._connections:
            connection.close()  # then they end by themselves
        for process in self._processes:
            process.join(1)
            if process.is_alive():
                process.kill()
        self._connections, self._processes = [], []
        if self._own is not None:
            self._own.close()

    def _all(self, name: str, arguments: Iterable[Any]) -> list[Any]:
        """Let all workers do the same at the same time.

        A worker that does not answer in time is killed, so that nothing waits for it.
        """
        if self._own is not None:
            return [getattr(self._own, name)(argument) for argument in arguments]
        if not self._processes:
            raise WorkerError("the workers were ended, by an earlier error or by close(): make new ones")
        self._late: list[int] = []
        self._waiting = set(range(len(self._processes)))
        watch = threading.Timer(self.timeout if self._begun else self.timeout + STARTING, self._kill)
        watch.start()
        try:
            for number, (connection, argument) in enumerate(zip(self._connections, arguments, strict=True)):
                try:
                    connection.send((name, argument))
                except OSError as error:
                    raise self._ended(number) from error
            answers = [self._answer(number) for number in range(len(self._connections))]
            self._begun = True
            return answers
        except WorkerError:
            self.close()
            raise
        finally:
            watch.cancel()

    def _kill(self) -> None:
        self._late = sorted(self._waiting)
        for number in self._late:
            self._processes[number].kill()

    def _answer(self, number: int) -> Any:
        try:
            failed, answer = self._connections[number].recv()
        except (EOFError, OSError) as error:
            raise self._ended(number) from error
        self._waiting.discard(number)
        if failed:
            raise WorkerError(f"worker {number} of {len(self._processes)} failed: {answer}")
        return answer

    def _ended(self, number: int) -> WorkerError:
        of = f"of {len(self._processes)}"
        if self._late:
            return WorkerError(f"worker {self._late[0]} {of} did not answer within {self.timeout:g} s")
        process = self._processes[number]
        process.join(1)
        hint = "" if self._begun else '; does the program run its code under if __name__ == "__main__":?'
        return WorkerError(f"worker {number} {of} ended (exit code {process.exitcode}){hint}")


class Group:
    """Some environments, stepped one after the other."""

    def __init__(self, make: Callable[[], Any], number: int) -> None:
        self._environments = [make() for _ in range(number)]
        self._over = np.zeros(number, dtype=bool)
        self._seen: list[Any] = [None] * number

    def set_task(self, tasks: Sequence[Any]) -> None:
        """Set the task of each environment."""
        for environment, task in zip(self._environments, tasks, strict=True):
            environment.unwrapped.set_task(task)

    def reset(self, seeds: Sequence[int]) -> Any:
        """Start episodes and return the first observations."""
        self._over[:] = False
        for number, (environment, seed) in enumerate(zip(self._environments, seeds, strict=True)):
            self._seen[number] = environment.reset(seed=int(seed))[0]
        return np.stack(self._seen)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any]:
        """Take a step; return observations, rewards, terminations and truncations."""
        rewards, ended, cut = np.zeros(len(actions)), self._over.copy(), np.zeros(len(actions), dtype=bool)
        for number in np.flatnonzero(~self._over):
            seen, reward, terminated, truncated, _ = self._environments[number].step(actions[number])
            self._seen[number], rewards[number] = seen, reward
            ended[number], cut[number] = terminated, truncated
        self._over |= ended | cut
        return np.stack(self._seen), rewards, ended, cut

    def close(self) -> None:
        """Close each environment."""
        for environment in self._environments:
            environment.close()


def _portable(make: Callable[[], Any]) -> bytes:
    import cloudpickle  # Gymnasium brings it

    return cloudpickle.dumps(make)  # type: ignore[no-any-return]


def _serve(make: bytes, number: int, connection: Connection) -> None:
    """Answer requests in a worker process until the connection closes."""
    import pickle

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the trainer, which finishes its iteration
    group: Group | None = None
    while True:
        try:
            name, argument = connection.recv()
        except (EOFError, OSError):
            return
        try:
            group = group or Group(pickle.loads(make), number)
            answer = False, getattr(group, name)(argument)
        except Exception as error:  # any error of the user's environment
            where = traceback.extract_tb(error.__traceback__)[-1]
            answer = True, f"{type(error).__name__}: {error} ({where.name}, line {where.lineno})"
        try:
            connection.send(answer)
        except OSError:
            return
