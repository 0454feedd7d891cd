"""What the README, the other pages of the repository and those of the site say is so: their code and commands run."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

import innerloop as il
from innerloop.data import ClassImages, Splits
from innerloop.data import tasks as problems
from innerloop.imitation import table
from innerloop.recipe.config import PRESETS

from .pages import BUILT, LONG, QUICKER, ROOT, NoRuleError, Page, blocks, near, pages, same_words

REPLACED = {
    "README.md": {"range(1_000)": "range(3)", "num_tasks=600": "num_tasks=10"},
    "docs/running.md": {
        "runs/omniglot-5w1s-maml-seed0": "broken", "world=world": "world=world, iterations=2, val_tasks=2",
    },
    "docs/rl.md": {
        "horizon=100": "horizon=4", "iterations=80": "iterations=2", "tasks=40": "tasks=2", "episodes=20": "episodes=3",
        "num_tasks=100": "num_tasks=2", "validate_every=10": "validate_every=2, val_tasks=2",
        "rl.Interaction(family), ...": "rl.Interaction(family), iterations=1, tasks=2",
    },
    "docs/unequal.md": {"iterations=2_000": "iterations=2"},
    "docs/mixtures.md": {"iterations=2_000": "iterations=2", "validate_every=1_000": "validate_every=2, val_tasks=4"},
    "docs/imitation.md": {
        "filters=16": "filters=4", "iterations=2000": "iterations=2", "tasks=16": "tasks=2",
        "num_tasks=200": "num_tasks=2", "validate_every=250": "validate_every=2, val_tasks=2",
    },
}  # fmt: skip
"""What is replaced in the Python code of pages that train for longer than a test can wait."""
SETTINGS = {
    "README.md": """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.LayerNorm(8)), nn.Linear(8, 3)

    def forward(self, x):
        return self.classifier(self.body(x))

images, labels, new_images = torch.randn(6, 1, 4, 4), torch.arange(6) % 3, torch.randn(4, 1, 4, 4)
open("space.toml", "w").write("learner.lr = {low = 0.001, high = 1.0, log = true}")

from tests.use.photographs import write
write("MINE", "NEW")
""",
    "docs/use.md": """
from tests.use.photographs import SEVEN, write
write("mine", "new")
write("alphabet", "new", SEVEN)
""",
    "docs/parts.md": """
from tests.use.photographs import write
write("mine", "new")
""",
    "docs/record.md": """
from innerloop import cli
SHORT = ["train.iterations=3", "train.tasks=2", "train.val_tasks=2", "model.width=4", "evaluate.num_tasks=2"]
cli.run(["train", "omniglot-5w1s-quick", "--quiet", *(word for value in SHORT for word in ("--set", value))])
""",
    "docs/running.md": """
import torch
from pathlib import Path
from torch.nn import functional as F
import innerloop as il

class Broken(il.Sinusoid):
    def sample(self, n, generator):
        support, query = super().sample(n, generator)
        return il.Task(support, il.Batch(query.x, query.y / 0))

learner, train, val = il.maml(il.models.mlp(1, 8, 1), loss=F.mse_loss), il.Sinusoid(), il.Sinusoid()
try:
    il.Trainer(learner, Broken(), run="broken", progress=False).fit()
except il.train.NonFiniteError:
    pass
""",
    "docs/rl.md": """
import gymnasium, numpy, torch

class MyEnvironment(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-9, 9, (2,), numpy.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), numpy.float32)

    def set_task(self, task):
        self.task = task

    def reset(self, seed=None, options=None):
        return numpy.zeros(2, numpy.float32), {}

    def step(self, action):
        return numpy.zeros(2, numpy.float32), float(action[0]), False, False, {}
