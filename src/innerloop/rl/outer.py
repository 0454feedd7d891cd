"""Outer steps of policies, a trust region and proximal steps, which replace the optimizer of a trainer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..learner import MetaLearner
from ..objectives import conjugate_gradient
from ..task import Params, Task
from .losses import InnerDivergence, Judging, Penalized, divergence

Mean = Callable[[Params], Params]
"""Turns means over this process's tasks into means over the tasks of all processes."""


def _alone(means: Params) -> Params:
    return means


class TRPO:
    """A natural-gradient step within a bound on the divergence (Schulman et al. 2015, appendix C).

    The step is shortened until the surrogate improves. The Fisher matrix is that of the adapted policies with respect
    to the meta-parameters, so its products are differentiated through the adaptation.

    Args:
        max_kl: the bound on ``KL(pi_old || pi)`` of adapted policies, the mean over tasks and steps.
        damping: added to the Fisher matrix.
        iterations: number of conjugate gradient iterations.
        backtracks: the largest number of step lengths to try.
        shrink: the factor by which the step is shortened.

    Attributes:
        told: numbers about the last step: ``kl``, ``improvement`` of the surrogate, ``backtracks``.

    Raises:
        ValueError: a number is out of range.
    """

    citation = "Schulman, Levine, Abbeel, Jordan, Moritz. Trust Region Policy Optimization. ICML 2015. arXiv:1502.05477"

    def __init__(
        self,
        max_kl: float = 0.01,
        damping: float = 1e-5,
        iterations: int = 10,
        backtracks: int = 15,
        shrink: float = 0.8,
    ) -> None:
        if max_kl <= 0 or damping < 0 or not 0 < shrink < 1 or iterations < 1 or backtracks < 1:
            raise ValueError(
                "TRPO needs max_kl > 0, damping >= 0, 0 < shrink < 1, iterations and backtracks >= 1, got "
                f"max_kl={max_kl}, damping={damping}, shrink={shrink}, iterations={iterations}, backtracks={backtracks}"
            )
        self.max_kl, self.damping, self.iterations = max_kl, damping, iterations
        self.backtracks, self.shrink = backtracks, shrink
        self.told: dict[str, float] = {}

    def bind(self, learner: MetaLearner, mean: Mean = _alone) -> None:
        """Set the learner to train; the trainer calls this once."""
        self.learner, self.mean = learner, mean
        self.parameters = {name: p for name, p in learner.named_parameters() if p.requires_grad}

    def __call__(self, grads: Params, tasks: Task, iteration: int) -> float:
        """Take one step on a meta-batch, given its meta-gradient.

        Returns:
            The length of the step as a fraction of the longest, which is 1, ``shrink``, ``shrink ** 2``, ..., or 0 if
            no step improved the surrogate.
        """
        product = self.fisher(tasks, iteration)
        direction = conjugate_gradient(product, grads, self.iterations)
        curvature = sum(float((direction[n] * image).sum()) for n, image in product(direction).items())
        before, _ = self._look(tasks, iteration)
        self.told = {"kl": 0.0, "improvement": 0.0, "backtracks": float(self.backtracks)}
        if not curvature > 0:  # a gradient of zero, or rounding errors
            return 0.0
        longest = math.sqrt(2 * self.max_kl / curvature)
        start = {name: p.detach().clone() for name, p in self.parameters.items()}
        for number in range(self.backtracks):
            part = self.shrink**number
            self._put({name: start[name] - part * longest * d for name, d in direction.items()})
            after, kl = self._look(tasks, iteration)
            if after < before and kl <= self.max_kl:
                self.told = {"kl": kl, "improvement": before - after, "backtracks": float(number)}
                return part
        self._put(start)
        return 0.0

    def fisher(self, tasks: Task, iteration: int) -> Callable[[Params], Params]:
        """Return the product with the damped Fisher matrix.

        The matrix is the second derivative of the divergence from the policies that acted, where the divergence is
        zero.
        """
        names, values = list(self.parameters), list(self.parameters.values())
        with torch.enable_grad():
            judged = self.learner(tasks, iteration, objective=self._divergence)
            slope = torch.autograd.grad(
                judged.objective.mean(), values, create_graph=True, allow_unused=True, materialize_grads=True
            )

        def product(vector: Params) -> Params:
            along = torch.stack([(s * vector[n]).sum() for s, n in zip(slope, names, strict=True)]).sum()
            images = torch.autograd.grad(along, values, retain_graph=True, allow_unused=True, materialize_grads=True)
            means = self.mean(dict(zip(names, images, strict=True)))
            return {name: means[name] + self.damping * vector[name] for name in names}

        return product

    @property
    def _divergence(self) -> Judging:
        return Judging(divergence, self.learner.objective)

    @torch.no_grad()
    def _look(self, tasks: Task, iteration: int) -> tuple[float, float]:
        """Return the surrogate and the divergence at the present parameters."""
        surrogate = self.learner(tasks, iteration).objective.mean()
        kl = self.learner(tasks, iteration, objective=self._divergence).objective.mean()
        means = self.mean({"objective": surrogate, "kl": kl})
        return float(means["objective"]), float(means["kl"])

    @torch.no_grad()
    def _put(self, values: Params) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state, because there is none."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Check that the state is empty.

        Raises:
            ValueError: the state is not empty.
        """
        if state:
            raise ValueError("a trust region has no state, but got a state that is not empty")


def _divergences(output: Any, tasks: Task) -> Tensor:
    """Return ``KL(pi_old || pi)`` of each task's query episodes, ``[T]``."""
    y = tasks.query.y
    kl: Tensor = torch.where(y.weights > 0, y.behaviour.kl(output), 0).sum((1, 2)) / y.weights.sum((1, 2))
    return kl


