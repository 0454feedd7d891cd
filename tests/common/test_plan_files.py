"""Plans in files: what is one, and what is not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from torch import nn

from innerloop.common import plan_files
from innerloop.engine.plans import Plans


@pytest.mark.parametrize(
    "decision",
    [
        None, [], {}, {"size": 1}, {"size": -1, "threads": 1}, {"size": 1, "threads": 0}, {"size": 1.5, "threads": 1},
        {"size": True, "threads": 1}, {"size": 10**400, "threads": 1}, {"size": 1, "threads": 1, "why": 3},
        {"compiled": 1, "enough": 3}, {"compiled": True}, {"compiled": True, "enough": float("nan")},
        {"compiled": True, "enough": "3"}, {"compiled": "yes", "enough": 3},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_decision_is_not_taken(decision: Any) -> None:
    assert not plan_files.valid(decision)
    found = Plans(nn.Linear(1, 1), (), ())
    found.take({"meta-gradient": decision})
    found.take([decision])
    assert not found.made


@pytest.mark.parametrize("decision", [{"size": 0, "threads": 1}, {"compiled": False, "enough": 0, "why": "so"}])
def test_decisions(decision: Any) -> None:
    assert plan_files.valid(json.loads(json.dumps(decision)))
