"""The tasks and the first weights of a row, made once and handed to every library in a file."""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

import innerloop as il
from innerloop.common.disk import cache_folder
from innerloop.data.files import candidates

from . import networks
from .rows import Row

NOISE = 0.05
PARTS = ("images_background", "images_evaluation")


class Prepared(NamedTuple):
    """Where a worker finds what it needs, and what the images are, in words."""

    file: str
    data: str


def ours(row: Row) -> nn.Module:
    """The network as innerloop's users have it."""
    if row.kind == "sinusoid":
        return il.models.mlp(1, 40, 40, 1)
    if row.kind == "images":
        return il.models.conv4(channels=1, ways=row.ways, width=row.width)
    return networks.ordinary(row)


def prepare(row: Row, folder: Path, root: str | None, quick: bool) -> Prepared:
    """Write the tasks and weights of a row.

    Args:
        row: the problem.
        folder: where the file goes.
        root: of the data sets; ``None`` searches where innerloop does.
        quick: use invented characters, which need no file.

    Raises:
        FileNotFoundError: the row needs Omniglot, which is not there.
    """
    torch.manual_seed(0)
    weights = [p.detach().clone() for p in ours(row).parameters()]
    tasks, data = (None, _iteration_data(root, quick)) if row.kind == "iteration" else _tasks(row, root, quick)
    path = folder / f"{row.name}.pt"
    content = {"weights": weights}
    if tasks is not None:
        content |= {"support": list(tasks.support), "query": list(tasks.query)}
    torch.save(content, path)
    return Prepared(str(path), data)


def _tasks(row: Row, root: str | None, quick: bool) -> tuple[il.Task, str]:
    source, data = _source(row, root, quick)
    tasks = source.sample(row.tasks, torch.Generator().manual_seed(0))
    assert isinstance(tasks, il.Task)
    if row.kind == "pairs":  # the loss of two classes wants numbers
        tasks = il.Task(*(il.Batch(part.x, part.y.float()) for part in tasks))
    if row.kind == "images":
        # In blank paper the values of a pooling window are equal, and which of them counts as the maximum is a matter
        # of rounding: libraries with other kernels then differ by per cents after a few steps, in float32.
        noise = torch.Generator().manual_seed(1)
        tasks = il.Task(*(il.Batch(p.x + NOISE * torch.randn(p.x.shape, generator=noise), p.y) for p in tasks))
        data += f" with noise of {NOISE}"
    return tasks, data


def _source(row: Row, root: str | None, quick: bool) -> tuple[il.TaskSource, str]:
    if row.kind == "sinusoid":
        return il.Sinusoid(row.shots, row.queries), "sinusoids"
    if row.kind == "pairs" and not quick:
        drawings = il.data.omniglot(root, "alphabets", rotations=False, size=networks.DRAWING_SIZE).train
        return il.FewShot(drawings, row.ways, row.shots, row.queries, within_groups=True), "Omniglot"
    size = networks.DRAWING_SIZE if row.kind == "pairs" else networks.IMAGE_SIZE
    strokes = il.Strokes(row.ways, row.shots, row.queries, size)
    if quick:
        return strokes, "invented characters"
    try:
        return il.FewShot(il.data.omniglot(root).train, row.ways, row.shots, row.queries), "Omniglot"
    except FileNotFoundError:
        return strokes, "invented characters (no Omniglot found)"


def _iteration_data(root: str | None, quick: bool) -> str:
    if quick:
        return "noise"
    il.data.omniglot(root)  # so that it is decoded before anything is timed, and missing files are noticed
    return "Omniglot"


def torchvision_folder(root: str | None) -> str:
    """A folder in the cache with Omniglot's files where torchvision looks for them, unpacked once.

    Raises:
        FileNotFoundError: there are no such files.
    """
    places = candidates(root, "omniglot")
    source = next((place for place in places if all(_part(place, part) is not None for part in PARTS)), None)
    if source is None:
        raise FileNotFoundError(f"no {' and '.join(PARTS)} in {', '.join(map(str, places))}")
    target = cache_folder() / "benchmarks"
    for part in PARTS:
        folder, found = target / "omniglot-py" / part, _part(source, part)
        assert found is not None
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists():
            continue
        if found.is_dir():
            folder.symlink_to(found.resolve(), target_is_directory=True)
        else:
            _unpack(found, folder)
    return str(target)


def _part(place: Path, part: str) -> Path | None:
    """One of the two halves of Omniglot, as a folder or as a zip."""
    return next((path for path in (place / part, place / f"{part}.zip") if path.exists()), None)


def _unpack(archive: Path, folder: Path) -> None:
    """All or nothing."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary, zipfile.ZipFile(archive) as file:
        file.extractall(temporary)
        inner = Path(temporary) / folder.name
        if not inner.is_dir():
            raise FileNotFoundError(f"{archive} has no folder {folder.name}, which torchvision needs")
        inner.rename(folder)
