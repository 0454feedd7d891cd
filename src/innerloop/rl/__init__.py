"""Meta-reinforcement learning: tasks are Markov decision processes, and the policy collects the data.

`Workers`, `WorkerError` and `VectorTasks`, which need Gymnasium, are imported when first used.
"""

from __future__ import annotations

import importlib
from typing import Any

from ..common.errors import under_old_name
from .advantages import LinearBaseline, ValueFunction, discounted, generalized
from .distributions import Categorical, Gaussian
from .environments import Bandit, Environment, Navigation, Step, Tabular, TabularTask, best_arm
from .interaction import Experience, Interaction
from .locomotion import Locomotion
from .losses import Along, Clipped, Decisions, InnerDivergence, Judging, Penalized, Sampling, divergence, ratio, score
from .outer import PPO, TRPO
from .policies import CategoricalPolicy, GaussianPolicy, categorical_policy, gaussian_policy
from .presets import (
    PRESETS,
    anil_trpo,
    cavia_trpo,
    e_maml,
    fomaml_trpo,
    maml_trpo,
    meta_sgd_trpo,
    promp,
    trpo,
)
from .rollouts import Rollout, rollout
from .tasks import TASKS

MODELS = {"gaussian-policy": gaussian_policy, "categorical-policy": categorical_policy}
"""The policies that a recipe can name."""

_OLD = {"Episodes": Rollout, "Lived": Experience, "Penalised": Penalized, "generalised": generalized}
_LATER = {"VectorTasks": "workers", "WorkerError": "workers", "Workers": "workers"}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        return under_old_name(__name__, name, _OLD)
    try:
        return getattr(importlib.import_module(f".{_LATER[name]}", __name__), name)
    except ModuleNotFoundError as error:
        raise ImportError(f"{name} needs NumPy, and environments Gymnasium: pip install 'innerloop[rl]'") from error


__all__ = [
    "MODELS",
    "PPO",
    "PRESETS",
    "TASKS",
    "TRPO",
    "Along",
    "Bandit",
    "Categorical",
    "CategoricalPolicy",
    "Clipped",
    "Decisions",
    "Environment",
    "Experience",
    "Gaussian",
    "GaussianPolicy",
    "InnerDivergence",
    "Interaction",
    "Judging",
    "LinearBaseline",
    "Locomotion",
    "Navigation",
    "Penalized",
    "Rollout",
    "Sampling",
    "Step",
    "Tabular",
    "TabularTask",
    "ValueFunction",
    "anil_trpo",
    "best_arm",
    "categorical_policy",
    "cavia_trpo",
    "discounted",
    "divergence",
    "e_maml",
    "fomaml_trpo",
    "gaussian_policy",
    "generalized",
    "maml_trpo",
    "meta_sgd_trpo",
    "promp",
    "ratio",
    "rollout",
    "score",
    "trpo",
]
