"""Random numbers that do not come from torch's global generator.

While tasks run at once, torch draws separate numbers for each task from its global generator, and a recomputed step can
draw the same numbers again. Neither holds for numbers from other generators, nor for a model that sets the seed.
"""

from __future__ import annotations

import pickle
import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType, ModuleType, TracebackType
from typing import Any

import torch
from torch import Tensor

from ..common.private import TorchDispatchMode
from .contracts import attribute
from .held import held_by, reached
from .places import Content, content
from .stacks import random_state, same_random_state


class DrawsError(NotImplementedError):
    """Tasks that run at once would draw other random numbers than tasks that run one by one.

    Args:
        how: how numbers are drawn, a verb and its object.
        what: what would be wrong when tasks run at once, a relative clause.
        repeats: whether a recomputed step draws the same numbers.
    """

    def __init__(self, how: str, what: str, repeats: bool = False) -> None:
        super().__init__(f"it {how}, {what}")
        self.how, self.repeats = how, repeats


class Draws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records, while entered, which random generators are used, and restores them on exit.

    It restores all generators except torch's global ones, so that code that runs again draws the same numbers.

    Args:
        parts: modules, losses and other objects that will run; generators are searched in them.
        tensors: tensors on the devices that will be used.

    Attributes:
        error: the first problem; ``None`` if all numbers come from torch's global generators, one after the other.
        possible: whether the code of the parts refers to Python's or NumPy's random numbers.
    """

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return false: otherwise torch would import its compiler, which takes seconds."""
        return False

    def __init__(self, parts: Iterable[Any], tensors: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.error: DrawsError | None = None
        self._tensors, self.possible = list(tensors), False
        self._known = list(self._generators(parts))
        self._before: list[Any] = []

    def __enter__(self) -> Draws:
        self._before = [*_global(), *(content(item, name) for item, name in self._known)]
        self._last = random_state(self._tensors)
        return super().__enter__()  # type: ignore[no-untyped-call, no-any-return]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for one in filter(None, self._before):
            if one.read() != one.was:
                one.write(one.was)
                self._note(DrawsError(f"draws random numbers from {one.name}", _SHARED))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Check the generators of operations that draw random numbers."""
        kwargs = kwargs or {}
        if args and isinstance(args[0], list) and getattr(getattr(func, "_schema", None), "is_mutable", False):
            torch.autograd.graph.increment_version(args[0])  # torch leaves this out under such a mode
        if torch.Tag.nondeterministic_seeded not in getattr(func, "tags", ()):
            return func(*args, **kwargs)
        given = [one for one in (*args, *kwargs.values()) if isinstance(one, torch.Generator)]
        own = [one for one in given if one._cdata != torch.default_generator._cdata]  # type: ignore[attr-defined]
        for generator in own:
            if all(generator is not known for known, _ in self._known):
                self._known.append((generator, _OWN))
                self._before.append(content(generator, _OWN))
            what = "which would give the tasks its numbers in another order"
            self._note(DrawsError(f"draws random numbers from {_OWN}", what), sys._getframe(1))
        if not own and not same_random_state(self._last, random_state(self._tensors)):
            what = "but each task would still get different numbers"
            self._note(DrawsError("sets the seed or the state of torch's generator", what, True), sys._getframe(1))
        result = func(*args, **kwargs)
        self._last = random_state(self._tensors)
        return result

    def _note(self, error: DrawsError, frame: FrameType | None = None) -> None:
        """Keep the first problem, with the frames that led to it."""
        if self.error is not None:
            return
        trace: TracebackType | None = None
        while frame is not None:
            trace = TracebackType(trace, frame, frame.f_lasti, frame.f_lineno)
            frame = frame.f_back
        self.error = error.with_traceback(trace)

    def _generators(self, parts: Iterable[Any]) -> Iterator[tuple[Any, str]]:
        """Yield the generators that parts hold or that their code uses, with their names for messages."""
        numpy = sys.modules.get("numpy")
        kinds: tuple[type, ...] = (random.Random, torch.Generator)
        kinds += (numpy.random.Generator, numpy.random.RandomState) if numpy else ()
        seen: set[int] = set()
        for part in parts:
            for owner, attributes in held_by(part):
                for name, value in attributes.items():
                    for one in reached(value, seen):
                        if isinstance(one, kinds):
                            yield one, f"the {name!r} of {owner}"
                        self.possible |= isinstance(one, kinds) or _of_random(one)


_SHARED = "which all tasks would share"
_OWN = "its own torch.Generator"


def _global() -> Iterator[Content]:
    """Yield Python's and NumPy's global generators."""
    yield Content("Python's random module", random.getstate, random.setstate)
    if numpy := sys.modules.get("numpy"):
        own = numpy.random
        yield Content(
            "numpy.random", lambda: pickle.dumps(own.get_state()), lambda was: own.set_state(pickle.loads(was))
        )


def _of_random(value: Any) -> bool:
    """Return whether a value is a module with random numbers, or a function of such a module."""
    name = attribute(value, "__name__" if isinstance(value, ModuleType) else "__module__")
    bound = isinstance(attribute(value, "__self__"), random.Random)
    return bound or (isinstance(name, str) and name.partition(".")[0] in ("random", "numpy"))


@contextmanager
def refused_draws(watch: bool) -> Iterator[None]:
    """While entered, refuse to draw from Python's or NumPy's global generators, and restore these on exit.

    Args:
        watch: whether to check at all.

    Raises:
        DrawsError: numbers were drawn.
    """
    before = list(_global()) if watch else []
    yield
    for one in before:
        if one.read() != one.was:
            one.write(one.was)
            raise DrawsError(f"draws random numbers from {one.name}", _SHARED)
