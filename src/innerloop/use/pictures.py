"""Read pictures of any kind, and convert them to what a model was trained on."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data.decode import require_pillow
from ..data.files import Files, some
from ..data.tasks import DRAWINGS, Drawing
from ..data.walk import subfolders
from ..recipe import imports
from .pretrained import Pretrained

CHANNELS = {"omniglot": 1, "strokes": 1, "mini-imagenet": 3}
"""The channels of the pictures of tasks that have no argument for them."""
WORKING = 256
"""The side in pixels at which drawings are processed: larger ones are shrunk first."""
FAINTEST = 0.12
"""The smallest contrast between ink and background; 1 is that between black and white."""
SPECK = 0.03
"""Blots smaller than this share of the largest part of a drawing count as dirt."""


def input_shape(recipe: Mapping[str, Any]) -> tuple[int, int, int] | None:
    """The channels, height and width of the pictures that a model reads, by its recipe; None if it reads others.

    A network of the user's own may have no argument for them, and takes them from the pictures of its tasks.
    """
    tasks, network = recipe.get("tasks", {}), recipe.get("model", {})
    ours = "image_size" in network or imports.is_reference(network.get("name"))
    size = network.get("image_size", tasks.get("size") if ours else None)
    known = tasks.get("channels", CHANNELS.get(str(tasks.get("name"))))
    channels = network.get("channels", known if ours else None)
    return (channels, size, size) if type(size) is int and type(channels) is int else None


class Form(NamedTuple):
    """The form of the pictures that a model takes.

    Attributes:
        size: height and width.
        channels: 1 for gray, 3 for color.
        drawing: the form of drawings, light ink on a dark background; None for other pictures.
    """

    size: int
    channels: int
    drawing: Drawing | None

    @classmethod
    def of(cls, model: Pretrained) -> Form:
        """Read the form off a model's recipe.

        Raises:
            ValueError: the model was not trained on pictures, or not by a recipe.
        """
        tasks = model.recipe.get("tasks", {})
        if (shape := input_shape(model.recipe)) is None:
            why = f"was trained on the tasks {tasks['name']}" if "name" in tasks else "has no recipe"
            raise ValueError(f"{model.name} does not take pictures: it {why}")
        return cls(shape[-1], shape[0], DRAWINGS.get(tasks["name"]))

    def __str__(self) -> str:
        kind = "drawings, light on dark" if self.drawing else "pictures"
        return f"{kind}, {self.size} x {self.size}, {'gray' if self.channels == 1 else 'color'}"


@dataclass
class Pictures:
    """Pictures in the form that a model takes, and how they were converted.

    Attributes:
        names: of the files, relative to their folder.
        x: float32 in [0, 1], ``[N, C, size, size]``.
        done: conversion -> the number of pictures that needed it.
        unreadable: the names of files that were left out -> why.
    """

    names: list[str]
    x: Tensor
    done: Counter[str] = field(default_factory=Counter)
    unreadable: dict[str, str] = field(default_factory=dict)

    @property
    def labels(self) -> list[str]:
        """The first folder in each name, which is its class; empty if there is none."""
        return [name.partition("/")[0] if "/" in name else "" for name in self.names]

    def told(self) -> list[str]:
        """Return a line for each conversion, and one for the files that were left out."""
        lines = [f"{text}: {number} of {len(self.names)}" for text, number in self.done.items()]
        return lines + ([f"left out, not readable: {self.left_out()}"] if self.unreadable else [])

    def left_out(self) -> str:
        """Say which files cannot be read, and why."""
        return some(f"{name} ({why})" for name, why in self.unreadable.items())


def read(folder: Path, form: Form) -> Pictures:
    """Read the pictures of a folder or zip file, at any depth, or a single picture.

    Files that are not pictures are skipped and named in the result; hidden files are ignored. Links are followed, and
    each real file counts once, as `innerloop.data.image_folder` says.

    Raises:
        FileNotFoundError: there is no such folder or file.
        ImportError: Pillow is not installed.
        ValueError: no picture can be read, or a file or folder is in two classes.
    """
    pillow, single = require_pillow(), folder.is_file() and folder.suffix.lower() != ".zip"
    if not folder.exists():
        raise FileNotFoundError(f"there is no folder or picture {folder}")
    files, names = _files(folder, single)
    pictures, rows = Pictures([], torch.empty(0)), []
    for name in names:
        try:
            picture, done = prepare(pillow, files.read(name), form)
        except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError) as error:
            pictures.unreadable[name] = _why(name, error)
            continue
        pictures.names.append(name)
        pictures.done.update(done)
        rows.append(picture)
    if not rows:
        raise ValueError(f"{folder}: no picture can be read: {pictures.left_out() or 'there is no file'}")
    pictures.x = torch.stack(rows)
    return pictures


def _files(folder: Path, single: bool) -> tuple[Files, list[str]]:
    """Return the files of a folder or a zip, or one file, and the names of those that are not hidden."""
    if single:
        return Files(folder.parent, []), [folder.name]
    files = Files(folder, subfolders(folder)[0] if folder.is_dir() else None)
    classes: dict[str, list[str]] = {}
    for name in sorted(files.identities):
        if "/." not in f"/{name}":
            classes.setdefault(name.rpartition("/")[0].partition("/")[0], []).append(name)
    return files, sorted(name for names in files.without_duplicates(classes).values() for name in names)


def _why(name: str, error: Exception) -> str:
    """Say why a file cannot be read as a picture."""
    if Path(name).suffix.lower() in (".heic", ".heif"):
        return "HEIC is not supported: export it as JPEG"
    return "not a picture that Pillow can read" if "cannot identify image file" in str(error) else str(error)


def prepare(pillow: Any, content: bytes, form: Form) -> tuple[Tensor, list[str]]:
    """Decode and convert one picture: return it, ``[C, size, size]`` in [0, 1], and its conversions in order."""
    from PIL import ImageOps

    done: list[str] = []
    with pillow.open(io.BytesIO(content)) as file:
        enough = 4 * (WORKING if form.drawing else form.size)
        file.draft(None, (enough, enough))  # large JPEGs are decoded at a fraction of their size
        if getattr(file, "n_frames", 1) > 1:
            done.append("first of several frames used")
        image = ImageOps.exif_transpose(file)
        if image.size != file.size or file.getexif().get(0x0112, 1) != 1:
            done.append("rotated upright, by its EXIF orientation")
        image = _eight_bits(image, done)
    image = _opaque(pillow, image, done)
    mode = "L" if form.channels == 1 or form.drawing else "RGB"
    if image.mode != mode:
        done.append(f"{'color' if mode == 'L' else image.mode} converted to {'gray' if mode == 'L' else 'RGB'}")
        image = image.convert(mode)
    if form.drawing:
        ink = _ink(pillow, image, done)
        return _tensor(_placed(pillow, ink, form.size, form.drawing)), done
    if image.size != (form.size, form.size):
        oblong = image.width != image.height
        done.append(
            f"resized to {form.size} x {form.size}" + (", squeezed into the square as in training" if oblong else "")
        )
        image = image.resize((form.size, form.size), pillow.Resampling.LANCZOS)
    return _tensor(image), done


def _eight_bits(image: Any, done: list[str]) -> Any:
    """Convert more than 8 bits per channel to 8, from the darkest to the lightest value."""
    if image.mode[0] not in "IF":
        return image
    low, high = image.getextrema()
    done.append(f"mode {image.mode}, stretched to 8 bits")
    return image.convert("F").point(lambda value: (value - low) * 255 / max(high - low, 1e-9)).convert("L")


def _opaque(pillow: Any, image: Any, done: list[str]) -> Any:
    """Put a transparent picture on a white background."""
    if "A" not in image.getbands() and "transparency" not in image.info:
        return image
    image = image.convert("RGBA")
    if image.getchannel("A").getextrema()[0] < 255:
        done.append("transparency put on white")
    ground = pillow.new("RGBA", image.size, "white")
    ground.alpha_composite(image)
    return ground.convert("RGB")


def _tensor(image: Any) -> Tensor:
    """Return the image as ``[C, H, W]`` in [0, 1]."""
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(image.height, image.width, -1).movedim(-1, 0).float() / 255


# -- drawings ---------------------------------------------------------------------------------------------------------


def _ink(pillow: Any, image: Any, done: list[str]) -> Any:
    """Return the ink of a drawing or of a photograph of one, cropped: ``[height, width]`` in [0, 1]."""
    ink, corner, scale = _find_ink(pillow, image, done)
    if scale > 1 and max(ink.shape) < WORKING / 2:  # zoom in on a small drawing on a large page
        height, width = ink.shape
        margin = max(height, width) / 2
        box = (corner[1] - margin, corner[0] - margin, corner[1] + width + margin, corner[0] + height + margin)
        inside = (max(0, box[0]), max(0, box[1]), box[2], box[3])
        limits = (image.width, image.height) * 2
        ink, _, _ = _find_ink(
            pillow, image.crop([min(round(scale * b), m) for b, m in zip(inside, limits, strict=True)]), []
        )
    return ink


def _find_ink(pillow: Any, image: Any, done: list[str]) -> tuple[Any, tuple[int, int], float]:
    """Return the cropped ink, the row and column where it begins, and the pixels of the image for one of its own."""
    numpy, ndimage = _libraries()
    scale = max(1.0, max(image.size) / WORKING)
    if max(image.size) > WORKING:
        image = image.copy()
        image.thumbnail((WORKING, WORKING), pillow.Resampling.LANCZOS)
    gray = numpy.asarray(image, dtype=numpy.float32) / 255
    if _dark(gray):
        done.append("dark ink on a light background inverted")
        gray = 1 - gray
    # The opening removes what is narrower than an eighth of the picture: it keeps shadows and removes pen strokes.
    background = ndimage.gaussian_filter(
        ndimage.grey_opening(gray, size=max(3, max(gray.shape) // 8)), max(1, min(gray.shape) // 16)
    )
    ink = numpy.clip(gray - background, 0, None)
    level = numpy.quantile(ndimage.uniform_filter(ink, 3), 0.9999) / 2  # of a few pixels: a drawing may be small
    if level < FAINTEST / 2:
        raise ValueError("it shows no drawing, or one that is too faint or too small")
    done.append("cropped to the drawing, uneven lighting removed")
    ink = numpy.clip(ink / level - 0.5, 0, 1)
    parts, number = ndimage.label(ink > 0.5, numpy.ones((3, 3)))
    sizes = ndimage.sum_labels(parts > 0, parts, numpy.arange(number + 1))
    ink = numpy.where(ndimage.grey_dilation(sizes[parts] >= SPECK * sizes.max(), size=3), ink, 0)
    rows, columns = (numpy.flatnonzero(ink.max(axis) > 0.5) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], (int(rows[0]), int(columns[0])), scale


def _dark(gray: Any) -> bool:
    """Return whether lines are darker than the background around them, in any lighting.

    It compares pixels with the median of a third of the picture around them. Lines are dark if the dark pixels differ
    from it more than the light ones.
    """
    numpy, ndimage = _libraries()
    scale = 64 / max(gray.shape)
    small = ndimage.zoom(gray, scale, order=1, mode="nearest") if scale < 1 else gray
    around = ndimage.median_filter(small, size=max(3, max(small.shape) // 3), mode="nearest")
    differs = gray - ndimage.zoom(
        around, [a / b for a, b in zip(gray.shape, around.shape, strict=True)], order=1, mode="nearest"
    )
    differs = ndimage.uniform_filter(differs, 3)
    return bool(-numpy.quantile(differs, 0.0005) > numpy.quantile(differs, 0.9995))


def _placed(pillow: Any, ink: Any, size: int, like: Drawing) -> Any:
    """Center the ink in a picture, with the size and the line width of the drawings that the model was trained on."""
    numpy, ndimage = _libraries()
    side = max(ink.shape)
    ink = ndimage.zoom(ink, WORKING * like.fill / side, order=1)  # for a picture of WORKING pixels
    broad = 4 * ndimage.distance_transform_edt(numpy.pad(ink > 0.5, 1))[1:-1, 1:-1][ink > 0.5].mean()
    grow = int((like.pen * WORKING - broad) / 2)
    if grow > 0:
        y, x = numpy.ogrid[-grow : grow + 1, -grow : grow + 1]
        ink = ndimage.grey_dilation(numpy.pad(ink, grow), footprint=x**2 + y**2 <= grow**2)
    picture = pillow.fromarray((255 * ink).clip(0, 255).astype(numpy.uint8))
    whole = pillow.new("L", (WORKING, WORKING))
    picture.thumbnail((WORKING, WORKING))
    whole.paste(picture, ((WORKING - picture.width) // 2, (WORKING - picture.height) // 2))
    return whole.resize((size, size), pillow.Resampling.BOX)


def _libraries() -> tuple[Any, Any]:
    try:
        import numpy
        from scipy import ndimage
    except ImportError as error:
        raise ImportError("pictures of drawings need scipy: pip install 'innerloop[use]'") from error
    return numpy, ndimage
