"""Finding the other libraries: installed, or in a source checkout. Only what the rows need of each is imported."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


class UnavailableError(Exception):
    """Why a library cannot take part."""


def package_folder(name: str, checkout: str | None) -> Path:
    """The folder of a package's modules.

    Raises:
        UnavailableError: it is neither installed nor where it was said to be.
    """
    if checkout is not None:
        folder = Path(checkout) / name
        if not folder.is_dir():
            raise UnavailableError(f"{checkout} has no folder {name}")
        return folder
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise UnavailableError("not installed, and no checkout of it was given")
    return Path(next(iter(spec.submodule_search_locations)))


def higher(checkout: str | None) -> Any:
    """facebookresearch/higher, which imports as it is."""
    sys.path.insert(0, str(package_folder("higher", checkout).parent))
    return _import("higher")


def torchopt(checkout: str | None) -> Any:
    """metaopt/torchopt. A checkout lacks the compiled Adam, which its SGD does not touch, so an empty module stands in
    where that was not built."""
    folder = package_folder("torchopt", checkout)
    sys.path.insert(0, str(folder.parent))
    if not list(folder.glob("_C*.so")) and not list(folder.glob("_C*.pyd")):
        stand_in = ModuleType("torchopt._C")
        stand_in.adam_op = None  # type: ignore[attr-defined]
        sys.modules["torchopt._C"] = stand_in
    return _import("torchopt")


def learn2learn(checkout: str | None) -> Any:
    """learnables/learn2learn: its MAML alone. The package's own ``__init__`` needs much that no row uses."""
    bare("learn2learn", package_folder("learn2learn", checkout))
    package = bare("learn2learn.algorithms")
    package.MAML = _import("learn2learn.algorithms.maml").MAML  # type: ignore[attr-defined]
    return sys.modules["learn2learn"]


def learn2learn_data(checkout: str | None) -> Any:
    """learn2learn with what its Omniglot example needs besides MAML: task sets and the data set.

    Raises:
        UnavailableError: torchvision is missing, or learn2learn's task sets, which are Cython, were not built.
    """
    l2l = learn2learn(checkout)
    _torchvision()
    for name in ("data", "vision", "vision.datasets", "vision.benchmarks"):
        bare(f"learn2learn.{name}")
    try:
        for name in ("meta_dataset", "task_dataset", "transforms"):
            module = importlib.import_module(f"learn2learn.data.{name}")
            vars(l2l.data).update({key: value for key, value in vars(module).items() if not key.startswith("_")})
            setattr(l2l.data, name, module)
    except ImportError as error:
        raise UnavailableError(
            f"its task sets are not built ({error}); run `python setup.py build_ext --inplace`"
        ) from error
    # It compares the zips with the official ones before it reads what was unpacked from them. We keep no zips there.
    _import("torchvision.datasets.omniglot").Omniglot._check_integrity = lambda dataset: True
    l2l.vision.datasets.FullOmniglot = _import("learn2learn.vision.datasets.full_omniglot").FullOmniglot
    l2l.vision.transforms = _import("learn2learn.vision.transforms")
    l2l.vision.benchmarks.omniglot = _import("learn2learn.vision.benchmarks.omniglot_benchmark")
    return l2l


def bare(name: str, folder: Path | None = None) -> ModuleType:
    """Register a package without running its ``__init__``, so that its modules can be imported one by one."""
    parent, _, leaf = name.rpartition(".")
    if folder is None:
        folder = Path(sys.modules[parent].__path__[0]) / leaf
    package = ModuleType(name)
    package.__path__ = [str(folder)]
    sys.modules[name] = package
    if parent:
        setattr(sys.modules[parent], leaf, package)
    return package


def version(name: str, package: Any) -> str:
    """What the library calls itself, or the file that its checkout or its installation says it in."""
    if found := getattr(package, "__version__", None):
        return str(found)
    try:
        return str(importlib.import_module(f"{name}._version").__version__)
    except (ImportError, AttributeError):
        pass
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "checkout"


def _torchvision() -> None:
    try:
        importlib.import_module("torchvision")
    except ImportError as error:
        raise UnavailableError("its Omniglot is torchvision's, which is not installed") from error
    except RuntimeError:
        # Its compiled operators were built for another torch. The data set and the transforms need none of them; what
        # fails is the module that describes the operators.
        sys.modules["torchvision._meta_registrations"] = ModuleType("torchvision._meta_registrations")
        _import("torchvision")


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise UnavailableError(f"importing {name} failed: {type(error).__name__}: {error}") from error
