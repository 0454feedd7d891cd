"""Objectives: they turn the inner loop of a task into one scalar, whose gradient is the meta-gradient."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.func import grad, vjp

from .episode import Episode, Query, detach
from .functional.stacks import on_stacks, place
from .rules import UpdateRule
from .schedules import Schedule, value
from .task import Params
from .updates import as_reals


class Judgement(NamedTuple):
    """The result of an objective on one task.

    Attributes:
        objective: the scalar to differentiate.
        query: the last step, with the query loss and output to report.
    """

    objective: Tensor
    query: Query


class Outcome(NamedTuple):
    """The results of a meta-batch of T tasks, with Q query examples and K inner steps.

    Attributes:
        objective: the scalars of the objective, ``[T]``; the gradient of their mean is the meta-gradient.
        loss: the query losses after the last step, ``[T]``, detached.
        output: the model's output on the query sets after the last step, ``[T, Q, ...]``, detached.
        steps: the support losses before each step, ``[T, K]``, detached.
    """

    objective: Tensor
    loss: Tensor
    output: Any
    steps: Tensor


class Objective(ABC):
    """Turns a task's inner loop into one scalar: iterate ``episode.path(order)`` and call ``episode.query(step)``."""

    citation: ClassVar[str] = ""

    @abstractmethod
    def __call__(self, episode: Episode) -> Judgement:
        """Evaluate one task. The gradient of the result's ``objective`` is the meta-gradient."""

    def constants(self, iteration: int) -> Hashable:
        """Return what a compiled computation of this iteration depends on; by default the iteration itself.

        A compiled training step is used again only for iterations with the same constants.
        """
        return iteration


class Unrolled(Objective):
    """The query loss after adaptation, differentiated through the inner steps (Finn et al. 2017, Algorithm 1).

    Args:
        order: 2 differentiates through the updates, 1 takes them as constants; a schedule may switch (derivative-order
            annealing, Antoniou et al. 2019).
        step_weights: the weight of the query loss after each of the K steps (multi-step loss, Antoniou et al. 2019,
            Eq. 4), or a schedule of them; with ``None`` only the last step counts.

    Raises:
        ValueError: ``order`` is neither 1 nor 2.
    """

    citation = (
        "Finn, Abbeel, Levine. Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks. ICML 2017. "
        "arXiv:1703.03400"
    )

    def __init__(self, order: Schedule[int] = 2, step_weights: Schedule[Sequence[float] | None] = None) -> None:
        if not callable(order) and order not in (1, 2):
            raise ValueError(f"order must be 1 or 2 (or a schedule of them), got {order!r}")
        self.order, self.step_weights = order, step_weights

    def __call__(self, episode: Episode) -> Judgement:
        """Evaluate one task by the query losses after the weighted steps.

        Raises:
            ValueError: the number of step weights is not the number of inner steps, or all are zero.
        """
        order = value(self.order, episode.iteration)
        weights = self._weights(episode)
        step, query, terms = episode.start, None, []
        for weight in weights:
            step, query = episode.step(step, order), None
            if weight:
                query = episode.query(step)
                step = query.step
                terms.append(weight * query.loss)
        query = query or episode.query(step)
        return Judgement(torch.stack(terms or [query.loss]).sum(), query)

    def constants(self, iteration: int) -> Hashable:
        """Return the order and the step weights of the iteration."""
        weights = value(self.step_weights, iteration)
        return value(self.order, iteration), None if weights is None else tuple(weights)

    def _weights(self, episode: Episode) -> Sequence[float]:
        """Return one weight per step; without inner steps the query loss at the start counts."""
        weights = value(self.step_weights, episode.iteration)
        if weights is None:
            return [0.0] * (episode.steps - 1) + [1.0] * min(episode.steps, 1)
        if len(weights) != episode.steps or not any(weights):
            raise ValueError(f"{episode.steps} inner steps need as many step weights, not all zero; got {weights}")
        return weights


