"""Recipes: an experiment as a TOML file, checked against the signatures of what it names before anything is done.

A recipe has the sections ``[model]`` (``name`` and the arguments of that model), ``[learner]`` (``preset`` and its
arguments), ``[tasks]`` (``name`` and those of its builder), ``[train]`` (arguments of the `Trainer`) and ``[evaluate]``
(of `evaluate`), and beside them ``description``, ``seed``, and ``extends``: another recipe, of which this one then
only says what differs.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from . import data, imitation, models, presets, resources, rl
from .data import Sources
from .disk import read_text
from .learner import MetaLearner
from .schedules import SCHEDULES
from .schema import MISMATCH, REQUIRED, Option, call, convert, convert_all, encode, lookup, nearest, options
from .streams import is_utf8, shown
from .task import InteractiveSource, TaskSource
from .train import Ensemble, Stateful, Trainer, evaluate
from .train.checkpoint import Checkpoints
from .train.checkpoint import differences as differences

MODELS: dict[str, Callable[..., nn.Module]] = {**models.MODELS, **rl.MODELS, **imitation.MODELS}
PRESETS: dict[str, Callable[..., MetaLearner]] = {**presets.PRESETS, **rl.PRESETS, **imitation.PRESETS}
TASKS: dict[str, Callable[..., Sources]] = {**data.TASKS, **rl.TASKS, **imitation.TASKS}

Config = dict[str, Any]
"""A recipe as plain values: what its TOML says."""


class Section(NamedTuple):
    """What a section of a recipe configures: a function, or the entry of a table that one of its keys names."""

    functions: Mapping[str, Callable[..., Any]]
    key: str = ""
    without: tuple[str, ...] = ()

    def function(self, where: str, given: Mapping[str, Any]) -> Callable[..., Any]:
        """The function that the section is about."""
        if not self.key:
            return self.functions[""]
        if self.key not in given:
            raise ValueError(f"[{where}] needs the key {self.key}, one of {', '.join(sorted(self.functions))}")
        return lookup(f"{where}.{self.key}", given[self.key], self.functions)

    def options(self, where: str, given: Mapping[str, Any]) -> dict[str, Option]:
        """Its keys, without the one that names the function."""
        return options(self.function(where, given), self.without)


GIVEN = ("learner", "train", "val", "run", "seed", "config", "loggers", "world", "progress")
"""Arguments of the trainer that a recipe says elsewhere, or that are of the occasion."""

SECTIONS = {
    "model": Section(MODELS, "name"),
    "learner": Section(PRESETS, "preset", ("model", "policy")),
    "tasks": Section(TASKS, "name", ("root", "device", "download")),
    "train": Section({"": Trainer}, "", GIVEN),
    "evaluate": Section({"": evaluate}, "", ("learner", "source", "world")),
}
TOP = {"description": Option(str, ""), "seed": Option(int, 0), "extends": Option(str, "")}

SHARED = {"ways": "ways", "image_size": "size", "channels": "channels"}
"""Arguments of a model that must be what the tasks say, and how they are called there."""


# -- reading ----------------------------------------------------------------------------------------------------------


def recipes() -> dict[str, Path]:
    """The recipes shipped with the package, by name."""
    return {file.stem: file for file in sorted(resources.folder("recipes").glob("*.toml"))}


def load_recipe(name: str | Path, overrides: Iterable[str] = (), seed: int | None = None) -> Config:
    """Read a recipe, apply what overrides it, check it, and make every default explicit. Reads no data.

    Args:
        name: of a shipped recipe, or the path of a file.
        overrides: such as ``"learner.lr=0.1"``; the value is TOML, and a bare word is a string.
        seed: overrides that of the recipe.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not TOML, or a name, key or value that is wrong; the message says what would be right.
    """
    try:
        config = _read(name)
        for override in overrides:
            _override(config, override)
        return resolve(config if seed is None else {**config, "seed": seed})
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: {error}") from error


def _read(name: str | Path, beside: Path | None = None, chain: tuple[str, ...] = ()) -> Config:
    """The content of a recipe on top of the one that it extends."""
    path = Path(name).expanduser()
    if path.suffix == ".toml" or len(path.parts) > 1:
        path = path if beside is None else beside / path
    else:
        path = lookup("recipe", str(name), recipes())
    if not path.is_file():
        raise FileNotFoundError(f"no recipe at {path}")
    if str(path) in chain:
        raise ValueError(f"extends itself: {' -> '.join((*chain, str(path)))}")
    config = parse(read_text(path))
    base = convert(config.pop("extends", ""), str, "extends")
    if not base:
        return config
    return _merge(_read(base, path.parent, (*chain, str(path))), config)


def parse(text: str) -> Config:
    """TOML as plain values.

    Raises:
        ValueError: it is not TOML.
    """
    for library in ("tomllib", "tomli"):  # the first is part of Python 3.11
        try:
            module = importlib.import_module(library)
        except ModuleNotFoundError:
            continue
        return dict(module.loads(text))
    raise ImportError("reading recipes needs tomli on Python 3.10: pip install 'innerloop[cli]'")


def _merge(base: Config, over: Mapping[str, Any]) -> Config:
    """Section by section; within a section the later value of a key counts, whole."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = {**base[key], **value} if both else value
    return merged


