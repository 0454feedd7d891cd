"""Smaller cases with the same differences."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from .choices import LOSSES
from .differences import EXCUSED, Difference, Report, check
from .models import Case

PLAIN: dict[str, Any] = {
    "inner_loss": None, "rule": "il.SGD(0.1)", "adapt": "il.everything", "objective": "il.Unrolled()",
    "batch_size": None, "statistics": "batch", "training": True, "steps": 1, "tasks": 2, "support": 3, "query": 2,
}  # fmt: skip


def smaller(case: Case) -> Iterator[Case]:
    """Cases with something taken away: first with nearly nothing left, which is all that some differences take."""
    options = {n: v for n, v in PLAIN.items() if not (n == "training" and "Dropout" in " ".join(case.layers))}
    plain = replace(case, target="numbers", head=True, loss="F.mse_loss", **options)
    body: dict[str, Any] = {"x": (3,), "layers": ("nn.Linear(3, 2)", "nn.Tanh()"), "tokens": False}
    if len(case.layers) > 1 or case.layers[0] not in body["layers"]:
        yield replace(plain, **body, seed=0)
        if case.target != "pixels" and case.head:
            yield replace(case, **body, training=True)
    yield from (c for c in (plain, replace(case, **options)) if c != case)
    if len(case.layers) > 1:
        for layer in case.layers:
            yield replace(plain, layers=(layer,))
    for i in range(len(case.layers)):
        if len(case.layers) > 1:
            yield replace(case, layers=case.layers[:i] + case.layers[i + 1 :])
    if case.target != "numbers" or not case.head:
        yield replace(case, target="numbers", head=True, loss="F.mse_loss", inner_loss=None)
    if case.loss != (usual := LOSSES[case.target][0]):
        yield replace(case, loss=usual)
    for name, value in PLAIN.items():
        if getattr(case, name) != value and not (name == "training" and "Dropout" in " ".join(case.layers)):
            yield replace(case, **{name: value})
    if case.tasks > 1:
        yield replace(case, tasks=1)


def reduce(report: Report, found: list[Difference], tries: int = 30) -> tuple[Case, list[Difference]]:
    """A smaller case in which the first difference is still there."""
    case, wanted = report.case, found[0]
    best, seen = (case, found), {case}
    progress = True
    while progress and tries > 0:
        progress = False
        for candidate in smaller(best[0]):
            if candidate in seen:
                continue
            seen.add(candidate)
            tries -= 1
            if (differences := _still(candidate, wanted)) is not None:
                best, progress = (candidate, differences), True
                break
            if tries <= 0:
                break
    return best


def _still(case: Case, wanted: Difference) -> list[Difference] | None:
    try:
        report = check(case, compiled=wanted.plan == "compiled", plans=[wanted.plan], settle=False)
    except Exception:
        return None
    excused = wanted.verdict in EXCUSED
    same = [d for d in report.differences if d.result == wanted.result and d.verdict == wanted.verdict]
    if not same:
        return None
    return [d for d in report.differences if (d.verdict in EXCUSED) == excused]


def signature(case: Case, differences: list[Difference]) -> str:
    """What tells causes apart, roughly: the kinds of layers, the loss, which plan, which result."""
    layers = sorted(
        {name for text in case.layers for name in re.findall(r"(?:\w+\.)*([A-Za-z_]\w*)\(", text)} - {"Sequential"}
    )
    first = differences[0]
    extras = [
        f"{n}={getattr(case, n)}"
        for n in ("rule", "objective", "statistics", "dtype", "adapt")
        if getattr(case, n) != getattr(Case, n)
    ]
    if case.loss != LOSSES[case.target][0]:
        extras.append(case.loss)
    return " | ".join([", ".join(layers), first.plan, first.result, first.verdict, *extras])
