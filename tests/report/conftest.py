"""Small real runs, and records without a training behind them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from innerloop import cli

SMALL = {
    "train.iterations": 6, "train.validate_every": 2, "train.val_tasks": 6, "train.tasks": 4, "train.log_every": 1,
    "evaluate.num_tasks": 6,
}  # fmt: skip
LEARNED = {"model.width": 4, "learner.preset": "maml-plus-plus", "learner.steps": 2}


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs: two seeds of pictures with learned rates, one of another recipe, and one of functions."""
    folder = tmp_path_factory.mktemp("trained")

    def train(recipe: str, name: str, seed: int, **more: Any) -> None:
        sets = [word for key, value in {**SMALL, **more}.items() for word in ("--set", f"{key}={value}")]
        words = ["train", recipe, "--seed", str(seed), "--run", str(folder / name), "--quiet", *sets]
        assert cli.run(words) == 0

    for seed in (0, 1):
        train("strokes-5w1s-maml", f"strokes-seed{seed}", seed, **LEARNED)
    train("strokes-5w1s-maml", "plain-seed0", 0, **{"model.width": 4})
    train("sinusoid-maml", "sinusoids", 0)
    return folder


@pytest.fixture(scope="session")
def recorded() -> Callable[..., Path]:
    """``(folder, name, lines, config, test) -> run directory`` with a record that no training is behind."""

    def write(folder: Path, lines: list[dict[str, Any]], config: str = "", test: Any = None) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.toml").write_text(config)
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        if test is not None:
            last = max(line["iteration"] for line in lines)
            (folder / "results.json").write_text(json.dumps({"iterations": last, "test": test}))
        return folder

    return write
