"""Checks of what the inner loss and its gradient depend on, to detect parameters that are never updated."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from ..common.errors import user_level
from ..episode import Loss
from ..functional.quick import members_of, modules_of
from ..functional.stacks import nodes_of
from ..functional.writes import OwnParameterError
from ..select import Selection
from ..task import Params


def reached(loss: Tensor, params: Params) -> list[str]:
    """Return the names of the parameters that a loss depends on."""
    if not loss.requires_grad:
        return []
    grads = torch.autograd.grad(loss, list(params.values()), allow_unused=True, retain_graph=True)
    return [name for name, grad in zip(params, grads, strict=True) if grad is not None]


def check_dependence(loss: Tensor, start: Params, learned: Params, second: bool = False) -> None:
    """Warn of unused parameters.

    These are adapted parameters that the inner loss does not depend on, and parameters of a learned loss that its
    gradient does not depend on, so that they get no meta-gradient.

    Args:
        loss: the inner loss of one task at its start, a scalar.
        start: the adapted parameters at the start.
        learned: the parameters of the inner loss, if it is a module.
        second: whether the gradient will be differentiated.

    Raises:
        ValueError: the loss depends on none of the adapted parameters, or its gradient cannot be differentiated.
    """
    by = list(start.values())
    graph = bool(learned) or second
    grads = torch.autograd.grad(loss, by, create_graph=graph, allow_unused=True) if loss.requires_grad else ()
    if second:
        _refuse_once_differentiable([grad for grad in grads if grad is not None])
    unused = [name for name, grad in zip_longest(start, grads) if grad is None]
    if len(unused) == len(start):
        raise ValueError(f"the inner loss depends on none of the adapted parameters: {', '.join(start)}")
    if unused:
        warnings.warn(
            f"the inner loss of the first task does not depend on {', '.join(unused)}: these get an update of zero. If "
            f"no task uses them, leave them out of adapt=, e.g. adapt=il.everything - il.named({unused[0]!r})",
            stacklevel=user_level(),
        )
    size = torch.stack([(grad * grad.conj()).real.sum() for grad in grads if grad is not None]).sum()
    if second and size.requires_grad:
        _require_second_derivative(size, list(start.values()))
    by = list(learned.values())
    reach = torch.autograd.grad(size, by, allow_unused=True) if by and size.requires_grad else [None] * len(by)
    if lost := [name for name, grad in zip(learned, reach, strict=True) if grad is None]:
        warnings.warn(
            f"the gradient of the learned inner loss does not depend on its {', '.join(lost)}, so these get no "
            "meta-gradient. For example, a term that is only added to a loss does not change its gradient",
            stacklevel=user_level(),
        )


def refuse_own_parameters(loss: Tensor, adapted: Params) -> None:
    """Refuse an inner loss that refers to the model's own parameters instead of those of the task.

    Raises:
        ValueError: the loss depends on a parameter of the model that the inner loop adapts.
    """
    own = {name: p for name, p in adapted.items() if p.requires_grad}
    if not own or not loss.requires_grad:
        return
    grads = torch.autograd.grad(loss, list(own.values()), allow_unused=True, retain_graph=True)
    if read := [name for name, grad in zip(own, grads, strict=True) if grad is not None]:
        raise OwnParameterError(read[0])


def _require_second_derivative(size: Tensor, by: list[Tensor]) -> None:
    """Raise a ``ValueError`` that says what to do if torch cannot differentiate the inner gradient."""
    try:
        torch.autograd.grad(size, by, allow_unused=True, retain_graph=True)
    except RuntimeError as error:
        if "not implemented" not in str(error) and "not differentiable" not in str(error):
            raise
        raise ValueError(
            "a second-order meta-gradient needs second derivatives of the model and the inner loss, but one of their "
            f"operations has none ({str(error).splitlines()[0]}): replace it by elementary operations, or give order=1"
        ) from error


def refuse_hooks(model: nn.Module, rule: nn.Module, adapted: Collection[str], judged: bool) -> None:
    """Refuse hooks of parameters, which would not run as in a loop written by hand.

    Args:
        model: the learner's model.
        rule: the learner's update rule.
        adapted: the names of the parameters that the inner loop adapts.
        judged: whether gradients with respect to the other parameters may be computed.

    Raises:
        ValueError: a parameter has a hook.
    """
    if not any(parameter._backward_hooks for parameter in members_of(modules_of(model, rule))[0]):
        return
    for owner in (model, rule):
        for name, parameter in owner.named_parameters():
            if parameter._backward_hooks and owner is model and name in adapted:
                raise ValueError(
                    f"the parameter {name!r} has a hook, which the inner loop would not run, because it moves copies "
                    "of the parameter: change inner gradients in an update rule (il.GradientTransform)"
                )
            if parameter._backward_hooks and judged:
                raise ValueError(
                    f"the parameter {name!r} has a hook, which would run for chunks of tasks and not for their mean: "
                    "change the gradients that meta_gradient returns"
                )


class Chosen:
    """The parameters that a learner adapts, which are fixed when it is made.

    Args:
        selection: selects the parameters.
        model: the learner's model.

    Attributes:
        names: the names of the adapted parameters.
    """

    def __init__(self, selection: Selection, model: nn.Module) -> None:
        self.names, self._select = selection.names(model), selection.names

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the selection, which may be a function that cannot be pickled."""
        return {"names": self.names, "_select": None}

    def __deepcopy__(self, memo: Any) -> Chosen:
        return self

    def warn_of_change(self, model: nn.Module, judged: bool) -> None:
        """Warn if the selection would choose other parameters now, for example after some were frozen or unfrozen.

        Args:
            model: the learner's model.
            judged: false gives no warning, as in predictions.
        """
        try:
            now = self._select(model) if judged and self._select is not None else self.names
        except ValueError:  # it would choose nothing, since the whole model was frozen
            return
        if changed := sorted(set(self.names).symmetric_difference(now)):
            would, does = ("not choose", "still adapts") if changed[0] in self.names else ("choose", "does not adapt")
            warnings.warn(
                f"adapt= would {would} {changed[0]!r} now, probably because it was frozen or unfrozen (requires_grad), "
                f"but the learner {does} it: adapted parameters are fixed when a learner is made. Make a new learner "
                "to change them",
                stacklevel=user_level(),
            )


def _refuse_once_differentiable(grads: list[Tensor]) -> None:
    """Refuse gradients of functions that cannot be differentiated twice.

    Torch silently leaves out the part of such a function if gradients with respect to only some tensors are requested.

    Raises:
        ValueError: there is such a function.
    """
    for node in nodes_of(grads):
        if node.name() == "torch::autograd::Error":
            raise ValueError(
                "the model or the inner loss uses a torch.autograd.Function that is marked as once_differentiable, so "
                "a second-order meta-gradient would lack a part: write its backward with differentiable operations and "
                "without that mark, or give order=1"
            )


def parameters_of(loss: Loss, outer: Loss) -> Params:
    """Return the parameters of a learned inner loss that only the meta-gradient can train, by name.

    There are none if the inner loss is also the outer loss.
    """
    if not isinstance(loss, nn.Module) or loss is outer:
        return {}
    return {name: p for name, p in loss.named_parameters() if p.requires_grad}


def refuse_order(objective: Any, learned: Params) -> None:
    """Refuse to learn an inner loss by first-order gradients, which do not depend on it.

    Raises:
        ValueError: the objective treats updates as constants.
    """
    if learned and getattr(objective, "order", 2) == 1:
        raise ValueError(
            f"a learned inner loss ({', '.join(learned)}) needs order=2: with order=1 updates are constants, and it "
            "gets no meta-gradient"
        )
