"""Meta-training and evaluation."""

from .ensemble import Ensemble
from .evaluate import METRICS, Evaluation, Metric, accuracy, evaluate
from .faults import NonFiniteError, OutOfMemoryError, load_failed
from .loggers import LOGGERS, Logger
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
