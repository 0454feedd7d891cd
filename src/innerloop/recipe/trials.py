"""The trials of a sweep, in words and as plain values."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from ..train import NonFiniteError, OutOfMemoryError
from . import config


def override(key: str, value: Any) -> str:
    """Return the override that sets a value of a recipe."""
    return f"{key}={config.toml(value)}"


def summary(study: Any, recipe: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Return all trials of a study as plain values."""
    trials = study.get_trials(deepcopy=False)
    best = study.best_trial if any(trial.state.name == "COMPLETE" for trial in trials) else None
    result: dict[str, Any] = {"study": study.study_name, "recipe": recipe, "overrides": list(overrides)}
    result |= study.user_attrs.get("metric", {})
    result["direction"], result["trials"] = study.direction.name.lower(), []
    for trial in trials:
        attributes = {key: trial.user_attrs[key] for key in ("runs", "scores", "why") if key in trial.user_attrs}
        state = trial.state.name.lower()  # a failed trial is stored as pruned; trials in state failed are resumed
        attributes["failed"] = "why" in attributes
        result["trials"].append(
            {"trial": trial.number, "state": state, "score": trial.value, "values": trial.params, **attributes}
        )
    if best is not None:
        result["best"] = {"trial": best.number, "score": best.value, "values": best.params}
        changed = [*overrides, *(override(key, value) for key, value in best.params.items())]
        result["command"] = shlex.join(
            ["innerloop", "train", recipe, *(word for one in changed for word in ("--set", one))]
        )
    return result


def said(values: Mapping[str, Any]) -> str:
    """Format the values of a trial on one line."""
    return ", ".join(f"{key} = {_plain(value)}" for key, value in values.items())


def reason(error: Exception) -> str:
    """Format an error on one line; prefix an unexpected one with its type."""
    text = " ".join(str(error).split())
    known = isinstance(error, (ValueError, OSError, ImportError, NonFiniteError, OutOfMemoryError)) and text
    return text if known else f"{type(error).__name__}: {text}".removesuffix(": ")


def _plain(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def why_none(sweep: Mapping[str, Any]) -> str:
    """Say why a sweep has no best trial, from its `summary`."""
    failed = [trial for trial in sweep["trials"] if "why" in trial]
    if not failed:
        return f"no trial of {sweep['recipe']} was completed"
    every = "the only trial" if len(failed) == 1 else f"all {len(failed)} trials"
    return f"{every} of {sweep['recipe']} failed, so there is no best one; the last error: {failed[-1]['why']}"
