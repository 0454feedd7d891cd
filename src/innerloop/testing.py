"""Checks for your own update rules and task sources, the same that the library's tests apply to its own."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.utils import _pytree as pytree

from .common.errors import user_level
from .common.interrupts import raise_interrupt_behind
from .functional.diagnosis import explain
from .functional.undisturbed import guarded
from .operations.replacements import TaskOperations
from .rules import GradientTransform, UpdateRule
from .task import Params, TaskSource, count, singles


@guarded
def check_rule(rule: UpdateRule, steps: int = 2) -> None:
    """Check that an update rule keeps the contract of `innerloop.UpdateRule`.

    The rule must return an update of the same shape and type for every parameter, also in steps beyond the trained
    number. It must not change its arguments, must be deterministic, must keep the structure of its state, and must
    have finite derivatives. Under ``vmap`` it must give the same as for each task. Unless it only transforms
    gradients, it must lower a small quadratic loss.

    The check only warns if the rule does not run under ``vmap`` (tasks then run one by one), if derivatives are not
    finite at a gradient of zero, or if the rule changes the type of bfloat16 parameters.

    Args:
        rule: a rule that is not bound to parameters yet.
        steps: the number of inner steps to bind it to.

    Raises:
        AssertionError: the rule breaks the contract; the message says how.

    >>> from innerloop import SGD
    >>> check_rule(SGD(0.1))
    """
    generator, fresh = torch.Generator().manual_seed(0), copy.deepcopy(rule)
    shapes = {"layer.weight": (3, 2), "layer.bias": (3,), "conv.weight": (2, 3, 2, 2)}
    params = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # so that the rule makes its states in this type
    try:
        rule.bind(params, steps)
        rule.to(torch.float64)
        _check_step(rule, params, steps)
        _check_derivatives(rule, params)
        _check_vmap(rule, params)
        if not isinstance(rule, GradientTransform):
            _check_descent(rule, params, steps)
    finally:
        torch.set_default_dtype(default)
    _check_low_precision(fresh, {name: p.bfloat16() for name, p in params.items()}, steps)


def _gradient(params: Params) -> Params:
    """Return the gradient of half the squared norm."""
    return {name: p.clone() for name, p in params.items()}


class _HalfSquaredNorm:
    """The inner loss for rules that ask for it."""

    order = 2

    def loss(self, params: Params) -> Tensor:
        return torch.stack([p.square().sum() for p in params.values()]).sum() / 2

    def gradient(self, params: Params) -> Params:
        return _gradient(params)


def _asked(rule: UpdateRule) -> dict[str, Any]:
    return {"inner": _HalfSquaredNorm()} if rule.asks else {}


def _check_step(rule: UpdateRule, params: Params, steps: int) -> None:
    kept, state = _gradient(params), rule.init(params)
    structure = pytree.tree_structure(state)
    for step in range(steps + 2):
        grads = _gradient(params)
        updates, after = rule.forward(grads, params, state, step, **_asked(rule))
        again, _ = rule.forward(grads, params, state, step, **_asked(rule))
        assert set(updates) == set(params), f"updates are for {sorted(updates)}, parameters are {sorted(params)}"
        for name, update in updates.items():
            assert update.shape == params[name].shape, (
                f"the update of {name} is {tuple(update.shape)}, not {tuple(params[name].shape)}"
            )
            assert update.dtype == params[name].dtype, f"the update of {name} is {update.dtype} at step {step}"
            assert torch.equal(update, again[name]), f"the update of {name} differs when computed twice"
            assert torch.equal(params[name], kept[name]), f"the rule changes the parameter {name} in place"
            assert torch.equal(grads[name], kept[name]), f"the rule changes the gradient of {name} in place"
        assert pytree.tree_structure(after) == structure, f"the state changes its structure at step {step}"
        state = after


def _check_derivatives(rule: UpdateRule, params: Params) -> None:
    """Check the derivatives through two steps, as a meta-gradient takes them."""
    if broken := _not_finite(rule, params, _gradient(params)):
        raise AssertionError(f"{broken} not finite")
    if broken := _not_finite(rule, params, {name: torch.zeros_like(p) for name, p in params.items()}):
        warnings.warn(
            f"{broken} not finite where the gradient is zero, as for inactive units and solved tasks, and then "
            "meta-gradients are not finite either: keep roots, norms and divisors away from zero, for example with an "
            "epsilon under the root",
            stacklevel=user_level(),
        )


def _not_finite(rule: UpdateRule, params: Params, grads: Params) -> str:
    """Describe what is not finite in two steps and their derivatives; an empty string if everything is finite."""
    params, grads = ({n: t.detach().requires_grad_() for n, t in tensors.items()} for tensors in (params, grads))
    state, total = rule.init(params), torch.zeros((), dtype=torch.float64)
    for step in range(2):
        updates, state = rule.forward(grads, params, state, step, **_asked(rule))
        if wrong := [name for name, update in updates.items() if not bool(update.isfinite().all())]:
            return f"the update of {wrong[0]} is"
        total = total + torch.stack([update.sum() for update in updates.values()]).sum()
    learned = {f"the rule's {name}": p for name, p in rule.named_parameters() if p.requires_grad}
    by = {f"the gradient of {n}": g for n, g in grads.items()} | params | learned
    if not total.requires_grad:
        return ""
    slopes = torch.autograd.grad(total, list(by.values()), allow_unused=True)
    wrong = [name for name, s in zip(by, slopes, strict=True) if s is not None and not bool(s.isfinite().all())]
    return f"the derivative of the updates by {wrong[0]} is" if wrong else ""


def _check_vmap(rule: UpdateRule, params: Params) -> None:
    def step(params: Params) -> Params:
        updates: Params = rule.forward(_gradient(params), params, rule.init(params), 0, **_asked(rule))[0]
        return updates

    batched = {name: torch.stack([p, 2 * p]) for name, p in params.items()}
    each = [step({name: p[index] for name, p in batched.items()}) for index in range(2)]
    try:
        with TaskOperations(vectorized=True, kernels=False):
            together = vmap(step)(batched)
    except Exception as error:  # anything that torch can do for one task but not for many
        raise_interrupt_behind(error)
        warnings.warn(
            explain(error, nn.Module(), {"update rule": rule}, "so tasks run one by one with it"),
            stacklevel=user_level(),
        )
        return
    for index, alone in enumerate(each):
        for name, update in alone.items():
            torch.testing.assert_close(together[name][index], update, msg=f"{name} differs between vmap and a loop")


def _check_low_precision(rule: UpdateRule, params: Params, steps: int) -> None:
    rule.bind(params, steps)
    try:
        updates, _ = rule(_gradient(params), params, rule.init(params), 0, _HalfSquaredNorm())
        wrong = [f"the update of {n} is {u.dtype}" for n, u in updates.items() if u.dtype != params[n].dtype]
    except (RuntimeError, ValueError, TypeError) as error:
        wrong = [str(error)]
    if wrong:
        warnings.warn(f"the rule does not support models in bfloat16: {wrong[0]}", stacklevel=user_level())


def _check_descent(rule: UpdateRule, params: Params, steps: int) -> None:
    def loss(params: Params) -> Tensor:
        return torch.stack([p.detach().square().sum() / 2 for p in params.values()]).sum()

    before, state = loss(params), rule.init(params)
    for step in range(steps):
        updates, state = rule.forward(_gradient(params), params, state, step, **_asked(rule))
        params = {name: p + updates[name] for name, p in params.items()}
    assert loss(params) < before, f"{steps} steps raise a quadratic loss from {before:.4g} to {loss(params):.4g}"


def check_source(source: TaskSource, n: int = 3) -> None:
    """Check that a task source keeps the contract of `innerloop.TaskSource`.

    The source must return ``n`` tasks for any ``n``, and draw all randomness from the generator.

    Raises:
        AssertionError: the source breaks the contract; the message says how.
    """
    draws = [source.sample(n, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert [count(draw) for draw in draws] == [n] * 3, f"asked for {n} tasks, got {[count(draw) for draw in draws]}"
    assert count(source.sample(1, torch.Generator().manual_seed(0))) == 1, "asked for 1 task, got another number"
    draws = [singles(draw) for draw in draws]
    leaves = [[leaf for leaf in pytree.tree_leaves(draw) if isinstance(leaf, Tensor)] for draw in draws]
    same = [len(leaves[0]) == len(other) and all(map(torch.equal, leaves[0], other)) for other in leaves[1:]]
    assert same[0], "the same generator state gives different tasks: draw all randomness from the generator"
    assert not same[1], "another seed gives the same tasks: the generator is not used"
