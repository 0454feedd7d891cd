"""What is said of repeated measurements."""

from __future__ import annotations

import re
import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    if not values:
        raise ValueError("no measurements")
    if len(values) == 1:
        return dict.fromkeys(("median", "low", "high"), values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "low": low, "high": high}


def paired(times: Sequence[float], own: Sequence[float]) -> dict[str, float]:
    """Median and quartiles of the ratios of each round, whose two times were taken one after the other: what slows the
    machine for a while slows both."""
    return spread([a / b for a, b in zip(times, own, strict=True)])


def disagreement(found: Mapping[str, Any], own: Mapping[str, Any], loss: float, gradient: float) -> str:
    """In words, in what a library's first step differs from innerloop's by more than the relative tolerances."""
    words = []
    for key, name, tolerance in (("loss", "loss", loss), ("gradient_norm", "norm of the meta-gradient", gradient)):
        difference = abs(found[key] - own[key])
        if not difference <= tolerance * abs(own[key]):  # so that NaN disagrees
            words.append(f"{name} {found[key]:.6g}, innerloop's {own[key]:.6g}")
    return "; ".join(words)


def without_folders(text: str) -> str:
    """A message with only the last part of each path in it, since results are passed on."""
    return re.sub(r"(?<![\w/:.])(?:/[^\s/:;,'\"()]+)+/([^\s/:;,'\"()]+)", r"\1", text)


def best_peer(libraries: Mapping[str, Mapping[str, Any]], own: Collection[str]) -> str | None:
    """The quickest library that is not ours and computes the same."""
    medians = {
        name: found["seconds"]["median"]
        for name, found in libraries.items()
        if name not in own and found["status"] == "measured"
    }
    return min(medians, key=lambda name: medians[name], default=None)