class Reptile(Objective):
    """Half the squared distance to the adapted parameters, which are treated as constants.

    Its gradient is ``start - adapted`` (Nichol et al. 2018, Algorithm 2), so plain outer SGD with the paper's step size
    is Reptile. As in the paper, training uses only the support set; the query loss is only reported.
    """

    citation = "Nichol, Achiam, Schulman. On First-Order Meta-Learning Algorithms. 2018. arXiv:1803.02999"

    def constants(self, iteration: int) -> Hashable:
        """Return ``None``, since every iteration runs the same computation."""
        return None

    def __call__(self, episode: Episode) -> Judgement:
        """Evaluate one task by the squared distance; the query loss is only reported."""
        with torch.no_grad():
            query = episode.query(episode.last(order=1))
        adapted = detach(query.step.params)
        away = {name: start - adapted[name] for name, start in episode.start.params.items()}
        return Judgement(_dot(away, away) / 2, query)


class Implicit(Objective):
    """The query loss at the minimum of the proximally regularized inner loss (iMAML).

    The implicit function theorem gives its gradient, without a graph through the inner steps (Rajeswaran et al. 2019,
    Eq. 6 and Algorithm 2).

    At the minimum, ``grad support_loss(phi) + strength * (phi - start) = 0``. Conjugate gradients compute
    ``v = (Hessian + strength)^-1 grad query_loss(phi)``. The meta-gradient is the gradient of
    ``query_loss(phi) - <grad support_loss(phi) + strength * (phi - start), v>`` at constant ``phi`` and ``v``. It is
    ``strength * v`` for the start, and also correct for parameters that are not adapted.

    The meta-gradient cannot be differentiated again: a backward pass with ``create_graph=True`` raises
    ``NotImplementedError``.

    Args:
        strength: the strength of the proximal term, the same number as in the inner rule's `Proximal`.
        iterations: number of conjugate gradient iterations.
        damping: added to the Hessian in the linear solve, for inner losses that are not convex.

    Raises:
        ValueError: ``strength`` is not above 0.
    """

    citation = "Rajeswaran, Finn, Kakade, Levine. Meta-Learning with Implicit Gradients. NeurIPS 2019. arXiv:1909.04630"

    def __init__(self, strength: float = 2.0, iterations: int = 5, damping: float = 0.0) -> None:
        if strength <= 0:
            raise ValueError(f"Implicit needs a strength above 0, got {strength}")
        self.strength, self.iterations, self.damping = strength, iterations, damping

    def constants(self, iteration: int) -> Hashable:
        """Return ``None``, since every iteration runs the same computation."""
        return None

    def require_minimum(self, rule: UpdateRule, start: Params) -> None:
        """Refuse an update rule whose fixed point is not the minimum of the regularized inner loss.

        If ``grad support_loss(phi) = -strength * (phi - start)``, the rule must not move ``phi``.

        Args:
            rule: the inner rule.
            start: the adapted parameters before the first step.

        Raises:
            ValueError: the rule moves ``phi``, or its fixed point depends on its own learned parameters.
        """
        start = detach(start)
        away = {name: p + STRAY * (p.abs().mean() + 1) for name, p in start.items()}
        slope = {name: -self.strength * (away[name] - p) for name, p in start.items()}
        with torch.enable_grad():
            still = _moved(rule, slope, away, start)
            learned = {name: p for name, p in rule.named_parameters() if p.requires_grad} if still.requires_grad else {}
            grads = torch.autograd.grad(still.sum(), list(learned.values()), allow_unused=True) if learned else ()
        usual = _moved(rule, {name: -g for name, g in slope.items()}, away, start)
        fix = f"put il.Proximal({self.strength:g}) first in a Chain, without another pull such as weight decay"
        if still.norm() > 1e-3 * usual.norm():
            raise ValueError(
                f"Implicit({self.strength:g}) differentiates at the minimum of the inner loss plus {self.strength:g}/2 "
                f"times the squared distance from the start, but the update rule {type(rule).__name__} does not "
                f"converge there: {fix}"
            )
        if moving := [n for n, g in zip(learned, grads, strict=False) if g is not None and bool((g.abs() > 0).any())]:
            raise ValueError(
                f"the update rule's {moving[0]!r} changes the point that inner steps converge to, and Implicit has no "
                f"gradient for it: {fix}, or use il.Unrolled"
            )

    def __call__(self, episode: Episode) -> Judgement:
        """Evaluate one task by the query loss at the minimum, with the implicit gradient."""
        with torch.no_grad():
            end = episode.last(order=1).detached()
            minimum, slope_at = end.params, grad(lambda p: episode.support_loss(end.at(p)))
            towards = grad(lambda p: episode.query(end.at(p)).loss)(minimum)
            hessian = vjp(slope_at, minimum)[1]
            shift = self.strength + self.damping

            def regularized(v: Params) -> Params:
                return {name: h + shift * v[name] for name, h in hessian(v)[0].items()}

            solution = conjugate_gradient(regularized, towards, self.iterations)
        query, slope = episode.query(end), slope_at(minimum)
        residual = {n: slope[n] + self.strength * (minimum[n] - start) for n, start in episode.start.params.items()}
        correction = _dot(residual, detach(solution))
        # Only the gradient of the correction counts; its value, zero at an exact minimum, is subtracted.
        return Judgement(_once(query.loss - correction + correction.detach()), query)


