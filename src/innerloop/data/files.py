"""Finding data sets on disk, and reading the files of a folder and of a zip in the same way."""

from __future__ import annotations

import hashlib
import os
import stat
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from ..streams import shown

LARGEST = 2**28
"""Bytes. No picture or list of pictures is larger; what unpacks to more is there to fill the memory."""


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/innerloop``, or ``~/.cache/innerloop``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "innerloop"


def candidates(root: str | Path | None, name: str) -> list[Path]:
    """Where the data set ``name`` is looked for: in root if given, else ``$INNERLOOP_DATA``, then the cache."""
    if root is not None:
        places = [Path(root).expanduser()]
    else:
        places = [cache_folder()]
        if place := os.environ.get("INNERLOOP_DATA"):
            places.insert(0, Path(place).expanduser())
    return [folder for place in places for folder in (place, place / name)]


class Files:
    """The files below a folder or in a zip, by their names relative to it. Nothing is ever unpacked to disk.

    Names that lead out of the archive and macOS's resource forks are left out.

    Attributes:
        path: the folder or the zip.
        stamps: name -> what changes when the file does (in a zip its checksum, in a folder its size and time).

    Raises:
        FileNotFoundError: there is nothing at ``path``.
        ValueError: it is neither a folder nor a readable zip.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._zip = None if path.is_dir() else _open(path)
        self.stamps = _walk(path) if self._zip is None else _list(self._zip)

    def read(self, name: str) -> bytes:
        """The content of one file.

        Raises:
            ValueError: its place in the zip is damaged or encrypted, or it is larger than any picture.
        """
        size = (self.path / name).stat().st_size if self._zip is None else self._zip.getinfo(name).file_size
        if size > LARGEST:  # zipfile never unpacks more than it says there is
            raise ValueError(f"{self.path}: {name} has {size:,} bytes, more than the {LARGEST:,} that are read")
        if self._zip is None:
            return (self.path / name).read_bytes()
        try:
            return self._zip.read(name)
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError) as error:
            raise ValueError(f"{self.path}: {name} cannot be read ({error}); get the file again") from error

    def fingerprint(self, *settings: object) -> str:
        """A short hash of all files and of the settings they are decoded with: the key of the decoded copy."""
        content = "\n".join(f"{name}\t{stamp}" for name, stamp in sorted(self.stamps.items()))
        text = f"{content}\n{settings}".encode("utf-8", "surrogateescape")  # names need not be UTF-8
        return hashlib.sha256(text).hexdigest()[:16]


def some(names: Iterable[str], limit: int = 10) -> str:
    """The first names, for a message."""
    names = list(map(shown, names))
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _open(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"{path} ({path.stat().st_size:,} bytes) is not a readable zip: {error}. It may be empty or a download "
            "that was cut short; delete it and get it again"
        ) from error


def _walk(path: Path) -> dict[str, str]:
    stamps = {}
    for folder, below, names in os.walk(path, followlinks=True):  # class folders are often links
        real = Path(folder).resolve()
        below[:] = [name for name in below if not real.is_relative_to((real / name).resolve())]  # but not to above
        for name in names:
            file = Path(folder) / name
            try:
                status = file.stat()
            except FileNotFoundError:  # a link that leads nowhere
                continue
            except OSError as error:  # who reads it will say that it cannot be read
                stamps[file.relative_to(path).as_posix()] = f"unreadable {error.errno}"
                continue
            if stat.S_ISREG(status.st_mode):
                stamps[file.relative_to(path).as_posix()] = f"{status.st_size} {status.st_mtime_ns}"
    return stamps


def _list(archive: zipfile.ZipFile) -> dict[str, str]:
    return {
        info.filename: f"{info.file_size} {info.CRC}"
        for info in archive.infolist()
        if not info.is_dir() and _is_safe(PurePosixPath(info.filename))
    }


def _is_safe(name: PurePosixPath) -> bool:
    return not name.is_absolute() and ".." not in name.parts and name.parts[0] != "__MACOSX"
