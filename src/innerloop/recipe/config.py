"""Recipes: an experiment as a TOML file, checked against the signatures of the functions it names before anything runs.

A recipe has the sections ``[model]`` (``name`` and the arguments of that model), ``[learner]`` (``preset`` and its
arguments), ``[tasks]`` (``name`` and the arguments of its builder), ``[train]`` (arguments of the `Trainer`) and
``[evaluate]`` (arguments of `evaluate`). At the top it has ``description``, ``seed``, and ``extends``: another recipe;
this one then states only the differences.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import data, imitation, models, presets, rl
from ..common import resources
from ..common.disk import expanded, read_text
from ..common.streams import brief, shown
from ..data import Sources
from ..data.tasks import TaskBuilder
from ..learner import MetaLearner
from ..schedules import SCHEDULES
from ..task import InteractiveSource, TaskSource, singles
from ..train import Ensemble, Stateful, Trainer, evaluate
from ..train.checkpoint import Checkpoints, holds_run
from ..train.checkpoint import differences as differences
from ..weights import load_weights
from .imports import from_elsewhere, trusting
from .refusals import UnfitError, blaming, speaking_of
from .schema import (
    MISMATCH,
    REQUIRED,
    WITHOUT,
    Option,
    call,
    convert,
    convert_all,
    encode,
    lookup,
    named,
    nearest,
    options,
    problem,
)
from .toml import Config as Config
from .toml import dumps as dumps
from .toml import override
from .toml import parse as parse
from .toml import toml as toml

MODELS: dict[str, Callable[..., nn.Module]] = {**models.MODELS, **rl.MODELS, **imitation.MODELS}
PRESETS: dict[str, Callable[..., MetaLearner]] = {**presets.PRESETS, **rl.PRESETS, **imitation.PRESETS}
TASKS: dict[str, Callable[..., Sources]] = {**data.TASKS, **rl.TASKS, **imitation.TASKS}

DEPTH = 20
"""The largest number of recipes that extend each other in a chain."""


class Recipe(Config):
    """A resolved recipe, with the name or path that it was read from, for messages."""

    source = ""


def source_of(config: Mapping[str, Any]) -> str:
    """Return the name or path that a recipe was read from; empty if it was not read."""
    return str(getattr(config, "source", ""))


class Section(NamedTuple):
    """The function that a section of a recipe configures: a fixed one, or one of several that a key names."""

    functions: Mapping[str, Callable[..., Any]]
    key: str = ""
    without: tuple[str, ...] = ()

    def function(self, where: str, given: Mapping[str, Any]) -> Callable[..., Any]:
        """Return the function that the section configures."""
        if not self.key:
            return self.functions[""]
        if self.key not in given:
            raise ValueError(f"[{where}] needs the key {self.key}, one of {', '.join(sorted(self.functions))}")
        return named(f"{where}.{self.key}", given[self.key], self.functions, f"{where}.{self.key}")  # type: ignore[no-any-return]

    def options(self, where: str, given: Mapping[str, Any]) -> dict[str, Option]:
        """Return the keys of the section, without the one that names the function."""
        return options(self.function(where, given), self.without)


GIVEN = ("learner", "train", "val", "run", "seed", "config", "loggers", "world", "progress")
"""Arguments of the trainer that a recipe has elsewhere, or that are not part of a recipe."""

SECTIONS = {
    "model": Section(MODELS, "name"),
    "learner": Section(PRESETS, "preset", ("model", "policy")),
    "tasks": Section(TASKS, "name", WITHOUT),
    "train": Section({"": Trainer}, "", GIVEN),
    "evaluate": Section({"": evaluate}, "", ("learner", "source", "world")),
}
TOP = {"description": Option(str, ""), "seed": Option(int, 0), "extends": Option(str, "")}

WEIGHTS = {"weights": Option(str, ""), "fresh": Option(tuple[str, ...], ())}
"""Keys of every model: a file with weights to begin with, and patterns of names that it leaves out; see
`innerloop.load_weights`."""

SHARED = {"ways": "ways", "image_size": "size", "channels": "channels"}
"""Arguments of a model that must equal those of the tasks -> their names in the tasks."""


# -- reading ----------------------------------------------------------------------------------------------------------


def recipes() -> dict[str, Path]:
    """Return the recipes that come with the package, by name."""
    return {file.stem: file for file in sorted(resources.folder("recipes").glob("*.toml"))}


def load_recipe(name: str | Path, overrides: Iterable[str] = (), seed: int | None = None) -> Config:
    """Read a recipe, apply overrides, check it, and make every default explicit. It reads no data.

    Args:
        name: the name of a recipe that comes with the package, or the path of a file.
        overrides: such as ``"learner.lr=0.1"``; the value is TOML, and a bare word is a string.
        seed: overrides that of the recipe.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not TOML, or a name, key or value is wrong; the message says what is allowed.
    """
    try:
        config = _read(name)
        for text in overrides:
            override(config, text)
            _find_weights(config, Path())
            section, _, key = text.partition("=")[0].strip().partition(".")
            if section == "learner":
                _give_way(config[section], {key})
        recipe = Recipe(resolve(config if seed is None else {**config, "seed": seed}))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{shown(name)}: {error}") from error
    recipe.source = str(name)
    return recipe


def _read(name: str | Path, chain: tuple[Path, ...] = ()) -> Config:
    """Merge a recipe into the one that it extends. ``chain`` has the recipes that extend this one."""
    path = expanded(name)
    if path.suffix == ".toml" or len(path.parts) > 1:
        path = chain[-1].parent / path if chain else path
    else:
        path = lookup("recipe", str(name), recipes())
    if not path.is_file():
        extending = f", which {shown(chain[-1])} extends" if chain else ""
        raise FileNotFoundError(f"there is no recipe {shown(path)}{extending}")
    if os.path.realpath(path) in map(os.path.realpath, chain):
        raise ValueError(f"extends itself: {' -> '.join(map(shown, (*chain, path)))}")
    if len(chain) > DEPTH:
        raise ValueError(f"more than {DEPTH} recipes extend each other: {shown(chain[0])}, {shown(chain[1])}, ...")
    try:
        config = parse(read_text(path))
        _find_weights(config, path.parent)
        base = convert(config.pop("extends", ""), str, "extends")
    except ValueError as error:
        if chain and shown(path) not in str(error):
            raise ValueError(f"extends {shown(path)}: {error}") from error
        raise
    return _merge(_read(base, (*chain, path)), config) if base else config


def _find_weights(config: Mapping[str, Any], folder: Path) -> None:
    """Make the path of a model's weights one from the root; in a recipe it is relative to the recipe's folder."""
    model = config.get("model")
    if isinstance(model, dict) and isinstance(model.get("weights"), str) and model["weights"]:
        model["weights"] = str((folder / expanded(model["weights"])).absolute())


def _merge(base: Config, over: Mapping[str, Any]) -> Config:
    """Merge section by section; within a section, the later value of a key replaces the earlier one."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = {**base[key], **value} if both else value
        if key == "learner" and both:
            _give_way(merged[key], {*value})
    return merged


