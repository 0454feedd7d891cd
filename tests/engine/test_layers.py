"""The page of layers and losses is what becomes of them, and none is missing."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from tests import layers

ROW = re.compile(r"^\| `nn\.([\w.]+)` \| ([^|]+) \| (.*) \|$", re.MULTILINE)


def rows() -> dict[str, tuple[str, str]]:
    return {name: (what, why) for name, what, why in ROW.findall(layers.PAGE.read_text())}


def test_the_page_lists_every_layer_and_loss() -> None:
    every = {n for n in dir(nn) if isinstance(getattr(nn, n), type) and issubclass(getattr(nn, n), nn.Module)}
    assert every - layers.NO_LAYERS <= set(layers.LAYERS)
    assert list(rows()) == list(layers.LAYERS)


@pytest.mark.parametrize(
    "name", ["Linear", "LSTMCell", "MultiMarginLoss", "EmbeddingBag", "ConvTranspose1d", "Upsample"]
)
def test_the_page_says_what_becomes_of(name: str) -> None:
    what, _ = layers.summary(list(layers.verdicts(name)))
    assert rows()[name][0] == what


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_page_is_as_it_would_be_made() -> None:
    """Reasons are torch's words, which are other ones in other versions."""
    made = {name: what for name, what, _ in layers.rows()}
    there = {name: what for name, (what, _) in rows().items() if name in made}
    if f"in torch {torch.__version__.split('+')[0]} " in layers.PAGE.read_text():
        assert made == there
    else:
        assert set(made.values()) <= {*there.values()}
