"""Random numbers, and small data sets in place of the real ones."""

from __future__ import annotations

import pytest
import torch

from innerloop.data import vision


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the reader take `stand_ins.small_omniglot` for the whole."""
    monkeypatch.setattr(vision, "OMNIGLOT_SIZES", {"images_background": (3, 12), "images_evaluation": (2, 6)})
    monkeypatch.setattr(vision, "BACKGROUND_VAL", 2)