def _give_way(learner: Config, given: set[str]) -> None:
    """Remove arguments that a newly given part replaces: ``rule`` replaces an earlier ``lr``."""
    for name, parts in getattr(PRESETS.get(str(learner.get("preset"))), "parts", {}).items():
        if given.issuperset(parts) and name not in given:
            learner.pop(name, None)


# -- checking ---------------------------------------------------------------------------------------------------------


def resolve(config: Mapping[str, Any]) -> Config:
    """Return the recipe with every default that TOML can express made explicit.

    Raises:
        ValueError: a name, key or value is wrong.
    """
    known = {**TOP, **dict.fromkeys(SECTIONS)}
    for key, value in config.items():
        if key not in known:
            raise ValueError(f"unknown key {shown(key)}{nearest(key, known)} Keys of a recipe: {', '.join(known)}")
        if key in SECTIONS and not isinstance(value, dict):
            raise ValueError(f"{key} = {brief(value)} is not a table; expected a section [{key}]")
    top = {key: convert(config.get(key, option.default), option.hint, key) for key, option in TOP.items()}
    del top["extends"]
    resolved: Config = {name: dict(config.get(name, {})) for name in SECTIONS}
    for name in ("tasks", "learner", "train", "evaluate", "model"):
        if name == "model":
            _take_from_tasks(resolved["model"], resolved["tasks"])
        resolved[name] = _complete(name, resolved[name])
    return {**top, **resolved}


