"""Restore everything that a call may have changed if it fails, also by Ctrl-C at any moment.

Context managers are not enough, because an interrupt may come while one is entered or left. So each public call records
what it may change (torch's modes in this thread, random states, and modules that it works on directly) and restores it
after an exception.
"""

from __future__ import annotations

import gc
import sys
import traceback
from collections.abc import Callable
from contextvars import copy_context
from functools import partial, wraps
from typing import Any, TypeVar

import torch

from ..common import private
from ..common.interrupts import chain, interrupt_behind, mark_call, releasing
from ..common.profilers import profile_by
from .attention import by_mathematics
from .contracts import normal_mode
from .stacks import under
from .stand_ins import mine
from .turns import Turn
from .twins import Originals, Shared

Method = TypeVar("Method", bound=Callable[..., Any])
_FLAGS = ("_is_in_torch_dispatch_mode", "_is_in_non_infra_torch_dispatch_mode")


def undisturbed(alone: bool = False) -> Callable[[Method], Method]:
    """Decorate a method so that an exception restores all state, and so that it leaves `torch.inference_mode`.

    The object must have an attribute ``_shared``, a `twins.Shared`.

    Args:
        alone: whether the method works on the modules themselves, one call at a time. Otherwise it works on twins
            (`twins.Shared.apart`) if they are possible.
    """

    def decorate(method: Method) -> Method:
        @wraps(method)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            shared: Shared = self._shared
            function = partial(method, self, *args, **kwargs)
            if mine(shared.model) is not shared.model:  # from within such a call
                return function()
            run = _side_by_side if not alone and shared.separable else in_turn
            return copy_context().run(releasing, partial(run, function, shared))  # context variables reset themselves

        return call  # type: ignore[return-value]

    return decorate


def guarded(function: Method) -> Method:
    """Decorate a function so that an exception leaves torch's modes and random states as they were."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return copy_context().run(releasing, partial(_apart, partial(function, *args, **kwargs)))

    return call  # type: ignore[return-value]


def _side_by_side(function: Callable[[], Any], _: Shared) -> Any:
    with Turn():
        return _apart(function)


def _apart(function: Callable[[], Any]) -> Any:
    mark_call()
    before = Surroundings()
    try:
        with normal_mode():
            return function()
    except BaseException as error:
        interrupt = _finish(error)
        before.restore()
        if interrupt in (None, error):
            raise
        raise interrupt from None  # other errors arose while it propagated


def in_turn(function: Callable[[], Any], shared: Shared) -> Any:
    """Call a function that works on a learner's own modules, one call at a time; if it fails, restore the modules.

    Args:
        function: a function without arguments.
        shared: the modules.
    """
    with shared.lock:
        before = Originals(shared)
        try:
            return _apart(function)
        except BaseException:
            before.restore()
            raise


def _finish(error: BaseException) -> BaseException | None:
    """Finish context managers that an interrupt left open.

    Otherwise a context manager with an interrupted exit would change state only when the traceback is freed. Other
    exceptions keep the variables in their tracebacks, for debuggers.

    Returns:
        The interrupt, if there was one: the error itself, or an error behind it.
    """
    interrupt = interrupt_behind(error)
    for one in chain(error) if interrupt is not None else ():
        traceback.clear_frames(one.__traceback__)
    return interrupt


class Surroundings:
    """A snapshot of torch's and Python's state in this thread."""

    def __init__(self) -> None:
        self._grad = torch.is_grad_enabled()
        self._functions, self._dispatch = private.function_modes(), private.dispatch_modes()
        self._seen = private.function_state()
        self._depth, self._transforms = private.transform_depth(), list[Any]()
        if self._depth:
            with under([]) as self._transforms:
                pass
        self._random = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
        self._attention = by_mathematics.depth
        self._profile, self._collecting = sys.getprofile(), gc.isenabled()
        self._hooks = [dict(every) for every in private.GLOBAL_FORWARD_HOOKS]
        self._flags = [getattr(private.dispatch, name, None) for name in _FLAGS]
        devices = ("cpu", "cuda") if self._cuda else ("cpu",)
        self._autocast = [(d, torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in devices]
        self._nested = _autocast_depth()

    def restore(self) -> None:
        """Put everything back."""
        if private.transform_depth() > self._depth:
            private.pop_transforms_to(self._depth)
        for transform in reversed(self._transforms[: self._depth - private.transform_depth()]):
            private.push_transform(transform)
        self._restore_modes()
        torch.set_grad_enabled(self._grad)
        torch.set_rng_state(self._random)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)
        by_mathematics.leave(self._attention)
        if sys.getprofile() is not self._profile:
            profile_by(self._profile)
        if self._collecting:
            gc.enable()
        for every, were in zip(private.GLOBAL_FORWARD_HOOKS, self._hooks, strict=True):
            for key in every.keys() - were.keys():
                del every[key]

    def _restore_modes(self) -> None:
        private.set_function_state(self._seen)
        while private.number_of_function_modes():
            private.pop_function_mode()
        for mode in self._functions:
            private.push_function_mode(mode)
        if private.dispatch_modes() != self._dispatch:
            while private.number_of_dispatch_modes():
                private.pop_dispatch_mode()
            for mode in self._dispatch:
                private.push_dispatch_mode(mode)
        for name, value in zip(_FLAGS, self._flags, strict=True):
            setattr(private.dispatch, name, value)
        for device, enabled, dtype in self._autocast:
            torch.set_autocast_enabled(device, enabled)
            torch.set_autocast_dtype(device, dtype)
        while _autocast_depth() > self._nested:
            torch.autocast_decrement_nesting()
        if not self._nested:
            torch.clear_autocast_cache()


def _autocast_depth() -> int:
    torch.autocast_increment_nesting()
    return int(torch.autocast_decrement_nesting())
