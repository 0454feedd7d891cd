"""Pictures of one's own, brought to what a model was trained on."""

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
"""The side, in pixels, that drawings are looked at in: larger ones are shrunk first."""
FAINTEST = 0.12
"""The least difference between ink and ground, of 1 between black and white."""
SPECK = 0.03
"""Blots smaller than this share of the largest part of a drawing are taken for dirt."""


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
    """What the pictures of a model are like.

    Attributes:
        size: height and width.
        channels: 1 for grey, 3 for colour.
        drawing: where they are drawings, light ink on a dark ground, what these are like.
    """

    size: int
    channels: int
    drawing: Drawing | None

    @classmethod
    def of(cls, model: Pretrained) -> Form:
        """What a model was trained on, by its recipe.

        Raises:
            ValueError: it was not trained on pictures, or without a recipe.
        """
        tasks = model.recipe.get("tasks", {})
        if (shape := input_shape(model.recipe)) is None:
            what = f"tasks {tasks['name']}" if "name" in tasks else "no recipe"
            raise ValueError(f"{model.name} does not read pictures: it was trained on {what}")
        return cls(shape[-1], shape[0], DRAWINGS.get(tasks["name"]))

    def __str__(self) -> str:
        kind = "light ink on a dark ground, " if self.drawing else ""
        return f"{kind}{self.size} x {self.size}, {'grey' if self.channels == 1 else 'colour'}"


@dataclass
class Pictures:
    """Pictures as a model reads them, and what was done to them.

    Attributes:
        names: of the files, relative to their folder.
        x: float32 in [0, 1], ``[N, C, size, size]``.
        done: what was done -> to how many.
        unreadable: name -> why, of what is left out.
    """

    names: list[str]
    x: Tensor
    done: Counter[str] = field(default_factory=Counter)
    unreadable: dict[str, str] = field(default_factory=dict)

    @property
    def labels(self) -> list[str]:
        """The first folder in each name, which is that of a class; empty where there is none."""
        return [name.partition("/")[0] if "/" in name else "" for name in self.names]

    def told(self) -> list[str]:
        """In words."""
        lines = [f"{text}: {number} of {len(self.names)}" for text, number in self.done.items()]
        return lines + ([f"left out, not readable: {self.left_out()}"] if self.unreadable else [])

    def left_out(self) -> str:
        """What cannot be read, and why."""
        return some(f"{name} ({why})" for name, why in self.unreadable.items())


def read(folder: Path, form: Form) -> Pictures:
    """Read the pictures of a folder, at any depth, of a zip file, or a single one.

    Files that are no pictures are skipped and named in the result; hidden files are ignored. Links are followed, and
    each real file counts once, as `innerloop.data.image_folder` says.

    Raises:
        FileNotFoundError: there is nothing there.
        ImportError: Pillow is not installed.
        ValueError: nothing of it can be read, or a file or folder is in two classes.
    """
    pillow, single = require_pillow(), folder.is_file() and folder.suffix.lower() != ".zip"
    if not folder.exists():
        raise FileNotFoundError(f"no folder or picture at {folder}")
    files, names = _files(folder, single)
    found, rows = Pictures([], torch.empty(0)), []
    for name in names:
        try:
            picture, done = prepare(pillow, files.read(name), form)
        except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError) as error:
            found.unreadable[name] = _why(name, error)
            continue
        found.names.append(name)
        found.done.update(done)
        rows.append(picture)
    if not rows:
        raise ValueError(f"{folder}: no picture can be read: {found.left_out() or 'there is no file'}")
    found.x = torch.stack(rows)
    return found


def _files(folder: Path, single: bool) -> tuple[Files, list[str]]:
    """The files of a folder or a zip, or one file, and the names of those that are not hidden."""
    if single:
        return Files(folder.parent, []), [folder.name]
    files = Files(folder, subfolders(folder)[0] if folder.is_dir() else None)
    classes: dict[str, list[str]] = {}
    for name in sorted(files.identities):
        if "/." not in f"/{name}":
            classes.setdefault(name.rpartition("/")[0].partition("/")[0], []).append(name)
    return files, sorted(name for names in files.without_duplicates(classes).values() for name in names)


def _why(name: str, error: Exception) -> str:
    """Why a file is no picture, for people."""
    if Path(name).suffix.lower() in (".heic", ".heif"):
        return "HEIC is not read: export it as JPEG"
    return "no picture that Pillow reads" if "cannot identify image file" in str(error) else str(error)


def prepare(pillow: Any, content: bytes, form: Form) -> tuple[Tensor, list[str]]:
    """One picture, ``[C, size, size]`` in [0, 1], and what was done to it, in order."""
    from PIL import ImageOps

    done: list[str] = []
    with pillow.open(io.BytesIO(content)) as file:
        enough = 4 * (WORKING if form.drawing else form.size)
        file.draft(None, (enough, enough))  # large JPEGs are decoded at a fraction of their size
        if getattr(file, "n_frames", 1) > 1:
            done.append("the first of several frames taken")
        image = ImageOps.exif_transpose(file)
        if image.size != file.size or file.getexif().get(0x0112, 1) != 1:
            done.append("turned upright, as the camera noted")
        image = _eight_bits(image, done)
    image = _opaque(pillow, image, done)
    mode = "L" if form.channels == 1 or form.drawing else "RGB"
    if image.mode != mode:
        done.append(f"{'colour' if mode == 'L' else image.mode} to {'grey' if mode == 'L' else 'RGB'}")
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
    """Pictures of more than 8 bits a channel, stretched from their darkest to their lightest value."""
    if image.mode[0] not in "IF":
        return image
    low, high = image.getextrema()
    done.append(f"mode {image.mode}, stretched to 8 bits")
    return image.convert("F").point(lambda value: (value - low) * 255 / max(high - low, 1e-9)).convert("L")


