"""The two standard data sets of few-shot learning: Omniglot and mini-ImageNet."""

from __future__ import annotations

import csv
import io
import random
import re
from collections import Counter
from pathlib import Path
from typing import Literal, get_args

import torch

from .decode import Decoded, check_size, decoded_once
from .download import download as fetch
from .files import Files, candidates, some
from .images import ClassImages, Splits, check_disjoint

OmniglotSplit = Literal["random", "vinyals", "background", "alphabets"]

OMNIGLOT = {
    # SHA-256 as in tensorflow_datasets/url_checksums/omniglot.txt
    "images_background": (
        "https://github.com/brendenlake/omniglot/raw/master/python/images_background.zip",
        "ad41ab679c8b5d90b271ef46be6987cc81211774a695c29dcc5367b2b26ee640",
    ),
    "images_evaluation": (
        "https://github.com/brendenlake/omniglot/raw/master/python/images_evaluation.zip",
        "1f61a8f3366785b057fc117d9228e78a16e3d976c8953b2a10fcc74cf0609cee",
    ),
}
OMNIGLOT_SIZES = {"images_background": (30, 964), "images_evaluation": (20, 659)}  # alphabets, characters
DRAWINGS = 20
VINYALS_SIZES = {"train": 1028, "val": 172, "test": 423}
BACKGROUND_VAL = 100
MINI_IMAGENET_IMAGES = 600


def omniglot(
    root: str | Path | None = None,
    split: OmniglotSplit = "random",
    rotations: bool = True,
    size: int = 28,
    seed: int = 1,
    download: bool = False,
    device: torch.device | str = "cpu",
) -> Splits:
    """Read Omniglot (Lake et al. 2015): 1,623 characters of 50 alphabets, each drawn by 20 people; ink is 1.

    Published numbers use different splits of the characters, so report the split with a result:

    - "random": 1,100 / 100 / 423 random characters, the sizes of Finn et al. 2017.
    - "vinyals": the lists of Vinyals et al. 2016, 1,028 / 172 / 423, from ``splits_vinyals/{train,val,test}.txt`` in
      the folder of the archives.
    - "background": Lake's split: 864 characters of the background alphabets for training, the other 100 of them, chosen
      at random, for validation, and the 659 characters of the evaluation alphabets for the test.
    - "alphabets": random whole alphabets, about 70 / 15 / 15 percent of the characters.

    Args:
        root: the folder with ``images_background`` and ``images_evaluation``, as the official zips or unpacked, or
            the folder above it; by default ``$INNERLOOP_DATA`` and the cache folder are searched.
        split: the split of the characters, see above.
        rotations: whether each character rotated by 90, 180 and 270 degrees is a further class, in all three splits
            (Santoro et al. 2016); ``dataclasses.replace(test, rotations=False)`` removes the rotations of one.
        size: height and width; the drawings of 105 x 105 are shrunk with a Lanczos filter.
        seed: the seed of the random splits.
        download: whether to download the official zips (15 MB, checked by hash) if they are not found.
        device: the device of the pixels.

    Returns:
        Data sets of 1 x size x size images; ``groups`` are the alphabets.

    Raises:
        FileNotFoundError: there are no data in the searched places, or no lists for "vinyals".
        ValueError: the split is unknown, or files are not Omniglot, damaged or incomplete.
        ImportError: Pillow is not installed.
    """
    if split not in get_args(OmniglotSplit):
        raise ValueError(f"split={split!r} must be one of {', '.join(get_args(OmniglotSplit))}")
    check_size(size)
    folder = _omniglot_folder(root, download)
    whole = _whole_omniglot(folder, size, rotations)
    if split == "vinyals":
        chosen = _vinyals(folder / "splits_vinyals", whole.names)
    else:
        chosen = _omniglot_split(split, whole.names, random.Random(seed))
    return Splits(*(whole.subset(classes).to(device) for classes in chosen))