def _override(config: Config, text: str) -> None:
    """Apply one ``section.key=value``."""
    if not is_utf8(text):
        raise ValueError(f"{shown(text)} is not UTF-8, as recipes are")
    place, equals, word = text.partition("=")
    *path, last = place.strip().split(".")
    if not equals or not last or len(path) > 2:
        raise ValueError(f"{text!r} is not of the form section.key=value")
    for part in path:
        config = config.setdefault(part, {})
        if not isinstance(config, dict):
            raise ValueError(f"{text!r}: {part} is a value, not a table")
    try:
        config[last] = parse(f"value = {word.strip()}")["value"]
    except ValueError:
        config[last] = word.strip()


# -- checking ---------------------------------------------------------------------------------------------------------


def resolve(config: Mapping[str, Any]) -> Config:
    """The same recipe with every default that TOML can express made explicit.

    Raises:
        ValueError: a name, key or value that is wrong.
    """
    known = {**TOP, **dict.fromkeys(SECTIONS)}
    for key, value in config.items():
        if key not in known:
            raise ValueError(f"unknown key {key}{nearest(key, known)} A recipe has {', '.join(known)}")
        if key in SECTIONS and not isinstance(value, dict):
            raise ValueError(f"{key} = {value!r} is a value; expected a table [{key}]")
    top = {key: convert(config.get(key, option.default), option.hint, key) for key, option in TOP.items()}
    del top["extends"]
    resolved: Config = {name: dict(config.get(name, {})) for name in SECTIONS}
    for name in ("tasks", "learner", "train", "evaluate", "model"):
        if name == "model":
            _take_from_tasks(resolved["model"], resolved["tasks"])
        resolved[name] = _complete(name, resolved[name])
    return {**top, **resolved}


def _complete(name: str, given: Mapping[str, Any]) -> Config:
    """A section, checked, with its defaults."""
    section = SECTIONS[name]
    known, plain = section.options(name, given), {k: v for k, v in given.items() if k != section.key}
    defaults = {key: encode(option.default) for key, option in known.items() if option.default is not REQUIRED}
    plain = {**{key: value for key, value in defaults.items() if value is not MISMATCH}, **plain}
    for key, value in plain.items():
        schedule = SCHEDULES.get(str(value.get("schedule"))) if isinstance(value, dict) else None
        if schedule and {"iterations"} <= plain.keys() & inspect.signature(schedule).parameters.keys():
            plain[key] = {"iterations": plain["iterations"], **value}  # over the whole training
    convert_all(name, plain, known)
    return {**({section.key: given[section.key]} if section.key else {}), **plain}


def _take_from_tasks(model: Config, tasks: Mapping[str, Any]) -> None:
    """Give the model the ways and the size of the tasks; they must not contradict each other."""
    known = SECTIONS["model"].options("model", model)
    for key, theirs in SHARED.items():
        if key in known and theirs in tasks and model.setdefault(key, tasks[theirs]) != tasks[theirs]:
            raise ValueError(
                f"model.{key} = {model[key]!r} contradicts tasks.{theirs} = {tasks[theirs]!r}; "
                f"leave model.{key} out to have it follow"
            )


# -- building ---------------------------------------------------------------------------------------------------------


def arguments(config: Config, name: str) -> dict[str, Any]:
    """The arguments that a section of a resolved recipe stands for, such as those of the `Trainer`."""
    section = SECTIONS[name]
    given = {key: value for key, value in config[name].items() if key != section.key}
    return convert_all(name, given, section.options(name, config[name]))


def build_learner(config: Config, device: str = "cpu") -> MetaLearner:
    """The learner of a resolved recipe, initialised under its seed. Torch's random state is left as it was.

    Raises:
        ValueError: a value that its model or its preset refuses; the message begins with the section.
    """
    build_model, preset = (SECTIONS[name].function(name, config[name]) for name in ("model", "learner"))
    with torch.random.fork_rng([]):
        torch.manual_seed(config["seed"])
        with _speaking_of("model"):
            model = call(build_model, arguments(config, "model"))
        with _speaking_of("learner"):
            learner: MetaLearner = preset(model, **arguments(config, "learner"))
    return learner.to(find_device(device))


