"""The numbers in the documents are those of the result files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def table(root: Path, *options: str) -> int:
    return subprocess.run([sys.executable, root / "experiments" / "table.py", *options], timeout=60).returncode


def test_no_number_is_stale() -> None:
    assert table(ROOT) == 0


def test_a_stale_number_is_found(tmp_path: Path) -> None:
    shutil.copy(ROOT / "README.md", tmp_path)
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    result = next((tmp_path / "experiments" / "results").glob("*.json"))
    content = json.loads(result.read_text())
    content["tests"][0]["mean"] += 1
    result.write_text(json.dumps(content))
    assert table(tmp_path) == 2
    assert table(tmp_path, "--write") == 0
    assert table(tmp_path) == 0


def test_results_tell_their_command_protocol_and_machine() -> None:
    for path in (ROOT / "experiments" / "results").glob("*.json"):
        result = json.loads(path.read_text())
        assert result["command"].startswith("innerloop train ")
        assert {"seed", "iterations", "seconds", "environment", "config"} <= set(result)
        for test in result["tests"]:
            assert test["num_tasks"] >= 600
            assert len(test["steps"]) == len(test["steps_ci95"])
            assert isinstance(test["transductive"], bool)