def mini_imagenet(root: str | Path | None = None, size: int = 84, device: torch.device | str = "cpu") -> Splits:
    """Read mini-ImageNet (Vinyals et al. 2016; classes of Ravi and Larochelle 2017): 64 / 16 / 20 classes.

    A full copy has 600 images of each class. With fewer, ``name`` says so ("subset, 150 images a class"), and the
    accuracy is not comparable with published numbers.

    Args:
        root: a zip or a folder with ``images/*.jpg`` and ``train.csv``, ``val.csv``, ``test.csv``, which have the
            columns filename and label; or a folder above such a folder or zip named ``*mini*imagenet*``. By default
            ``$INNERLOOP_DATA`` and the cache folder are searched.
        size: height and width to which images are resized.
        device: the device of the pixels; on the CPU they are memory-mapped.

    Returns:
        The data sets train, val and test.

    Raises:
        FileNotFoundError: there are no data in the searched places.
        ValueError: the archive is damaged, listed files are missing, or a class is in two splits.
        ImportError: Pillow is not installed.
    """
    check_size(size)
    files, prefix = _mini_imagenet_files(root)
    splits = [_read_list(files, f"{prefix}{split}.csv", f"{prefix}images/") for split in Splits._fields]
    check_disjoint(str(files.path), [list(classes) for classes in splits])
    classes = {label: names for classes in splits for label, names in classes.items()}
    images, counts, names = decoded_once(files, classes, "mini-imagenet", size, channels=3)
    whole = ClassImages(images, counts.cumsum(0) - counts, counts, names)
    fewest, most = whole.images_per_class
    amount = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    subset = "" if fewest == most == MINI_IMAGENET_IMAGES else f" (subset, {amount} images a class)"
    ends = torch.tensor([len(classes) for classes in splits]).cumsum(0).tolist()
    ranges = (range(start, end) for start, end in zip([0, *ends], ends, strict=False))
    return Splits(*(whole.subset(r, name=f"mini-ImageNet{subset}").to(device) for r in ranges))


def _omniglot_folder(root: str | Path | None, download: bool) -> Path:
    places = candidates(root, "omniglot")
    for place in places:
        if all((place / part).is_dir() or (place / f"{part}.zip").is_file() for part in OMNIGLOT):
            return place
    if not download:
        raise FileNotFoundError(
            f"no Omniglot in {some(map(str, places))}, which needs both images_background and images_evaluation, as "
            "zips or folders: pass root, set INNERLOOP_DATA, or pass download=True"
        )
    for part, (url, sha256) in OMNIGLOT.items():
        if not (path := places[-1] / f"{part}.zip").is_file():
            fetch(url, path, sha256)
    return places[-1]


def _whole_omniglot(folder: Path, size: int, rotations: bool) -> ClassImages:
    """Return all characters, those of the background alphabets first; the groups are the alphabets."""
    parts = [_omniglot_part(folder, part, size) for part in OMNIGLOT]
    images = torch.cat([part.images for part in parts])
    counts = torch.cat([part.counts for part in parts])
    names = tuple(name for part in parts for name in part.names)
    index: dict[str, int] = {}
    groups = torch.tensor([index.setdefault(name.split("/")[0], len(index)) for name in names])
    return ClassImages(images, counts.cumsum(0) - counts, counts, names, groups, rotations, name="Omniglot")


def _omniglot_part(folder: Path, part: str, size: int) -> Decoded:
    """Decode one of the two archives, with inverted ink and its characters in alphabetical order."""
    path = folder / part if (folder / part).is_dir() else folder / f"{part}.zip"
    files = Files(path)
    classes: dict[str, list[str]] = {}
    for name in sorted(files.identities):
        if match := re.fullmatch(rf"(?:{part}/)?([^/]+/character\d+)/\d+_\d+\.png", name):
            classes.setdefault(match[1], []).append(name)
    classes = files.without_duplicates(classes)
    alphabets, characters = OMNIGLOT_SIZES[part]
    sizes = (len({name.split("/")[0] for name in classes}), len(classes))
    wrong = [f"{name} has {len(drawings)}" for name, drawings in classes.items() if len(drawings) != DRAWINGS]
    if sizes != (alphabets, characters) or wrong:
        raise ValueError(
            f"{path} is not Omniglot's {part}: expected {alphabets} alphabets and {characters} characters of "
            f"{DRAWINGS} drawings (Alphabet/characterNN/NNNN_NN.png), got {sizes[0]} alphabets and {sizes[1]} "
            f"characters{': ' + some(wrong, 3) if wrong else ''}; get the file again"
        )
    return decoded_once(files, classes, f"omniglot-{part}", size, channels=1, inverted=True)


