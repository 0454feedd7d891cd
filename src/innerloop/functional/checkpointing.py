"""Parts of a model that are computed again in the backward pass, as ``torch.utils.checkpoint.checkpoint`` does.

A learner puts a task's parameters into the model for the length of a call. What is computed again comes later, when the
model has its own back, and would be computed with these. But torch asks at the first run for the context of the second
(``context_fn``), and `task_contexts` gives one that puts the model back to how it was.
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
    """A ``context_fn`` for ``torch.utils.checkpoint.checkpoint`` that recomputes under the conditions of the first.

    What the backward pass recomputes sees the parameters, buffers and modes that the first pass saw, and all tasks at
    once if the first pass did.

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
        ValueError: gradients are taken by ``torch.func``, as `innerloop.Implicit` takes them.
    """
    model = _running.get()
    if model is not None and place() == "other":
        raise ValueError("torch.func.grad, by which iMAML goes, knows no checkpointing: switch it off in the model")
    return nullcontext(), nullcontext() if model is None else _AsBefore(model)


@contextmanager
def running(model: nn.Module) -> Iterator[None]:
    """While entered, the model has a task's parameters in place, and what it checkpoints will have them again.

    Raises:
        ValueError: it checkpoints by the reentrant variant, whose backward pass does not give gradients to a caller.
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
    """A function that checkpoints, with the context of tasks, unless it has another."""
    options = getattr(function, "keywords", {})
    active = getattr(module, "gradient_checkpointing", False) and module.training
    if active and options.get("use_reentrant") is not False:
        raise ValueError(
            f"{type(module).__name__} checkpoints with use_reentrant={options.get('use_reentrant')}, by which an inner "
            'loop gets no gradients: enable it with gradient_checkpointing_kwargs={"use_reentrant": False}'
        )
    return function if "context_fn" in options else partial(function, context_fn=task_contexts)


class RefusedReentrant(TorchFunctionMode):
    """Refuse reentrant checkpointing of learned parameters while a model runs.

    Reentrant checkpointing does not work with `torch.autograd.grad`, and it cuts the graph where no input requires a
    gradient, as in a first layer.

    Args:
        model: the model, for the message.
        learned: the tensors that gradients are taken by.
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
        if func is private.set_grad_enabled and _FORWARD not in callers[:4]:  # which turns them off by itself
            self._recorded = args[0]
        if self._recorded and any(id(one) in self._learned for one in args) and _FORWARD in callers:
            raise ValueError(
                f"{type(self._model).__name__} checkpoints with use_reentrant=True, by which an inner loop gets no "
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
    """While entered, around a backward pass, it is an error if a part of a model runs without a task's parameters.

    Raises:
        ValueError: a part does.
    """
    parts = set(model.modules())

    def refuse(module: nn.Module, inputs: Any) -> None:
        if module in parts and _running.get() is None:
            raise ValueError(
                f"{type(module).__name__} is computed again in the backward pass, when a task's parameters are no "
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
    """Code that runs under these modes, those that it does not run under already being entered."""
    with ExitStack() as stack:
        for mode in modes:
            if not any(mode is present for present in private.function_modes()):
                stack.enter_context(mode)
        yield


State = list[tuple[dict[str, Any], dict[str, Any], bool]]
"""For each module of a model its parameters, its buffers and whether it is in training mode."""


class _AsBefore:
    """A model as it is now, whenever it is entered: once for each backward pass through what was checkpointed."""

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
    """The same, with buffers that can be changed in place by themselves."""

    def clones(buffers: dict[str, Any]) -> dict[str, Any]:
        return {name: buffer.clone() if isinstance(buffer, Tensor) else buffer for name, buffer in buffers.items()}

    return [(params, clones(buffers), training) for params, buffers, training in state]


def _put(model: nn.Module, state: State) -> None:
    for module, (params, buffers, training) in zip(model.modules(), state, strict=True):
        module._parameters.update(params)
        module._buffers.update(buffers)
        module.training = training
