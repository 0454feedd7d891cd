"""Random models through an inner loop: the library's results are a plain loop's, by every plan, or it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from .__main__ import run
from .differences import Difference, check
from .layers import KINDS
from .models import Case
from .reduce import reduce

EXAMPLES = int(os.environ.get("INNERLOOP_FUZZ_EXAMPLES", "3000"))
SEED = int(os.environ.get("INNERLOOP_FUZZ_SEED", "0"))
JOBS = int(os.environ.get("INNERLOOP_FUZZ_JOBS", "2"))
ROOT = Path(__file__).parents[2]


def fuzz(examples: int, *options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.fuzz", "--examples", str(examples), "--seed", str(SEED), *options]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True
    )
    assert done.returncode == 0
    return json.loads(done.stdout)


def require_none(found: dict[str, Any]) -> None:
    assert not found["broken"], "\n".join(found["broken"][:3])
    lines = [
        f"{one['count']} x {key}\n  {one['case']}\n  {one['differences'][:3]}"
        for key, one in found["differences"].items()
    ]
    assert not lines, "python -m tests.fuzz --case JSON shows one of these:\n" + "\n".join(lines)


@pytest.mark.slow
def test_random_models() -> None:
    found = fuzz(EXAMPLES, "--jobs", str(JOBS))
    print({name: found[name] for name in ("models", "compared", "results", "number_of_kinds", "verdicts", "seconds")})
    require_none(found)
    if EXAMPLES >= 1000:
        assert found["number_of_kinds"] >= 60
        assert found["compared"] > 0.9 * EXAMPLES


def test_a_few_random_models() -> None:
    require_none(run(15, SEED, compile_every=0, reducing=False))


def test_the_same_seed_draws_the_same_models() -> None:
    first, second = (run(3, SEED, compile_every=0, reducing=False) for _ in range(2))
    assert first["kinds"] == second["kinds"]
    assert first["results"] == second["results"]


# -- the fuzzer finds what is wrong -----------------------------------------------------------------------------------

PLAIN = Case((3,), ("nn.Linear(3, 4)", "nn.Tanh()"), steps=2, tasks=3)


def test_a_plain_model_is_compared_by_every_plan() -> None:
    report = check(PLAIN, ["looped", "vectorized", "threads", "constant", "constant, looped"])
    assert report.status == "compared"
    assert not report.differences
    assert not report.refused
    assert report.compared > 30


def test_a_wrong_rule_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    import innerloop as il

    right = il.SGD.forward
    monkeypatch.setattr(
        il.SGD, "forward", lambda self, grads, *rest: right(self, {n: g * (1 + 1e-7) for n, g in grads.items()}, *rest)
    )
    report = check(PLAIN, ["looped"])
    assert {"meta-gradient", "once more", "predict", "adapted parameters"} <= {d.result for d in report.faults}


def test_a_model_that_is_changed_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    import innerloop as il

    right = il.MetaLearner.meta_gradient

    def wrong(self: Any, *rest: Any) -> Any:
        with torch.no_grad():
            next(self.model.parameters()).add_(1e-12)
        return right(self, *rest)

    monkeypatch.setattr(il.MetaLearner, "meta_gradient", wrong)
    assert any(d.result == "the model afterwards" for d in check(PLAIN, ["looped"]).faults)


def test_that_torch_is_wrong_is_found() -> None:
    """Weight norm's second derivative, which the library replaces."""
    case = Case((3,), ("nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))", "nn.Tanh()"))
    report = check(case, ["looped"])
    assert {(d.result, d.verdict) for d in report.differences} >= {("meta-gradient", "torch is wrong")}
    assert not report.faults


def test_a_case_is_made_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    import innerloop as il

    right = il.episode.scalar
    monkeypatch.setattr(il.episode, "scalar", lambda loss: right(loss) * 1.001)
    case = Case(
        (2, 4, 4), ("nn.Conv2d(2, 3, 3, padding=1)", "nn.ReLU()", "nn.MaxPool2d(2)"), target="classes",
        loss="nn.CrossEntropyLoss(label_smoothing=0.1)", rule="il.Adam(0.05, eps=0.02)", steps=3,
    )  # fmt: skip
    report = check(case, ["looped"])
    small, differences = reduce(report, report.faults)
    assert isinstance(differences[0], Difference)
    assert len(small.layers) <= 2
    assert (small.target, small.loss, small.rule, small.steps) == ("numbers", "F.mse_loss", "il.SGD(0.1)", 1)


def test_a_case_is_text_and_back() -> None:
    case = Case((4,), ("nn.Embedding(7, 3)",), tokens=True, statistics="batch", batch_size=2)
    assert Case.read(str(case)) == case


def test_there_are_many_kinds_of_layers() -> None:
    assert len(KINDS) >= 150
