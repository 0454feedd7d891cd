"""A page for each public module, made from its names and their docstrings."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from functools import cache
from types import ModuleType
from typing import Any

from sphinx.pycode import ModuleAnalyzer

import innerloop

PUBLIC = {
    "innerloop": "the core",
    "innerloop.models": "networks",
    "innerloop.losses": "losses",
    "innerloop.metrics": "metrics",
    "innerloop.schedules": "schedules",
    "innerloop.data": "tasks and data",
    "innerloop.train": "training and evaluation",
    "innerloop.report": "reports and figures",
    "innerloop.rl": "reinforcement learning",
    "innerloop.imitation": "imitation",
    "innerloop.recipe.config": "recipes and runs",
    "innerloop.weights": "weights to begin with",
    "innerloop.testing": "checks for parts of one's own",
    "innerloop.use": "using what was learned",
}
"""Those that a program imports, and what they are for; one that is not there has no page."""
INSIDE = (
    "task", "episode", "adapted", "objectives", "unequal", "padding", "engine.engine", "engine.compiling", "per_step",
    "support_norm", "task_model", "train.outer", "train.trace",
    "train.accuracy", "train.metrics",
    "train.loggers", "train.world", "rl.environments", "rl.advantages", "rl.gym", "imitation.environments",
    "imitation.policies", "use.pictures", "use.adapting", "use.saved",
    "recipe.imports",
)  # fmt: skip
"""Modules that docstrings refer to."""

ORDER = [
    f"innerloop.{name}"
    for name in ("task", "select", "rules", "optimizers", "objectives", "initializations", "episode", "learner")
]
"""The modules of the core in the order of the one sentence."""

_described: dict[int, str] = {}
"""The name that each class and function has on the site, by identity."""


def pages() -> Iterator[tuple[str, str]]:
    """File name and text of every page."""
    there = {name: importlib.import_module(name) for name in PUBLIC if importlib.util.find_spec(name)}
    for name, module in there.items():
        yield (
            name.replace(".", "-"),
            f"# `{name}`: {PUBLIC[name]}\n\n{_described_module(module)}",
        )
    parts = [importlib.import_module(f"innerloop.{name}") for name in INSIDE]
    inside = "\n".join(f"## `{part.__name__}`\n\n{_described_module(part)}" for part in parts)
    yield "inside", f"# Inside\n\nWhat the other pages refer to, and few programs import.\n\n{inside}"


def left_out(app: Any, what: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Sphinx's hook: fields of named tuples, of which the class tells, and what scikit-learn adds to estimators."""
    added = name.startswith("set_") and name.endswith("_request")
    return True if added or type(member).__name__ == "_tuplegetter" else None


def _described_module(module: ModuleType) -> str:
    """A page's text: the module's docstring, and its names, of a package by the modules that they come from."""
    names = [*getattr(module, "__all__", ()), *getattr(module, "_LATER", ())] or _own(module)
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        groups.setdefault(_home(module, name), []).append(name)
    taken = "\n   :no-index:" if module.__name__ in _described.values() else ""  # train.accuracy is a function, too
    parts = [_rst(f".. py:module:: {module.__name__}{taken}\n\n{inspect.getdoc(module)}")]
    for home in sorted(groups, key=lambda home: (ORDER.index(home) if home in ORDER else len(ORDER), home)):
        entries = "\n".join(entry for name in groups[home] for entry in _entry(module, name))
        about = "" if home == module.__name__ else inspect.getdoc(importlib.import_module(home)) or ""
        heading = f"## {home.rpartition('.')[2].capitalize()}\n\n" if len(groups) > 1 and about else ""
        first = about.split("\n\n")[0] if heading else ""
        parts.append(f"{heading}{_rst(f'.. py:currentmodule:: {module.__name__}', first, entries)}")
    return "\n".join(parts)


def _rst(*parts: str) -> str:
    text = "\n\n".join(part for part in parts if part)
    return f"```{{eval-rst}}\n{text}\n```\n"


def _home(module: ModuleType, name: str) -> str:
    """The module that a name comes from."""
    value = getattr(module, name)
    if isinstance(value, ModuleType):
        return module.__name__
    if inspect.isclass(value) or inspect.isfunction(value):
        return str(value.__module__)
    return next((home for home in _modules() if ("", name) in _comments(home)), module.__name__)


def _own(module: ModuleType) -> list[str]:
    """The public names that a module without ``__all__`` defines, in the order of its source."""
    made = [n for n, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
    data = [name for (owner, name) in _comments(module.__name__) if not owner]
    return [name for name in dict.fromkeys([*data, *made]) if not name.startswith("_")]


def _entry(module: ModuleType, name: str) -> Iterator[str]:
    value, full = getattr(module, name), f"{module.__name__}.{name}"
    if isinstance(value, ModuleType):
        yield f"* ``{name}``: `{value.__name__}`\n" if value.__name__ in PUBLIC else ""
    elif inspect.isclass(value) or inspect.isfunction(value):
        if other := _described.get(id(value)):
            yield f"* ``{name}`` is `{other}`.\n"
            return
        _described[id(value)] = full
        kind = "function" if inspect.isfunction(value) else "exception" if _raised(value) else "class"
        yield f".. auto{kind}:: {full}\n" + "   :members:\n   :special-members: __call__\n" * (kind != "function")
    elif not (other := _described.get(id(value))) or not _comment(name):
        _described[id(value)] = full
        lines = [
            f".. py:data:: {name}",
            f"   :module: {module.__name__}",
            "",
            *(f"   {line}" for line in _comment(name)),
        ]
        yield "\n".join(lines) + "\n"
    else:
        yield f"* ``{name}`` is `{other}`.\n"


def _raised(value: Any) -> bool:
    return issubclass(value, BaseException)


def _comment(name: str) -> list[str]:
    """What is said of a value below where it is defined, in whichever module that is."""
    return next((said[key] for m in _modules() if (key := ("", name)) in (said := _comments(m))), [])


@cache
def _modules() -> list[str]:
    return [part.name for part in pkgutil.walk_packages(innerloop.__path__, "innerloop.")]


@cache
def _comments(module: str) -> dict[tuple[str, str], list[str]]:
    return dict(ModuleAnalyzer.for_module(module).find_attr_docs())
