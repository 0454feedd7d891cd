"""Checks of the results of update rules and initializations, and conversions of number types for rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .functional.quick import hidden_from_modes
from .task import Params


def require_dense(grads: Params) -> None:
    """Refuse sparse gradients, which update rules do not support.

    Raises:
        ValueError: a gradient is sparse.
    """
    with hidden_from_modes(grads.values()):
        sparse = [name for name, grad in grads.items() if grad.layout != torch.strided]
    if sparse:
        raise ValueError(
            f"the gradient of {sparse[0]} is sparse ({grads[sparse[0]].layout}), but update rules need dense ones: "
            "build its layer with sparse=False"
        )


def require_updates(result: Any, grads: Params, params: Params, rule: str) -> tuple[Params, Any]:
    """Check and return the updates and the state that a rule returned.

    Args:
        result: the result of the rule.
        grads: the gradients that the rule got.
        params: the parameters, under the same names.
        rule: the name of the rule, for messages.

    Raises:
        ValueError: the result is not a pair of updates and state, an update is missing or not of an adapted parameter,
            or an update would change the shape or the type of its parameter.
    """
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], Mapping)):
        raise ValueError(
            f"the forward of {rule} returned a {type(result).__name__}, not a pair of a dict of updates by parameter "
            "name and the state: write `return updates, state`, with state=() for a rule without one"
        )
    updates, state = result
    if missing := [name for name in grads if name not in updates]:
        raise ValueError(
            f"{rule} returns no update of {missing[0]!r}: return one for every parameter, and torch.zeros_like(param) "
            "for one that should stay the same"
        )
    if strange := [name for name in updates if name not in grads]:
        raise ValueError(
            f"{rule} returns an update of {strange[0]!r}, which is not a parameter that the inner loop adapts: return "
            f"updates of {', '.join(map(repr, grads))} only"
        )
    _require_like(updates, params, "update", rule)
    return dict(updates), state


def require_kept(kept: Any, rule: nn.Module) -> Params:
    """Check and return what a rule keeps of a task for later tasks.

    Args:
        kept: the result of the rule's `kept`.
        rule: the rule, for messages.

    Raises:
        ValueError: the result is not a mapping of names to tensors.
    """
    if not isinstance(kept, Mapping) or not all(isinstance(tensor, Tensor) for tensor in kept.values()):
        raise ValueError(
            f"kept of {type(rule).__name__} returned a {type(kept).__name__}, not a dict of tensors by name: return "
            "such a dict, or {} to keep nothing"
        )
    return dict(kept)


def require_start(start: Any, params: Params, initial: str) -> Params:
    """Check and return the start of a task's adapted parameters by an initialization.

    Args:
        start: the result of the initialization.
        params: the adapted meta-parameters.
        initial: the name of the initialization, for messages.

    Raises:
        ValueError: the result is not a mapping, or a parameter is missing, does not adapt, or has another shape or
            type.
    """
    if not isinstance(start, Mapping):
        raise ValueError(
            f"{initial} must return the start of the adapted parameters by name, got {type(start).__name__}"
        )
    if wrong := sorted(start.keys() ^ params.keys()):
        which = "without" if wrong[0] in params else "with"
        raise ValueError(
            f"{initial} returns a start {which} {wrong[0]!r}, but the inner loop adapts "
            f"{', '.join(map(repr, params))}: return these, e.g. {{**episode.start.params, name: tensor}}"
        )
    _require_like(start, params, "start", initial)
    return {name: start[name] for name in params}


def _require_like(values: Mapping[str, Any], params: Params, kind: str, of: str) -> None:
    """Refuse values that are not tensors of the shape and the type of their parameters."""
    with hidden_from_modes((*values.values(), *params.values())):
        wrong = [name for name, value in values.items() if not _like(value, params[name])]
    if not wrong:
        return
    value, param, what = values[wrong[0]], params[wrong[0]], f"the {kind} of {wrong[0]} by {of}"
    if not isinstance(value, Tensor):
        raise ValueError(f"{what} is a {type(value).__name__}, not a tensor like the parameter")
    if value.shape != param.shape:
        raise ValueError(
            f"{what} has the shape {tuple(value.shape)}, but the parameter has {tuple(param.shape)}: return a tensor "
            "of the parameter's shape"
        )
    raise ValueError(
        f"{what} is {value.dtype}, but the parameter is {param.dtype} and would change its type: return "
        "tensor.to(param.dtype)"
    )


def _like(value: Any, param: Tensor) -> bool:
    if not isinstance(value, Tensor) or value.shape != param.shape:
        return False
    return value.dtype == param.dtype or torch.promote_types(value.dtype, param.dtype) == param.dtype


def follow(rule: nn.Module, params: Params) -> None:
    """Promote the parameters of an update rule to the type of the model's parameters.

    The model may have been converted (``model.double()``) since the rule was made.

    Args:
        rule: the rule.
        params: the model's parameters; if these have several types, the rule stays as it is.
    """
    types = {p.real.dtype for p in params.values() if p.is_floating_point() or p.is_complex()}
    narrow = (own.dtype for own in (*rule.parameters(), *rule.buffers()) if own.is_floating_point())
    if len(types) == 1 and any(torch.promote_types(kind, *types) != kind for kind in narrow):
        rule.to(types.pop())


def as_reals(tensors: Params) -> Params:
    """Convert tensors to real numbers with at least the precision and range of float32.

    The two parts of complex numbers become a new last axis. Rules that square or compare elements use this.
    """
    reals = {n: torch.stack([t.real, t.imag], -1) if t.is_complex() else t for n, t in tensors.items()}
    return {n: t.float() if torch.finfo(t.dtype).bits < 32 else t for n, t in reals.items()}


def as_given(reals: Params, like: Params) -> Params:
    """Convert the result of `as_reals` back to the types of other tensors."""
    return {n: torch.complex(*t.unbind(-1)) if like[n].is_complex() else t.to(like[n].dtype) for n, t in reals.items()}


def root(square: Tensor) -> Tensor:
    """Return the square root, with a derivative of zero at zero instead of infinity; zero for negative numbers."""
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1.0).sqrt(), 0.0)
