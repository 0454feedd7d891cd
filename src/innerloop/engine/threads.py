"""Threads that work on tasks of their own, side by side, each with its share of torch's threads.

Torch spreads one operation over all cores, and where operations are short the cores wait for each other and for Python.
Threads with tasks of their own wait for neither. Each works on a copy of the module, for putting a task's parameters
into a module is not seen by one thread alone.
"""

from __future__ import annotations

import copy
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache, partial
from queue import SimpleQueue
from types import FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..common.interrupts import raise_interrupt_behind
from .contracts import MOST_ENTRIES
from .stacks import place

Item = TypeVar("Item")
Result = TypeVar("Result")
Part = TypeVar("Part")

StandIns = Mapping[int, nn.Module]
"""By the id of what they stand in for."""
_present: ContextVar[StandIns] = ContextVar("what stands in for modules", default=MappingProxyType({}))
_LIBRARIES = frozenset(("torch", "innerloop", "numpy", *sys.stdlib_module_names))


def available() -> int:
    """The number of threads that may run at the same time: the number that torch uses, or 1.

    It is 1 where modes or transforms that are set for this thread alone would not apply in other threads.
    """
    modes = torch._C._len_torch_function_stack() + torch._C._len_torch_dispatch_stack()
    special = modes or place() != "plain" or torch.is_autocast_enabled("cpu") or torch.is_inference_mode_enabled()
    return 1 if special or not _own_numbers() else torch.get_num_threads()