def _complete(name: str, given: Mapping[str, Any]) -> Config:
    """Check a section, and add its defaults."""
    section = SECTIONS[name]
    given = _as_now(name, given)
    beside = {key: convert(given.pop(key), WEIGHTS[key].hint, f"model.{key}") for key in _beside(name, given)}
    known, plain = section.options(name, given), {k: v for k, v in given.items() if k != section.key}
    defaults = {key: encode(option.default) for key, option in known.items() if option.default is not REQUIRED}
    for key, parts in getattr(section.function(name, given), "parts", {}).items():
        if all(given.get(part, "none") != "none" for part in parts):  # the parts replace what the key sets
            defaults.pop(key, None)
    plain = {**{key: value for key, value in defaults.items() if value is not MISMATCH}, **plain}
    for key, value in plain.items():
        schedule = SCHEDULES.get(str(value.get("schedule"))) if isinstance(value, dict) else None
        if schedule and {"iterations"} <= plain.keys() & inspect.signature(schedule).parameters.keys():
            plain[key] = {"iterations": plain["iterations"], **value}  # over the whole training
    convert_all(name, plain, known)
    for key, option in known.items():
        if option.hint == Mapping[str, TaskBuilder] and key in plain:
            plain[key] = {each: _with_defaults(table, f"{name}.{key}.{each}") for each, table in plain[key].items()}
    if beside.get("fresh") and not beside.get("weights"):
        raise ValueError("model.fresh says which weights of model.weights are left out, and there is no model.weights")
    return {
        **({section.key: given[section.key]} if section.key else {}),
        **plain,
        **{key: encode(value) for key, value in beside.items()},
    }


def _with_defaults(table: Mapping[str, Any], where: str) -> Config:
    """Make the defaults of one problem of a mixture explicit."""
    _, given, known = problem(table, where)
    defaults = {key: encode(option.default) for key, option in known.items() if option.default is not REQUIRED}
    return {"name": table["name"], **{k: v for k, v in defaults.items() if v is not MISMATCH}, **given}


def _beside(name: str, given: Mapping[str, Any]) -> list[str]:
    """The keys of a section that are no arguments of what it names."""
    return [key for key in WEIGHTS if name == "model" and key in given]