STRAY = 1e-2
"""The distance from the start at which a rule is checked for a fixed point, relative to the size of a parameter plus
one."""


class _Quadratic(NamedTuple):
    """A quadratic inner loss with given slopes at some parameters and slope zero at the start, for rules that ask."""

    slopes: Params
    params: Params
    start: Params
    order: int = 1

    def gradient(self, params: Params) -> Params:
        """Return the gradient, which is linear in the distance from the start."""
        away = {name: p - self.start[name] for name, p in self.params.items()}
        return {name: self.slopes[name] / away[name] * (p - self.start[name]) for name, p in params.items()}

    def loss(self, params: Params) -> Tensor:
        """Return half the slope times the distance."""
        slopes = self.gradient(params)
        return torch.stack([(slopes[n] * (p - self.start[n])).sum().real for n, p in params.items()]).sum() / 2


def _moved(rule: UpdateRule, grads: Params, params: Params, start: Params) -> Tensor:
    """Return all elements of a rule's first update of parameters at some distance from the start."""
    given = {name: grad.clone() for name, grad in grads.items()}
    updates, _ = rule(given, params, rule.init(start), 0, _Quadratic(grads, params, start))
    return torch.cat([update.flatten() for update in as_reals(updates).values()])


def _once(objective: Tensor) -> Tensor:
    """Return an objective that refuses second derivatives, which would be wrong: its constants depend on parameters."""
    if place() == "other":  # transforms of torch.func always keep the graph of a gradient
        return objective
    return on_stacks(lambda stack: (_Once.apply(stack),), objective)[0]


class _Once(Function):
    @staticmethod
    def forward(ctx: Any, objective: Tensor) -> Tensor:
        return objective.view_as(objective)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "the meta-gradient of Implicit cannot be differentiated again (create_graph=True), because it treats "
                "the minimum and the solution of its linear system as constants: use il.Unrolled for that"
            )
        return g


def _dot(a: Params, b: Params) -> Tensor:
    """Return the inner product; complex numbers count as pairs of real numbers, as in gradients."""
    left, right = as_reals(a), as_reals(b)
    return torch.stack([(left[name] * right[name]).sum() for name in a]).sum()


def conjugate_gradient(matrix: Callable[[Params], Params], right: Params, iterations: int) -> Params:
    """Solve ``matrix(x) = right`` for a symmetric positive definite matrix, starting from zero.

    It runs under ``vmap``: the number of iterations is fixed, and divisions stay finite once the residual is zero.
    """
    x = {name: torch.zeros_like(r) for name, r in right.items()}
    residual = direction = right
    square = _dot(residual, residual)
    tiny = torch.finfo(square.dtype).tiny
    for _ in range(iterations):
        image = matrix(direction)
        length = square / (_dot(direction, image) + tiny)
        x = {name: x[name] + length * d for name, d in direction.items()}
        residual = {name: r - length * image[name] for name, r in residual.items()}
        previous, square = square, _dot(residual, residual)
        direction = {name: r + square / (previous + tiny) * direction[name] for name, r in residual.items()}
    return x
