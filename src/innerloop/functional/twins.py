"""Private module objects for each call, so that calls from several threads do not disturb each other.

Every thread sees it when a call puts a task's parameters into a module or sets the mode of a layer. So a call that
predicts or adapts works on *twins*: new module objects that share parameters, buffers and everything else with the
learner's. A call that fails then changes nothing. Code that refers to the modules other than as submodules (in a list,
by a bound method, as a global variable, from a loss) would still reach the originals. Such learners have no twins, and
their calls wait for each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ..common.interrupts import Lock
from .contracts import has_tensors
from .held import held_by, reached
from .quick import identical, modules_of
from .stand_ins import StandIns, mine, standing_in

_OWN = ("_parameters", "_buffers", "_modules")
_DICTS = (*_OWN, "_forward_hooks", "_forward_pre_hooks")
_LAID_OUT = ("_flat_weights", "_flat_weight_refs")
"""Lists in which torch's recurrent layers keep their parameters a second time."""
_locks: WeakKeyDictionary[nn.Module, Lock] = WeakKeyDictionary()
_making = Lock()
_EMPTY: dict[str, Any] = {}


class Shared:
    """The modules that all calls of a learner share.

    Args:
        model: the learner's model.
        parts: its other parts: modules, functions and other objects.
        moving: modules with buffers that calls update.

    Attributes:
        entangled: whether running a task showed that twins do not work: a call leaves tensors in a list or a
            dictionary, which twins would share, or a copy of the model leads back to the original.
    """

    def __init__(self, model: nn.Module, *parts: Any, moving: Iterable[nn.Module] = ()) -> None:
        self.model, self.moving, self.entangled = model, tuple(moving), False
        self._parts = (model, *parts)
        self._leads_back: bool | None = None

    @property
    def modules(self) -> list[nn.Module]:
        """All modules, without duplicates."""
        return modules_of(*self._parts)

    @property
    def lock(self) -> Lock:
        """The lock for calls that work on the modules themselves. All learners of a model use the same one."""
        with _making:
            return _locks.setdefault(self.model, Lock())

    @property
    def separable(self) -> bool:
        """Whether twins are possible, because code refers to modules only as submodules."""
        if self._leads_back is None:
            self._leads_back = _lead_back(self._parts, self.modules)
        return not self._leads_back and not self.entangled

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Let `stand_ins.mine` return twins in this thread while entered.

        Plain attributes that a call sets, such as counters, are copied back to the originals.
        """
        if mine(self.model) is not self.model:
            yield
            return
        if not self.separable:
            with self.lock:
                yield
            return
        modules = self.modules
        with self.lock:
            twins: StandIns = {id(module): _twin(module) for module in modules}
        for twin in twins.values():
            twin._modules.update({name: twins[id(child)] for name, child in twin._modules.items() if child is not None})
        before = {key: dict(vars(twin)) for key, twin in twins.items()}
        with standing_in(twins):
            yield
        for module in modules:
            _hand_over(module, twins[id(module)], before[id(module)])


class Originals:
    """A snapshot of modules: their parameters, buffers, submodules, hooks and other attributes.

    Args:
        shared: the modules to record.
    """

    def __init__(self, shared: Shared) -> None:
        self._held = [(module, dict(vars(module)), _contents(module)) for module in shared.modules]
        self._values = [(buffer, buffer.clone()) for module in shared.moving for buffer in module.buffers()]

    def restore(self) -> None:
        """Put everything back."""
        for module, held, contents in self._held:
            for name in vars(module).keys() - held.keys():
                del vars(module)[name]
            vars(module).update(held)
            for name, content in contents.items():
                if not identical(held[name], content):
                    held[name].clear()
                    held[name].update(content)
        with torch.no_grad():
            for buffer, value in self._values:
                buffer.copy_(value)


def _contents(module: nn.Module) -> dict[str, dict[str, Any]]:
    if isinstance(module, torch.jit.ScriptModule):  # it keeps them elsewhere
        return {}
    held = vars(module)
    return {name: held[name].copy() if held[name] else _EMPTY for name in _DICTS}


def _lead_back(parts: Iterable[Any], modules: list[nn.Module]) -> bool:
    """Return whether an attribute other than a submodule, or a variable of the code, leads to one of the modules."""
    if any(isinstance(module, torch.jit.ScriptModule) for module in modules):
        return True
    own, seen = {id(module) for module in modules}, set[int]()
    held = (value for part in parts for _, attributes in held_by(part) for value in attributes.values())
    return any(id(leaf) in own for value in held for leaf in reached(value, seen))


def _twin(module: nn.Module) -> nn.Module:
    twin: nn.Module = object.__new__(type(module))
    held = vars(module)
    vars(twin).update(held)
    for name in (*_OWN, *(name for name in _LAID_OUT if isinstance(held.get(name), list))):
        vars(twin)[name] = held[name].copy()
    return twin


def _hand_over(module: nn.Module, twin: nn.Module, before: dict[str, Any]) -> None:
    for name, value in vars(twin).items():
        if value is not before.get(name, twin) and name not in (*_OWN, *_LAID_OUT) and not has_tensors(value):
            vars(module)[name] = value
