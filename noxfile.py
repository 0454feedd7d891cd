"""The checks of the project, each in an environment of its own.

`nox -l` lists the sessions, `nox -s tests-3.12 -- tests/test_rules.py` runs one with arguments for pytest, and `-r`
keeps the environments for the next run. On Linux pip may install a CUDA build of torch, of several gigabytes; with
`pip install uv`, `UV_TORCH_BACKEND=cpu nox -db uv` installs CPU builds.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["lint", "docs", "wheel", "minimal", "tests"]

PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PROJECT)
"""The supported versions of Python, as the classifiers in pyproject.toml list them."""
OLDEST_TORCH = re.fullmatch(r"torch>=([\d.]+)", PROJECT["project"]["dependencies"][0])[1]
TORCH = ("-c", "constraints.txt", "torch")
"""The torch that most sessions use, which is the one of `make test`."""
EXTRAS = [name for name in PROJECT["project"]["optional-dependencies"] if name not in ("all", "docs", "dev")]
LINT = (("ruff", "check", "."), ("ruff", "format", "--check", "."), ("mypy",))
"""The commands of `make lint`."""
SCHEMAS = {"vendor.github-workflows": ".github/workflows/*.yml", "vendor.github-actions": ".github/actions/*/*.yml"}
"""The schemas of the files of GitHub Actions."""
FAST = ("-n", "2", "--dist", "worksteal", "-m", "not slow")
"""Arguments of pytest for the tests that `make test` runs."""
DIST = Path("dist")


def _install(session: nox.Session, *wanted: str, torch: tuple[str, ...] = TORCH) -> None:
    """Install packages with a torch that they may not replace."""
    session.install(*torch, *wanted)


def _outside(session: nox.Session, script: str, *arguments: str) -> None:
    """Run a script of the checkout in another folder, where Python imports nothing from the checkout."""
    path = Path(script).resolve()
    with session.chdir(session.create_tmp()):
        session.run("python", "-I", str(path), *arguments)


@nox.session
def lint(session: nox.Session) -> None:
    """Run what `make lint` runs, and check the workflows and the hooks."""
    _install(session, "-e", ".[all,dev]", "check-jsonschema")
    for command in LINT:
        session.run(*command)
    for schema, pattern in SCHEMAS.items():
        session.run("check-jsonschema", "--builtin-schema", schema, *sorted(map(str, Path().glob(pattern))))
    session.run("pre-commit", "validate-config")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the fast tests, or what the arguments name."""
    _install(session, "-e", ".[all,dev,docs]")
    session.run("python", "-m", "pytest", *(session.posargs or FAST))


@nox.session
@nox.parametrize(
    "python,torch",
    [
        nox.param(PYTHONS[0], ("numpy<2.3", f"torch=={OLDEST_TORCH}"), id="oldest"),
        nox.param(PYTHONS[-1], ("--upgrade", "torch"), id="newest"),
    ],
)
def torch(session: nox.Session, torch: tuple[str, ...]) -> None:
    """Run the fast tests with the oldest supported torch, and with the newest release."""
    _install(session, "-e", ".[all,dev,docs]", torch=torch)
    session.run("python", "-c", "import numpy, torch; print('torch', torch.__version__, 'numpy', numpy.__version__)")
    session.run("python", "-m", "pytest", *(session.posargs or FAST))


@nox.session
@nox.parametrize("times", [nox.param(0.02, id="quick"), nox.param(40.0, id="slow")])
def clock(session: nox.Session, times: float) -> None:
    """Run the fast tests by a clock that makes the machine seem much quicker or slower, on which none may depend."""
    _install(session, "-e", ".[all,dev,docs]")
    own = {"PYTHONPATH": str(Path("tests/clock").resolve()), "INNERLOOP_TEST_CLOCK": str(times)}
    session.run("python", "-m", "pytest", *(session.posargs or FAST), env=own)


@nox.session
def coverage(session: nox.Session) -> None:
    """Run the fast tests, and print which lines and branches no test reaches."""
    _install(session, "-e", ".[all,dev]")
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", *(session.posargs or FAST))
    session.run("coverage", "combine", "-q")
    session.run("coverage", "report")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site as `make docs` does; a warning is an error."""
    _install(session, "-e", ".[all,docs]")
    session.run("python", "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q", "docs", "docs/_build/html")


@nox.session
def build(session: nox.Session) -> None:
    """Build the source distribution, and the wheel from it, into `dist`."""
    session.install("build")
    shutil.rmtree(DIST, ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(DIST))


@nox.session(requires=["build"], reuse_venv=False)
def wheel(session: nox.Session) -> None:
    """Install the wheel into an empty environment, check what it holds, and run the models that it ships."""
    (built,) = DIST.glob("*.whl")
    _install(session, f"{built}[use]")
    _outside(session, "tests/shipped.py", str(built.resolve()), str(Path.cwd()))


@nox.session(reuse_venv=False)
@nox.parametrize("extra", ["none", *EXTRAS], ids=["none", *EXTRAS])
def minimal(session: nox.Session, extra: str) -> None:
    """Install the package with one extra or none; use what it serves, and see that errors name the other extras."""
    _install(session, "." if extra == "none" else f".[{extra}]")
    _outside(session, "tests/extras.py", extra)
