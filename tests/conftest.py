"""Shared by all tests: small problems, quiet threads."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch

import innerloop as il

# Tests run in several processes on few cores; threads inside them only get in each other's way.
torch.set_num_threads(int(os.environ.get("INNERLOOP_TEST_THREADS", "1")))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def double() -> object:
    """Float64 for the length of a test."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def regression() -> Callable[..., il.Task]:
    """``(tasks, features, outputs) -> Task`` of smooth random regression problems."""

    def make(number: int = 3, features: int = 2, outputs: int = 1, support: int = 6, query: int = 4) -> il.Task:
        x = torch.randn(number, support + query, features)
        y = torch.sin(x @ torch.randn(number, features, outputs))
        return il.Task(il.Batch(x[:, :support], y[:, :support]), il.Batch(x[:, support:], y[:, support:]))

    return make


@pytest.fixture
def episodes() -> Callable[..., il.Task]:
    """``(tasks, ways) -> Task`` of small few-shot image problems."""

    def make(number: int = 3, ways: int = 3, shots: int = 2, queries: int = 2, size: int = 16) -> il.Task:
        prototypes = torch.randn(number, 1, ways, 1, size, size)

        def draw(each: int) -> il.Batch:
            x = (prototypes + 0.5 * torch.randn(number, each, ways, 1, size, size)).flatten(1, 2)
            return il.Batch(x, torch.arange(ways).repeat(each).expand(number, -1))

        return il.Task(draw(shots), draw(queries))

    return make
