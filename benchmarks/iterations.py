"""Whole training iterations with their data, as in learn2learn's Omniglot example and as innerloop's users do them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from . import networks, peers
from .rows import INNERLOOP
from .subjects import Innerloop, Job, Subject

TASKSETS = 20_000  # task descriptions that learn2learn's example keeps


class InnerloopIteration(Innerloop):
    """Episodes drawn by index from bytes in memory."""

    purposes = frozenset({"meta-gradient", "predict"})

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        import innerloop as il

        train, val = _noise() if job.quick else il.data.omniglot(job.data, device=job.device)[:2]
        self.train, self.val = (il.FewShot(part, job.row.ways, job.row.shots, job.row.queries) for part in (train, val))
        self.rng = torch.Generator().manual_seed(0)

    def gradient(self) -> Tensor:
        self.tasks = self.train.sample(self.row.tasks, self.rng)
        return super().gradient()

    def step(self) -> float:
        loss = super().step()
        tasks = self.val.sample(self.row.tasks, self.rng)
        output, target = self.learner.predict(tasks)[:, -1], tasks.query.y
        self.metrics = float(F.cross_entropy(output.flatten(0, 1), target.flatten())), _accuracy(output, target)
        return loss

    def check(self) -> None:
        return None


class Learn2LearnIteration(Subject):
    """learn2learn's own task sets, data set and MAML."""

    def __init__(self, job: Job) -> None:
        super().__init__(job, networks.ordinary(job.row))
        if job.files is None:
            raise peers.UnavailableError("it reads Omniglot's files, which this run does without")
        l2l = peers.learn2learn_data(job.checkout)
        self.version = peers.version("learn2learn", l2l)
        random.seed(0)
        self.maml = l2l.algorithms.MAML(self.model, lr=job.row.lr)
        ways, samples = job.row.ways, job.row.shots + job.row.queries
        datasets, transforms = l2l.vision.benchmarks.omniglot.omniglot_tasksets(ways, samples, ways, samples, job.files)
        self.train, self.val = (
            l2l.data.Taskset(dataset=dataset, task_transforms=list(transform), num_tasks=TASKSETS)
            for dataset, transform in list(zip(datasets, transforms, strict=True))[:2]
        )

    def gradient(self) -> float:
        total, self.metrics = 0.0, [0.0, 0.0]
        for _ in range(self.row.tasks):
            loss, _ = self._evaluation(self.train.sample())
            (loss / self.row.tasks).backward()  # type: ignore[no-untyped-call]
            total += loss.item() / self.row.tasks
            loss, accuracy = self._evaluation(self.val.sample())
            self.metrics[0] += loss.item() / self.row.tasks
            self.metrics[1] += accuracy / self.row.tasks
        return total

    def _evaluation(self, task: Any) -> tuple[Tensor, float]:
        """Query loss and accuracy after adapting; samples of a class come together, so every other one supports."""
        x, y = (part.to(self.device) for part in task)
        learner = self.maml.clone()
        for _ in range(self.row.steps):
            learner.adapt(F.cross_entropy(learner(x[::2]), y[::2]))
        output = learner(x[1::2])
        return F.cross_entropy(output, y[1::2]), _accuracy(output, y[1::2])

    def check(self) -> None:
        return None


def _accuracy(output: Tensor, target: Tensor) -> float:
    return float((output.argmax(-1) == target).float().mean())


def _noise() -> tuple[Any, Any]:
    """Two small data sets, for the tests."""
    import innerloop as il

    images = torch.randint(256, (40, 28, 28), dtype=torch.uint8)
    data = il.data.from_arrays(images, torch.arange(40) % 10, "NHW")
    return data, data


BUILDERS: dict[str, Callable[[Job], Subject]] = {INNERLOOP: InnerloopIteration, "learn2learn": Learn2LearnIteration}
