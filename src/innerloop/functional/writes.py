"""Checks that models, update rules and losses do not write to tensors that all tasks share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from ..task import Params


class RefusedWrites(TorchFunctionMode):
    """While entered, refuse to write in place to tensors that tasks share.

    Args:
        watched: the tensors that must not change, by name.
        message: returns the error message for a name in ``watched``.

    Raises:
        ValueError: the code inside writes to one of them.
    """

    def __init__(self, watched: Params, message: Callable[[str], str]) -> None:
        super().__init__()
        self._watched, self._message = watched, message
        self._names = {storage(t): name for name, t in watched.items() if t.numel()}
        self._versions = {name: t._version for name, t in watched.items() if not t.is_inference()}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Refuse an in-place function, also through ``.data``, before it runs."""
        kwargs = kwargs or {}
        for tensor in written(func, args, kwargs):
            if name := self._names.get(storage(tensor)):
                raise ValueError(self._message(name))
        return func(*args, **kwargs)

    def __exit__(self, *error: Any) -> None:
        """Refuse writes inside of torch's own functions."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for name, version in self._versions.items():
            if error[0] is None and self._watched[name]._version != version:
                raise ValueError(self._message(name))


class FlagReads(TorchFunctionMode):
    """Records whether user code reads ``requires_grad`` of tensors.

    Attributes:
        seen: whether it did.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Check which code reads the attribute; this mode must be the innermost."""
        if func == _REQUIRES_GRAD and not sys._getframe(1).f_code.co_filename.startswith(_LIBRARIES):
            self.seen = True
        return func(*args, **(kwargs or {}))


class OwnParameterError(ValueError):
    """An inner loss uses a parameter of the model itself."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"the inner loss uses the model's own {name!r}, which is the meta-parameter and not the adapted parameter "
            "of the task: compute what depends on adapted parameters (a penalty, another call of the model) in the "
            "model's forward and return it with the output, or leave the parameter out of adapt="
        )


class OwnParameters(TorchFunctionMode):
    """While entered, refuse computation with parameters that the inner loop replaces.

    Enter it around the call of an inner loss.

    Args:
        params: the model's own parameters, by name.
    """

    def __init__(self, params: Params) -> None:
        super().__init__()
        self._names = {id(parameter): name for name, parameter in params.items()}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Refuse a result that requires a gradient with respect to such a parameter."""
        result = func(*args, **(kwargs or {}))
        for given in args:
            for one in given if isinstance(given, (list, tuple)) else (given,):
                if id(one) in self._names and isinstance(result, Tensor) and result.requires_grad:
                    raise OwnParameterError(self._names[id(one)])
        return result


_REQUIRES_GRAD = torch.Tensor.requires_grad.__get__  # type: ignore[attr-defined]
_LIBRARIES = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))
_INPUT = "the input"


def model_writes(model: nn.Module, params: Params, x: Any) -> RefusedWrites:
    """Refuse writes of a model to its parameters, inputs and plain tensor attributes.

    Args:
        model: the module.
        params: the parameters that it runs on.
        x: its inputs.
    """
    inputs = [leaf for leaf in pytree.tree_leaves(x) if isinstance(leaf, Tensor)]
    watched = {**params, **{f"{_INPUT} {number}": leaf for number, leaf in enumerate(inputs)}}
    for prefix, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor):
                watched[f"{prefix}.{name}" if prefix else name] = value

    def message(name: str) -> str:
        if name.startswith(_INPUT):
            return (
                f"{type(model).__name__} writes to its input in place when it is called, so each inner step "
                "would change the data: compute out of place (inplace=False, x = x - mean for x -= mean), or write to "
                "x.clone()"
            )
        return (
            f"{type(model).__name__} writes to its own {name!r} in place when it is called, so each task would "
            "change it for all others: compute a new tensor in forward instead (e.g. weight = self.weight.clamp(0)), "
            "use torch.nn.utils.parametrize, or register a tensor that should change as a buffer (register_buffer)"
        )

    return RefusedWrites(watched, message)


def rule_writes(rule: nn.Module, params: Params) -> RefusedWrites:
    """Refuse writes of an update rule to the parameters that it gets, and to its own.

    Args:
        rule: the rule.
        params: the parameters that it gets.
    """
    own = {**dict(rule.named_parameters()), **dict(rule.named_buffers())}

    def message(name: str) -> str:
        if name in params:
            return (
                f"{type(rule).__name__} writes to the parameter {name!r} of the model in place: leave it unchanged and "
                "return the update, which the inner loop adds to it"
            )
        return (
            f"{type(rule).__name__} writes to its own {name!r} in place, so each task would change it for all others: "
            "keep what changes from step to step in the state, which init() creates and forward() returns"
        )

    return RefusedWrites({**own, **params}, message)


def written(func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the tensors that a function writes to."""
    given = [kwargs.get("out"), *(args[:1] if _works_in_place(func) else ())]
    return [tensor for tensor in given if isinstance(tensor, Tensor)]


def storage(tensor: Tensor) -> int:
    """Return the address of a tensor's memory; 0 for tensors without one, such as sparse tensors."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # sparse tensors and the like have none
        return 0


def _works_in_place(func: Callable[..., Any]) -> bool:
    name = getattr(func, "__name__", "")
    if name.startswith("__"):
        return name == "__setitem__" or (name.startswith("__i") and name not in ("__index__", "__int__", "__invert__"))
    return name.endswith("_") and name not in ("requires_grad_", "retain_grad_")


@contextmanager
def unchanged(learner: nn.Module, **others: Any) -> Iterator[list[str]]:
    """Restore the parameters and buffers of all parts of a learner on exit, and refuse changes.

    Function modes only see writes of models and rules while these run; this compares values and sees all writes.

    Args:
        learner: the learner.
        others: parts that the learner does not register, by name; only modules count.

    Yields:
        A list. On exit it gets the names of changed buffers that may change: those of losses and initializations, such
        as a moving average over tasks.

    Raises:
        ValueError: another tensor was written to; its value is restored.
    """
    modules = {"": learner, **{name: part for name, part in others.items() if isinstance(part, nn.Module)}}
    before = {
        f"{prefix}.{name}" if prefix else name: (tensor, tensor.detach().clone())
        for prefix, module in modules.items()
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
        if tensor.layout == torch.strided  # torch cannot compare other layouts
    }
    moved: list[str] = []
    changed: list[str] = []
    try:
        yield moved
    finally:
        with torch.no_grad():
            for name, (tensor, value) in before.items():
                if not torch.equal(tensor, value) and not torch.allclose(tensor, value, 0, 0, equal_nan=True):
                    tensor.copy_(value)
                    changed.append(name)
    for name in changed:
        if isinstance(before[name][0], nn.Parameter) or name.startswith(("model.", "rule.")):
            raise ValueError(
                f"running one task changes the learner's {name!r} in place, which all tasks share: losses, update "
                "rules and initializations must not write to parameters, nor call a model that updates its running "
                "statistics. Compute new tensors, or keep what changes in the state of the update rule"
            )
    moved += changed
