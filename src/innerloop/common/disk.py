"""Safe reading and writing of files, since a run directory may come from someone else.

Nothing is written through a symbolic link. A file is written under a random new name in its folder and then renamed.
So a name always belongs to a complete file, a link with that name is replaced instead of followed, and two writers of
one file do not interfere.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from .streams import shown

FOLDERS = ("checkpoints", "figures", "tensorboard", "wandb")
"""The folders in a run directory that are written to."""
LIMIT = 64 * 2**20
"""The size in bytes of the largest text file that is read."""
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # opening a pipe that nobody writes to would wait forever
_TEMPORARY = re.compile(r"\.innerloop-[0-9a-f]{32}\.tmp(\..*)?")


def cache_folder() -> Path:
    """Return ``$XDG_CACHE_HOME/innerloop``, or ``~/.cache/innerloop``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "innerloop"


# -- writing ----------------------------------------------------------------------------------------------------------


@contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """Open a binary file that gets its name only when it is complete and on the disk; errors change nothing.

    Raises:
        OSError: it cannot be written; the message says that the file is unchanged.
    """
    with _renamed(path) as (descriptor, _), os.fdopen(descriptor, "wb", closefd=False) as file:
        yield file
        file.flush()


def write_text(path: Path, text: str) -> None:
    """Write a text file, which gets its name only when it is complete; see `writing`."""
    with writing(path) as file:
        file.write(text.encode())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Do the same as `writing` for libraries that open files by name; yields an empty file with the path's suffix."""
    with _renamed(path) as (_, temporary):
        yield temporary


@contextmanager
def _renamed(path: Path) -> Iterator[tuple[int, Path]]:
    """Open a new file under a temporary name, and rename it at the end."""
    refuse_linked_folder(path)
    temporary = path.with_name(f".innerloop-{secrets.token_hex(16)}.tmp{path.suffix}")
    try:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | _NO_FOLLOW, 0o666)
        try:
            yield descriptor, temporary
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            reason = f"{error.strerror}, so it was not written and is unchanged"
            raise OSError(error.errno, reason, str(path)) from error
        raise
    with naming(path):
        _keep_name(path)


def _keep_name(path: Path) -> None:
    """Flush the name of a file to the disk."""
    if os.name == "posix":  # the name is on the disk when its directory is
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """While entered, add this file's name to system errors that name no file, such as for a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def opened(path: Path, flags: int) -> int:
    """Open a regular file, never through a link, and return its file descriptor.

    Raises:
        OSError: the path is a symbolic link, or is not a regular file.
    """
    refuse_linked_folder(path)
    refuse_link(path)
    try:
        descriptor = os.open(path, flags | _NO_FOLLOW | _NO_WAIT, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):  # it became a link after the check
            raise _linked(path) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is not a regular file: remove it")
    return descriptor


def subfolder(folder: Path, name: str) -> Path:
    """Return a folder in a run directory, which is created if necessary.

    Raises:
        OSError: it is a symbolic link, or cannot be created.
    """
    path = refuse_link(folder / name)
    path.mkdir(parents=True, exist_ok=True)
    return path


def leftovers(folder: Path) -> list[Path]:
    """Return the temporary files in a folder that killed writers have left."""
    paths = (Path(entry.path) for entry in os.scandir(folder) if _TEMPORARY.fullmatch(entry.name))
    return [path for path in paths if path.is_symlink() or path.is_file()]


# -- links ------------------------------------------------------------------------------------------------------------


def is_link(path: Path) -> bool:
    """Return whether a path is a symbolic link, or a junction on Windows."""
    junction = getattr(os.path, "isjunction", None)  # from Python 3.12 on
    return path.is_symlink() or bool(junction and junction(path))


def refuse_link(path: Path) -> Path:
    """Return the path; raise an `OSError` that names it if it is a symbolic link."""
    if is_link(path):
        raise _linked(path)
    return path


def refuse_linked_database(url: str) -> None:
    """Raise an `OSError` if a file of the database ``sqlite:///FILE`` or ``journal:FILE`` is a symbolic link."""
    kind, _, file = url.partition("?")[0].partition(":")
    if kind.split("+")[0] in ("sqlite", "journal"):
        for suffix in ("", "-journal", "-wal", "-shm"):
            refuse_link(Path(file.removeprefix("///") + suffix))


def refuse_links(run: Path) -> None:
    """Raise an `OSError` if a folder that is written to in a run directory is a symbolic link."""
    for name in FOLDERS:
        refuse_link(run / name)


def refuse_linked_folder(path: Path) -> None:
    """Raise an `OSError` if a path leads out of a run directory through a linked folder inside of it."""
    for folder in path.absolute().parents:
        if is_link(folder) and os.path.lexists(folder.parent / "metrics.jsonl"):
            raise _linked(folder)


def _linked(path: Path) -> OSError:
    return OSError(f"{path} is a symbolic link, which is not written through in a run directory: remove it")


# -- reading ----------------------------------------------------------------------------------------------------------


def expanded(path: str | Path) -> Path:
    """Return the path with ``~`` replaced by the home folder, or unchanged if there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def read_text(path: Path, limit: int = LIMIT) -> str:
    """Return the text of a regular file.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it is not a regular file, is larger than the limit, or is not UTF-8; the message names it.
        OSError: it cannot be read.
    """
    try:
        return read_bytes(path, limit).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{shown(path)} is not UTF-8 text: {error.reason} at byte {error.start:,}") from error


def read_bytes(path: Path, limit: int = LIMIT) -> bytes:
    """Return the content of a regular file.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it is not a regular file, or is larger than the limit; the message names it.
        OSError: it cannot be read.
    """
    with reading(path) as file:
        if (size := os.fstat(file.fileno()).st_size) > limit:
            raise ValueError(f"{shown(path)} has {size:,} bytes, more than the limit of {limit:,}")
        return file.read(limit)


@contextmanager
def reading(path: Path) -> Iterator[IO[bytes]]:
    """Open a regular file for reading. A pipe could block, and a device may have no end.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it is not a regular file; the message names it.
        OSError: it cannot be read.
    """
    _require_regular(path, path.stat())
    descriptor = os.open(path, os.O_RDONLY | _NO_WAIT | getattr(os, "O_BINARY", 0))
    with naming(path), os.fdopen(descriptor, "rb") as file:
        _require_regular(path, os.fstat(descriptor))  # it may have changed meanwhile
        yield file


def _require_regular(path: Path, about: os.stat_result) -> None:
    if not stat.S_ISREG(about.st_mode):
        raise ValueError(f"{shown(path)} is not a regular file")
