"""Shared by all tests: small problems, quiet threads, where real data is, a browser, and a cache folder of one run."""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

import innerloop as il
from innerloop.common import plan_files

if not os.environ.get("DISPLAY"):
    os.environ.setdefault("MUJOCO_GL", "egl")  # which MuJoCo reads once, when it is imported

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

# Signals that are ignored here (by nohup, or in the background of a shell) still are, but what tests start gets them.
for _signal in signal.Signals:
    if _signal.name in ("SIGINT", "SIGHUP", "SIGQUIT") and signal.getsignal(_signal) == signal.SIG_IGN:
        signal.signal(_signal, lambda *_: None)

# Tests run in several processes on few cores; threads inside them only get in each other's way.
torch.set_num_threads(int(os.environ.get("INNERLOOP_TEST_THREADS", "1")))
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start

# An example may take as long as it takes on a machine that does other things, too. The examples are the same ones in
# every run, so that a change alone makes a test fail; --hypothesis-profile=anew looks for others.
settings.register_profile("anew", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("innerloop", settings.get_profile("anew"), derandomize=True)
settings.load_profile("innerloop")


@pytest.fixture(autouse=True)
def _as_new() -> None:
    random.seed(0)
    torch.manual_seed(0)
    torch.set_flush_denormal(False)  # what older versions of TorchInductor compile turns it on for the whole process


@pytest.fixture
def own_plans(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test measures its plans itself. Other tests share what one of them has measured."""
    own = tmp_path_factory.mktemp("plans")
    monkeypatch.setattr(plan_files, "folder", lambda: own)


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


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder of this test run's own, filled once, also where several processes run the tests."""
    with pytest.MonkeyPatch.context() as patch:
        own = tmp_path_factory.getbasetemp()
        folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "cache"
        folder.mkdir(exist_ok=True)
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder / "innerloop"


@pytest.fixture(scope="session")
def data_root() -> Path:
    default = Path(__file__).resolve().parents[1].parent / "shared" / "data"
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


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium, the system's own."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    named = os.environ.get("INNERLOOP_BROWSER")
    found = named or next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if not found:
        pytest.skip("no Chromium on this machine (INNERLOOP_BROWSER names one)")
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu", *quiet])
        yield opened
        opened.close()
