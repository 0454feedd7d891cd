"""The shape of the house: imports point one way, the core needs torch alone, no room is too large."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "innerloop"
FLOORS = [
    ("metrics", "schedules"),
    ("task", "common"),
    ("functional",),
    ("operations",),
    ("engine",),
    ("support_norm", "select", "updates"),
    ("rules", "losses"),
    ("optimizers",),
    ("task_model", "padding"),
    ("episode", "per_step"),
    ("objectives", "initializations", "adapted", "unequal"),
    ("checks",),
    ("learner",),
    ("models", "presets", "testing", "weights"),
    ("data",),
    ("rl",),
    ("imitation",),
    ("train",),
    ("recipe",),
    ("report", "use"),
    ("demo",),
    ("cli", "__main__", "config", "checkpointing"),
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(PACKAGE.rglob("*.py"))


def _room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def _imported_rooms(path: Path) -> set[str]:
    package = ("innerloop", *path.relative_to(PACKAGE).parts[:-1])
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            module = (*start, *(node.module or "").split(".")) if node.module else start
            if module[:1] == ("innerloop",):
                rooms |= {module[1]} if len(module) > 1 else {alias.name for alias in node.names}
    return rooms


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    room = _room(path)
    if room == "__init__":
        return
    upward = {other for other in _imported_rooms(path) if FLOOR.get(other, -1) > FLOOR[room]}
    assert not upward, f"{room} may not import {sorted(upward)}"


def test_the_learner_alone_imports_from_the_engine() -> None:
    """A new paper, data set or figure never needs to know how tasks run quickly."""
    assert {_room(path) for path in FILES if "engine" in _imported_rooms(path)} - {"engine"} == {"learner"}


@pytest.mark.parametrize(
    ("room", "known"),
    [
        ("functional", {"task", "common"}),
        ("operations", {"task", "common", "functional"}),
        ("engine", {"task", "common", "functional", "operations", "__version__"}),
    ],
)
def test_what_runs_tasks_knows_no_algorithm(room: str, known: set[str]) -> None:
    found = set[str]().union(*(_imported_rooms(path) for path in FILES if _room(path) == room))
    assert found - {room} <= known


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_rooms_are_small(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 600
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 50, f"{node.name} is {node.end_lineno - node.lineno + 1} lines"


EXTRAS = {
    "data": {"PIL", "rich"},
    "train": {"rich"},
    "report": {"matplotlib", "pandas", "rich", "plotly", "scipy", "jinja2", "PIL"},
    "recipe": {"optuna", "tomllib", "tomli", "tomli_w"},
    "cli": {"typer", "rich"},
    "rl": {"gymnasium", "mujoco", "numpy", "cloudpickle"},
    "imitation": {"mujoco", "numpy"},
    "weights": {"safetensors"},
    "use": {"PIL", "safetensors", "huggingface_hub", "sklearn", "scipy", "numpy", "matplotlib"},
    "demo": {"starlette", "uvicorn"},
}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_third_party_imports_are_torch_or_the_rooms_extra(path: Path) -> None:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add((node.module or "").split(".")[0])
    allowed = EXTRAS.get(_room(path), set())
    foreign = names - set(sys.stdlib_module_names) - {"torch", "innerloop", "typing_extensions"} - allowed
    assert not foreign


def test_the_core_works_without_any_extra() -> None:
    """With the packages of every extra made unimportable."""
    code = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        extras = {
            "PIL", "typer", "rich", "matplotlib", "pandas", "plotly", "scipy", "tomli", "tomli_w", "numpy", "sklearn",
            "safetensors", "huggingface_hub", "starlette", "uvicorn", "transformers", "peft", "mujoco", "gymnasium",
        }
        if name.split(".")[0] in extras:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
import innerloop as il, torch
from innerloop import testing
learner = il.maml(il.models.mlp(1, 4, 1), loss=torch.nn.functional.mse_loss)
tasks = il.Sinusoid().sample(2, torch.Generator().manual_seed(0))
print(float(learner(tasks).objective.mean()) > 0, il.evaluate(learner, il.Sinusoid(), num_tasks=4).num_tasks)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert result.stdout.strip() == "True 4", result.stderr


def test_everything_exported_is_there() -> None:
    import innerloop as il

    for name in il.__all__:
        assert getattr(il, name) is not None, name
