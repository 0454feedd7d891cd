"""Any folder of images as a few-shot data set, with one folder for each class."""

from __future__ import annotations

import math
import random
import warnings
from pathlib import Path, PurePosixPath

import torch

from ..common.disk import expanded
from ..common.errors import user_level
from .decode import check_size, decoded_once
from .files import Files, some
from .images import ClassImages, Splits, check_disjoint
from .walk import subfolders

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def image_folder(
    root: str | Path,
    size: int = 84,
    channels: int = 3,
    split: tuple[float, float, float] = (0.64, 0.16, 0.2),
    seed: int = 0,
    skip_unreadable: bool = False,
    device: torch.device | str = "cpu",
) -> Splits:
    """Read a folder of class folders; classes are split at random, or by its folders train, val and test.

    Decoded images are cached by the content of the files, so every change of a file is noticed.

    Args:
        root: ``root/<class>/**/<image>``, or ``root/{train,val,test}/<class>/**/<image>``, without hidden files. Links
            are followed, except links in a class folder to a class folder, or to a folder that contains one. Each real
            file counts once, and a file or folder in two classes, by symbolic or hard links, is an error.
        size: height and width; images of other aspect ratios are squeezed into the square.
        channels: 3 for color, 1 for gray.
        split: the shares of classes in train, val and test, if ``root`` does not have folders with these names.
        seed: the seed of the random split.
        skip_unreadable: whether to leave out files that are not images and broken links, with a warning; otherwise
            they are an error.
        device: the device of the pixels; on the CPU they are memory-mapped.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: there are too few classes, a class has no images or is in two splits, a file or folder is in two
            classes, files are unreadable (the message names up to ten) or change while they are read, or an option is
            out of range.
        ImportError: Pillow is not installed.
    """
    check_size(size)
    if channels not in (1, 3):
        raise ValueError(f"channels={channels} must be 3 (color) or 1 (gray)")
    if len(split) != 3 or min(split) <= 0 or not math.isclose(sum(split), 1, abs_tol=1e-6):
        raise ValueError(f"split={tuple(split)} must be three positive shares that sum to 1: train, val, test")
    root = expanded(root)
    if not root.is_dir():
        raise FileNotFoundError(f"no folder at {root}: give a folder with one folder for each class")
    classes, chosen = _classes(root, split, seed, skip_unreadable)
    files = Files(root, classes)
    images_of = _find_images(files, classes, skip_unreadable)
    images, counts, _ = decoded_once(files, images_of, "folder", size, channels, skip_unreadable)
    names = tuple(name.rsplit("/", 1)[-1] for name in classes)
    whole = ClassImages(images, counts.cumsum(0) - counts, counts, names, name=root.resolve().name)
    return Splits(*(whole.subset(part).to(device) for part in chosen))


def _classes(root: Path, split: tuple[float, ...], seed: int, skip: bool) -> tuple[list[str], list[list[int]]]:
    """Return the class folders relative to root, and the numbers of those in each split."""
    folders = _subfolders(root, skip)
    given = [name for name in Splits._fields if name in folders]
    if set(folders) == set(Splits._fields):
        members = [_subfolders(root / name, skip) for name in Splits._fields]
        check_disjoint(str(root), members)
        if empty := [name for name, part in zip(Splits._fields, members, strict=True) if not part]:
            raise ValueError(f"{root}: no class folders in {' or '.join(empty)}")
        classes = [f"{name}/{label}" for name, part in zip(Splits._fields, members, strict=True) for label in part]
        return classes, _ranges([len(part) for part in members])
    if given and len(given) == len(folders):
        raise ValueError(f"{root} has {' and '.join(given)}, but not all of the folders train, val and test")
    if len(folders) < 3:
        raise ValueError(f"{root} has {len(folders)} class folders ({some(folders)}), but three splits need at least 3")
    order = list(range(len(folders)))
    random.Random(seed).shuffle(order)
    val, test = (max(1, round(share * len(order))) for share in split[1:])
    if val + test >= len(order):
        raise ValueError(f"{root}: split={split} of {len(order)} classes leaves none for train: change split")
    sizes = [len(order) - val - test, val, test]
    return folders, [[order[i] for i in part] for part in _ranges(sizes)]


def _ranges(sizes: list[int]) -> list[list[int]]:
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [list(range(end - size, end)) for end, size in zip(ends, sizes, strict=True)]


def _subfolders(folder: Path, skip: bool) -> list[str]:
    names, broken = subfolders(folder)
    _check_links(folder, broken, skip)
    return names


def _check_links(folder: Path, broken: list[str], skip: bool) -> None:
    """Refuse, or warn of, broken links and folders that cannot be read.

    Names with a suffix are ignored, since they are not folders: a broken image is reported when it is read, and other
    files do not matter.
    """
    broken = [name for name in broken if not PurePosixPath(name).suffix and "/." not in f"/{name}"]
    if broken and not skip:
        raise ValueError(
            f"{folder}: broken links, or folders that cannot be read: {some(broken)}; repair or remove them, or leave "
            "them out with skip_unreadable=True"
        )
    if broken:
        what = f"skipped broken links, or folders that cannot be read: {some(broken)}"
        warnings.warn(f"{folder}: {what}", stacklevel=user_level())


def _is_image(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")


def _find_images(files: Files, classes: list[str], skip: bool) -> dict[str, list[str]]:
    """Return the image files of each class, in order."""
    _check_links(files.path, [name for name in files.broken if "/" in name or name in classes], skip)
    images: dict[str, list[str]] = {name: [] for name in classes}
    depth = classes[0].count("/") + 1
    for name in sorted(files.identities):
        label = "/".join(PurePosixPath(name).parts[:depth])
        if label in images and _is_image(name):
            images[label].append(name)
    if empty := [name for name, own in images.items() if not own]:
        raise ValueError(f"{files.path}: folders without images: {some(empty)}; expected {', '.join(EXTENSIONS)}")
    return images
