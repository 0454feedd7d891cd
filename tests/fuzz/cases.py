"""Models put through an inner loop, and the same inner loop written down plainly: what `operators.py` compares.

`Oracle` uses nothing of innerloop. It takes two inner steps by ``torch.autograd.grad``, and differentiates what comes
of them twice. `derivative_errors` says by finite differences which of torch's own derivatives are right.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

import innerloop as il

TASKS, STEPS = 3, 2
WIDTHS = (1e-3, 1e-4, 1e-5, 1e-6)
"""Of finite differences, relative to the parameters: wide ones see kinks, narrow ones roundings."""
AGREE = 1e-5
"""How much differences of two widths may differ, relative, if they are to say anything."""
NORMS = nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm
Values = dict[str, Tensor]


class Case(nn.Module):
    """A model whose output is one smooth number of all that a function returns.

    Args:
        function: of the module if there is one, of the tensors, and of others, which are constants.
        tensors: floating-point ones to adapt; each is multiplied by a number of the task's, its input.
        others: of any type.
        varied: whether each task has its own others (they are shifted along their flattened elements).
        module: its parameters are adapted too.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        tensors: list[Tensor],
        others: list[Tensor] = (),  # type: ignore[assignment]
        varied: bool = False,
        module: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.tensors = nn.ParameterList([nn.Parameter(t.detach().clone()) for t in tensors])
        self.module = module
        self.constants = [o.detach().clone() for o in others]
        self.varied, self._function, self._reach = varied, function, 0.0
        self._kept: list[bool] = []

    def forward(self, scale: Tensor, **others: Tensor) -> Tensor:
        """``[1] -> [1, 1]``."""
        tensors = [t * scale[0].to(t.dtype) for t in self.tensors]
        constants = [o[0] for o in others.values()] if self.varied else self.constants
        modules = () if self.module is None else (self.module,)
        returned = self._function(*modules, *tensors, *constants)
        found = [z for z in pytree.tree_leaves(returned) if isinstance(z, Tensor)]
        if not self._reach:
            self._kept = [z.requires_grad for z in found]  # the others are no functions, to torch
        found = [z for z, kept in zip(found, self._kept, strict=True) if kept]
        z = torch.cat([(torch.view_as_real(z) if z.is_complex() else z).double().flatten() for z in found])
        if not self._reach:
            self._reach = 1 + float(z.detach().abs().max())
        z = z / self._reach
        weights = torch.sin(torch.arange(1, len(z) + 1, dtype=torch.float64))
        return (weights * (z + z.square() / 2 + z.pow(3) / 6)).mean()[None, None]

    def tasks(self, dtype: torch.dtype) -> il.Task:
        """A meta-batch."""
        generator = torch.Generator().manual_seed(1)
        varied = self.constants if self.varied else []

        def draw(shift: int) -> il.Batch:
            x: dict[str, Tensor] = {
                "scale": (1 + 0.1 * torch.rand(TASKS, 1, generator=generator, dtype=torch.float64)).to(dtype)
            }
            for index, o in enumerate(varied):
                rolled = [o.flatten().roll(task + shift).reshape(o.shape) for task in range(TASKS)]
                x[f"other{index}"] = torch.stack(rolled)[:, None]
            return il.Batch(x, torch.zeros(TASKS, 1, 1, dtype=torch.float64))

        return il.Task(draw(0), draw(1))


def loss(output: Tensor, y: Tensor) -> Tensor:
    return (output + output.square() - y).mean()


@dataclass
class Found:
    """What an inner loop gives: one number a task, and its mean's gradient, differentiated again."""

    objective: Tensor
    gradient: Values
    again: Values = field(default_factory=dict)

    def difference(self, other: Found, size: float = 1.0) -> float:
        """The largest relative one, of each kind of number, all parameters together.

        Args:
            other: the one that is right.
            size: of the parameters; gradients that are nothing but rounding count as zero.
        """
        least = 1e-7 * float(other.objective.norm()) / size
        pairs = [({"": self.objective}, {"": other.objective})]
        pairs += [(self.gradient, other.gradient), (self.again, other.again)]
        return max(_relative(a, b, least) for a, b in pairs)