def _opaque(pillow: Any, image: Any, done: list[str]) -> Any:
    """What is transparent, on white."""
    if "A" not in image.getbands() and "transparency" not in image.info:
        return image
    image = image.convert("RGBA")
    if image.getchannel("A").getextrema()[0] < 255:
        done.append("transparency put on white")
    ground = pillow.new("RGBA", image.size, "white")
    ground.alpha_composite(image)
    return ground.convert("RGB")


def _tensor(image: Any) -> Tensor:
    """``[C, H, W]`` in [0, 1]."""
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(image.height, image.width, -1).movedim(-1, 0).float() / 255


# -- drawings ---------------------------------------------------------------------------------------------------------


def _ink(pillow: Any, image: Any, done: list[str]) -> Any:
    """The ink of a drawing or of a photograph of one, 0 to 1, ``[height, width]``, cut to it."""
    ink, corner, scale = _found(pillow, image, done)
    if scale > 1 and max(ink.shape) < WORKING / 2:  # a small one on a large page is looked at more closely
        height, width = ink.shape
        margin = max(height, width) / 2
        box = (corner[1] - margin, corner[0] - margin, corner[1] + width + margin, corner[0] + height + margin)
        inside = (max(0, box[0]), max(0, box[1]), box[2], box[3])
        limits = (image.width, image.height) * 2
        ink, _, _ = _found(
            pillow, image.crop([min(round(scale * b), m) for b, m in zip(inside, limits, strict=True)]), []
        )
    return ink


def _found(pillow: Any, image: Any, done: list[str]) -> tuple[Any, tuple[int, int], float]:
    """The ink, cut to it; the row and column it begins at, and how many pixels of the image are one of it."""
    numpy, ndimage = _libraries()
    scale = max(1.0, max(image.size) / WORKING)
    if max(image.size) > WORKING:
        image = image.copy()
        image.thumbnail((WORKING, WORKING), pillow.Resampling.LANCZOS)
    grey = numpy.asarray(image, dtype=numpy.float32) / 255
    if _dark(grey):
        done.append("dark ink on a light ground inverted")
        grey = 1 - grey
    # The ground is what is left where no line is wider than an eighth of the picture: shadows are, pens are not.
    ground = ndimage.gaussian_filter(
        ndimage.grey_opening(grey, size=max(3, max(grey.shape) // 8)), max(1, min(grey.shape) // 16)
    )
    ink = numpy.clip(grey - ground, 0, None)
    level = numpy.quantile(ndimage.uniform_filter(ink, 3), 0.9999) / 2  # of a few pixels: a drawing may be small
    if level < FAINTEST / 2:
        raise ValueError("no drawing is found on it: too faint, too small, or none")
    done.append("cut to what is drawn, its lighting evened out")
    ink = numpy.clip(ink / level - 0.5, 0, 1)
    parts, number = ndimage.label(ink > 0.5, numpy.ones((3, 3)))
    sizes = ndimage.sum_labels(parts > 0, parts, numpy.arange(number + 1))
    ink = numpy.where(ndimage.grey_dilation(sizes[parts] >= SPECK * sizes.max(), size=3), ink, 0)
    rows, columns = (numpy.flatnonzero(ink.max(axis) > 0.5) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], (int(rows[0]), int(columns[0])), scale


def _dark(grey: Any) -> bool:
    """Whether lines are darker than the ground around them, whatever the light.

    Pixels are compared with the median of a third of the picture around them; the lines are dark if the dark pixels
    differ more than the light ones.
    """
    numpy, ndimage = _libraries()
    scale = 64 / max(grey.shape)
    small = ndimage.zoom(grey, scale, order=1, mode="nearest") if scale < 1 else grey
    around = ndimage.median_filter(small, size=max(3, max(small.shape) // 3), mode="nearest")
    differs = grey - ndimage.zoom(
        around, [a / b for a, b in zip(grey.shape, around.shape, strict=True)], order=1, mode="nearest"
    )
    differs = ndimage.uniform_filter(differs, 3)
    return bool(-numpy.quantile(differs, 0.0005) > numpy.quantile(differs, 0.9995))


def _placed(pillow: Any, ink: Any, size: int, like: Drawing) -> Any:
    """In the middle of a picture, as large and with as broad lines as its model knows drawings."""
    numpy, ndimage = _libraries()
    side = max(ink.shape)
    ink = ndimage.zoom(ink, WORKING * like.fill / side, order=1)  # a picture of WORKING pixels is to hold it
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
