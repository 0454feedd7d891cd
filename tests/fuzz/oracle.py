"""A plain inner loop to judge the library by: one task at a time, torch's own operations, `torch.autograd.grad`.

Nothing of innerloop runs here; a learner is only read for its configuration. Where torch's own derivative is wrong, so
is the oracle's: `differences.py` then decides by central differences of a lower derivative.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import innerloop as il

from .parts import Checkpointed

Tensors = dict[str, Tensor]
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


class Substituted:
    """A copy of a module that is called with other parameters and buffers.

    Args:
        module: any; it is not changed.
        elementary: whether norms of batch statistics run by elementary operations. Torch's own have wrong second
            derivatives.
    """

    def __init__(self, module: nn.Module, elementary: bool = False) -> None:
        first: dict[int, str] = {}
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            first.setdefault(id(tensor), name)
        self.copy = copy.deepcopy(module)
        self.slots = [
            (path, kind, leaf, first[id(tensor)])
            for path, part in module.named_modules()
            for kind in ("_parameters", "_buffers")
            for leaf, tensor in getattr(part, kind).items()
            if tensor is not None
        ]
        self.parts = dict(self.copy.named_modules())
        for part in self.parts.values():
            if isinstance(part, Checkpointed):  # what is computed again would see the parameters of another step
                part.again = False
            if isinstance(part, nn.Hardsigmoid):  # torch's derivative is 1/6 in single precision, of doubles, too
                part.forward = lambda x: (x / 6 + 0.5).clamp(0, 1)  # type: ignore[method-assign, assignment]
            if elementary and isinstance(part, (*BATCH_NORMS, *INSTANCE_NORMS)):
                part.forward = partial(_normalize, part)  # type: ignore[method-assign]

    def __call__(self, tensors: Tensors, *args: Any) -> tuple[Any, Tensors]:
        """The output, and the buffers afterwards."""
        for path, kind, leaf, name in self.slots:
            getattr(self.parts[path], kind)[leaf] = tensors[name]
        for part in self.parts.values():
            if isinstance(part, nn.RNNBase):
                part._flat_weights = [getattr(part, name) for name in part._flat_weights_names]
        with sdpa_kernel(SDPBackend.MATH):
            output = self.copy(*args)
        buffers = {
            name: getattr(self.parts[path], kind)[leaf] for path, kind, leaf, name in self.slots if kind == "_buffers"
        }
        return output, {name: buffer.detach() for name, buffer in buffers.items()}


def _normalize(norm: nn.modules.batchnorm._NormBase, x: Tensor) -> Tensor:
    """What a norm gives by the statistics of its input, which stay in it; otherwise its own."""
    if not norm.training and norm.running_mean is not None:
        return type(norm).forward(norm, x)
    axes, shape = tuple(range(2, x.ndim)), [1, -1] + [1] * (x.ndim - 2)
    axes = (0, *axes) if isinstance(norm, BATCH_NORMS) else axes
    centered = x - x.mean(axes, keepdim=True)
    out = centered / (centered.square().mean(axes, keepdim=True) + norm.eps).sqrt()
    return out if norm.weight is None else out * norm.weight.view(shape) + norm.bias.view(shape)


@dataclass
class Constants:
    """What was constant in first-order steps, so that central differences can keep it constant."""

    state: Any = None
    steps: list[tuple[Tensors, Tensors]] = field(default_factory=list)
    implicit: tuple[Tensors, Tensors] | None = None
    replay: bool = False


@dataclass
class Result:
    """Of one task."""

    objective: Tensor
    loss: Tensor
    output: Any
    steps: list[Tensor]
    adapted: Tensors


class Oracle:
    """What a learner ought to compute.

    Args:
        learner: read for its configuration, and the values of its parameters and buffers.
        dtype: computed in.
        elementary: see `Substituted`.
    """

    def __init__(self, learner: il.MetaLearner, dtype: torch.dtype = torch.float64, elementary: bool = False) -> None:
        self.learner, self.dtype = learner, dtype
        self.model = Substituted(learner.model, elementary)
        self.model.copy.to(dtype)
        names = {id(p): name for name, p in learner.named_parameters()}
        self.name_of = {n: names[id(p)] for n, p in learner.model.named_parameters()}
        self.losses = {name: self._loss(name, names) for name in ("loss", "inner_loss")}
        self.theta = {name: p.detach().to(dtype).clone().requires_grad_() for name, p in learner.named_parameters()}
        self.learned = [name for name, p in learner.named_parameters() if p.requires_grad]
        self.modes = {path: part.training for path, part in learner.model.named_modules()}

    def _loss(self, name: str, names: dict[int, str]) -> Callable[[Tensors, Any, Any], Tensor]:
        loss = getattr(self.learner, name)
        if not isinstance(loss, nn.Module):
            return lambda theta, output, y: loss(output, y)
        own = {n: names[id(p)] for n, p in loss.named_parameters()}
        called = Substituted(loss)

        def call(theta: Tensors, output: Any, y: Any) -> Tensor:
            buffers = {n: self._cast(b) for n, b in loss.named_buffers()}
            return called({**{n: theta[o] for n, o in own.items()}, **buffers}, output, y)[0]

        return call

    def _cast(self, x: Any) -> Any:
        return x.to(self.dtype) if isinstance(x, Tensor) and x.is_floating_point() else x

    # -- the model ----------------------------------------------------------------------------------------------------

    def mode(self, training: bool) -> None:
        """Norms by the learner's statistics; everything else as it is, or without dropout."""
        for path, part in self.model.parts.items():
            if isinstance(part, (*BATCH_NORMS, *INSTANCE_NORMS)):
                part.training = self.learner.statistics == "batch"
            elif training or (isinstance(part, nn.RNNBase) and not part.dropout):
                part.training = self.modes[path]
            else:
                part.training = False

    def start(self, theta: Tensors) -> tuple[Tensors, Tensors, Tensors]:
        """The adapted parameters, the others, and the buffers."""
        params = {n: theta[o] for n, o in self.name_of.items()}
        buffers = {n: self._cast(b.detach().clone()) for n, b in self.learner.model.named_buffers()}
        return {n: params.pop(n) for n in self.learner.adapted}, params, buffers

    def run(self, tensors: Tensors, buffers: Tensors, x: Any) -> tuple[Any, Tensors]:
        # Copies: the library refuses models that write to their inputs.
        args = tuple(a.clone() if isinstance(a, Tensor) else a for a in (x if isinstance(x, tuple) else (x,)))
        fresh = {n: b.clone() for n, b in buffers.items()}
        return self.model({**tensors, **fresh}, *args)

    # -- the inner loop -----------------------------------------------------------------------------------------------

    def batch(self, support: il.Batch, step: int, size: int | None) -> il.Batch:
        number = len(support.x)
        if size is None:
            return support
        index = [(step * size + i) % number for i in range(min(size, number))]
        return il.Batch(support.x[index], None if support.y is None else support.y[index])

    def path(
        self, theta: Tensors, support: il.Batch, steps: int, order: int, constants: Constants | None = None,
        batch_size: int | None = None,
    ) -> Iterator[tuple[Tensors, Tensors, Tensor | None]]:  # fmt: skip
        """The adapted parameters, the buffers, and the support loss before the step, from the start on."""
        params, fixed, buffers = self.start(theta)
        size = batch_size or self.learner.batch_size
        state: Any = rule_state(self.learner.rule, params if order == 2 else _detach(params))
        if order == 1 and constants is not None:
            state = constants.state if constants.replay else state
            constants.state = state
        yield params, buffers, None
        for step in range(steps):
            examples = self.batch(support, step, size)
            at = params if order == 2 else {n: p.detach().requires_grad_() for n, p in params.items()}
            output, after = self.run({**fixed, **at}, buffers, examples.x)
            loss = self.losses["inner_loss"](theta, output, examples.y)
            grads = dict(zip(at, _grad(loss, list(at.values()), order == 2), strict=True))
            seen = params if order == 2 else _detach(params)
            if order == 1 and constants is not None:
                if constants.replay:
                    grads, seen = constants.steps[step]
                else:
                    constants.steps.append((grads, seen))
            updates, state = rule_step(self.learner.rule, "rule", theta, grads, seen, state, step)
            params = {n: p + updates[n] for n, p in params.items()}
            buffers = after
            yield params, buffers, loss.detach()

    def judge(self, theta: Tensors, task: il.Task, constants: Constants | None = None) -> Result:
        """The objective of one task in meta-training."""
        self.mode(training=True)
        objective = self.learner.objective
        if isinstance(objective, il.Unrolled):
            return self._unrolled(theta, task, objective, constants)
        path = list(self.path(theta, task.support, self.learner.steps, 1))
        params, buffers, _ = path[-1]
        steps = [loss for _, _, loss in path[1:] if loss is not None]
        fixed = self.start(theta)[1]
        at = _detach(params)
        if isinstance(objective, il.Reptile):
            output, _ = self.run({**fixed, **at}, buffers, task.query.x)
            loss = self.losses["loss"](theta, output, task.query.y)
            begin = self.start(theta)[0]
            value = sum(((begin[n] - at[n]).square().sum() / 2 for n in at), loss.new_zeros(()))
            return Result(value, loss.detach(), output, steps, at)
        assert isinstance(objective, il.Implicit)
        return self._implicit(theta, task, objective, at, buffers, steps, constants)

    def _query(self, theta: Tensors, params: Tensors, buffers: Tensors, query: il.Batch) -> tuple[Tensor, Any]:
        output, _ = self.run({**self.start(theta)[1], **params}, buffers, query.x)
        return self.losses["loss"](theta, output, query.y), output

    def _unrolled(self, theta: Tensors, task: il.Task, objective: il.Unrolled, constants: Constants | None) -> Result:
        count, given = self.learner.steps, objective.step_weights
        assert not callable(given)
        assert not callable(objective.order)
        weights = [0.0] * (count - 1) + [1.0] if given is None else list(given)
        terms: list[Tensor] = []
        steps: list[Tensor] = []
        loss: Tensor | None = None
        output: Any = None
        params: Tensors = {}
        path = self.path(theta, task.support, count, objective.order, constants)
        for index, (params, buffers, before) in enumerate(path):
            if before is not None:
                steps.append(before)
            weight = 1.0 if not count else weights[index - 1] if index else 0.0
            if weight or index == count:
                loss, output = self._query(theta, params, buffers, task.query)
                if weight:
                    terms.append(weight * loss)
        assert loss is not None
        return Result(torch.stack(terms).sum(), loss.detach(), output, steps, params)

    def _implicit(
        self, theta: Tensors, task: il.Task, objective: il.Implicit, at: Tensors, buffers: Tensors,
        steps: list[Tensor], constants: Constants | None,
    ) -> Result:  # fmt: skip
        begin = self.start(theta)[0]
        if constants is not None and constants.replay:
            assert constants.implicit is not None
            at, solution = constants.implicit
        else:
            solution = self._solve(theta, task, objective, at, buffers)
            if constants is not None:
                constants.implicit = at, solution
        leaves = {n: p.detach().requires_grad_() for n, p in at.items()}
        loss, output = self._query(theta, _detach(at), buffers, task.query)
        slope = self._slope(theta, task, leaves, buffers)
        pull = {n: slope[n] + objective.strength * (leaves[n].detach() - begin[n]) for n in leaves}
        correction = cast(Tensor, sum((pull[n] * solution[n]).sum() for n in pull))
        return Result(loss - correction + correction.detach(), loss.detach(), output, steps, at)

    def _slope(self, theta: Tensors, task: il.Task, leaves: Tensors, buffers: Tensors) -> Tensors:
        fixed = self.start(theta)[1]
        output, _ = self.run({**fixed, **leaves}, buffers, task.support.x)
        loss = self.losses["inner_loss"](theta, output, task.support.y)
        return dict(zip(leaves, _grad(loss, list(leaves.values()), True), strict=True))

    def _solve(self, theta: Tensors, task: il.Task, objective: il.Implicit, at: Tensors, buffers: Tensors) -> Tensors:
        """Conjugate gradients from zero for (Hessian + strength + damping) v = gradient of the query loss."""
        frozen = {n: t.detach() for n, t in theta.items()}
        leaves = {n: p.detach().requires_grad_() for n, p in at.items()}
        query, _ = self._query(frozen, leaves, buffers, task.query)
        right = _flat(_grad(query, list(leaves.values()), False))
        slope = list(self._slope(frozen, task, leaves, buffers).values())

        def matrix(v: Tensor) -> Tensor:
            dot = (_flat(slope) * v).sum()
            image = _flat(_grad(dot, list(leaves.values()), False, keep=True))
            return image + (objective.strength + objective.damping) * v

        x, residual, direction = torch.zeros_like(right), right, right
        tiny = torch.finfo(right.dtype).tiny
        for _ in range(objective.iterations):
            image, square = matrix(direction), residual @ residual
            length = square / (direction @ image + tiny)
            x, residual = x + length * direction, residual - length * image
            direction = residual + residual @ residual / (square + tiny) * direction
        sizes = [p.numel() for p in leaves.values()]
        return {n: v.view_as(at[n]) for n, v in zip(at, x.split(sizes), strict=True)}

    # -- results ------------------------------------------------------------------------------------------------------

    def outcome(
        self, tasks: il.Task, theta: Tensors | None = None, constants: list[Constants] | None = None
    ) -> list[Result]:
        theta = self.theta if theta is None else theta
        with torch.enable_grad():
            return [
                self.judge(theta, task, constants[i] if constants else None) for i, task in enumerate(self.tasks(tasks))
            ]

    def tasks(self, tasks: il.Task) -> list[il.Task]:
        def take(batch: il.Batch, i: int) -> il.Batch:
            return il.Batch(self._cast(batch.x[i]), None if batch.y is None else self._cast(batch.y[i]))

        return [il.Task(take(tasks.support, i), take(tasks.query, i)) for i in range(len(tasks.support.x))]

    def meta_gradient(self, results: list[Result], graph: bool, theta: Tensors | None = None) -> Tensors:
        theta = self.theta if theta is None else theta
        mean = torch.stack([r.objective for r in results]).mean()
        return dict(zip(self.learned, _grad(mean, [theta[n] for n in self.learned], graph, keep=True), strict=True))

    def once_more(self, gradient: Tensors, direction: Tensors) -> Tensors:
        """The Hessian of the mean objective, times a direction."""
        dot = cast(Tensor, sum((gradient[n] * direction[n]).sum() for n in self.learned))
        return dict(zip(self.learned, _grad(dot, [self.theta[n] for n in self.learned], False), strict=True))

    def predict(self, tasks: il.Task, steps: int, transductive: bool) -> Tensor:
        """``[T, K + 1, Q, ...]``."""
        self.mode(training=False)
        rows = []
        for task in self.tasks(tasks):
            path = self.path(self.theta, task.support, steps, 1)
            rows.append(torch.stack([self.answer(p, b, task, transductive) for p, b, _ in path]))
        return torch.stack(rows)

    def answer(self, params: Tensors, buffers: Tensors, task: il.Task, transductive: bool, least: int = 2) -> Tensor:
        """The output on the query set; of fewer inputs than ``least``, each is judged beside the support set."""
        tensors = {**self.start(self.theta)[1], **params}
        norms = [part for part in self.model.parts.values() if isinstance(part, BATCH_NORMS)]
        alone = any(self.learner.statistics == "batch" or norm.running_mean is None for norm in norms)
        with torch.no_grad():
            if (transductive and len(task.query.x) >= least) or not alone:
                return self.run(tensors, buffers, task.query.x)[0]
            support, rows = task.support.x, []
            for x in task.query.x:
                rows.append(self.run(tensors, buffers, torch.cat([support, x[None]]))[0][len(support)])
            return torch.stack(rows)

    def adapt(self, task: il.Task, steps: int, batch_size: int | None = None) -> tuple[Tensors, Tensor, Tensors]:
        """All parameters after adapting, the support losses, and the buffers."""
        self.mode(training=False)
        path = list(self.path(self.theta, task.support, steps, 1, batch_size=batch_size))
        params, buffers, _ = path[-1]
        tensors = {**self.start(self.theta)[1], **params}
        last = self.batch(task.support, steps, batch_size or self.learner.batch_size)
        with torch.no_grad():
            loss = self.losses["inner_loss"](self.theta, self.run(tensors, buffers, last.x)[0], last.y)
        losses = torch.stack([*(before for _, _, before in path[1:] if before is not None), loss])
        return _detach(tensors), losses, buffers


