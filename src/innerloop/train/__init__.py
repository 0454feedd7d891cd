"""Meta-training and evaluation."""

from .ensemble import Ensemble
from .evaluate import METRICS, Evaluation, Metric, accuracy, evaluate
from .signals import Interrupted
from .trainer import NonFiniteError, Result, Trainer

__all__ = [
    "METRICS",
    "Ensemble",
    "Evaluation",
    "Interrupted",
    "Metric",
    "NonFiniteError",
    "Result",
    "Trainer",
    "accuracy",
    "evaluate",
]
