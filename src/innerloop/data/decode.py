"""Decode image files to uint8 tensors once, and keep the pixels in a memory-mapped file of the cache."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..common.errors import user_level
from .cache import kept
from .files import ChangedError, Files, some
from .progress import progress

FORMAT = 2
"""The version of cached files; raise it when their format or pixels change, so that older files are not read."""


class Decoded(NamedTuple):
    """Decoded images.

    Attributes:
        images: the images in the order of their classes, ``[N, C, size, size]``.
        counts: the number of images of each class, ``[classes]``.
        names: the names of the classes.
    """

    images: Tensor
    counts: Tensor
    names: tuple[str, ...]


def decoded_once(
    files: Files,
    classes: dict[str, list[str]],
    stem: str,
    size: int,
    channels: int,
    skip_unreadable: bool = False,
    inverted: bool = False,
) -> Decoded:
    """Decode the files of each class, or load the result from the cache.

    The result comes from the cache if files with the same names and contents were decoded before.

    Args:
        files: the files.
        classes: class -> its files; a file with several names counts once, under its first name.
        stem: the beginning of the name in the cache.
        size: see `decode_classes`.
        channels: see `decode_classes`.
        skip_unreadable: see `decode_classes`.
        inverted: whether to invert the images.

    Raises:
        ValueError: a file is in two classes; and see `decode_classes`.
    """
    classes = files.without_duplicates(classes)
    names = [name for names in classes.values() for name in names]
    key = files.fingerprint(classes, size, channels, skip_unreadable, inverted, names=names)

    def decode() -> Decoded:
        decoded = decode_classes(files, classes, size, channels, skip_unreadable)
        return decoded._replace(images=255 - decoded.images) if inverted else decoded

    return cached(f"{stem}-{size}-{key}", decode)


def decode_classes(
    files: Files, classes: dict[str, list[str]], size: int, channels: int, skip_unreadable: bool = False
) -> Decoded:
    """Decode the files of each class to ``size`` x ``size``; other aspect ratios are squeezed into the square.

    Raises:
        ImportError: Pillow is not installed.
        ValueError: some files are not images and ``skip_unreadable`` is false; the message names up to ten.
    """
    pillow = require_pillow()
    total = sum(map(len, classes.values()))
    images = torch.empty(total, channels, size, size, dtype=torch.uint8)
    counts, bad, row = torch.zeros(len(classes), dtype=torch.int64), [], 0
    with progress(f"decoding {files.path.name}", total) as advance:
        for label, names in enumerate(classes.values()):
            for name in names:
                try:
                    images[row] = _decode(pillow, files.read(name), size, channels)
                    row += 1
                    counts[label] += 1
                except ChangedError:  # the cache would store it under the fingerprint of the old content
                    raise
                except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError) as error:
                    bad.append(f"{name} ({error})")
                advance(1)
    if bad and not skip_unreadable:
        raise ValueError(f"{files.path}: {len(bad)} of {total} files are not readable images: {some(bad)}")
    if bad:
        warnings.warn(f"{files.path}: skipped {len(bad)} unreadable files: {some(bad)}", stacklevel=user_level())
    return Decoded(images[:row], counts, tuple(classes))


def cached(stem: str, build: Callable[[], Decoded]) -> Decoded:
    """Return ``build()``, or its earlier result under this name; see `kept`."""
    return Decoded(*kept(f"{stem}-v{FORMAT}", build, _whole, "decoded images"))


def _whole(parts: tuple[Any, ...]) -> bool:
    images, counts, names = parts
    pixels = images.dtype == torch.uint8 and images.ndim == 4 and len(images) == int(counts.sum())
    return pixels and len(counts) == len(names)


def require_pillow() -> Any:
    """Return the module ``PIL.Image``.

    Raises:
        ImportError: it is not installed; the message says how to install it.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("reading image files needs Pillow: pip install 'innerloop[vision]'") from error
    return Image


def _decode(pillow: Any, content: bytes, size: int, channels: int) -> Tensor:
    from PIL import ImageOps

    with pillow.open(io.BytesIO(content)) as file:
        if file.mode[0] in "IF":
            raise ValueError(f"more than 8 bits per channel (mode {file.mode}): convert it to 8 bits")
        image = ImageOps.exif_transpose(file).convert("L" if channels == 1 else "RGB")
    if image.size != (size, size):
        image = image.resize((size, size), pillow.Resampling.LANCZOS)  # Pillow's filters antialias when shrinking
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(size, size, channels).movedim(-1, 0)


def check_size(size: int) -> None:
    """Refuse an image size below one pixel."""
    if size < 1:
        raise ValueError(f"size={size} must be at least 1 pixel")