# -- update rules, from their papers ----------------------------------------------------------------------------------


def rule_state(rule: il.UpdateRule, params: Tensors) -> Any:
    if isinstance(rule, il.Chain):
        return [rule_state(part, params) for part in rule]
    zeros = {n: torch.zeros_like(p) for n, p in params.items()}
    if isinstance(rule, il.Proximal):
        return params
    return (zeros, dict(zeros)) if isinstance(rule, il.Adam) else zeros


def rule_step(
    rule: il.UpdateRule, name: str, theta: Tensors, grads: Tensors, params: Tensors, state: Any, step: int
) -> tuple[Tensors, Any]:
    """What is added to the parameters (or the gradient that is handed on), and the state."""
    if isinstance(rule, il.Chain):
        states = []
        for i, part in enumerate(rule):
            grads, after = rule_step(part, f"{name}.rules.{i}", theta, grads, params, state[i], step)
            states.append(after)
        return grads, states

    def own(kind: str, n: str) -> Tensor:
        return theta[f"{name}.{kind}.{n.replace('.', '/')}"]

    if isinstance(rule, il.SGD):
        return {n: -theta[f"{name}.lr"] * g for n, g in grads.items()}, state
    if isinstance(rule, il.PerStepSGD):
        return {n: -own("lr", n)[min(step, len(own("lr", n)) - 1)] * g for n, g in grads.items()}, state
    if isinstance(rule, il.ElementwiseSGD):
        return {n: -own("lr", n) * g for n, g in grads.items()}, state
    if isinstance(rule, il.Momentum):
        velocity = {n: rule.momentum * state[n] + g for n, g in grads.items()}
        return velocity, velocity
    if isinstance(rule, il.Clip):
        return {n: g.clamp(-rule.limit, rule.limit) for n, g in grads.items()}, state
    if isinstance(rule, il.Proximal):
        return {n: g + rule.strength * (params[n] - state[n]) for n, g in grads.items()}, state
    if isinstance(rule, il.Adam):
        (b1, b2), (m, v) = rule.scale.betas, state
        m = {n: b1 * m[n] + (1 - b1) * g for n, g in grads.items()}
        v = {n: b2 * v[n] + (1 - b2) * g * g for n, g in grads.items()}
        unbiased = {n: (m[n] / (1 - b1 ** (step + 1)), v[n] / (1 - b2 ** (step + 1))) for n in grads}
        roots = {n: torch.where(b > 0, b.where(b > 0, torch.ones_like(b)).sqrt(), 0) for n, (_, b) in unbiased.items()}
        rate = -theta[f"{name}.lr"]
        return {n: rate * a / (roots[n] + rule.scale.eps) for n, (a, _) in unbiased.items()}, (m, v)
    if isinstance(rule, il.KroneckerCurvature):
        return {
            n: _kronecker([own("factors", f"{n}:{a}") for a in range(min(g.ndim, 3))], g) for n, g in grads.items()
        }, state
    raise NotImplementedError(f"the oracle does not know {type(rule).__name__}")


def _kronecker(factors: Sequence[Tensor], grad: Tensor) -> Tensor:
    if not factors:
        return grad
    out = grad.flatten(2) if grad.ndim > 2 else grad
    letters = "abc"[: out.ndim]
    for axis, factor in enumerate(factors):
        out = torch.einsum(f"z{letters[axis]},{letters}->{letters.replace(letters[axis], 'z')}", factor, out)
    return out.reshape(grad.shape)


def _grad(loss: Tensor, by: Sequence[Tensor], graph: bool, keep: bool = False) -> list[Tensor]:
    if not loss.requires_grad:
        return [torch.zeros_like(p) for p in by]
    keep = keep or graph
    return list(
        torch.autograd.grad(loss, by, create_graph=graph, retain_graph=keep, allow_unused=True, materialize_grads=True)
    )


def _detach(tensors: Tensors) -> Tensors:
    return {n: t.detach() for n, t in tensors.items()}


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])
