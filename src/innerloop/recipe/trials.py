"""The trials of a sweep in words and as plain values."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from ..train import NonFiniteError, OutOfMemoryError
from . import config


def override(key: str, value: Any) -> str:
    """What sets a value of a recipe."""
    return f"{key}={config.toml(value)}"


def summary(study: Any, recipe: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Of all trials, as plain values."""
    trials = study.get_trials(deepcopy=False)
    best = study.best_trial if any(trial.state.name == "COMPLETE" for trial in trials) else None
    told: dict[str, Any] = {"study": study.study_name, "recipe": recipe, "overrides": list(overrides)}
    told |= study.user_attrs.get("metric", {})
    told["direction"], told["trials"] = study.direction.name.lower(), []
    for trial in trials:
        attributes = {key: trial.user_attrs[key] for key in ("runs", "scores", "why") if key in trial.user_attrs}
        state = trial.state.name.lower()  # a study keeps a failed trial as pruned: those it calls failed begin again
        attributes["failed"] = "why" in attributes
        told["trials"].append(
            {"trial": trial.number, "state": state, "score": trial.value, "values": trial.params, **attributes}
        )
    if best is not None:
        told["best"] = {"trial": best.number, "score": best.value, "values": best.params}
        changed = [*overrides, *(override(key, value) for key, value in best.params.items())]
        told["command"] = shlex.join(
            ["innerloop", "train", recipe, *(word for one in changed for word in ("--set", one))]
        )
    return told


def said(values: Mapping[str, Any]) -> str:
    """The values of a trial, on one line."""
    return ", ".join(f"{key} = {_plain(value)}" for key, value in values.items())


def reason(error: Exception) -> str:
    """On one line; an error that is no report of ours has its kind."""
    text = " ".join(str(error).split())
    known = isinstance(error, (ValueError, OSError, ImportError, NonFiniteError, OutOfMemoryError)) and text
    return text if known else f"{type(error).__name__}: {text}".removesuffix(": ")


def _plain(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def why_none(told: Mapping[str, Any]) -> str:
    """Why a sweep has no best trial, from its `summary`."""
    failed = [trial for trial in told["trials"] if "why" in trial]
    if not failed:
        return f"no trial of {told['recipe']} was completed"
    every = "the only trial" if len(failed) == 1 else f"all {len(failed)} trials"
    return f"{every} of {told['recipe']} failed, so there is no best one; the last one: {failed[-1]['why']}"
