"""Observe user code while it runs: which functions run, and what they read that cannot be compared later."""

from __future__ import annotations

import gc
import os
import pickle
import random
import sys
import types
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from ..common.private import TorchDispatchMode
from ..common.profilers import can_go_on, profile_by

_TRUSTED = tuple(
    f"{folder.resolve()}{os.sep}" for folder in (Path(__file__).parents[1], Path(torch.__file__ or "").parent)
)
_INSTALLED = ("site-packages/numpy/", "site-packages/sympy/", "site-packages/mpmath/", "/typing_extensions.py")
_STANDARD = tuple(f"{path}{os.sep}" for path in (Path(os.__file__).parent, Path(os.__file__).resolve().parent))
_GENERATED = ("torch.", "innerloop.", "namedtuple_")
"""Modules of functions that Python generated from strings, such as those of dataclasses."""
_SOURCES: dict[str, str] = {
    **dict.fromkeys(
        ("time", "time_ns", "perf_counter", "perf_counter_ns", "monotonic", "monotonic_ns", "process_time",
         "process_time_ns", "thread_time", "thread_time_ns", "now", "utcnow", "today"), "the clock"),
    **dict.fromkeys(("random", "getrandbits", "urandom", "getrandom"), "random numbers that torch does not draw"),
    **dict.fromkeys(("open", "input", "listdir", "scandir", "stat", "recv"), "files or other inputs"),
}  # fmt: skip
_OWNERS = ("time", "datetime", "_random", "random", "posix", "nt", "io", "_io", "builtins", "_socket")


class Observer:
    """Records which user functions run in this thread.

    Attributes:
        sources: the reads of sources that may differ every time, such as the clock, in words.
    """

    def __init__(self) -> None:
        self.sources: list[str] = []
        self._codes: set[types.CodeType] = set()
        self._kinds: dict[str, str] = {}

    def functions(self) -> list[types.FunctionType]:
        """Return the functions that ran and still exist. This undoes `gc.freeze()`, which would hide them."""
        if not self._codes:
            return []
        gc.unfreeze()
        gc.collect()  # remove functions that were made for one run only
        holders = gc.get_referrers(*self._codes)
        functions = [f for f in holders if isinstance(f, types.FunctionType) and f.__code__ in self._codes]
        return [f for f in functions if f.__module__ is None or not f.__module__.startswith(_GENERATED)]

    def __enter__(self) -> Observer:
        self._before = sys.getprofile()
        if not can_go_on(self._before):
            raise RuntimeError(f"the profiler {type(self._before).__name__} is active and could not be resumed")
        self._start: types.FrameType | None = sys._getframe(1)
        self._collecting = gc.isenabled()
        gc.disable()  # its callbacks do not belong to the code that runs
        sys.setprofile(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        profile_by(self._before)
        self._start = None  # the frame would keep all callers' variables alive
        if self._collecting:
            gc.enable()

    def _note(self, frame: types.FrameType, event: str, argument: Any) -> None:
        if event == "call":
            if frame.f_code not in self._codes and self._kind(frame) == "other" and self._caller(frame):
                self._codes.add(frame.f_code)
        elif event == "c_call" and (source := _SOURCES.get(getattr(argument, "__name__", ""))):
            owner = getattr(argument, "__module__", None) or _module_of(getattr(argument, "__self__", None))
            if owner in _OWNERS and (caller := self._caller(frame)) is not None:
                self.sources.append(f"{caller.f_code.co_name} reads {source} ({argument.__name__})")

    def _caller(self, frame: types.FrameType) -> types.FrameType | None:
        """Return the user frame that a standard library frame runs for; ``None`` for trusted code and imports."""
        user: types.FrameType | None = None
        caller: types.FrameType | None = frame
        trusted = False
        while caller is not None and caller is not self._start:
            if (kind := self._kind(caller)) == "import":
                return None
            user = user or (caller if kind == "other" and not trusted else None)
            trusted |= kind == "trusted"
            caller = caller.f_back
        return user

    def _kind(self, frame: types.FrameType) -> str:
        file = frame.f_code.co_filename
        if (kind := self._kinds.get(file)) is None:
            path = str(Path(file).resolve())
            if file.startswith("<frozen importlib"):
                kind = "import"
            elif path.startswith(_TRUSTED) or any(name in Path(path).as_posix() for name in _INSTALLED):
                kind = "trusted"
            else:
                standard = file.startswith("<frozen") or (path.startswith(_STANDARD) and "site-packages" not in path)
                kind = "standard" if standard else "other"
            self._kinds[file] = kind
        return kind


def _module_of(owner: Any) -> str:
    return str((owner if isinstance(owner, type) else type(owner)).__module__)


class _Calls(TorchFunctionMode):
    """Records that the values of a tensor leave torch."""

    AWAY = frozenset(("tolist", "numpy", "__array__", "data_ptr", "storage", "untyped_storage"))

    def __init__(self, reads: list[str]) -> None:
        super().__init__()
        self.reads = reads

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in self.AWAY:
            self.reads.append(f"Tensor.{func.__name__}")
        return func(*args, **(kwargs or {}))


class Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records, while entered, that Python reads the value of a tensor, which would be a constant in a recording.

    Attributes:
        seen: the operations that read values.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []
        self._calls = _Calls(self.seen)

    def __enter__(self) -> Reads:
        self._calls.__enter__()  # type: ignore[no-untyped-call]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._calls.__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.data_dependent_output in getattr(func, "tags", ()):
            self.seen.append(str(func).removeprefix("aten.").partition(".")[0].lstrip("_"))
        return func(*args, **(kwargs or {}))


class RandomState:
    """A snapshot of the global generators of torch, Python and NumPy."""

    def __init__(self) -> None:
        numpy = sys.modules.get("numpy")
        self._python, self._torch = random.getstate(), torch.get_rng_state()
        self._numpy: Any = numpy.random.get_state() if numpy else None
        self._kept = pickle.dumps(self._numpy)
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []

    def drawn(self) -> str | None:
        """Return the module other than torch whose random numbers were drawn since, or ``None``."""
        now = RandomState()
        if self._python != now._python:
            return "random"
        return "numpy.random" if self._kept != now._kept else None

    def restore(self) -> None:
        """Restore all generators."""
        if random.getstate() != self._python:
            random.setstate(self._python)
        torch.set_rng_state(self._torch)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)
        if self._numpy is not None:
            sys.modules["numpy"].random.set_state(self._numpy)
