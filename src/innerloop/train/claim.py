"""A lock so that only one training at a time uses a run directory."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from ..common.disk import leftovers, naming, opened, refuse_links

LOCK = ".lock"
_held: set[Path] = set()


@contextmanager
def claimed(run: Path) -> Iterator[None]:
    """Claim the run directory for this process while entered.

    No other process can claim it meanwhile. The directory is created if necessary, and removed if it stays empty. The
    claim ends with the process, however that ends. A claim within a claim of the same process has no effect.

    Raises:
        BlockingIOError: another process has claimed it.
        OSError: the directory cannot be written to, or has a symbolic link in place of a file or folder to write.
    """
    path = run.resolve() / LOCK
    if path in _held:
        yield
        return
    missing = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    run.mkdir(parents=True, exist_ok=True)
    try:
        refuse_links(run)
        with _opened(path, run) as file:
            _tidy(run / "checkpoints")
            with naming(path):
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
                file.flush()
            _held.add(path)
            try:
                yield
            finally:
                _held.discard(path)
                with suppress(OSError):  # on Windows, open files cannot be removed
                    path.unlink()
    finally:
        with suppress(OSError):  # it is not empty
            for folder in missing:
                folder.rmdir()


def is_claimed(run: Path) -> bool:
    """Return whether a process on this machine, or on its shared file system, trains in a run directory."""
    path = run.resolve() / LOCK
    if path in _held or not path.exists():
        return path in _held
    with _file(path, 0) as file:
        return not _lock(file)


@contextmanager
def _opened(path: Path, run: Path) -> Iterator[IO[str]]:
    """Open and lock the file."""
    while True:
        with _file(path, os.O_CREAT) as file:
            if not _lock(file):
                file.seek(0)
                words = "".join(letter for letter in file.read(200) if letter.isprintable()).strip()
                raise BlockingIOError(
                    f"{run} is being trained by {words or 'another process'}: wait for it, stop it, or use another "
                    "directory"
                )
            if not _is(file, path):  # its previous owner may have removed it after it was opened here
                continue
            if os.fstat(file.fileno()).st_nlink > 1:  # it is also another file, which must not be changed
                path.unlink()
            else:
                yield file
                return


def _file(path: Path, flags: int) -> IO[str]:
    """Open the file for reading and writing, never through a link."""
    return os.fdopen(opened(path, os.O_RDWR | flags), "r+", encoding="utf-8", errors="replace")


def _tidy(folder: Path) -> None:
    """Remove incomplete files of a training that was killed; only the owner of the claim writes to this folder."""
    for path in leftovers(folder) if folder.is_dir() else ():
        path.unlink(missing_ok=True)


def _is(file: IO[str], path: Path) -> bool:
    """Return whether an open file is still the one with this name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _lock(file: IO[str]) -> bool:
    """Lock an open file until it is closed; return whether it was free."""
    try:
        import fcntl
    except ImportError:  # on Windows
        import msvcrt

        try:
            file.seek(2**20)  # far behind its content, which others may read
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
