"""The files that describe the project agree with each other."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import innerloop as il
from innerloop.recipe import toml

from . import extras

yaml = pytest.importorskip("yaml", reason="needs PyYAML, of the extra dev")

ROOT = Path(__file__).parents[1]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def jobs(workflow: str) -> dict[str, Any]:
    return yaml.safe_load(read(f".github/workflows/{workflow}.yml"))["jobs"]  # type: ignore[no-any-return]


def matrix(job: str) -> dict[str, list[str]]:
    return jobs("ci")[job]["strategy"]["matrix"]  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return toml.parse(read("pyproject.toml"))["project"]  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def noxfile() -> ModuleType:
    pytest.importorskip("nox")
    spec = importlib.util.spec_from_file_location("noxfile", ROOT / "noxfile.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        spec.loader.exec_module(module)
    return module


def classified(project: dict[str, Any]) -> list[str]:
    """The versions of Python in the classifiers."""
    found = (re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", text) for text in project["classifiers"])
    return [match[1] for match in found if match]


def test_versions_of_python(project: dict[str, Any], noxfile: ModuleType) -> None:
    versions = classified(project)
    assert project["requires-python"] == f">={versions[0]}"
    assert versions == noxfile.PYTHONS
    assert matrix("tests")["python"] == versions
    assert f"| Python | {versions[0]} to {versions[-1]} |" in read("docs/policy.md")
    assert jobs("ci")["oldest-torch"]["steps"][-1]["with"]["python"] == versions[0]
    assert jobs("weekly")["newest-torch"]["steps"][-1]["with"]["python"] == versions[-1]


def test_the_oldest_torch(project: dict[str, Any], noxfile: ModuleType) -> None:
    (bound,) = (text for text in project["dependencies"] if text.startswith("torch"))
    assert bound == f"torch>={noxfile.OLDEST_TORCH}"
    assert f"| torch | {noxfile.OLDEST_TORCH} and newer |" in read("docs/policy.md")


def test_extras(project: dict[str, Any], noxfile: ModuleType) -> None:
    """Each is installed alone, and has a use that must work then."""
    assert set(project["optional-dependencies"]) == {*noxfile.EXTRAS, "all", "docs", "dev"}
    assert matrix("minimal")["extra"] == ["none", *noxfile.EXTRAS]
    assert {use.extra for use in extras.USES} == set(noxfile.EXTRAS)


def test_the_version() -> None:
    cited = yaml.safe_load(read("CITATION.cff"))
    version, date = re.findall(r"^## (\d\S*) \((\S+)\)$", read("CHANGELOG.md"), re.MULTILINE)[0]
    assert (il.__version__, il.__version__) == (version, cited["version"])
    assert date == str(cited["date-released"])


def test_sections_of_the_changelog() -> None:
    sections = re.findall(r"^## (.+)$", read("CHANGELOG.md"), re.MULTILINE)
    assert sections[0] == "Unreleased"
    assert sections[1].startswith(il.__version__)


def test_the_commands_of_the_linters(noxfile: ModuleType) -> None:
    """`make lint`, `nox -s lint` and the hooks of pre-commit run the same."""
    target = re.search(r"^lint:.*\n((?:\t.*\n)+)", read("Makefile"), re.MULTILINE)
    commands = [line.strip().removeprefix("$(RUN)/") for line in target[1].splitlines()]
    assert [" ".join(command) for command in noxfile.LINT] == commands
    hooks = [hook for repo in yaml.safe_load(read(".pre-commit-config.yaml"))["repos"] for hook in repo["hooks"]]
    assert [hook["entry"] for hook in hooks] == commands
    assert not any(hook["pass_filenames"] for hook in hooks)


def test_the_fast_tests(noxfile: ModuleType) -> None:
    """`make test` and the sessions of nox run the same."""
    command = re.search(r"^test:.*\n\t\$\(RUN\)/python -m pytest (.*)$", read("Makefile"), re.MULTILINE)
    assert shlex.split(command[1]) == list(noxfile.FAST)


def test_workflows_name_sessions(noxfile: ModuleType) -> None:
    sessions = {"tests", "torch", "minimal"} | {*matrix("checks")["session"]}
    assert all(callable(getattr(noxfile, name)) for name in sessions)
    used = [step for name in ("ci", "weekly") for job in jobs(name).values() for step in job["steps"] if "with" in step]
    assert all(re.match(rf"({'|'.join(sessions)})\b|\$\{{\{{ matrix", step["with"]["session"]) for step in used)
