"""Where real data is, and a cache folder of this run's own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from innerloop.data import vision


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder of this test run's own, filled once."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder / "innerloop"


@pytest.fixture(scope="session")
def data_root() -> Path:
    default = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    root = Path(os.environ.get("INNERLOOP_DATA") or default)
    if not root.is_dir():
        pytest.skip(f"no data sets: INNERLOOP_DATA is not set and {default} is not there")
    return root


@pytest.fixture(scope="session")
def omniglot_root(data_root: Path) -> Path:
    if not (data_root / "omniglot" / "images_background.zip").is_file():
        pytest.skip(f"no Omniglot below {data_root}")
    return data_root


@pytest.fixture(scope="session")
def mini_imagenet_root(data_root: Path) -> Path:
    if not (data_root / "mini-imagenet").is_dir():
        pytest.skip(f"no mini-ImageNet below {data_root}")
    return data_root


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the reader take `stand_ins.small_omniglot` for the whole."""
    monkeypatch.setattr(vision, "OMNIGLOT_SIZES", {"images_background": (3, 12), "images_evaluation": (2, 6)})
    monkeypatch.setattr(vision, "BACKGROUND_VAL", 2)
