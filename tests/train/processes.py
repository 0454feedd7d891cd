"""One process of a training by several: python processes.py RUN NAME ITERATIONS [ACTION]

The action is taken at the tenth meta-batch.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

import innerloop as il
from innerloop.train import Interrupted, LostProcessError, World, joined


class Remembering(il.Adam):
    """Second moments go on from one meta-batch to the next."""

    def bind(self, params: Any, steps: int) -> None:
        super().bind(params, steps)
        for name, tensor in params.items():
            self.register_buffer(name.replace(".", "/"), torch.zeros_like(tensor))

    def init(self, params: Any) -> Any:
        return super().init(params)[0], {name: self.get_buffer(name.replace(".", "/")) for name in params}

    def kept(self, state: Any) -> Any:
        return state[1]

    def keep(self, mean: Any) -> None:
        for name, tensor in mean.items():
            self.get_buffer(name.replace(".", "/")).copy_(tensor)


LEARNERS = {
    "remembering": lambda: il.maml(
        il.models.mlp(1, 20, 1), rule=il.Chain(il.Clip(), Remembering(0.01)), steps=2, loss=F.mse_loss, compile=False
    ),
    "maml": lambda: il.maml(il.models.mlp(1, 20, 1), lr=0.01, steps=2, loss=F.mse_loss, compile=False),
    "unequal": lambda: il.maml(il.models.mlp(1, 20, 1), lr=0.01, steps=2, loss=F.mse_loss),
    "promp": lambda: il.rl.promp(il.rl.gaussian_policy(2, 2, hidden=(8,)), episodes=3, vectorize=True),
    "maml-plus-plus": lambda: il.maml_plus_plus(
        il.models.conv4(channels=1, ways=3, width=4, image_size=16, running=True), steps=2, compile=False
    ),
}


class Doubles:
    """Tasks in double precision, and something that happens at one of them."""

    def __init__(self, source: il.TaskSource, action: str) -> None:
        self.source, self.action, self.draws = source, action, 0

    def sample(self, n: int, generator: torch.Generator) -> il.Tasks:
        self.draws += n > 1
        if self.draws == 10 and os.environ.get("RANK", "0") == "1":
            if self.action == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            elif self.action == "term":
                os.kill(os.getpid(), signal.SIGTERM)
            elif self.action == "die-once" and os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0":
                os.kill(os.getpid(), signal.SIGKILL)
        tasks = self.source.sample(n, generator)
        if isinstance(tasks, list):
            return [il.Task(*(il.Batch(x.double(), y.double()) for x, y in task)) for task in tasks]
        if self.action == "poison" and self.draws == 10:
            tasks.query.y[n - 2, 0] = float("nan")
        return il.Task(*(il.Batch(x.double(), y.double() if y.is_floating_point() else y) for x, y in tasks))


def sources(name: str, action: str) -> tuple[Any, Any]:
    if name == "promp":
        return il.rl.Interaction(il.rl.Navigation(5)), il.rl.Interaction(il.rl.Navigation(5))
    if name == "unequal":
        drawn = [il.Sinusoid(5).sample(1, torch.Generator().manual_seed(n)) for n in range(30)]
        own = [il.task.select(task, 0) for task in drawn]
        cut = [il.Task(il.Batch(*(part[: 2 + n % 4] for part in t.support)), t.query) for n, t in enumerate(own)]
        return (Doubles(il.data.from_tasks(cut), action), Doubles(il.data.from_tasks(cut), ""))
    source = il.Sinusoid(5) if name in ("maml", "remembering") else il.Strokes(ways=3, shots=1, queries=2, size=16)
    return Doubles(source, action), Doubles(source, "")


def main(run: Path, name: str, iterations: int, action: str) -> int:
    torch.set_num_threads(1)
    with joined(torch.device("cpu")) as world:
        torch.manual_seed(world.rank)  # whatever the others begin with, the first one's counts
        learner = LEARNERS[name]().double()
        train, val = sources(name, action)
        trainer = il.Trainer(learner, train, val, run, tasks=7, val_tasks=8,
                             iterations=iterations, checkpoint_every=5, validate_every=10, log_every=1, world=world,
                             progress=False)  # fmt: skip
        try:
            trainer.fit(resume=True)
        except Interrupted as stop:
            print(f"process {world.rank}: {stop}")
            return 128 + stop.signal
        except (LostProcessError, il.train.NonFiniteError) as error:
            print(f"process {world.rank} after {time.perf_counter():.0f}: {type(error).__name__}: {error}")
            return 1
        same = world.all_gather([p.detach() for p in learner.state_dict().values()])
        assert all(torch.equal(a, b) for other in same for a, b in zip(other, same[0], strict=True))
        assert isinstance(world, World)
        if action == "leave" and world.rank:
            os._exit(0)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), (*sys.argv, "")[4]))
