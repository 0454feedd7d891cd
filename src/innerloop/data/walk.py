"""Walk the files below a folder, following links and visiting each folder once."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from pathlib import Path, PurePosixPath

from ..common.disk import is_link
from ..common.streams import shown

Identity = tuple[object, ...]
"""Equal for two names of one file, whether by symbolic links or by hard links."""


@dataclass
class Walked:
    """The files below a folder, by names relative to it.

    Attributes:
        files: name -> identity, of regular files and of files that cannot be accessed.
        broken: the names of ``files`` that cannot be accessed, such as broken links -> why.
    """

    files: dict[str, Identity] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)

    def note_broken(self, name: str, error: OSError) -> None:
        """Record a file that cannot be accessed."""
        self.files[name] = (name,)
        self.broken[name] = error.strerror or str(error)


def walk(root: Path, classes: Sequence[str] | None = None) -> Walked:
    """Return the files below the class folders and those directly in root; without classes, all files below root.

    Symbolic links are followed, except links inside a class folder to a class folder (the same or another), or to a
    folder that contains one, so that a file counts in its own class. In each class, a folder with several paths is read
    once, by a name without hidden parts and without links if there is one.

    Raises:
        ValueError: one class folder equals, or lies in, another one.
    """
    walked = Walked()
    tops = [""] if classes is None else list(classes)
    real = {top: os.path.realpath(root / top) for top in tops}
    if classes is not None:
        _refuse_nested(root, real)
        _read(root, "", walked)
    above = {str(folder) for place in real.values() for folder in (Path(place), *Path(place).parents)}
    for top in tops:
        _walk_class(root, top, above, walked)
    return walked


def _refuse_nested(root: Path, real: dict[str, str]) -> None:
    """Refuse class folders that equal or contain each other, given their real paths."""
    owner: dict[str, str] = {}
    for name, place in real.items():
        if place in owner:
            raise ValueError(
                f"{root}: the class folders {shown(owner[place])} and {shown(name)} are one folder, {shown(place)}, "
                "but an image must belong to one class: remove one of the two"
            )
        owner[place] = name
    for name, place in real.items():
        if around := [folder for folder in map(str, Path(place).parents) if folder in owner]:
            raise ValueError(
                f"{root}: the class folder {shown(name)} is {shown(place)}, which lies in {shown(around[0])}, the "
                f"class folder {shown(owner[around[0]])}, but an image must belong to one class: remove the link, or "
                "move one folder out of the other"
            )


def subfolders(folder: Path) -> tuple[list[str], list[str]]:
    """Return the names of the folders and of the broken links in a folder, without hidden ones."""
    with os.scandir(folder) as scanned:
        entries = sorted((entry for entry in scanned if not entry.name.startswith(".")), key=lambda entry: entry.name)
    folders, broken = [], []
    for entry in entries:
        try:
            if stat.S_ISDIR(Path(entry.path).stat().st_mode):
                folders.append(entry.name)
        except OSError:
            broken.append(entry.name)
    return folders, broken


def _walk_class(root: Path, top: str, above: set[str], walked: Walked) -> None:
    seen: set[Identity] = set()
    waiting = [(False, 0, top)]  # hidden, links on the way, name: the smallest is read first
    while waiting:
        hidden, links, name = heappop(waiting)
        try:
            about = (root / name).stat()
        except OSError as error:
            walked.note_broken(name, error)
            continue
        if (identity := _identity(root / name, about, is_folder=True)) in seen:
            continue
        seen.add(identity)
        for below, linked in _read(root, name, walked):
            if not linked or os.path.realpath(root / below) not in above:
                heappush(waiting, (hidden or _is_hidden(below), links + linked, below))


def _read(root: Path, name: str, walked: Walked) -> list[tuple[str, bool]]:
    """Record the files of one folder; return the folders in it, and whether they are links."""
    below = []
    try:
        with os.scandir(root / name) as scanned:
            entries = sorted(scanned, key=lambda entry: entry.name)
    except OSError as error:
        walked.note_broken(name, error)
        return []
    for entry in entries:
        child = f"{name}/{entry.name}" if name else entry.name
        try:
            about = Path(entry.path).stat()
        except OSError as error:  # reading it will raise the error
            walked.note_broken(child, error)
            continue
        if stat.S_ISDIR(about.st_mode):
            below.append((child, is_link(Path(entry.path))))
        elif stat.S_ISREG(about.st_mode):
            walked.files[child] = _identity(entry.path, about)
    return below


def _identity(path: str | Path, about: os.stat_result, is_folder: bool = False) -> Identity:
    """Return the identity of a file; since some file systems reuse numbers, it includes size and times."""
    if not about.st_ino:
        return (os.path.realpath(path),)
    number = (about.st_dev, about.st_ino)
    return number if is_folder else (*number, about.st_size, about.st_mtime_ns, about.st_ctime_ns)


def _is_hidden(name: str) -> bool:
    return PurePosixPath(name).name.startswith(".")
