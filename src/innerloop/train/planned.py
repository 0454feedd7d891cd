"""The plans of a run, stored in its directory, so that a resumed run gives bit-identical results."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..common.disk import read_text, writing
from ..learner import MetaLearner

NAME = "plans.json"


@contextmanager
def planned(learner: MetaLearner, run: Path | None, before: Mapping[str, Any]) -> Iterator[None]:
    """While entered, a learner uses the plans of its run, and writes new decisions to the run directory at once.

    Args:
        learner: the learner that is trained.
        run: the run directory, if there is one.
        before: the plans in its checkpoint.
    """
    plans = learner.engine.plans
    if not plans.fresh:
        plans.take(before)
        plans.take(_read(run) if run else {})
    if run is not None:
        plans.tell = lambda made: _write(run, made)
        _write(run, plans.made)
    try:
        yield
    finally:
        plans.tell = None


def _read(run: Path) -> Any:
    path = run / NAME
    try:
        return json.loads(read_text(path))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        warnings.warn(
            f"{path} cannot be read ({error}), so plans that are not in the checkpoint are measured again, and results "
            "are the same only up to rounding",
            stacklevel=5,
        )
        return {}


def _write(run: Path, made: Mapping[str, Any]) -> None:
    with writing(run / NAME) as file:
        file.write((json.dumps(made, indent=1, sort_keys=True) + "\n").encode())
