"""Protection against losses, modules and modes with which an inner loop would silently be wrong.

Losses that broadcast targets against outputs are refused. Tensors that modules keep as attributes are dropped, and
inference mode is left for the duration of a call.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FunctionType, MethodType, ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from ..task import tensors_of
from .quick import identical, modules_of
from .writes import storage, written

# -- inference mode ---------------------------------------------------------------------------------------------------


@contextmanager
def normal_mode() -> Iterator[None]:
    """Leave `torch.inference_mode`, so that an inner loop can compute gradients; grad mode stays as it is."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    grad = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.set_grad_enabled(grad):  # the former turns gradients on
        yield


def normal_tensors(tensors: Any) -> Any:
    """Return the same pytree, with inference tensors replaced by copies that autograd supports."""
    if not any(t.is_inference() for t in tensors_of(tensors)):
        return tensors
    return pytree.tree_map_only(Tensor, lambda t: t.clone() if t.is_inference() else t, tensors)


def refuse_inference_parameters(*modules: nn.Module) -> None:
    """Refuse parameters and buffers that autograd does not support.

    Raises:
        ValueError: one was made in `torch.inference_mode`, or has no shape yet.
    """
    for name, tensor in (t for module in modules for t in (*module.named_parameters(), *module.named_buffers())):
        if is_lazy(tensor):
            raise ValueError(
                f"{name} has no shape yet, because its module is lazy: call the model once on an example before you "
                "make the learner"
            )
        if tensor.is_inference():
            raise ValueError(
                f"{name} was made inside torch.inference_mode(), so it can have no gradient: build the model, the rule "
                "and the learner outside of that mode (you can use a learner inside of it)"
            )


# -- targets that broadcast -------------------------------------------------------------------------------------------

_ELEMENTWISE: frozenset[Callable[..., Any]] = frozenset(
    (
        F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss, F.kl_div, F.poisson_nll_loss, F.soft_margin_loss,
        F.binary_cross_entropy, F.binary_cross_entropy_with_logits, F.hinge_embedding_loss, F.gaussian_nll_loss,
        F.multilabel_soft_margin_loss,
    )
)  # fmt: skip
"""Torch's elementwise losses, which compare each output with one target."""
_REDUCING: frozenset[Any] = frozenset(
    (torch.dist, torch.Tensor.dist, F.pairwise_distance, torch.pairwise_distance, torch.cosine_similarity)
)
"""Functions that reduce, so that their result does not have the broadcast shape."""
_PARTS: frozenset[Any] = frozenset(
    (
        torch.Tensor.__getitem__, torch.Tensor.chunk, torch.chunk, torch.Tensor.split, torch.split,
        torch.Tensor.narrow, torch.narrow, torch.Tensor.unbind, torch.unbind, torch.Tensor.tensor_split,
        torch.tensor_split, torch.Tensor.squeeze, torch.squeeze, torch.Tensor.flatten, torch.flatten,
        torch.Tensor.ravel, torch.ravel,
    )
)  # fmt: skip
"""Functions that take a part of a tensor, or drop axes, and keep the order of the others."""

_MEANT: frozenset[Any] = frozenset((torch.Tensor.expand_as,))
"""Functions that broadcast explicitly. ``torch.broadcast_tensors`` is not among them, because distributions apply it to
all of their arguments."""

_Role = Literal["output", "target"]


