"""Meta-training and evaluation."""

from .ensemble import Ensemble
from .evaluate import METRICS, Evaluation, Metric, accuracy, evaluate
from .loggers import LOGGERS, Logger
from .signals import Interrupted
from .trainer import NonFiniteError, Result, Trainer

__all__ = [
    "LOGGERS",
    "METRICS",
    "Ensemble",
    "Evaluation",
    "Interrupted",
    "Logger",
    "Metric",
    "NonFiniteError",
    "Result",
    "Trainer",
    "accuracy",
    "evaluate",
]
