"""Meta-training and evaluation."""

from ..metrics import Metric
from .accuracy import accuracy
from .ensemble import Ensemble
from .evaluate import Evaluation, evaluate
from .faults import NonFiniteError, OutOfMemoryError, load_failed
from .loggers import LOGGERS, Logger
from .metrics import METRICS
from .signals import Interrupted
from .trainer import Result, Stateful, Trainer
from .world import LostProcessError, World, joined

__all__ = [
    "LOGGERS",
    "METRICS",
    "Ensemble",
    "Evaluation",
    "Interrupted",
    "Logger",
    "LostProcessError",
    "Metric",
    "NonFiniteError",
    "OutOfMemoryError",
    "Result",
    "Stateful",
    "Trainer",
    "World",
    "accuracy",
    "evaluate",
    "joined",
    "load_failed",
]