class PPO:
    """Several steps of Adam on the same episodes (Schulman et al. 2017).

    The surrogate must not reward moving far from the policies that acted. If the objective has a penalty on the
    divergence of the policies before each inner step (`Penalized`), its strength is halved or doubled to keep the
    divergence near a target (Rothfuss et al. 2019, appendix C).

    Args:
        lr: the learning rate of Adam.
        epochs: number of steps on each meta-batch.
        target: the target of that divergence; ``None`` keeps the strength of the penalty.

    Attributes:
        told: numbers about the last meta-batch: ``kl`` of adapted policies; with a penalty ``inner_kl`` and
            ``penalty``.

    Raises:
        ValueError: a number is out of range.
    """

    citation = "Schulman, Wolski, Dhariwal, Radford, Klimov. Proximal Policy Optimization Algorithms. arXiv:1707.06347"
    WIDE = 1.5

    def __init__(self, lr: float = 1e-3, epochs: int = 5, target: float | None = None) -> None:
        if lr <= 0 or epochs < 1 or (target is not None and target <= 0):
            raise ValueError(f"PPO needs lr > 0, epochs >= 1 and target > 0, got {lr}, {epochs} and {target}")
        self.lr, self.epochs, self.target = lr, epochs, target
        self.told: dict[str, float] = {}

    def bind(self, learner: MetaLearner, mean: Mean = _alone) -> None:
        """Set the learner to train; see `TRPO.bind`."""
        self.learner, self.mean = learner, mean
        self.parameters = {name: p for name, p in learner.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.Adam(list(self.parameters.values()), self.lr)

    def __call__(self, grads: Params, tasks: Task, iteration: int) -> float:
        """Take the steps on a meta-batch, the first along the given meta-gradient; return the learning rate."""
        for epoch in range(self.epochs):
            if epoch:
                grads = self.mean(self.learner.meta_gradient(tasks, iteration)[0])
            if not all(bool(grad.isfinite().all()) for grad in grads.values()):
                break  # the policies moved too far; the next meta-batch shows the effect of the previous steps
            for name, parameter in self.parameters.items():
                parameter.grad = grads[name]
            self.optimizer.step()
            self.optimizer.zero_grad()
        self._look_back(tasks, iteration)
        return self.lr

    @torch.no_grad()
    def _look_back(self, tasks: Task, iteration: int) -> None:
        """Measure how far the policies moved, and adjust the penalty."""
        objective = self.learner.objective
        judge = InnerDivergence(objective.order) if isinstance(objective, Penalized) else None
        inner, _, output, _ = self.learner(tasks, iteration, objective=judge)
        means = self.mean({"kl": _divergences(output, tasks).mean(), "inner": inner.mean()})
        self.told = {"kl": float(means["kl"])}
        if isinstance(objective, Penalized):
            inner_kl = float(means["inner"])
            self.told |= {"inner_kl": inner_kl, "penalty": objective.strength}
            if self.target is not None and inner_kl > self.WIDE * self.target:
                objective.strength *= 2
            elif self.target is not None and inner_kl < self.target / self.WIDE:
                objective.strength /= 2

    def state_dict(self) -> dict[str, Any]:
        """Return the optimizer's state and the strength of the penalty."""
        strength = getattr(self.learner.objective, "strength", None)
        return {"optimizer": self.optimizer.state_dict(), "strength": strength}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state."""
        self.optimizer.load_state_dict(state["optimizer"])
        if isinstance(self.learner.objective, Penalized):
            self.learner.objective.strength = state["strength"]
