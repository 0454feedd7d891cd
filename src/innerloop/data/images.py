"""Images sorted by class, from which few-shot episodes are drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

Layout = Literal["NHW", "NHWC", "NCHW"]


@dataclass(frozen=True, eq=False, repr=False)
class ClassImages:
    """A data set in which the images of a class are contiguous.

    Several data sets may share one ``images`` tensor, as the splits of one file do, with different offsets.

    Attributes:
        images: the images, uint8 ``[N, C, H, W]``; may be memory-mapped, and on any device.
        offsets: int64 ``[classes]`` on the CPU; class i is ``images[offsets[i] : offsets[i] + counts[i]]``.
        counts: the number of images of each class, int64 ``[classes]`` on the CPU.
        names: the name of each class, without rotations.
        groups: the group of each class, e.g. the alphabet of a character, int64 ``[classes]`` on the CPU; or None.
        rotations: whether every class rotated by 90, 180 and 270 degrees is a further class (Santoro et al. 2016).
            Class ``i + k * len(names)`` is then class i rotated counter-clockwise k times.
        name: the data set's name, for reports and messages.

    Raises:
        ValueError: tensors do not fit together, a class has no images, or there are rotations of images that are not
            square.
    """

    images: Tensor
    offsets: Tensor
    counts: Tensor
    names: tuple[str, ...]
    groups: Tensor | None = None
    rotations: bool = False
    name: str = "images"

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ValueError(
                f"images must be uint8 [N, C, H, W], got {self.images.dtype} {list(self.images.shape)}; "
                "`ClassImages.from_arrays` converts other forms"
            )
        for field in ("offsets", "counts", "groups"):
            value = getattr(self, field)
            if value is not None and value.shape != (len(self.names),):
                raise ValueError(f"{field} must be [{len(self.names)}], one for each name, got {list(value.shape)}")
        if empty := [name for name, count in zip(self.names, self.counts.tolist(), strict=True) if count < 1]:
            raise ValueError(f"{self.name}: classes without images: {', '.join(empty[:10])}")
        if self.names and int((self.offsets + self.counts).max()) > len(self.images):
            raise ValueError(f"{self.name}: offsets and counts reach past the {len(self.images)} images")
        if self.rotations and self.images.shape[-1] != self.images.shape[-2]:
            raise ValueError(f"rotations need square images, got {list(self.images.shape[-2:])}")

    @classmethod
    def from_arrays(
        cls,
        images: Any,
        labels: Any,
        layout: Layout,
        names: Sequence[str] | None = None,
        name: str = "images",
    ) -> ClassImages:
        """Make a data set from arrays (numpy or torch), copied and sorted by label; classes may differ in size.

        Args:
            images: the images, uint8, or floating point in [0, 1] (rounded to 256 levels).
            labels: the labels, integers ``[N]``.
            layout: the axes of ``images``: "NHW", "NHWC" or "NCHW".
            names: ``names[i]`` is the name of label i; by default every label that occurs is a class named after its
                number.
            name: the name of the data set, for messages.

        Raises:
            ValueError: shapes, types or values are others than these, or a name has no images.
        """
        pixels, targets = _pixels(images, layout), torch.as_tensor(labels)
        if targets.shape != pixels.shape[:1] or targets.is_floating_point() or targets.dtype == torch.bool:
            raise ValueError(
                f"labels must be {len(pixels)} integers, one for each image, got {targets.dtype} {list(targets.shape)}"
            )
        order = targets.argsort(stable=True)
        if names is None:
            sizes = Counter(targets[order].tolist())
            names, counts = [str(label) for label in sizes], torch.tensor(list(sizes.values()))
        else:
            if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < len(names):
                raise ValueError(f"labels must be in range({len(names)}), one for each name")
            counts = targets.bincount(minlength=len(names))
        return cls(pixels[order], counts.cumsum(0) - counts, counts, tuple(names), name=name)

    @property
    def num_classes(self) -> int:
        """The number of classes, including rotations."""
        return len(self.names) * (4 if self.rotations else 1)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape of an image, ``(C, H, W)``."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def images_per_class(self) -> tuple[int, int]:
        """The smallest and the largest number of images of a class."""
        return int(self.counts.min()), int(self.counts.max())

    def subset(self, classes: Sequence[int], name: str | None = None) -> ClassImages:
        """Return a data set of these classes (without rotations), in this order; it shares the pixels."""
        index = torch.as_tensor(classes, dtype=torch.int64)
        return replace(
            self,
            offsets=self.offsets[index],
            counts=self.counts[index],
            names=tuple(self.names[i] for i in index.tolist()),
            groups=None if self.groups is None else self.groups[index],
            name=self.name if name is None else name,
        )

    def to(self, device: torch.device | str) -> ClassImages:
        """Return the data set with the pixels of its classes on a device; itself if they are there already."""
        if self.images.device == torch.device(device):
            return self
        starts = self.counts.cumsum(0) - self.counts
        shift = torch.repeat_interleave(self.offsets - starts, self.counts)
        rows = (torch.arange(len(shift)) + shift).to(self.images.device)
        return replace(self, images=self.images[rows].to(device), offsets=starts)

    def gather(self, classes: Tensor, members: Tensor) -> Tensor:
        """Return images by class (with rotations) and number within it, float32 in [0, 1], ``[..., C, H, W]``."""
        rows = self.offsets[classes % len(self.names)] + members
        images = self.images[rows.to(self.images.device)]
        if self.rotations:
            images = _turn(images, (classes // len(self.names)).to(images.device))
        return images.float().div_(255)

    def __repr__(self) -> str:
        fewest, most = self.images_per_class if self.names else (0, 0)
        sizes = str(fewest) if fewest == most else f"{fewest} to {most}"
        turned = f" ({len(self.names)} x 4 rotations)" if self.rotations else ""
        shape = "x".join(map(str, self.image_shape))
        return f"ClassImages({self.name!r}: {self.num_classes} classes{turned}, {sizes} images each, {shape})"


class Splits(NamedTuple):
    """Three data sets without common classes."""

    train: ClassImages
    val: ClassImages
    test: ClassImages


def check_disjoint(source: str, splits: Sequence[Sequence[str]]) -> None:
    """Refuse splits that share a class."""
    counts = Counter(name for split in splits for name in set(split))
    if shared := [name for name, times in counts.items() if times > 1]:
        raise ValueError(f"{source}: classes in more than one split: {', '.join(shared[:10])}")


def _turn(images: Tensor, turns: Tensor) -> Tensor:
    """Rotate each image by its own number of counter-clockwise quarter turns, 0 to 3."""
    turns = turns[..., None, None, None]
    images = torch.where(turns % 2 == 1, images.rot90(1, (-2, -1)), images)
    return torch.where(turns >= 2, images.flip(-2, -1), images)


def _pixels(images: Any, layout: Layout) -> Tensor:
    pixels = torch.as_tensor(images)
    shape = list(pixels.shape)
    if layout not in get_args(Layout):
        raise ValueError(f"layout={layout!r} must be one of {', '.join(get_args(Layout))}")
    if pixels.ndim != len(layout):
        raise ValueError(f"images of layout {layout} have {len(layout)} axes, got shape {shape}")
    if layout == "NHW":
        pixels = pixels[:, None]
    elif layout == "NHWC":
        pixels = pixels.movedim(-1, 1)
    if pixels.shape[1] not in (1, 3, 4):
        raise ValueError(f"layout {layout} reads {shape} as {pixels.shape[1]} channels, not 1, 3 or 4")
    if pixels.is_floating_point():
        if not bool(((pixels >= 0) & (pixels <= 1)).all()):
            raise ValueError("images in floating point must be in [0, 1]; for 0 to 255 convert to uint8")
        return (pixels * 255).round().to(torch.uint8)
    if pixels.dtype != torch.uint8:
        raise ValueError(f"images must be uint8 or floating point in [0, 1], got {pixels.dtype}")
    return pixels
