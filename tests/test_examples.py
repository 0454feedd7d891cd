"""The examples run, are short, and learn."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.forked import python

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(*words: str | Path, cwd: Path) -> str:
    result = subprocess.run(python(*words), capture_output=True, text=True, timeout=600, cwd=cwd, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda p: p.name)
def test_examples_are_at_most_60_lines(example: Path) -> None:
    assert len(example.read_text().splitlines()) <= 60


def test_every_example_is_run_here() -> None:
    text = Path(__file__).read_text()
    assert all(f'"{example.name}"' in text for example in EXAMPLES.glob("*.py"))


@pytest.mark.parametrize(
    ("example", "better"), [("sinusoids.py", min), pytest.param("own_parts.py", max, marks=pytest.mark.slow)]
)
def test_examples_learn(example: str, better: object, tmp_path: Path) -> None:
    output = run(EXAMPLES / example, "150", cwd=tmp_path)
    before, after = (float(value) for value in re.findall(r"meta-training: *\w+ ([\d.]+)", output))
    assert better(before, after) == after != before


@pytest.mark.slow
def test_an_environment_of_ones_own_is_learned(tmp_path: Path) -> None:
    output = run(EXAMPLES / "environment.py", cwd=tmp_path)
    before, after = (float(mean) for mean in re.findall(r"return (-[\d.]+) ", output))
    assert after > before + 2


def test_adapters_learn_to_learn_a_text_task(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, since what it imports takes as long as it does."""
    pytest.importorskip("peft", reason="needs the extra adapters")
    pytest.importorskip("transformers", reason="needs the extra adapters")
    monkeypatch.setattr(sys, "argv", ["adapters.py", "40"])
    runpy.run_path(str(EXAMPLES / "adapters.py"), run_name="__main__")
    output = capsys.readouterr().out
    rows = [[float(mean) for mean in re.findall(r"([\d.]+) \+-", line)] for line in output.splitlines() if "+-" in line]
    assert len(rows) == 4
    (initialized, trained), last = rows[0], rows[-1]
    assert initialized == pytest.approx(50, abs=3)
    assert trained == pytest.approx(50, abs=3)
    assert last[1] > max(trained + 25, last[0] + 5)


def test_a_lightning_module_learns(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    output = run(EXAMPLES / "lightning_module.py", "200", cwd=tmp_path)
    before, after = (float(value) for value in re.findall(r"val_mse_after_5\W+([\d.]+)", output))
    assert after < 0.8 * before


def test_pictures_of_runs(tmp_path: Path) -> None:
    """The demo, shortened: two runs, their numbers before and after adaptation, their pictures."""
    tiny = ["--set", "train.iterations=20", "--set", "train.val_tasks=4", "--set", "evaluate.num_tasks=20", "--quiet"]
    for recipe in ("sinusoid-maml", "strokes-5w1s-maml"):
        sizes = ["--set", "model.width=8"] if "strokes" in recipe else []
        run("-m", "innerloop", "train", recipe, "--run", recipe, *tiny, *sizes, cwd=tmp_path)
    output = run(EXAMPLES / "pictures.py", "sinusoid-maml", "strokes-5w1s-maml", cwd=tmp_path)
    assert output.count("before adaptation") == 2
    assert len(re.findall(r"\+- [\d.]+", output)) == 11 + 2
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png")}
    assert written == {
        "sinusoid-maml/adaptation.png", "sinusoid-maml/tasks.png",
        "strokes-5w1s-maml/adaptation.png", "strokes-5w1s-maml/tasks.png",
    }  # fmt: skip
