"""Check a wheel and run the models in it: `python -I tests/shipped.py WHEEL CHECKOUT`, as `nox -s wheel` runs it."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path, PurePosixPath

import torch

import innerloop as il

SUFFIXES = {".py", ".typed", ".toml", ".json", ".safetensors", ".md", ".html", ".css", ".js", ".svg"}
"""Kinds of files that belong to the package. Data sets, pictures and archives do not."""
LARGEST = 2**20
"""No file of the package has more bytes."""


def contents(wheel: Path, checkout: Path) -> None:
    """Check that the wheel holds the package alone, and no path of the machine that built it."""
    private = [str(folder).encode() for folder in (checkout, Path.home(), Path(sys.prefix)) if folder != Path("/")]
    with zipfile.ZipFile(wheel) as archive:
        for info in archive.infolist():
            path = PurePosixPath(info.filename)
            if path.parts[0] == "innerloop":
                assert path.suffix in SUFFIXES, f"{path} is not a file of the package"
                assert info.file_size <= LARGEST, f"{path} has {info.file_size:,} bytes"
            else:
                assert path.parts[0].endswith(".dist-info"), f"{path} is outside of the package"
            assert "tests" not in path.parts, f"{path} is a test"
            for folder in private:
                assert folder not in archive.read(info), f"{path} names the folder {folder.decode()}"
        names = set(archive.namelist())
    needed = {
        "innerloop/py.typed",
        *(f"innerloop/pretrained/{name}/model.safetensors" for name in ("sinusoid", "strokes")),
    }
    assert needed <= names, f"missing: {', '.join(sorted(needed - names))}"
    print(f"{wheel.name}: {len(names)} files")


def models(checkout: Path) -> None:
    """Adapt the models that ship with the package to new tasks."""
    place = Path(il.__file__).resolve()
    assert checkout / "src" not in place.parents, f"imported {place}, not the wheel"
    characters = il.Strokes(ways=5, shots=1, queries=5, split="test").sample(1, torch.Generator().manual_seed(0))
    strokes = il.Pretrained.load("strokes").learner
    support, query = (il.Batch(part.x[0], part.y[0]) for part in characters)
    accuracy = float((strokes.adapt(support)(query.x).argmax(-1) == query.y).float().mean())
    print(f"strokes: accuracy {accuracy:.2f} on a new task of 5 characters, from one drawing each")
    assert accuracy > 0.5

    functions = il.Sinusoid(shots=10).sample(1, torch.Generator().manual_seed(0))
    sinusoid = il.Pretrained.load("sinusoid").learner
    support, query = (il.Batch(part.x[0], part.y[0]) for part in functions)
    before, after = (
        float(torch.nn.functional.mse_loss(sinusoid.adapt(support, steps=steps)(query.x), query.y)) for steps in (0, 10)
    )
    print(f"sinusoid: mean squared error {before:.2f} before adaptation, {after:.2f} after 10 steps")
    assert after < before / 2


if __name__ == "__main__":
    contents(Path(sys.argv[1]), Path(sys.argv[2]))
    models(Path(sys.argv[2]))
