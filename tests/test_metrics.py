"""What a metric says of its scores, and that nothing else in the package goes by the names of metrics."""

from __future__ import annotations

import ast
from functools import partial
from pathlib import Path

import pytest
import torch

import innerloop as il
from innerloop.metrics import OLDER, RETURN, SUCCESS, Scale
from innerloop.train import METRICS

ROOT = Path(__file__).parents[1]
NAMES = {*METRICS, *OLDER}


def worst(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (output - y).abs().max()


class Worst:
    def __call__(self, output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return worst(output, y)


@pytest.mark.parametrize(
    ("function", "name"),
    [(worst, "worst"), (Worst(), "Worst"), (partial(worst), "worst"), (lambda output, y: output.mean(), "metric")],
)
def test_a_metric_has_the_name_of_its_function(function: object, name: str) -> None:
    assert il.Metric(function, False).name == name  # type: ignore[arg-type]
    assert il.Metric(function, higher_is_better=True, name="own", unit="mm").name == "own"  # type: ignore[arg-type]
    assert il.Metric(function, False).unit == ""  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((worst, "max"), "higher_is_better of the metric worst must be True or False, got 'max'"),
        ((worst, None), "must be True or False"),
        ((3, True), "needs a function"),
        ((Worst, True), "build it first"),
        ((worst, True, 3), "the name of a metric must be a string"),
        ((worst, True, "worst", 100), "the unit of a metric must be a string"),
    ],
)
def test_what_is_no_metric(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        il.Metric(*arguments)  # type: ignore[arg-type]


def test_functions_that_take_the_targets_first_are_refused() -> None:
    functions = pytest.importorskip("sklearn.metrics")
    with pytest.raises(ValueError, match=r"r2_score takes the targets first.*lambda output, y: r2_score\(y, output\)"):
        il.Metric(functions.r2_score, True)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"metric": "accuracy"}, Scale("accuracy", True, "%")),
        ({"metric": "success"}, SUCCESS),
        ({"metric": "return"}, RETURN),
        ({"metric": "mse"}, Scale("mse", False)),
        ({"metric": "l1_loss"}, Scale("l1_loss", False)),
        ({"metric": "f1", "higher_is_better": True, "unit": "points"}, Scale("f1", True, "points")),
        ({"metric": "accuracy", "higher_is_better": True, "unit": ""}, Scale("accuracy", True)),
    ],
)
def test_older_records_are_read_as_they_were_meant(record: dict[str, object], expected: Scale) -> None:
    assert Scale.read(record) == expected


def test_the_metric_of_an_interactive_source() -> None:
    assert Scale.of("return") == RETURN
    assert Scale.of(il.Metric(worst, True, "goals", "%")) == Scale("goals", True, "%")
    with pytest.raises(ValueError, match=r'Scale\("goals", higher_is_better=True\).*got \'goals\''):
        Scale.of("goals")


def _by_name(tree: ast.AST) -> list[int]:
    """The lines that compare something with the name of a metric, or look something up by it."""
    lines = []
    for node in ast.walk(tree):
        parts: list[ast.AST] = []
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            parts = [node.value]
        elif isinstance(node, ast.Dict):
            keys = [key.value if isinstance(key, ast.Constant) else None for key in node.keys]
            parts = [*node.keys] if NAMES.issuperset(keys) else []  # type: ignore[list-item]
        parts = [inner for part in parts for inner in (part, *getattr(part, "elts", ()))]
        if any(isinstance(part, ast.Constant) and part.value in NAMES for part in parts):
            lines.append(node.lineno)
    return lines


TABLES = {"losses.py", "metrics.py", "train/metrics.py"}
"""The tables of losses, of metrics, and of the metrics of older records."""
PACKAGE = ROOT / "src" / "innerloop"
FILES = [path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).as_posix() not in TABLES]
FILES += (ROOT / "experiments").glob("*.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_goes_by_the_name_of_a_metric(path: Path) -> None:
    found = _by_name(ast.parse(path.read_text("utf-8")))
    assert not found, f"lines {found} go by the name of a metric: take direction, name and unit from its scale"
    assert "PER_CENT" not in path.read_text("utf-8")


@pytest.mark.parametrize(
    "code",
    ['x["metric"] == "accuracy"', 'x in ("return", "success")', '{"mse": 1}.get(x)', "'accuracy' != metric"],
)
def test_the_guard_sees_what_it_is_for(code: str) -> None:
    assert _by_name(ast.parse(code)) == [1]
