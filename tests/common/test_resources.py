"""The package in a zip."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "src" / "innerloop"
CODE = """
import json
import innerloop as il
from innerloop.common import resources
from innerloop.recipe import config
from innerloop.demo.application import PAGE
from innerloop.report.page import _rendered
from innerloop.use import shipped
folder = resources.folder("recipes")
print(json.dumps({
    "where": il.__file__, "folder": str(folder), "recipes": sorted(config.recipes()),
    "shipped": sorted(shipped()), "extends": config.load_recipe("omniglot-20w1s-quick-fast")["description"],
    "model": il.Pretrained.load("sinusoid").name, "page": sorted(path.name for path in PAGE.iterdir()),
}))
"""


def test_everything_that_comes_with_the_package_is_there_in_a_zip(tmp_path: Path) -> None:
    archive = tmp_path / "innerloop.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in PACKAGE.rglob("*"):
            if "__pycache__" not in path.parts:
                file.write(path, path.relative_to(PACKAGE.parent))
    environment = {**os.environ, "PYTHONPATH": str(archive), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CODE]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=600)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["where"].startswith(str(archive))
    assert told["recipes"] == sorted(path.stem for path in (PACKAGE / "recipes").glob("*.toml"))
    assert told["shipped"] == sorted(path.name for path in (PACKAGE / "pretrained").iterdir())
    assert told["page"] == sorted(path.name for path in (PACKAGE / "demo" / "page").iterdir())
    assert told["model"] == "sinusoid"
    assert not Path(told["folder"]).exists()  # the copy went with the process