def _omniglot_split(split: str, names: tuple[str, ...], rng: random.Random) -> list[list[int]]:
    """Return character numbers of train, val and test; the characters of the background alphabets come first."""
    if split == "alphabets":
        return _whole_alphabets(names, rng)
    background = OMNIGLOT_SIZES["images_background"][1]
    order = list(range(len(names) if split == "random" else background))
    rng.shuffle(order)
    if split == "random":
        return [order[:1100], order[1100:1200], order[1200:]]
    return [order[:-BACKGROUND_VAL], order[-BACKGROUND_VAL:], list(range(background, len(names)))]


def _whole_alphabets(names: tuple[str, ...], rng: random.Random) -> list[list[int]]:
    """Assign each alphabet, in random order, to the split that lacks the most characters."""
    members: dict[str, list[int]] = {}
    for character, name in enumerate(names):
        members.setdefault(name.split("/")[0], []).append(character)
    order = list(members)
    rng.shuffle(order)
    chosen: list[list[int]] = [[], [], []]
    for alphabet in order:
        lack = [share * len(names) - len(part) for share, part in zip((0.7, 0.15, 0.15), chosen, strict=True)]
        chosen[lack.index(max(lack))].extend(members[alphabet])
    return chosen


def _vinyals(folder: Path, names: tuple[str, ...]) -> list[list[int]]:
    """Read the published lists, with one ``Alphabet/characterNN/rotXXX`` per line."""
    index = {name: i for i, name in enumerate(names)}
    chosen = []
    for split, expected in VINYALS_SIZES.items():
        path = folder / f"{split}.txt"
        if not path.is_file():
            raise FileNotFoundError(
                f"split='vinyals' needs the published list {path}: get train.txt, val.txt and test.txt from "
                "github.com/jakesnell/prototypical-networks (data/omniglot/splits/vinyals), or use split='random'"
            )
        lines = path.read_text(encoding="utf-8").split()
        characters = list(dict.fromkeys(line.rsplit("/", 1)[0] for line in lines))
        if unknown := [name for name in characters if name not in index]:
            raise ValueError(f"{path} names characters that Omniglot does not have: {some(unknown)}")
        if len(characters) != expected:
            raise ValueError(f"{path} lists {len(characters)} characters, but the published list has {expected}")
        chosen.append([index[name] for name in characters])
    check_disjoint(str(folder), [[names[i] for i in classes] for classes in chosen])
    return chosen


def _mini_imagenet_files(root: str | Path | None) -> tuple[Files, str]:
    """Return the archive or folder, and the prefix of its names if it has one folder around everything."""
    places = candidates(root, "mini-imagenet")
    for place in places:
        for path in [place, *sorted(place.glob("*mini*imagenet*"))]:
            if (path / "train.csv").is_file():
                return Files(path), ""
            if path.is_file() and path.suffix.lower() == ".zip":
                files = Files(path)
                for name in files.identities:
                    if name.rsplit("/", 1)[-1] == "train.csv":
                        return files, name[: -len("train.csv")]
                raise ValueError(f"{path} has no train.csv, so it is not mini-ImageNet in the expected form")
    raise FileNotFoundError(
        f"no mini-ImageNet in {some(map(str, places))}, which is a folder, or a zip named *mini*imagenet*.zip, with "
        "images/ and train.csv, val.csv, test.csv (filename,label): pass root or set INNERLOOP_DATA"
    )


def _read_list(files: Files, name: str, folder: str) -> dict[str, list[str]]:
    """Return the image files of each label from one ``filename,label`` list."""
    if name not in files.identities:
        raise FileNotFoundError(f"{files.path} has no {name}")
    rows = csv.DictReader(io.StringIO(files.read(name).decode("utf-8-sig")))
    if not {"filename", "label"} <= set(rows.fieldnames or ()):
        raise ValueError(f"{files.path}: {name} has the columns {rows.fieldnames}, expected filename and label")
    classes: dict[str, list[str]] = {}
    for row in rows:
        classes.setdefault(row["label"], []).append(folder + row["filename"])
    listed = [image for images in classes.values() for image in images]
    if not listed:
        raise ValueError(f"{files.path}: {name} lists no images")
    if missing := [image for image in listed if image not in files.identities]:
        raise ValueError(f"{files.path}: {name} lists {len(missing)} files that are missing: {some(missing)}")
    if len(set(listed)) < len(listed):
        twice = (image for image, times in Counter(listed).items() if times > 1)
        raise ValueError(f"{files.path}: {name} lists files twice: {some(twice)}")
    return classes
