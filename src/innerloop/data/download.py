"""Download a published file, and check it against its published hash."""

from __future__ import annotations

import hashlib
import http.client
import urllib.request
from pathlib import Path
from typing import IO

from ..common.disk import writing
from .progress import progress


def download(url: str, path: Path, sha256: str) -> Path:
    """Download ``url`` to ``path``, which appears only when it is complete and correct.

    Raises:
        OSError: the file could not be downloaded or written.
        ValueError: the file has another SHA-256; it is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with writing(path) as part:
            digest = _fetch(url, part)
            if digest != sha256:
                raise ValueError(
                    f"{url} has SHA-256 {digest}, expected {sha256}: the download was damaged or the file has changed; "
                    f"it was removed. Try again, or put the right file at {path}"
                )
    except (OSError, http.client.HTTPException) as error:
        raise OSError(f"could not download {url} ({error}): download it yourself and put it at {path}") from error
    return path


def _fetch(url: str, file: IO[bytes]) -> str:
    """Download ``url`` to a file and return its SHA-256."""
    digest = hashlib.sha256()
    with urllib.request.urlopen(url, timeout=60) as response:
        length = response.headers.get("Content-Length")
        with progress(f"downloading {url.rsplit('/', 1)[-1]}", int(length) if length else None) as advance:
            while chunk := response.read(1 << 20):
                file.write(chunk)
                digest.update(chunk)
                advance(len(chunk))
    return digest.hexdigest()
