"""One-shot imitation from a video of a demonstrator; the inner loss is learned, because a video has no actions."""

from __future__ import annotations

from typing import Any

from ..common.errors import under_old_name
from .environments import Demonstration, Environment, Observation
from .plane import Reach
from .policies import (
    MODELS,
    Behavior,
    Contextual,
    Encoder,
    SpatialSoftmax,
    Visuomotor,
    Watching,
    contextual,
    visuomotor,
    watching,
)
from .presets import PRESETS, cloned, cloning, daml, mil
from .source import Imitation
from .table import Table
from .tasks import TASKS

_OLD = {
    "Behaviour": Behavior,
    "Eye": Encoder,
    "Look": SpatialSoftmax,
    "Seen": Observation,
    "World": Environment,
}


def __getattr__(name: str) -> Any:
    return under_old_name(__name__, name, _OLD)


__all__ = [
    "MODELS",
    "PRESETS",
    "TASKS",
    "Behavior",
    "Contextual",
    "Demonstration",
    "Encoder",
    "Environment",
    "Imitation",
    "Observation",
    "Reach",
    "SpatialSoftmax",
    "Table",
    "Visuomotor",
    "Watching",
    "cloned",
    "cloning",
    "contextual",
    "daml",
    "mil",
    "visuomotor",
    "watching",
]