class RefusedBroadcasts(TorchFunctionMode):
    """While entered, around the call of a loss, refuse to broadcast targets against outputs and to write to targets.

    Torch's elementwise losses need equal shapes. Other code must not combine outputs and targets without reshaping
    into a result that has the shape of neither, such as ``output - y`` for ``[N, 1]`` and ``[N]``, and must not align
    their last axes if one of them has fewer axes.

    Args:
        output: the model's output, a pytree of tensors.
        y: the targets, a pytree of tensors.
        what: ``"loss"`` or ``"metric"``, for messages.

    Raises:
        ValueError: the code inside broadcasts targets or writes to them.
    """

    def __init__(self, output: Any, y: Any, what: str = "loss") -> None:
        super().__init__()
        self._what = what
        self._role: dict[int, _Role] = {}
        self._alive: list[Tensor] = []  # ids are unique only while the tensors are alive
        self._targets = [(leaf, leaf._version) for leaf in tensors_of(y) if not leaf.is_inference()]
        self._places = {storage(leaf) for leaf, _ in self._targets if leaf.numel()} - {0}
        for role, tensors in (("output", output), ("target", y)):
            for leaf in pytree.tree_leaves(tensors):
                if isinstance(leaf, Tensor):
                    self._note(leaf, role)  # type: ignore[arg-type]

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Compare the shapes of outputs and targets that a function combines."""
        kwargs = kwargs or {}
        if any(storage(tensor) in self._places for tensor in written(func, args, kwargs)):
            raise ValueError(f"the {self._what} {_TARGETS_WRITTEN}")
        given = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if func in _ELEMENTWISE:
            self._compare(func, *args, **kwargs)
        result = func(*args, **kwargs)
        roles = {role for t in given if (role := self._role.get(id(t)))}
        if len(roles) == 2 and func not in _MEANT:
            self._refuse_mixed(func, given, pytree.tree_leaves(result)[0])
        if len(roles) == 1:
            self._hand_on(func, args, given, result, roles.pop())
        return result

    def __exit__(self, *error: Any) -> None:
        """Refuse writes inside of torch's own functions."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        if error[0] is None and any(target._version != version for target, version in self._targets):
            raise ValueError(f"the {self._what} {_TARGETS_WRITTEN}")

    def _compare(self, func: Callable[..., Any], output: Any = None, y: Any = None, *rest: Any, **kwargs: Any) -> None:
        output = kwargs.get("input", output)
        y = kwargs.get("target", y)
        if isinstance(output, Tensor) and isinstance(y, Tensor) and output.shape != y.shape and output.ndim and y.ndim:
            raise ValueError(self._unequal(output.shape, y.shape, func.__name__))

    def _refuse_mixed(self, func: Callable[..., Any], given: list[Tensor], result: Any) -> None:
        """Refuse a result for which torch aligned axes of output and target that do not belong together."""
        by_role = {self._role[id(t)]: t for t in reversed(given) if id(t) in self._role}
        output, y = by_role["output"], by_role["target"]
        if output.shape == y.shape or 1 in (output.numel(), y.numel()):
            return
        try:
            broadcast = torch.broadcast_shapes(output.shape, y.shape)  # type: ignore[no-untyped-call]
        except RuntimeError:
            return
        mixed = broadcast not in (output.shape, y.shape) or output.ndim != y.ndim
        if mixed and (getattr(result, "shape", None) == broadcast or func in _REDUCING):
            raise ValueError(self._unequal(output.shape, y.shape, getattr(func, "__name__", str(func))))

    def _hand_on(self, func: Callable[..., Any], args: Any, given: list[Tensor], result: Any, role: _Role) -> None:
        """Treat elementwise results and parts of outputs (or targets) as outputs (or targets)."""
        reshaped = func is torch.Tensor.__getitem__ and None in pytree.tree_leaves(args[1])
        for t in pytree.tree_leaves(result):
            same = isinstance(t, Tensor) and any(t.shape == other.shape for other in given if id(other) in self._role)
            if isinstance(t, Tensor) and (same or (func in _PARTS and not reshaped)):
                self._note(t, role)

    def _note(self, tensor: Tensor, role: _Role) -> None:
        self._alive.append(tensor)
        self._role[id(tensor)] = role

    def _unequal(self, output: torch.Size, y: torch.Size, where: str) -> str:
        fix = "give both the same shape"
        if output.numel() == y.numel():
            fix = f"reshape the targets to {list(output)}"
            if output == (*y, 1):
                fix += f", e.g. y.unsqueeze(-1), or squeeze the output in the {self._what}"
            elif y == (*output, 1):
                fix += ", e.g. y.squeeze(-1)"
        return (
            f"the {self._what} compares outputs of shape {list(output)} with targets of shape {list(y)} (in {where}), "
            f"which torch would broadcast against each other, giving a wrong {self._what}: {fix}"
        )


_TARGETS_WRITTEN = (
    "writes to its targets in place, which would change the data for all later uses: compute out of place (y = 0.9 * y "
    "for y *= 0.9), or write to y.clone()"
)


# -- what modules keep ------------------------------------------------------------------------------------------------

_OWN = frozenset(vars(nn.Module()))
"""The attributes of every module, for its parameters, buffers, submodules and hooks."""
_NONE = frozenset[str]()
_SIMPLE = (bool, int, float, str, tuple, type(None))
"""Types that `_container` never follows; checking the type first is faster."""
_CONTAINERS = (list, dict, set, deque)
_NOT_FOLLOWED = (Tensor, type, FunctionType, MethodType, ModuleType, nn.Module)
_holders: ContextVar[list[Any] | None] = ContextVar("what the innermost `without_kept_tensors` restores", default=None)
MOST_ENTRIES = 10_000
"""The largest container that is searched: larger ones hold data, and no module keeps so many tensors."""


