"""Whatever is in a recipe, a run directory or a checkpoint: an explanation or success, and no file is changed by
looking at it."""

from __future__ import annotations

import hashlib
import io
import shutil
import string
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from innerloop import cli
from innerloop.recipe import config
from innerloop.report import read_run
from innerloop.train import checkpoint

TINY = ["--set", "train.iterations=6", "--set", "train.tasks=2", "--set", "train.val_tasks=2", "--set",
        "train.validate_every=3", "--set", "train.checkpoint_every=2", "--set", "evaluate.num_tasks=2", "--set",
        "evaluate.steps=1", "--set", "model.sizes=[1, 4, 1]", "--quiet"]  # fmt: skip
EXPECTED = (ValueError, FileNotFoundError)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # that something is damaged is said by some
NUMBERS = [pytest.param(40, id="few"), pytest.param(1000, id="many", marks=pytest.mark.slow)]


def fuzz(examples: int, **strategies: Any) -> Callable[[Callable[..., None]], None]:
    """Run a function at once on so many inputs."""

    def run(function: Callable[..., None]) -> None:
        checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
        settings(max_examples=examples, deadline=None, suppress_health_check=checks)(given(**strategies)(function))()

    return run


def explained(call: Callable[[], Any], expected: tuple[type[Exception], ...] = EXPECTED) -> Any:
    """What a call returns; ``None`` if it raises an error that says something."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return call()
        except expected as error:
            message = str(error)
    assert len(message) > 10
    return None


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# -- recipes ----------------------------------------------------------------------------------------------------------

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["adam", "all", "-"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(string.ascii_lowercase, min_size=1), inner, max_size=3)
    ),
    max_leaves=4,
)


def recipe(name: str) -> dict[str, Any]:
    return config.load_recipe(name)


@pytest.mark.parametrize("examples", NUMBERS)
def test_recipes(examples):
    names = list(config.recipes())

    @fuzz(examples, name=st.sampled_from(names), data=st.data(), value=values, text=st.text())
    def _(name, data, value, text):
        given_ = recipe(name)
        section = data.draw(st.sampled_from([*given_, "other"]))
        if isinstance(given_.get(section), dict) and data.draw(st.booleans()):
            key = data.draw(st.sampled_from([*given_[section], "other", "name", "preset"]))
            changed = {**given_, section: {**given_[section], key: value}}
        else:
            changed = {**given_, section: value}
        resolved = explained(lambda: config.resolve(changed))
        if resolved is not None:
            assert repr(config.resolve(config.parse(config.dumps(resolved)))) == repr(resolved)  # nan is nan
            for part in ("train", "evaluate", "model", "learner", "tasks"):
                config.arguments(resolved, part)
        explained(lambda: config.load_recipe(name, [text]))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "recipe.toml"
            path.write_text(text, encoding="utf-8", errors="replace")
            explained(lambda: config.load_recipe(path))


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzzing") / "run"
    assert cli.run(["train", "sinusoid-maml", *TINY, "--run", str(folder)]) == 0
    return folder


def damage(data: st.DataObject, before: bytes) -> bytes | None:
    """The content of a file after an accident; ``None`` for a file that is gone."""
    kind = data.draw(st.sampled_from(["cut", "flipped", "garbage", "empty", "gone", "doubled", "lines"]))
    at = data.draw(st.integers(0, max(0, len(before) - 1)))
    if kind == "flipped" and before:
        return before[:at] + bytes([before[at] ^ data.draw(st.integers(1, 255))]) + before[at + 1 :]
    if kind == "lines":
        lines = before.splitlines(keepends=True)
        return b"".join(data.draw(st.permutations(lines))[: data.draw(st.integers(0, len(lines)))])
    after = {"cut": before[:at], "garbage": data.draw(st.binary(max_size=200)), "empty": b"", "doubled": before * 2}
    return after.get(kind)


@pytest.mark.parametrize("examples", NUMBERS)
def test_run_directories(trained, tmp_path, capfd, examples):
    whole = content(trained)

    @fuzz(examples, data=st.data())
    def _(data):
        run = tmp_path / "run"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(trained, run)
        for name in data.draw(st.lists(st.sampled_from(sorted(whole)), min_size=1, max_size=3, unique=True)):
            after = damage(data, whole[name])
            if after is None:
                (run / name).unlink()
            else:
                (run / name).write_bytes(after)
        before = content(run)
        explained(lambda: read_run(run), (*EXPECTED, OSError))
        assert cli.run(["evaluate", str(run), "--tasks", "2", "--steps", "1"]) in (0, 1, 2)
        assert content(run) == before
        code = cli.run(["train", "sinusoid-maml", *TINY, "--run", str(run), "--resume"])
        assert code in (0, 1)
        if code and "checkpoints" in {path.name for path in run.iterdir()}:
            kept = {name: text for name, text in content(run).items() if name.startswith("checkpoints/")}
            assert kept == {name: text for name, text in before.items() if name.startswith("checkpoints/")}
        assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("examples", NUMBERS)
def test_checkpoints(trained, tmp_path, examples):
    before = next((trained / "checkpoints").glob("state-*.pt")).read_bytes()
    archive = before[: -checkpoint.DIGEST]
    path = tmp_path / "state.pt"

    @fuzz(examples, data=st.data(), value=values)
    def _(data, value):
        kind = data.draw(st.sampled_from(["damaged", "signed", "plain"]))
        if kind == "damaged":
            after = damage(data, before) or b""
        elif kind == "signed":  # as if somebody meant it
            after = damage(data, archive) or b""
            after += hashlib.sha256(after).digest()
        else:
            file = io.BytesIO()
            torch.save(value, file)
            after = file.getvalue() + hashlib.sha256(file.getvalue()).digest()
        path.write_bytes(after)
        found = explained(lambda: checkpoint.load(path), (ValueError,))
        assert found is None or found["format"] == checkpoint.FORMAT
        assert path.read_bytes() == after