def _relative(a: Values, b: Values, least: float) -> float:
    if not a or not b:
        return 0.0
    a_, b_ = (torch.cat([v.detach().double().flatten() for v in values]) for values in (a.values(), (b[n] for n in a)))
    if not torch.equal(a_.isfinite(), b_.isfinite()):
        return float("inf")
    keep = b_.isfinite()
    a_, b_ = a_[keep], b_[keep]
    return float((a_ - b_).norm() / b_.norm().clamp(min=max(least, 1e-12)))


def _directions(params: Values) -> Values:
    generator = torch.Generator().manual_seed(2)
    return {n: torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype) for n, p in params.items()}


def _along(a: Values, b: Values) -> Tensor:
    return torch.stack([(a[n].double() * b[n].double()).sum() for n in a]).sum()


def gradients(of: Tensor, by: Values, graph: bool) -> Values:
    found = torch.autograd.grad(of, list(by.values()), create_graph=graph, allow_unused=True, materialize_grads=True)
    return dict(zip(by, found, strict=True))


class Oracle:
    """The plain loop.

    Args:
        case: a model.
        dtype: of the tasks.
        order: 2, or 1 to take the inner gradients as constants.
    """

    def __init__(self, case: Case, dtype: torch.dtype = torch.float64, order: int = 2) -> None:
        self.case, self.order = case, order
        self.params: Values = {n: p for n, p in case.named_parameters() if p.requires_grad}
        self.tasks = case.tasks(dtype)

    def value(self, params: Values, buffers: Values, batch: Any, task: int) -> tuple[Tensor, Values]:
        """A task's loss, and the buffers after it."""
        tensors = {**params, **{n: b.clone() for n, b in buffers.items()}}
        with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
            output = functional_call(self.case, tensors, (), {n: t[task] for n, t in batch.x.items()})
        return loss(output, batch.y[task]), {n: tensors[n].detach() for n in buffers}

    def rate(self) -> float:
        """A rate that moves parameters a little; parameters that have no gradient are frozen.

        Raises:
            ValueError: none has one, or something is not finite.
        """
        at, _ = self.value(self.params, dict(self.case.named_buffers()), self.tasks.support, 0)
        if not at.isfinite():
            raise ValueError("not finite")
        if not at.requires_grad:
            raise ValueError("no gradient")
        grads = gradients(at, self.params, graph=False)
        if not all(g.isfinite().all() for g in grads.values()):
            raise ValueError("not finite")
        for name, grad in grads.items():
            if not grad.any():
                self.params.pop(name).requires_grad_(False)
        if not self.params:
            raise ValueError("no gradient")
        if not self.size:
            raise ValueError("no elements")
        slope = torch.cat([grads[n].double().flatten() for n in self.params]).norm()
        if not slope * self.size > 1e-9 * float(at.detach().abs()):
            raise ValueError("no gradient but roundings")
        return float((0.02 * self.size / slope).float()) or 0.01

    @property
    def size(self) -> float:
        """Of the parameters, as a norm."""
        return float(torch.cat([p.detach().double().flatten() for p in self.params.values()]).norm())

    def __call__(self, rate: float, again: bool = True) -> Found:
        objectives = []
        for task in range(TASKS):
            fast: Values = dict(self.params)
            buffers = dict(self.case.named_buffers())
            for _ in range(STEPS):
                inner, buffers = self.value(fast, buffers, self.tasks.support, task)
                grads = gradients(inner, fast, graph=self.order == 2)
                fast = {n: p - rate * grads[n] for n, p in fast.items()}
            objectives.append(self.value(fast, buffers, self.tasks.query, task)[0])
        objective = torch.stack(objectives)
        return _differentiated(objective, self.params, again and self.order == 2)


def _differentiated(objective: Tensor, params: Values, again: bool) -> Found:
    gradient = gradients(objective.mean(), params, graph=again)
    if not again:
        return Found(objective.detach(), gradient)
    towards = _along(gradient, _directions(params))
    after = gradients(towards, params, graph=False) if towards.requires_grad else {}
    return Found(objective.detach(), {n: g.detach() for n, g in gradient.items()}, after)


