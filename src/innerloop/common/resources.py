"""The files that come with the package, also where the package lies in a zip."""

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
    """A folder of the package, such as ``recipes``. Of a package in a zip it is a copy, which goes with the process."""
    found = importlib.resources.files("innerloop").joinpath(name)
    if isinstance(found, Path):
        return found
    copy = Path(tempfile.mkdtemp(prefix="innerloop-"))
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    target = copy / Path(name).name
    _copy(found, target)
    return target


def _copy(found: Any, target: Path) -> None:
    target.mkdir()
    for entry in found.iterdir():
        if entry.is_dir():
            _copy(entry, target / entry.name)
        else:
            (target / entry.name).write_bytes(entry.read_bytes())
