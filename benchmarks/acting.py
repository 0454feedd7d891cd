"""Environment steps a second, all episodes at once against one after the other: python -m benchmarks.acting

Both act by the same policies, one for each task, in environments of the same kind: at once as `innerloop.rl` does, and
as a plain loop does, one environment and one action at a time. The two take turns, and ratios are of medians. The plain
loop lives through fewer episodes: what it does in a second does not depend on how many there are.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any, Protocol

import torch

from innerloop import Batch, rl
from innerloop.common.disk import write_text
from innerloop.train.record import environment

RESULT = Path(__file__).parent / "acting.json"
TASKS, EPISODES = 40, 20
LOOPED = {"navigation": (4, 2), "half-cheetah": (2, 1)}
"""Tasks and episodes of the plain loop."""


class Single(Protocol):
    """One environment as Gymnasium has them."""

    def set_task(self, task: Any) -> None: ...
    def reset(self) -> Any: ...
    def step(self, action: Any) -> tuple[Any, float, bool]: ...


class Point:
    """2-D navigation as one would write it for a single point."""

    def set_task(self, task: Any) -> None:
        self.goal = task.tolist()

    def reset(self) -> list[float]:
        self.place = [0.0, 0.0]
        return self.place

    def step(self, action: Any) -> tuple[list[float], float, bool]:
        moved = (max(-0.1, min(0.1, a)) for a in action.tolist())
        self.place = [x + a for x, a in zip(self.place, moved, strict=True)]
        away = math.dist(self.place, self.goal)
        return self.place, -away, away < 0.01


class Cheetah:
    """Gymnasium's, without its wrappers."""

    def __init__(self) -> None:
        import gymnasium

        self.inner: Any = gymnasium.make("innerloop.rl.gym:innerloop/HalfCheetahDirection-v0").unwrapped

    def set_task(self, task: Any) -> None:
        self.inner.set_task(task)

    def reset(self) -> Any:
        return self.inner.reset()[0]

    def step(self, action: Any) -> tuple[Any, float, bool]:
        seen, reward, ended, _, _ = self.inner.step(action.numpy())
        return seen, reward, ended


def at_once(place: rl.Environment, learner: Any, tasks: Any) -> float:
    """Steps a second of `innerloop.rl`."""
    nothing = torch.zeros(len(tasks), 1)
    policy, generator = learner.adapt_all(Batch(nothing, nothing), 0), torch.Generator().manual_seed(0)
    start = time.perf_counter()
    lived = rl.rollout(place, policy, tasks, EPISODES, generator)
    return lived.steps / (time.perf_counter() - start)


@torch.no_grad()
def one_by_one(single: Single, horizon: int, policy: torch.nn.Module, tasks: Any, episodes: int) -> float:
    """Steps a second of a plain loop."""
    steps, generator = 0, torch.Generator().manual_seed(0)
    each = [copy.deepcopy(policy) for _ in tasks]
    start = time.perf_counter()
    for task, own in zip(tasks, each, strict=True):
        single.set_task(task)
        for _ in range(episodes):
            seen = single.reset()
            for _ in range(horizon):
                observation = torch.as_tensor(seen, dtype=torch.float32)
                action = own(observation).sample(generator)
                seen, _, done = single.step(action)
                steps += 1
                if done:
                    break
    return steps / (time.perf_counter() - start)


def compare(name: str, place: rl.Environment, single: Single, repeats: int) -> dict[str, Any]:
    """Both in turns, after one of each that does not count."""
    torch.manual_seed(0)
    policy = rl.gaussian_policy(place.observations, place.actions)
    learner = rl.maml_trpo(policy, episodes=EPISODES, vectorize=True)
    tasks, (few, episodes) = place.tasks(TASKS, torch.Generator().manual_seed(0)), LOOPED[name]
    rates: dict[str, list[float]] = {"at once": [], "one by one": []}
    for turn in range(repeats + 1):
        found = at_once(place, learner, tasks), one_by_one(single, place.horizon, policy, tasks[:few], episodes)
        if turn:
            for kind, rate in zip(rates, found, strict=True):
                rates[kind].append(round(rate, 1))
    medians = {kind: statistics.median(found) for kind, found in rates.items()}
    ratio = medians["at once"] / medians["one by one"]
    print(f"{name}, horizon {place.horizon}: {medians}; {ratio:.1f} times", flush=True)
    return {"horizon": place.horizon, "steps_per_second": rates, "ratio": round(ratio, 2)}


def main(repeats: int) -> None:
    """Measure, print and write."""
    found: dict[str, Any] = {"tasks": TASKS, "episodes": EPISODES}
    found["navigation"] = compare("navigation", rl.Navigation(100), Point(), repeats)
    found["half-cheetah"] = compare("half-cheetah", rl.Locomotion("half-cheetah", "direction", 100), Cheetah(), repeats)
    write_text(RESULT, json.dumps({**found, "environment": environment(torch.device("cpu"))}, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=11)
    main(parser.parse_args().repeats)
