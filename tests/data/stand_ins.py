"""Small data sets of the same shape as the real ones."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from innerloop.data import ClassImages, vision


def numbered_images(counts: list[int], size: int = 2, **options: Any) -> ClassImages:
    """Images in which every pixel says which image it is: 50 * class + number within it."""
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    numbers = [50 * label + i for label, count in enumerate(counts) for i in range(count)]
    images = torch.tensor(numbers, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, size, size)
    data = ClassImages.from_arrays(images, labels, "NCHW", name="numbers")
    return ClassImages(data.images, data.offsets, data.counts, data.names, name="numbers", **options)


def png(value: int = 0, size: tuple[int, int] = (6, 6), mode: str = "L") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, value).save(buffer, "PNG")
    return buffer.getvalue()


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tree(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def small_omniglot() -> dict[str, dict[str, bytes]]:
    """Archive -> its files: 3 + 2 alphabets of 4 and 3 characters; character k is of grey level 10 * k."""
    archives, character = {}, 0
    for part, (alphabets, letters) in {"images_background": (3, 4), "images_evaluation": (2, 3)}.items():
        files = {}
        for alphabet in range(alphabets):
            for letter in range(1, letters + 1):
                for i in range(1, vision.DRAWINGS + 1):
                    name = f"{part}/{part[7:10]}{alphabet}/character{letter:02}/{character:04}_{i:02}.png"
                    files[name] = png(10 * character)
                character += 1
        archives[part] = files
    return archives


def folders(*names: str, images: int = 2) -> dict[str, bytes]:
    """Class folders of ``images`` files each; folder k is of grey level 10 * k."""
    return {f"{name}/{i}.png": png(10 * k) for k, name in enumerate(names) for i in range(images)}
