"""The plans of a run, in its directory, so that a run that goes on computes the same bits."""

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
    """Within, a learner goes by the plans of its run, and what it decides is written to the run directory at once.

    Args:
        learner: that is trained.
        run: the run directory, if there is one.
        before: the plans of its checkpoint.
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
            f"{path} cannot be read ({error}), so plans that are not in the checkpoint are measured again, and what "
            "comes is the same to rounding only",
            stacklevel=5,
        )
        return {}


def _write(run: Path, made: Mapping[str, Any]) -> None:
    with writing(run / NAME) as file:
        file.write((json.dumps(made, indent=1, sort_keys=True) + "\n").encode())
