"""Support for ``torch.utils.checkpoint.checkpoint``, which recomputes parts of a model in the backward pass.

A learner puts a task's parameters into the model for the duration of a call. Checkpointed parts are recomputed later,
when the model has its own parameters again, and would use these. But torch asks in the first run for a context of the
second (``context_fn``), and `task_contexts` returns one that restores the state of the model in the first run.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint

from ..common import private
from .attention import by_mathematics
from .quick import modules_of
from .stacks import place, under

_running: ContextVar[nn.Module | None] = ContextVar("the model that has a task's parameters in place", default=None)

_FORWARD = checkpoint.CheckpointFunction.forward.__code__

KEPT_AS = "_gradient_checkpointing_func"
"""The attribute in which modules of transformers keep a `functools.partial` of torch's function."""


def task_contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """A ``context_fn`` for ``torch.utils.checkpoint.checkpoint`` in models of a learner.

    With it, the backward pass recomputes with the same parameters, buffers and modes as the first pass, and with all
    tasks at once if the first pass ran them so.

    The learner passes it to models of transformers. Your own module can pass it, too, and still runs without a learner:

    >>> from torch.utils.checkpoint import checkpoint
    >>> class Block(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.layers = nn.Sequential(nn.Linear(2, 8), nn.GELU(), nn.Linear(8, 2))
    ...
    ...     def forward(self, x):
    ...         return checkpoint(self.layers, x, use_reentrant=False, context_fn=task_contexts)
    >>> Block()(torch.ones(1, 2)).shape
    torch.Size([1, 2])

    Raises:
        ValueError: gradients are computed by ``torch.func``, as in `innerloop.Implicit`.
    """
    model = _running.get()
    if model is not None and place() == "other":
        raise ValueError(
            "torch.func.grad, which iMAML uses, does not support checkpointing: switch it off in the model"
        )
    return nullcontext(), nullcontext() if model is None else _AsBefore(model)


@contextmanager
def running(model: nn.Module) -> Iterator[None]:
    """While entered, the model has a task's parameters in place, and what it checkpoints is recomputed with them.

    Raises:
        ValueError: it uses reentrant checkpointing, which does not support `torch.autograd.grad`.
    """
    token = _running.set(model)
    own = {module: vars(module)[KEPT_AS] for module in modules_of(model) if KEPT_AS in vars(module)}
    try:
        for module, function in own.items():
            setattr(module, KEPT_AS, _in_context(module, function))
        yield
    finally:
        for module, function in own.items():
            setattr(module, KEPT_AS, function)
        _running.reset(token)


def _in_context(module: nn.Module, function: Any) -> Any:
    """Return a checkpoint function with the context of tasks, unless it has another context."""
    options = getattr(function, "keywords", {})
    active = getattr(module, "gradient_checkpointing", False) and module.training
    if active and options.get("use_reentrant") is not False:
        raise ValueError(
            f"{type(module).__name__} checkpoints with use_reentrant={options.get('use_reentrant')}, which gives an "
            'inner loop no gradients: enable it with gradient_checkpointing_kwargs={"use_reentrant": False}'
        )
    return function if "context_fn" in options else partial(function, context_fn=task_contexts)


class RefusedReentrant(TorchFunctionMode):
    """Refuse reentrant checkpointing of learned parameters while a model runs.

    Reentrant checkpointing does not work with `torch.autograd.grad`, and it cuts the graph if no input requires a
    gradient, as in a first layer.

    Args:
        model: the model, for the message.
        learned: the tensors that gradients are computed for.
    """

    def __init__(self, model: nn.Module, learned: Iterable[Tensor]) -> None:
        super().__init__()
        self._model, self._learned = model, {id(tensor) for tensor in learned}
        self._outside: list[FrameType] = []

    def __enter__(self) -> Any:
        self._outside.append(sys._getframe(1))
        self._recorded = torch.is_grad_enabled()
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        self._outside.pop()  # a frame keeps the callers' alive, and with them whole graphs
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Refuse operations on learned parameters that run inside CheckpointFunction.forward."""
        callers = list(self._callers())
        if func is private.set_grad_enabled and _FORWARD not in callers[:4]:  # checkpointing itself turns gradients off
            self._recorded = args[0]
        if self._recorded and any(id(one) in self._learned for one in args) and _FORWARD in callers:
            raise ValueError(
                f"{type(self._model).__name__} checkpoints with use_reentrant=True, which gives an inner loop no "
                "gradients: give checkpoint(..., use_reentrant=False, "
                "context_fn=innerloop.task_contexts)"
            )
        return func(*args, **(kwargs or {}))

    def _callers(self) -> Iterator[CodeType]:
        frame: Any = sys._getframe(2)  # the caller of `__torch_function__`
        while frame is not None and frame is not self._outside[-1]:
            yield frame.f_code
            frame = frame.f_back


@contextmanager
def refused_out_of_place(model: nn.Module) -> Iterator[None]:
    """While entered, around a backward pass, refuse parts of a model that run without a task's parameters.

    Raises:
        ValueError: a part runs without them.
    """
    parts = set(model.modules())

    def refuse(module: nn.Module, inputs: Any) -> None:
        if module in parts and _running.get() is None:
            raise ValueError(
                f"{type(module).__name__} is recomputed in the backward pass, when the task's parameters are no "
                "longer in the model: give checkpoint(..., use_reentrant=False, "
                "context_fn=innerloop.task_contexts)"
            )

    hook = register_module_forward_pre_hook(refuse)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def with_function_modes(modes: list[Any]) -> Iterator[None]:
    """Enter those of the modes that are not active already."""
    with ExitStack() as stack:
        for mode in modes:
            if not any(mode is present for present in private.function_modes()):
                stack.enter_context(mode)
        yield


State = list[tuple[dict[str, Any], dict[str, Any], bool]]
"""The parameters and buffers of each module of a model, and whether it is in training mode."""


class _AsBefore:
    """Restores the present state of a model while entered, once for each backward pass through checkpointed parts."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.state = model, _apart(_state(model))
        self.modes = private.function_modes()
        with under([]) as self.transforms:
            pass

    def __enter__(self) -> None:
        self._entered = ExitStack()
        contexts = running(self.model), by_mathematics, under(self.transforms), self._in_place()
        for context in contexts:
            self._entered.enter_context(context)
        self._entered.enter_context(with_function_modes(self.modes))

    def __exit__(self, *error: Any) -> None:
        self._entered.close()

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        now = _state(self.model)
        _put(self.model, _apart(self.state))
        try:
            yield
        finally:
            _put(self.model, now)


def _state(model: nn.Module) -> State:
    return [(dict(module._parameters), dict(module._buffers), module.training) for module in model.modules()]


def _apart(state: State) -> State:
    """Return the same state with copies of the buffers, which can be changed in place."""

    def clones(buffers: dict[str, Any]) -> dict[str, Any]:
        return {name: buffer.clone() if isinstance(buffer, Tensor) else buffer for name, buffer in buffers.items()}

    return [(params, clones(buffers), training) for params, buffers, training in state]


def _put(model: nn.Module, state: State) -> None:
    for module, (params, buffers, training) in zip(model.modules(), state, strict=True):
        module._parameters.update(params)
        module._buffers.update(buffers)
        module.training = training