def side_by_side(
    work: Callable[[Item], Result], items: Sequence[Item], threads: int, model: nn.Module
) -> Iterator[Result]:
    """The results of all items, in order.

    Args:
        work: runs in the threads, where `mine` gives it a copy of the model.
        items: what to work on.
        threads: how many; every one gets an equal share of torch's threads.
        model: the module.
    """
    copies: SimpleQueue[nn.Module] = SimpleQueue()
    for _ in range(threads):
        copies.put(replica(mine(model)))
    grad, stand_ins = torch.is_grad_enabled(), _present.get()

    def run(item: Item) -> Result:
        stand_in = copies.get()
        try:
            with torch.set_grad_enabled(grad), standing_in({**stand_ins, id(model): stand_in}):
                return work(item)
        finally:
            copies.put(stand_in)

    pool = _pool(threads, max(1, torch.get_num_threads() // threads))
    futures = [pool.submit(run, item) for item in items]
    try:
        while futures:
            yield futures.pop(0).result()
    finally:
        for future in futures:
            future.cancel()
        wait(futures)


def replica(model: nn.Module) -> nn.Module:
    """A copy with the same parameters and buffers."""
    return copied(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


def copied(model: nn.Module, known: dict[int, Any] | None = None) -> nn.Module:
    """Return a deep copy, also of a module whose attributes hold non-leaf tensors, which torch refuses to copy.

    Such tensors are detached. Those computed from parameters, as by the old ``torch.nn.utils.weight_norm``, are
    computed again when the copy runs.

    Args:
        model: the module.
        known: objects that the copy shares with the original instead of copying them, by id (``copy.deepcopy``'s memo).
    """
    kept = [value for module in model.modules() for value in vars(module).values() if isinstance(value, torch.Tensor)]
    cut = {id(tensor): tensor.detach().clone() for tensor in kept if tensor.grad_fn is not None}
    return copy.deepcopy(model, {**cut, **(known or {})})


@contextmanager
def standing_in(stand_ins: StandIns) -> Iterator[None]:
    """In this thread, `mine` gives these, beside those that stand in already."""
    token = _present.set({**_present.get(), **stand_ins})
    try:
        yield
    finally:
        _present.reset(token)


def mine(part: Part) -> Part:
    """What this thread works with in place of a module, or of anything else, which is that itself."""
    return _present.get().get(id(part), part)  # type: ignore[return-value]


def independent(model: nn.Module, call: Callable[[], Any]) -> bool:
    """Whether copies of a module do without the original.

    A function that a module keeps, or a hook, may hold on to the original: that could not be given a task's parameters.

    Args:
        model: the module.
        call: computes something with what `mine` gives, on parameters other than the module's.
    """
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers() if buffer.layout == torch.strided]
    try:
        with standing_in({id(model): replica(mine(model))}), torch.enable_grad():
            outputs = [t for t in pytree.tree_leaves(call()) if isinstance(t, torch.Tensor) and t.requires_grad]
        learned = [p for p in model.parameters() if p.requires_grad]
        reached = torch.autograd.grad([t.sum() for t in outputs], learned, allow_unused=True) if outputs else ()
    except Exception as error:  # whatever it is that cannot be copied, or run twice
        raise_interrupt_behind(error)
        return False
    finally:  # what holds on to the original may have moved its statistics
        with torch.no_grad():
            for buffer, before in buffers:
                if not torch.equal(buffer, before):  # batch norm writes without counting versions
                    buffer.copy_(before)
    return all(grad is None for grad in reached)


def state(parts: Mapping[str, Any]) -> dict[tuple[str, str, int], Any]:
    """Capture the attributes of modules and other objects and the closures of functions, to compare them later.

    What one call changes, calls in several threads would change at the same time.

    Args:
        parts: by what they are. Values are told apart by equality where they are plain, else by identity; tensors also
            by how often they were written to in place.
    """
    return {
        (f"the {kind} {owner}", name, index): [_fingerprint(leaf) for leaf in pytree.tree_leaves(value)]
        for kind, part in parts.items()
        for index, (owner, attributes) in enumerate(held_by(part))
        for name, value in attributes.items()
    }


def plain_state(parts: Mapping[str, Any]) -> dict[tuple[str, str, int], Any]:
    """Return `state` without its tensors, which do not outlive a task."""
    return {key: [one for one in found if len(one) == 1] for key, found in state(parts).items()}


def held_by(part: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Of every object in a part, its class, and what it, its class and its code hold, by name."""
    owner = part.__self__ if isinstance(part, MethodType) else part
    for one in owner.modules() if isinstance(owner, nn.Module) else (owner,):
        code = getattr(type(one), "forward" if isinstance(one, nn.Module) else "__call__", None)
        held = {**variables_of(one), **variables_of(code), **vars(type(one)), **getattr(one, "__dict__", {})}
        buffers = held.pop("_buffers", None) or {}
        for tensors in ("_parameters", "_modules"):  # a task's take their places for a while
            held.pop(tensors, None)
        yield getattr(one, "__name__", type(one).__name__), {**held, **buffers}


def variables_of(function: Any) -> dict[str, Any]:
    """The variables outside of a function that its code uses."""
    if not isinstance(function, FunctionType):
        return {}
    used, variables = function.__code__.co_names, function.__globals__
    found = {name: variables[name] for name in used if name in variables}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # an empty one
            found[name] = cell.cell_contents
    return found


def reached(value: Any, seen: set[int], depth: int = 4) -> Iterator[Any]:
    """Yield a value and everything that it holds.

    It holds the variables that a function uses, the object that a method belongs to, and the attributes of an object or
    of a Python module that belongs to no library.

    Args:
        value: a pytree of anything.
        seen: the ids of what was looked at already.
        depth: how far to follow.
    """
    if id(value) in seen or not depth or (isinstance(value, (list, dict, tuple)) and len(value) > MOST_ENTRIES):
        return
    seen.add(id(value))
    for leaf in pytree.tree_leaves(value):
        yield leaf
        for inner in _inside(leaf):
            yield from reached(inner, seen, depth - 1)


def _inside(leaf: Any) -> Iterable[Any]:
    if isinstance(leaf, FunctionType):
        return variables_of(leaf).values()
    if isinstance(leaf, MethodType):
        return leaf.__self__, leaf.__func__
    if isinstance(leaf, partial):
        return leaf.func, leaf.args, leaf.keywords
    if isinstance(leaf, weakref.ref):
        return (leaf(),)
    library = isinstance(leaf, ModuleType) and leaf.__name__.partition(".")[0] in _LIBRARIES
    closed = isinstance(leaf, (type, torch.Tensor, nn.Module)) or library
    return () if closed else list(getattr(leaf, "__dict__", {}).values())


def _fingerprint(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return id(value), None if value.is_inference() else value._version
    return (value,) if isinstance(value, int | float | complex | str | bytes | None) else (id(value),)


@cache
def _own_numbers() -> bool:
    """Whether every thread has its own number of torch threads."""
    return "parallel backend: OpenMP" in torch.__config__.parallel_info()


@cache
def _pool(threads: int, share: int) -> ThreadPoolExecutor:
    every, started = torch.get_num_threads(), threading.Barrier(threads + 1)

    def start() -> None:
        torch.set_num_threads(share)
        torch.get_num_threads()  # the first time in a thread, this takes over what was set last anywhere
        started.wait()

    pool = ThreadPoolExecutor(threads, "innerloop", initializer=start)
    for _ in range(threads):
        pool.submit(int)
    started.wait()
    torch.set_num_threads(every)  # the number of threads to come, which those that started have changed
    return pool


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not come along