def by_differences(case: Case, rate: float, order: int, found: Found) -> float | None:
    """How much a result differs from finite differences of what the plain loop gives one derivative below: of its
    objective for order 2, of its meta-gradient for order 3."""
    oracle = Oracle(case, order=order - 1)  # which an objective's value does not depend on
    params: Values = {n: p for n, p in case.named_parameters() if p.requires_grad}
    oracle.params = params
    directions = _directions(params)
    sizes = {n: float(p.detach().abs().max()) for n, p in params.items()}
    generator = torch.Generator().manual_seed(4)
    way = {n: sizes[n] * torch.randn(p.shape, generator=generator, dtype=torch.float64) for n, p in params.items()}
    exact = _along(found.gradient if order == 2 else found.again, way).detach()

    def below(step: float) -> Tensor:
        oracle.params = {n: (p + step * way[n]).detach().requires_grad_() for n, p in params.items()}
        at = oracle(rate, again=False)
        return (at.objective.mean() if order == 2 else _along(at.gradient, directions)).detach()

    return slope_error(exact, below)


def innerloop(case: Case, dtype: torch.dtype, rate: float, order: int, vectorize: bool, again: bool = True) -> Found:
    """The same by a learner: its outcome, differentiated twice, if its meta-gradient is the outcome's."""
    stored = any(isinstance(m, NORMS) and not m.training for m in case.modules())
    learner = il.maml(
        case, rate, order, steps=STEPS, loss=loss, vectorize=vectorize, compile=False,
        statistics="running" if stored else "batch",
    )  # fmt: skip
    tasks = case.tasks(dtype)
    params: Values = {n.removeprefix("model."): p for n, p in learner.named_parameters() if p.requires_grad}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        grads, outcome = learner.meta_gradient(tasks)
        found = _differentiated(learner(tasks).objective, params, again and order == 2)
    direct = Found(outcome.objective, {n.removeprefix("model."): g for n, g in grads.items()})
    size = float(torch.cat([p.detach().double().flatten() for p in params.values()]).norm())
    if again and order == 2 and (difference := direct.difference(found, size)) > 1e-9 and dtype == torch.float64:
        raise AssertionError(f"meta_gradient differs from the outcome's gradient by {difference:.0e}")
    return found


def slope_error(exact: Tensor, value: Callable[[float], Tensor]) -> float | None:
    """How much a slope differs from finite differences of a function of a step, relative; ``None`` where these are no
    measure, since two widths do not agree (a kink, a pole, or roundings)."""
    slopes, noises = [], []
    for width in WIDTHS:
        values = [value(step * width) for step in (1, -1, 2, -2)]
        slopes.append(float((8 * (values[0] - values[1]) - (values[2] - values[3])) / (12 * width)))
        noises.append(1e-14 * float(sum(abs(v) for v in values)) / width)
    errors = []
    for index in range(len(WIDTHS) - 1):
        a, b, noise = slopes[index], slopes[index + 1], noises[index + 1]
        if abs(a - b) <= AGREE * abs(a) and noise <= AGREE * abs(a):
            error = abs(a - float(exact)) / max(abs(a), abs(float(exact)), 1e-300)
            errors.append(error if isfinite(error) else inf)
    return min(errors, default=None)


def derivative_errors(case: Case) -> list[float | None]:
    """By how much torch's first, second and third derivative of a case differ from finite differences of the one below,
    relative, along fixed directions; up to the first that torch does not have."""
    oracle = Oracle(case)
    params, buffers = oracle.params, dict(case.named_buffers())
    sizes = {n: float(p.detach().abs().max()) for n, p in params.items()}
    generator = torch.Generator().manual_seed(3)
    directions = [
        {n: sizes[n] * torch.randn(p.shape, generator=generator, dtype=torch.float64) for n, p in params.items()}
        for _ in range(3)
    ]

    def derivative(order: int, at: Values) -> Tensor:
        at = {n: p.detach().requires_grad_() for n, p in at.items()}
        found, _ = oracle.value(at, buffers, oracle.tasks.support, 0)
        for direction in directions[:order]:
            if not found.requires_grad:
                return found * 0
            found = _along(gradients(found, at, graph=True), direction)
        return found.detach()

    errors: list[float | None] = []
    for order in (1, 2, 3):
        try:
            exact = derivative(order, params)
        except (RuntimeError, NotImplementedError):
            break

        def below(step: float, order: int = order) -> Tensor:
            way = directions[order - 1]
            return derivative(order - 1, {n: p + step * way[n] for n, p in params.items()})

        errors.append(slope_error(exact, below))
    return errors