def _as_now(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a section from the form of earlier versions.

    Recipes of version 0.1 named Reptile's inner optimizer, and had ``steps`` for algorithms without inner steps.
    """
    now = dict(given)
    if name == "learner" and given.get("preset") in ("prototypical", "trpo", "cloned"):
        now.pop("steps", None)
    if name == "learner" and given.get("preset") == "reptile" and "optimizer" in given:
        optimizer = now.pop("optimizer")
        if optimizer not in ("adam", "sgd") or "rule" in given:
            raise ValueError(
                f"learner.optimizer = {brief(optimizer)}: in version 0.1 Reptile's inner optimizer was adam or sgd; "
                'give only learner.rule, such as {name = "sgd", lr = 0.1}'
            )
        if optimizer == "sgd":
            now["rule"] = {"name": "sgd", "lr": now.pop("lr", 1e-3)}
    return now


def _take_from_tasks(model: Config, tasks: Mapping[str, Any]) -> None:
    """Give the model the ways, image size and channels of the tasks, which it must not contradict."""
    known = SECTIONS["model"].options("model", model)
    for key, theirs in SHARED.items():
        value = shared(tasks, theirs)
        if key in known and value is not None and model.setdefault(key, value) != value:
            raise ValueError(
                f"model.{key} = {brief(model[key])} contradicts tasks.{theirs} = {brief(value)}; "
                f"leave out model.{key}, which then follows"
            )


def shared(tasks: Mapping[str, Any], key: str) -> Any:
    """Return an option that all tasks have in common, or the most ways if these differ; None if there is none."""
    if isinstance(sets := tasks.get("sets"), dict):
        values = [shared(each, key) for each in sets.values()]
        if not values or None in values:
            return None
        alike = all(value == values[0] for value in values)
        return max(values) if key == "ways" else values[0] if alike else None
    value = tasks.get(key)
    return max(value) if key == "ways" and isinstance(value, list) else value


def spoken(number: Any) -> str:
    """Return a number of a recipe in words: of one that may vary, the fewest and the most."""
    return " to ".join(map(str, number)) if isinstance(number, list) else str(number)


# -- building ---------------------------------------------------------------------------------------------------------


def arguments(config: Config, name: str) -> dict[str, Any]:
    """Return the arguments in a section of a resolved recipe, such as those of the `Trainer`."""
    section = SECTIONS[name]
    given = {k: v for k, v in config[name].items() if k != section.key and k not in _beside(name, config[name])}
    return convert_all(name, given, section.options(name, config[name]))


def build_learner(config: Config, device: str = "cpu", most: int | None = None, weights: bool = True) -> MetaLearner:
    """Build the learner of a resolved recipe, initialized with its seed. Torch's random state does not change.

    Args:
        config: from `load_recipe`.
        device: as in `build`.
        most: the largest number of values in the model: for untrusted recipes with weights, the number in the weights.
        weights: whether the model begins with the weights that the recipe names, if it names any.

    Raises:
        UnfitError: the model has more values.
        FileNotFoundError: there is no file with these weights.
        ValueError: the model or the preset rejects a value; the message begins with the section.
    """
    preset = SECTIONS["learner"].function("learner", config["learner"])
    with torch.random.fork_rng([]):
        torch.manual_seed(config["seed"])
        model = build_model(config["model"], most)
        if weights and config["model"].get("weights"):
            with speaking_of("model"):
                load_weights(model, config["model"]["weights"], fresh=config["model"].get("fresh", ()))
        with speaking_of("learner"):
            learner: MetaLearner = preset(model, **arguments(config, "learner"))
    return learner.to(find_device(device))


def build_model(section: Config, most: int | None = None) -> nn.Module:
    """Build the model of a recipe's section; see `build_learner`."""
    builder, given = SECTIONS["model"].function("model", section), arguments({"model": section}, "model")
    if most is not None:
        with speaking_of("model"), torch.device("meta"):  # here tensors have shapes, but take no memory
            size = numbers(call(builder, given).state_dict())
        if size > most:
            raise UnfitError(f"its model has {size:,} values, but its weights have {most:,}")
    with speaking_of("model"):
        model: nn.Module = call(builder, given)
    return model


def numbers(tensors: Mapping[str, Any]) -> int:
    """Return the total number of values in the tensors."""
    return sum(tensor.numel() for tensor in tensors.values() if isinstance(tensor, Tensor))


def build(
    config: Config, root: str | Path | None = None, device: str = "cpu", download: bool = False
) -> tuple[MetaLearner, Sources]:
    """Build the learner and the task sources of a resolved recipe.

    Args:
        config: from `load_recipe`.
        root: the folder of the data; see the data set.
        device: ``"cpu"``, ``"cuda"``, ``"auto"``, ...
        download: download missing data, if the data set supports it.

    Raises:
        ValueError: the device is not available, or the model does not fit the images; and what the data set raises.
    """
    with blaming(source_of(config)):
        learner = build_learner(config, device)
        return learner, _build_sources(config, learner, root, device, download)


def _build_sources(
    config: Config, learner: MetaLearner, root: str | Path | None, device: str, download: bool = False
) -> Sources:
    """Build the task sources of a resolved recipe, and check that they fit its learner."""
    builder = SECTIONS["tasks"].function("tasks", config["tasks"])
    given = {"root": root, "device": str(find_device(device)), "download": download}
    accepted = inspect.signature(builder).parameters
    outside = {key: value for key, value in given.items() if key in accepted}
    with speaking_of("tasks", refused=False):
        sources: Sources = builder(**arguments(config, "tasks"), **outside)
        if isinstance(sources.train, InteractiveSource):
            sources.train.require(learner)
        else:
            _check_fit(config, sources.train)
    return sources


def _check_fit(config: Config, source: TaskSource) -> None:
    """Compare the model's input with the images, to raise a clearer error than torch would."""
    model, x = config["model"], singles(source.sample(1, torch.Generator().manual_seed(0)))[0].support.x
    for key, axis in (("channels", -3), ("image_size", -1)):
        if key in model and isinstance(x, Tensor) and x.ndim == 4 and model[key] != x.shape[axis]:
            raise ValueError(
                f"model.{key} = {model[key]}, but the images of {config['tasks']['name']} have {x.shape[axis]}"
            )


def find_device(name: str) -> torch.device:
    """Return a device by its name; ``"auto"`` is CUDA if available. Each process of a machine gets its own GPU.

    Raises:
        ValueError: the device is not available.
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


def load_learner(
    run: str | Path, device: str = "cpu", overrides: Sequence[str] = (), trust: bool = False
) -> tuple[MetaLearner, Config]:
    """Load the learner of a run, with the weights of its best validation score, and its resolved recipe, but no data.

    Args:
        run: the run directory.
        device: as in `build`.
        overrides: of the recipe, as in `load_recipe`; they must not change the shape of the weights (for example
            ``"learner.statistics=running"``), nor the training, which has ended.
        trust: whether the run may name parts of your own (``model.name = "my_package.nets:ResNet"``), which are then
            imported, so that their code is run.

    Raises:
        FileNotFoundError: it is not the directory of a run that was trained by a recipe.
        ValueError: its files are damaged or do not fit each other, or an override has no effect.
    """
    path = Path(run) / "config.toml"
    if not path.is_file():
        if holds_run(Path(run)):
            raise FileNotFoundError(
                f"the run {run} was made in Python, without a recipe (config.toml): load it by "
                "innerloop.Pretrained.load(run, learner=...), with a learner built as it was for the training"
            )
        raise FileNotFoundError(f"{run} is not a run directory: it has no config.toml")
    with trusting(trust), from_elsewhere():
        return _load_learner(run, path, device, overrides)


def _load_learner(run: str | Path, path: Path, device: str, overrides: Sequence[str]) -> tuple[MetaLearner, Config]:
    config = load_recipe(path, overrides)
    for changed in differences(load_recipe(path), config):
        if changed == "seed" or changed.startswith("train."):
            hint = "; the seed of the tasks is evaluate.seed" if changed == "seed" else ""
            raise ValueError(f"{changed} only affects training, which has ended: it has no effect now{hint}")
    weights = Checkpoints(Path(run)).weights()["learner"]
    try:
        with blaming(path):
            learner = build_learner(config, device, numbers(weights), weights=False)
        if overrides and not any(
            p.requires_grad for p in learner.rule.parameters()
        ):  # an override may change rates that are not learned
            given = {f"rule.{name}": value for name, value in learner.rule.state_dict().items()}
            weights = {name: value for name, value in weights.items() if not name.startswith("rule.")} | given
        learner.load_state_dict(weights)
    except (RuntimeError, UnfitError) as error:
        what = f"do not fit {', '.join(overrides)}" if overrides else "are not those of its config.toml"
        reasons = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
        more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        raise ValueError(f"the weights in {run} {what}: {reasons[0]}{more}") from error
    return learner, config


def load_run(
    run: str | Path,
    root: str | Path | None = None,
    device: str = "cpu",
    overrides: Sequence[str] = (),
    trust: bool = False,
) -> tuple[MetaLearner, Sources, Config]:
    """Load the learner of a run as `load_learner` does, and its task sources with the data at ``root``; see `build`."""
    learner, config = load_learner(run, device, overrides, trust)
    with trusting(trust), from_elsewhere(), blaming(source_of(config)):
        sources = _build_sources(config, learner, root, device)
    newest = Checkpoints(Path(run)).newest()
    if isinstance(sources.train, Stateful) and "source" in newest:  # the other splits may share what it learned
        sources.train.load_state_dict(newest["source"])
    return learner, sources, config


def load_ensemble(
    run: str | Path,
    number: int,
    root: str | Path | None = None,
    device: str = "cpu",
    overrides: Sequence[str] = (),
    trust: bool = False,
) -> tuple[Ensemble, Sources, Config]:
    """Load a run as `load_run` does, with an ensemble of the checkpoints that have the best validation scores.

    Raises:
        ValueError: the run has fewer checkpoints; and what `load_run` raises.
    """
    best, sources, config = load_run(run, root, device, overrides, trust)
    learners = [best]
    for kept in Checkpoints(Path(run)).best_weights(number)[1:] if number > 1 else ():
        with trusting(trust), from_elsewhere():
            learners.append(build_learner(config, device, weights=False))
        learners[-1].load_state_dict(kept["learner"])
    return Ensemble(learners), sources, config