@contextmanager
def without_kept_tensors(*parts: Any) -> Iterator[list[Any]]:
    """Restore, on exit, the tensors that modules keep in their attributes and in attributes of their classes.

    Such tensors then exist for one task, as buffers do. Otherwise one task would see the tensors of another, and a
    model could be neither copied nor saved, because the kept tensors belong to a graph. Other attributes, such as
    counters, keep their new values.

    Args:
        parts: modules, with their submodules; a part that is not a module is ignored.

    Yields:
        A list. On exit it gets the containers and classes that held tensors, which copies of a module would share. It
        also gets those that contexts within this one restored.
    """
    modules = modules_of(*parts)
    seen: set[int] = set()
    owners = {owner for kind in set(map(type, modules)) for owner in _classes(kind)}
    classes = [(owner, dict(vars(owner))) for owner in owners]
    shared = [value for _, held in classes for value in held.values() if isinstance(value, _CONTAINERS)]
    places = (place for one in (*map(vars, modules), *shared) for place in _places(one, seen))
    before = [(place, place.copy()) for place in places]
    empty = [(module._buffers, _filled(module._buffers)) for module in modules]
    attributes, holders = {id(vars(module)) for module in modules}, list[Any]()
    outer = _holders.get()
    _holders.set(holders)
    try:
        yield holders
    finally:
        _holders.set(outer)
        holders += [place for place, kept in before if _restore(place, kept) and id(place) not in attributes]
        holders += [owner for owner, held in classes if _restore_class(owner, held)]
        for buffers, given in empty:  # other code restores the buffers that it substitutes
            for name in _filled(buffers) - given if buffers else ():
                buffers[name] = None
        if outer is not None:  # which would have seen what was restored here
            outer += holders


def _filled(buffers: dict[str, Any]) -> frozenset[str]:
    return frozenset(name for name, value in buffers.items() if value is not None) if buffers else _NONE


def _classes(kind: type) -> Iterator[type]:
    """Yield a class and its base classes, except those of torch and of this library."""
    others = ("torch.", "innerloop.", "builtins")
    yield from (owner for owner in kind.__mro__ if not owner.__module__.startswith(others))


def _restore_class(owner: type, held: dict[str, Any]) -> bool:
    """Restore the tensors that a class held as attributes, and remove those that were added since.

    Returns:
        Whether there were such tensors.
    """
    changed = [n for n, value in vars(owner).items() if held.get(n, owner) is not value and has_tensors(value)]
    for name in changed:
        if name in held:
            setattr(owner, name, held[name])
        else:
            delattr(owner, name)
    return bool(changed)


def _places(place: Any, seen: set[int]) -> Iterator[Any]:
    """Yield a container and all containers in it, also in the attributes of objects."""
    if id(place) in seen or len(place) > MOST_ENTRIES:
        return
    seen.add(id(place))
    yield place
    for name, value in place.items() if isinstance(place, dict) else enumerate(place):
        if name not in _OWN and type(value) not in _SIMPLE and (inner := _container(value)) is not None:
            yield from _places(inner, seen)


def attribute(value: Any, name: str, default: Any = None) -> Any:
    """An attribute of any object, without its ``__getattr__``, which may import, load or raise whatever it likes."""
    try:
        return object.__getattribute__(value, name)
    except AttributeError:
        return default


def _container(value: Any) -> Any:
    """Return the container of other values that a value is or has, or ``None``."""
    if isinstance(value, _CONTAINERS):
        return value
    return attribute(value, "__dict__") if not isinstance(value, _NOT_FOLLOWED) else None


def _restore(place: Any, kept: Any) -> bool:
    """Restore the old values of entries that are or contain tensors, or did so before.

    Returns:
        Whether there were such entries.
    """
    if not isinstance(place, dict):
        same = len(place) == len(kept) and all(a is b for a, b in zip(place, kept, strict=True))
        if same or not (has_tensors(place) or has_tensors(kept)):
            return False
        place.clear()
        (place.update if isinstance(place, set) else place.extend)(kept)
        return True
    if identical(place, kept):
        return False
    others = [name for name, value in place.items() if kept.get(name, place) is not value and name not in _OWN]
    changed = [name for name in others if has_tensors(place[name]) or has_tensors(kept.get(name))]
    for name in changed:
        place.pop(name)
        if name in kept:
            place[name] = kept[name]
    if len(place) < len(kept):
        changed += [name for name, value in kept.items() if name not in place and has_tensors(value)]
        place.update({name: kept[name] for name in changed if name in kept})
    return bool(changed)


def has_tensors(value: Any, within: tuple[Any, ...] = ()) -> bool:
    """Return whether a value is a tensor, contains tensors, as a distribution does, or refers to tensors.

    Weak references count: torch's recurrent layers use them to remember which parameters they have flattened.
    """
    for leaf in pytree.tree_leaves(value):
        leaf = leaf() if isinstance(leaf, weakref.ref) else leaf
        inner = _container(leaf)
        if isinstance(inner, dict):
            inner = list(inner.values())
        if isinstance(leaf, Tensor):
            return True
        follow = inner and len(within) < 4 and not any(leaf is other for other in within)
        if follow and any(has_tensors(part, (*within, leaf)) for part in inner):
            return True
    return False
