"""Find data sets on disk, and read the files of a folder or of a zip in the same way."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import IO

from ..common.disk import cache_folder, expanded
from ..common.streams import shown
from .progress import progress
from .walk import Identity, Walked, walk

LARGEST = 2**28
"""The largest file in bytes. No image or list of images is larger; a larger one could be a zip bomb."""
BLOCK = 2**20
"""The number of bytes that are read at once for a digest."""
CHUNK, READERS = 256, 8
"""The number of files that a thread takes at once, and of threads, since disks serve several reads at once."""


def candidates(root: str | Path | None, name: str) -> list[Path]:
    """Return where to search for data set ``name``: in root if given, else ``$INNERLOOP_DATA``, then the cache."""
    if root is not None:
        places = [expanded(root)]
    else:
        places = [cache_folder()]
        if place := os.environ.get("INNERLOOP_DATA"):
            places.insert(0, expanded(place))
    return [folder for place in places for folder in (place, place / name)]


class ChangedError(ValueError):
    """A file changed after its fingerprint was computed."""


class Files:
    """The files below a folder or in a zip, by their names relative to it. Nothing is unpacked to disk.

    Names that lead out of the archive and macOS's resource forks are left out. `walk` describes which links are
    followed.

    Args:
        path: the folder or the zip.
        classes: the class folders, relative to the folder; only these and the files next to them are read. By default
            all files are read.

    Attributes:
        path: the folder or the zip.
        identities: name -> an identity, which is equal for two names of one real file.
        broken: the names of files that cannot be accessed, such as broken links -> why.

    Raises:
        FileNotFoundError: there is nothing at ``path``.
        ValueError: it is neither a folder nor a readable zip, or a class folder equals or lies in another one.
    """

    def __init__(self, path: Path, classes: Sequence[str] | None = None) -> None:
        self.path = path
        self._zip = None if path.is_dir() else _open(path)
        walked = walk(path, classes) if self._zip is None else _list(self._zip)
        self.identities, self.broken = walked.files, walked.broken
        self._digests: dict[str, bytes] = {}

    def read(self, name: str) -> bytes:
        """Return the content of one file.

        Raises:
            ValueError: its entry in the zip is damaged or encrypted, or it is too large.
            OSError: it cannot be read.
            ChangedError: it changed after its fingerprint was computed.
        """
        if self._zip is None:
            return self._read(name)
        if (size := self._zip.getinfo(name).file_size) > LARGEST:  # zipfile never unpacks more than this size
            raise self._too_large(name, size)
        try:
            return self._zip.read(name)
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError) as error:
            raise ValueError(f"{self.path}: {name} cannot be read ({error}): get the file again") from error

    def without_duplicates(self, classes: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        """Return the files of each class. A file with several names is listed under the first one.

        Raises:
            ValueError: a file is in two classes, by symbolic or hard links.
        """
        kept: dict[str, list[str]] = {label: [] for label in classes}
        first: dict[Identity, tuple[str, str]] = {}
        shared = []
        for label, names in classes.items():
            for name in names:
                owner, other = first.setdefault(self.identities[name], (label, name))
                if owner != label:
                    shared.append(f"{shown(other)} (class {shown(owner)}) and {shown(name)} (class {shown(label)})")
                elif other == name:
                    kept[label].append(name)
        if shared:
            more = f", and so are {len(shared) - 1} more" if len(shared) > 1 else ""
            raise ValueError(
                f"{self.path}: {shared[0]} are one file{more}, but an image must belong to one class: remove one of "
                "the two names, or replace the link by a copy"
            )
        return kept

    def fingerprint(self, *settings: object, names: Iterable[str] | None = None) -> str:
        """Return a hash of the content of files and of the settings for decoding, the key of the decoded copy.

        Every byte is read each time. The hash does not use sizes and times, which other files may share.

        Args:
            settings: values with an exact ``repr``.
            names: the files, in order; by default all of them.
        """
        chosen = sorted(self.identities) if names is None else list(names)
        key = hashlib.sha256(repr((settings, chosen)).encode())  # repr escapes names that are not UTF-8
        if self._zip is not None and self._zip.fp is not None:
            self._zip.fp.seek(0)
            key.update(_digest(self._zip.fp))
        else:
            self._digests = dict(zip(chosen, self._digest_all(chosen), strict=True))
            for digest in self._digests.values():
                key.update(digest)
        return key.hexdigest()[:32]

    def _digest_all(self, names: list[str]) -> list[bytes]:
        chunks = [names[start : start + CHUNK] for start in range(0, len(names), CHUNK)]
        digests: list[bytes] = []
        with progress(f"reading {self.path.name}", len(names)) as advance, ThreadPoolExecutor(READERS) as pool:
            for chunk in pool.map(lambda chunk: [self._digest(name) for name in chunk], chunks):
                digests += chunk
                advance(len(chunk))
        return digests

    def _digest(self, name: str) -> bytes:
        """Return the digest of a file in a folder, or the reason why it cannot be read."""
        try:
            with (self.path / name).open("rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                return _digest(file) if size <= LARGEST else b"%d bytes" % size
        except OSError as error:
            return _unreadable(error)

    def _read(self, name: str) -> bytes:
        """Return the content of a file in a folder, and check that it has not changed since `_digest`."""
        content = b""
        failure: OSError | ValueError | None = None
        try:
            if (size := (self.path / name).stat().st_size) > LARGEST:
                seen, failure = b"%d bytes" % size, self._too_large(name, size)
            else:
                content = (self.path / name).read_bytes()
                seen = hashlib.sha256(content).digest()
        except OSError as error:
            seen, failure = _unreadable(error), error
        if self._digests.get(name, seen) != seen:
            raise ChangedError(f"{self.path}: {shown(name)} changed while the files were read: try again")
        if failure is not None:
            raise failure
        return content

    def _too_large(self, name: str, size: int) -> ValueError:
        return ValueError(f"{self.path}: {name} has {size:,} bytes, more than the limit of {LARGEST:,}")


def _unreadable(error: OSError) -> bytes:
    return b"error %d" % (error.errno or 0)


def _digest(file: IO[bytes]) -> bytes:
    digest = hashlib.sha256()
    while block := file.read(BLOCK):
        digest.update(block)
    return digest.digest()


def some(names: Iterable[str], limit: int = 10) -> str:
    """Return the first names, for a message."""
    names = list(map(shown, names))
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _open(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"{path} ({path.stat().st_size:,} bytes) is not a readable zip: {error}. It may be empty or an incomplete "
            "download: delete it and get it again"
        ) from error


def _list(archive: zipfile.ZipFile) -> Walked:
    names = (info.filename for info in archive.infolist() if not info.is_dir())
    return Walked({name: (name,) for name in names if _is_safe(PurePosixPath(name))})


def _is_safe(name: PurePosixPath) -> bool:
    return not name.is_absolute() and ".." not in name.parts and name.parts[0] != "__MACOSX"
