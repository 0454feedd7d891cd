"""The files that come with the package, also if the package is in a zip."""

from __future__ import annotations

import atexit
import importlib.resources
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any


@cache
def folder(name: str) -> Path:
    """Return a folder of the package, such as ``recipes``; for a package in a zip, a temporary copy."""
    source = importlib.resources.files("innerloop").joinpath(name)
    if isinstance(source, Path):
        return source
    copy = Path(tempfile.mkdtemp(prefix="innerloop-"))
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    target = copy / Path(name).name
    _copy(source, target)
    return target


def _copy(source: Any, target: Path) -> None:
    target.mkdir()
    for entry in source.iterdir():
        if entry.is_dir():
            _copy(entry, target / entry.name)
        else:
            (target / entry.name).write_bytes(entry.read_bytes())
