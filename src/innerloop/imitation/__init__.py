"""One-shot imitation from a video of somebody else: the inner loss is learned, since a video has no actions."""

from .plane import Reach
from .policies import (
    MODELS,
    Behaviour,
    Contextual,
    Eye,
    Look,
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
from .worlds import Demonstration, Seen, World

__all__ = [
    "MODELS",
    "PRESETS",
    "TASKS",
    "Behaviour",
    "Contextual",
    "Demonstration",
    "Eye",
    "Imitation",
    "Look",
    "Reach",
    "Seen",
    "Table",
    "Visuomotor",
    "Watching",
    "World",
    "cloned",
    "cloning",
    "contextual",
    "daml",
    "mil",
    "visuomotor",
    "watching",
]