""",
}
"""What pages speak of without making it."""
TOLERANCE = 0.3
"""Part of a number by which what a page shows may differ from what is printed: other machines round otherwise."""
NEEDED = {"docs/rl.md": ("gymnasium", "mujoco"), "docs/imitation.md": ("mujoco",)}
"""Packages of extras that a page is about."""


def stand_in(channels: int, size: int, name: str) -> Splits:
    """Three splits of 24 classes, in three groups, of 20 images, each of a grey level about its class's."""
    levels = torch.arange(24).repeat_interleave(20)
    images = (10 * levels[:, None, None, None] + torch.randint(10, (480, channels, size, size))).to(torch.uint8)
    made = ClassImages.from_arrays(images, levels, "NCHW", name=name)
    groups = torch.arange(24) // 8
    return Splits(*[ClassImages(made.images, made.offsets, made.counts, made.names, groups, name=name)] * 3)


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What ``--data DIR`` gives: stand-ins for the data sets that have a name, and a folder of 30 classes."""

    def omniglot(root: object, split: str, rotations: bool, size: int, *_: object) -> Splits:
        return stand_in(1, size, "Omniglot")

    def mini_imagenet(root: object, size: int, device: str) -> Splits:
        return stand_in(3, size, "mini-ImageNet")

    monkeypatch.setattr(problems, "omniglot", omniglot)
    monkeypatch.setattr(problems, "mini_imagenet", mini_imagenet)
    monkeypatch.setattr(table, "FEWEST", 4)
    for number in range(30):
        (tmp_path / "pictures" / f"class {number}").mkdir(parents=True)
        for index in range(6):
            image = Image.new("RGB", (20, 20), (8 * number, 40 * index, 0))
            image.save(tmp_path / "pictures" / f"class {number}" / f"{index}.png")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "pictures"


WITH_BLOCKS = [page for page in pages() if blocks(page)]
DRAWN = [f"innerloop {command}" for command in QUICKER]
LONGER = [page for page in WITH_BLOCKS if any(words in page.read_text() for words in (*LONG, *DRAWN, "torchrun"))]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def run(page: Path, pictures: Path, long: bool) -> None:
    """All of a page; what it shows as printed is what was, numbers apart where something was shortened."""
    name = name_of(page)
    for package in NEEDED.get(name, ()) if long or name == "docs/rl.md" else ():
        pytest.importorskip(package)
    found = Page(page, REPLACED.get(name, {}), SETTINGS.get(name, ""), long=long, pictures=pictures)
    found.run()
    for block, by, printed in found.printed:
        told = f"{name}:{block.line} says\n{block.text}and what was printed is\n{printed}"
        assert same_words(block.text, printed), told
        assert by.kind == "sh" or name in REPLACED or near(block.text, printed, TOLERANCE), told


@pytest.mark.parametrize("page", WITH_BLOCKS, ids=name_of)
def test_what_a_page_says_runs(page: Path, pictures: Path) -> None:
    run(page, pictures, long=False)


@pytest.mark.slow
@pytest.mark.parametrize("page", LONGER, ids=name_of)
def test_what_a_page_says_runs_with_what_takes_long(page: Path, pictures: Path) -> None:
    run(page, pictures, long=True)


LINK = re.compile(r"\]\(([^)\s#:]+)(?:#[^)\s]*)?\)")


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    made = tuple(str(ROOT / folder) for folder in BUILT)  # by building the site, which follows links by itself
    lost = [target for target in LINK.findall(text) if not (page.parent / target).exists()]
    assert not [target for target in lost if not str(page.parent / target).startswith(made)]


def test_every_page_of_the_site_is_in_its_contents() -> None:
    entries = [
        line
        for block in blocks(ROOT / "docs" / "index.md")
        if block.kind == "{toctree}"
        for line in block.text.splitlines()
        if line and not line.startswith(":")
    ]
    names = [page.relative_to(ROOT / "docs").with_suffix("").as_posix() for page in pages() if "docs" in page.parts]
    lost = [name for name in names if name != "index" and not any(_matches(name, entry) for entry in entries)]
    assert not lost


def _matches(name: str, entry: str) -> bool:
    return fnmatch(name, entry) and name.count("/") == entry.count("/")


def test_every_preset_is_spoken_of() -> None:
    text = "\n".join(page.read_text() for page in ROOT.glob("docs/algorithms/*.md"))
    assert [name for name in PRESETS if not re.search(rf"\b{name.replace('-', '_')}\b", text)] == []


def test_a_page_is_checked_word_by_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That what would go unnoticed does not: a block or a command of an unknown kind, code that fails, other output."""
    monkeypatch.chdir(tmp_path)

    def page(text: str) -> Page:
        path = ROOT / "docs" / "none.md"
        return Page(path, text=text)

    for text in ("```ruby\nputs 1\n```\n", "```sh\nrm -r x\n```\n"):
        with pytest.raises(NoRuleError):
            page(text).run()
    for text in (
        "```python\nassert False\n```\n",
        "```sh\nmake nothing\n```\n",
        "```sh\ninnerloop train nothing\n```\n",
    ):
        with pytest.raises((AssertionError, ValueError)):
            page(text).run()
    with pytest.raises(SyntaxError):
        page("<!-- before: learn2learn -->\n```python\n1 +\n```\n").run()
    assert not same_words("mse 1.0 after", "mse 2.0 before")
    assert near("mse 1.00", "mse 1.20", 0.3)
    assert not near("mse 1.00", "mse 2.00", 0.3)


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_has_everything_public(tmp_path: Path) -> None:
    pytest.importorskip("furo")
    pytest.importorskip("myst_parser")
    shutil.copytree(ROOT, tmp_path / "copy", ignore=shutil.ignore_patterns(".*", "_build", "runs", "demo"))
    words = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "docs", "site"]
    built = subprocess.run(words, cwd=tmp_path / "copy", capture_output=True, text=True, timeout=900, check=False)
    assert built.returncode == 0, built.stderr[-3000:]
    site = tmp_path / "copy" / "site"
    text = "\n".join(page.read_text() for page in (site / "api").glob("*.html"))
    assert [name for name in il.__all__ if f'id="innerloop.{name}"' not in text and not _is_module(name)] == []
    loaded = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(https?:[^"]*)"', "\n".join(_html(site)))
    assert loaded == [], "the site loads things from elsewhere"


def _is_module(name: str) -> bool:
    return isinstance(getattr(il, name), ModuleType)


def _html(site: Path) -> list[str]:
    return [page.read_text() for page in site.rglob("*.html")]
