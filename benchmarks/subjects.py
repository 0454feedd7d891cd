"""What is timed: one class for each library that takes a meta-step from given tasks, all by the same recipe."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from . import networks, peers
from .rows import CONSTANT, INNERLOOP, PLAIN, PLAIN_BARE, Row

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sinusoid": F.mse_loss,
    "images": F.cross_entropy,
    "pairs": F.binary_cross_entropy_with_logits,
    "iteration": F.cross_entropy,
}


class Job(NamedTuple):
    """What a worker is given.

    Attributes:
        row: the problem.
        library: its name in the row.
        content: of the file that `benchmarks.tasks.prepare` wrote.
        device: "cpu" or "cuda".
        checkout: of the library, if it is not installed.
        data: the folder of the data sets.
        files: the folder that torchvision finds Omniglot in.
        quick: whether this is a tiny run for the tests.
        exact: whether everything is in double precision.
    """

    row: Row
    library: str
    content: dict[str, Any]
    device: str
    checkout: str | None = None
    data: str | None = None
    files: str | None = None
    quick: bool = False
    exact: bool = False

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64 if self.exact else torch.float32

    def tasks(self) -> list[Tensor]:
        """Inputs and targets of the support sets, then of the query sets; each with a task axis first."""
        tensors = (*self.content["support"], *self.content["query"])
        return [t.to(self.device, self.dtype if t.is_floating_point() else t.dtype) for t in tensors]


class Subject(ABC):
    """One library at one row.

    Attributes:
        version: of the library, if it has one.
        parameters: the meta-learned ones, in the order of the weights in the file.
    """

    version = ""

    def __init__(self, job: Job, model: nn.Module) -> None:
        self.row, self.model, self.device = job.row, model.to(job.device, job.dtype), job.device
        networks.give_weights(model, job.content["weights"])
        self.parameters = list(model.parameters())
        self.weights = [p.detach().clone() for p in self.parameters]
        self.optimizer = torch.optim.Adam(self.parameters, lr=job.row.outer_lr, fused=True)  # for every library

    @abstractmethod
    def gradient(self) -> Tensor | float:
        """Leave the gradient of the mean query loss in the parameters, whose gradients are cleared; return the loss."""

    def step(self) -> float:
        """One meta-step: everything from given tasks to moved parameters."""
        self.optimizer.zero_grad()
        loss = self.gradient()
        self.optimizer.step()
        return float(loss)

    @torch.no_grad()
    def reset(self) -> None:
        """Back to the first weights, so that every repeat does the same work."""
        for parameter, weight in zip(self.parameters, self.weights, strict=True):
            parameter.copy_(weight)

    def check(self) -> dict[str, float] | None:
        """Loss and norm of the meta-gradient at the first weights; ``None`` where libraries cannot be compared."""
        self.optimizer.zero_grad()
        loss = float(self.gradient())
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in self.parameters if p.grad is not None))
        return {"loss": loss, "gradient_norm": norm}

    def settled(self) -> bool:
        """Whether the library has tried out and compiled what it will; warm-up goes on until then."""
        return True

    def choices(self) -> list[str]:
        """What the library decided while it warmed up, in words."""
        return []


class OneByOne(Subject):
    """Libraries that take the tasks one after another, each with a backward pass of its own, as their examples do."""

    def __init__(self, job: Job) -> None:
        super().__init__(job, networks.ordinary(job.row))
        self.loss = LOSSES[job.row.kind]
        parts = job.tasks()
        self.tasks = list(zip(*parts, strict=True))
        self.indices = self._indices(parts[0].shape[1])

    def _indices(self, examples: int) -> list[Tensor] | None:
        """The examples of each step's mini-batch, in order and cyclically."""
        size = self.row.batch_size
        if size is None:
            return None
        every = torch.arange(self.row.steps * size, device=self.device) % examples
        return list(every.view(self.row.steps, size))

    def batch(self, x: Tensor, y: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The support examples of a step."""
        return (x, y) if self.indices is None else (x[self.indices[step]], y[self.indices[step]])

    def gradient(self) -> Tensor:
        total = torch.zeros((), device=self.device)
        for task in self.tasks:
            total += self.of_task(*task).detach() / len(self.tasks)
        return total

    @abstractmethod
    def of_task(self, sx: Tensor, sy: Tensor, qx: Tensor, qy: Tensor) -> Tensor:
        """Add a task's part of the meta-gradient to the parameters' gradients; return its query loss."""


class Plain(OneByOne):
    """A loop written by hand in PyTorch."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.validates = job.row.kind == "pairs" and job.library == PLAIN
        self.names = [name for name, _ in self.model.named_parameters()]

    def output(self, weights: list[Tensor], x: Tensor) -> Tensor:
        output: Tensor = functional_call(self.model, dict(zip(self.names, weights, strict=True)), (x,))
        return output

    def of_task(self, sx: Tensor, sy: Tensor, qx: Tensor, qy: Tensor) -> Tensor:
        weights: list[Tensor] = list(self.parameters)
        second, query = self.row.order == 2, None
        epoch = len(sx) // (self.row.batch_size or len(sx))
        for step in range(self.row.steps):
            x, y = self.batch(sx, sy, step)
            grads = torch.autograd.grad(self.loss(self.output(weights, x), y), weights, create_graph=second)
            weights = [w - self.row.lr * g for w, g in zip(weights, grads, strict=True)]
            if self.validates and (step + 1) % epoch == 0:
                query = self.validate(weights, qx, qy)
        if query is None:
            query = self.loss(self.output(weights, qx), qy)
        (query / len(self.tasks)).backward()  # type: ignore[no-untyped-call]
        return query

    def validate(self, weights: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
        """The mean loss on images that come one by one; loss and hits are read off each, to be printed."""
        losses, total, hits = [], 0.0, 0.0
        for image, label in zip(torch.split(x, 1), torch.split(y, 1), strict=True):
            output = self.output(weights, image)
            losses.append(self.loss(output, label))
            total += losses[-1].item()
            hits += float(((output > 0.5) == label.bool()).sum())
        return torch.stack(losses).mean()


class Learn2Learn(OneByOne):
    """``learn2learn.algorithms.MAML``: a clone for each task, adapted step by step."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        package = peers.learn2learn(job.checkout)
        self.version = peers.version("learn2learn", package)
        self.maml = package.algorithms.MAML(self.model, lr=job.row.lr, first_order=job.row.order == 1)

    def of_task(self, sx: Tensor, sy: Tensor, qx: Tensor, qy: Tensor) -> Tensor:
        learner = self.maml.clone()
        for step in range(self.row.steps):
            x, y = self.batch(sx, sy, step)
            learner.adapt(self.loss(learner(x), y))
        query = self.loss(learner(qx), qy)
        (query / len(self.tasks)).backward()  # type: ignore[no-untyped-call]
        return query


class Higher(OneByOne):
    """``higher.innerloop_ctx`` around SGD. First order: adapted without a graph, and the first weights are given the
    gradient at the adapted ones."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.higher = peers.higher(job.checkout)
        self.version = peers.version("higher", self.higher)
        self.inner = torch.optim.SGD(self.parameters, lr=job.row.lr)

    def of_task(self, sx: Tensor, sy: Tensor, qx: Tensor, qy: Tensor) -> Tensor:
        second = self.row.order == 2
        options = {"copy_initial_weights": not second, "track_higher_grads": second}
        with self.higher.innerloop_ctx(self.model, self.inner, **options) as (model, optimizer):
            for step in range(self.row.steps):
                x, y = self.batch(sx, sy, step)
                optimizer.step(self.loss(model(x), y))
            query = self.loss(model(qx), qy)
            if second:
                (query / len(self.tasks)).backward()  # type: ignore[no-untyped-call]
                return query
            grads = torch.autograd.grad(query / len(self.tasks), list(model.parameters()))
        for parameter, grad in zip(self.parameters, grads, strict=True):
            parameter.grad = grad if parameter.grad is None else parameter.grad + grad
        return query


class TorchOpt(OneByOne):
    """``torchopt.MetaSGD``, which moves the module itself; its first state is put back after each task."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        if job.row.order == 1:
            raise peers.UnavailableError("it has no first-order inner step")
        self.torchopt = peers.torchopt(job.checkout)
        self.version = peers.version("torchopt", self.torchopt)
        self.inner = self.torchopt.MetaSGD(self.model, lr=job.row.lr)

    def gradient(self) -> Tensor:
        extract = self.torchopt.extract_state_dict
        self.before = extract(self.model, by="reference", detach_buffers=True), extract(self.inner, by="reference")
        return super().gradient()

    def of_task(self, sx: Tensor, sy: Tensor, qx: Tensor, qy: Tensor) -> Tensor:
        for step in range(self.row.steps):
            x, y = self.batch(sx, sy, step)
            self.inner.step(self.loss(self.model(x), y))
        query = self.loss(self.model(qx), qy)
        (query / len(self.tasks)).backward()  # type: ignore[no-untyped-call]
        for target, state in zip((self.model, self.inner), self.before, strict=True):
            self.torchopt.recover_state_dict(target, state)
        return query


class Innerloop(Subject):
    """`innerloop.maml` and its meta-gradient. Imports innerloop, which no other worker does."""

    purposes = frozenset({"meta-gradient"})

    def __init__(self, job: Job) -> None:
        import innerloop as il

        from .tasks import ours

        super().__init__(job, ours(job.row))
        row, self.version = job.row, il.__version__
        self.learner = il.maml(
            self.model,
            lr=row.lr,
            order=row.order,
            steps=row.steps,
            loss=LOSSES[row.kind],
            batch_size=row.batch_size,
            memory="constant" if job.library == CONSTANT else "graph",
        )
        self.learner.to(job.device)
        # What the trainer tells it at the start of a training of this length.
        self.learner.compiler.steps_to_come = row.training
        self.learned = {name: p for name, p in self.learner.named_parameters() if p.requires_grad}
        if len(self.learned) != len(self.parameters):
            raise ValueError(f"innerloop learns {len(self.learned)} tensors, the peers {len(self.parameters)}")
        if "support" in job.content:
            sx, sy, qx, qy = job.tasks()
            self.tasks = il.Task(il.Batch(sx, sy), il.Batch(qx, qy))

    def gradient(self) -> Tensor:
        grads, outcome = self.learner.meta_gradient(self.tasks)
        for name, parameter in self.learned.items():
            parameter.grad = grads[name]
        return outcome.loss.mean()

    def settled(self) -> bool:
        engine, compiler = self.learner.engine, self.learner.compiler
        if not engine.vectorized or engine.random:
            return True
        if compiler.setting and self.row.training and not compiler.reasons:
            return False
        chosen = {reason.split()[0] for reason in engine.reasons}
        if any(reason.startswith("compiled") for reason in compiler.reasons.values()):
            chosen.add("meta-gradient")  # which then no longer asks how many tasks to run at once
        return chosen >= self.purposes

    def choices(self) -> list[str]:
        return [*self.learner.engine.reasons, *self.learner.compiler.reasons.values()]


BUILDERS: dict[str, Callable[[Job], Subject]] = {
    INNERLOOP: Innerloop,
    CONSTANT: Innerloop,
    PLAIN: Plain,
    PLAIN_BARE: Plain,
    "learn2learn": Learn2Learn,
    "higher": Higher,
    "torchopt": TorchOpt,
}


def build(job: Job) -> Subject:
    """The library of a job, ready for its first step."""
    if job.row.kind == "iteration":
        from . import iterations

        return iterations.BUILDERS[job.library](job)
    return BUILDERS[job.library](job)