@contextmanager
def _speaking_of(section: str) -> Iterator[None]:
    """Within, a value that is refused is one of this section of the recipe."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"[{section}] {error}") from error


def build(
    config: Config, root: str | Path | None = None, device: str = "cpu", download: bool = False
) -> tuple[MetaLearner, Sources]:
    """The learner and the task sources of a resolved recipe.

    Args:
        config: from `load_recipe`.
        root: where the data are; see the data set.
        device: ``"cpu"``, ``"cuda"``, ``"auto"``, ...
        download: fetch data that are not there, where the data set knows from where.

    Raises:
        ValueError: the device is not available, or the model does not fit the images; and what the data set raises.
    """
    learner = build_learner(config, device)
    return learner, _build_sources(config, learner, root, device, download)


def _build_sources(
    config: Config, learner: MetaLearner, root: str | Path | None, device: str, download: bool = False
) -> Sources:
    """The task sources of a resolved recipe, which are to fit its learner."""
    builder = SECTIONS["tasks"].function("tasks", config["tasks"])
    given = {"root": root, "device": str(find_device(device)), "download": download}
    accepted = inspect.signature(builder).parameters
    outside = {key: value for key, value in given.items() if key in accepted}
    sources: Sources = builder(**arguments(config, "tasks"), **outside)
    if isinstance(sources.train, InteractiveSource):
        sources.train.require(learner)
    else:
        _check_fit(config, sources.train)
    return sources


def _check_fit(config: Config, source: TaskSource) -> None:
    """Compare the model's input with the images, before torch trips over it."""
    model, x = config["model"], source.sample(1, torch.Generator().manual_seed(0)).support.x
    for key, axis in (("channels", -3), ("image_size", -1)):
        if key in model and x.ndim == 5 and model[key] != x.shape[axis]:
            raise ValueError(
                f"model.{key} = {model[key]}, but the images of {config['tasks']['name']} have {x.shape[axis]}"
            )


def find_device(name: str) -> torch.device:
    """A device by its name; ``"auto"`` is CUDA where there is one. Of several processes of a machine, each has its own.

    Raises:
        ValueError: there is no such device here.
    """
    name = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    local = os.environ.get("LOCAL_RANK")
    name = f"cuda:{local}" if name == "cuda" and local else name
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} is not available here ({reason}); use cpu or auto") from error
    return torch.device(name)


def load_learner(run: str | Path, device: str = "cpu", overrides: Sequence[str] = ()) -> tuple[MetaLearner, Config]:
    """The learner of a run directory, with the best validated weights, and the resolved recipe. Reads no data.

    Args:
        run: the run directory.
        device: as in `build`.
        overrides: of the recipe, as in `load_recipe`, that leave the weights what they are, such as
            ``"learner.statistics=running"``; not of its training, which is over.

    Raises:
        FileNotFoundError: it is not the directory of a run that was trained by a recipe.
        ValueError: its files are damaged or do not fit each other, or an override would change nothing.
    """
    path = Path(run) / "config.toml"
    if not path.is_file():
        raise FileNotFoundError(f"{run} is not a run directory: it has no config.toml")
    config = load_recipe(path, overrides)
    for changed in differences(load_recipe(path), config):
        if changed == "seed" or changed.startswith("train."):
            hint = "; the tasks' is evaluate.seed" if changed == "seed" else ""
            raise ValueError(f"{changed} is of the training, which is over: it changes nothing now{hint}")
    weights = Checkpoints(Path(run)).weights()["learner"]
    learner = build_learner(config, device)
    if overrides and not any(p.requires_grad for p in learner.rule.parameters()):  # whose rates a recipe may say anew
        given = {f"rule.{name}": value for name, value in learner.rule.state_dict().items()}
        weights = {name: value for name, value in weights.items() if not name.startswith("rule.")} | given
    try:
        learner.load_state_dict(weights)
    except RuntimeError as error:
        what = f"do not fit {', '.join(overrides)}" if overrides else "are not those of its config.toml"
        reasons = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
        more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        raise ValueError(f"the weights in {run} {what}: {reasons[0]}{more}") from error
    return learner, config


def load_run(
    run: str | Path, root: str | Path | None = None, device: str = "cpu", overrides: Sequence[str] = ()
) -> tuple[MetaLearner, Sources, Config]:
    """As `load_learner`, with the task sources, whose data are at ``root``; see `build`."""
    learner, config = load_learner(run, device, overrides)
    sources, newest = _build_sources(config, learner, root, device), Checkpoints(Path(run)).newest()
    if isinstance(sources.train, Stateful) and "source" in newest:  # what it learned, the others may share
        sources.train.load_state_dict(newest["source"])
    return learner, sources, config


def load_ensemble(
    run: str | Path, number: int, root: str | Path | None = None, device: str = "cpu", overrides: Sequence[str] = ()
) -> tuple[Ensemble, Sources, Config]:
    """As `load_run`, with the learners of a number of the best validated weights together.

    Raises:
        ValueError: the run does not keep as many; and what `load_run` raises.
    """
    best, sources, config = load_run(run, root, device, overrides)
    learners = [best]
    for kept in Checkpoints(Path(run)).best_weights(number)[1:] if number > 1 else ():
        learners.append(build_learner(config, device))
        learners[-1].load_state_dict(kept["learner"])
    return Ensemble(learners), sources, config


# -- writing ----------------------------------------------------------------------------------------------------------


def dumps(config: Mapping[str, Any]) -> str:
    """Plain values as TOML, exactly: reading it gives them back."""
    lines = [f"{_key(key)} = {toml(value)}" for key, value in config.items() if not isinstance(value, dict)]
    for name, section in config.items():
        if isinstance(section, dict):
            lines += ["", f"[{_key(name)}]", *(f"{_key(key)} = {toml(value)}" for key, value in section.items())]
    return "\n".join(lines) + "\n"


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else toml(key)
