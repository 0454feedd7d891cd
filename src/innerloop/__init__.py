"""innerloop: gradient-based meta-learning in PyTorch.

A `MetaLearner` runs one inner loop: an `UpdateRule` moves the `Selection` of a model's parameters on each `Task`'s
support set, and an `Objective` computes one scalar per task, usually from the query set. The gradient of that scalar
is the meta-gradient.

The core imports only torch. `innerloop.data`, `innerloop.rl`, `innerloop.train`, `innerloop.use` and `innerloop.report`
are imported when first used.
"""

from __future__ import annotations

import importlib
from typing import Any

from . import losses, metrics, models, presets, rules, schedules
from .adapted import Adapted
from .common.errors import warn_of_old_name
from .episode import Episode, InnerLoss, Query, Step
from .initializations import Initialization, Prototypes
from .learner import MetaLearner
from .metrics import Metric
from .objectives import Implicit, Judgement, Objective, Outcome, Reptile, Unrolled
from .optimizers import (
    Adam,
    AdamW,
    Clip,
    ClipNorm,
    KroneckerCurvature,
    Momentum,
    Proximal,
    RMSprop,
    ScaleByAdam,
    ScaleByRMSprop,
    WeightDecay,
)
from .presets import (
    anil,
    boil,
    cavia,
    fomaml,
    imaml,
    maml,
    maml_plus_plus,
    meta_curvature,
    meta_sgd,
    protomaml,
    prototypical,
    reptile,
)
from .rules import SGD, Chain, ElementwiseSGD, GradientTransform, PerGroup, PerStepSGD, UpdateRule
from .select import Selection, adapters, body, everything, head, head_of, named, norms
from .task import Batch, FiniteSource, MixedSource, Padded, Params, Task, Tasks, TaskSource

__version__ = "0.2.0"

_LATER = {
    "Ensemble": "train.ensemble",
    "Evaluation": "train.evaluate",
    "FewShot": "data",
    "FewShotClassifier": "use",
    "FewShotRegressor": "use",
    "Pretrained": "use",
    "Sinusoid": "data",
    "Strokes": "data",
    "Trainer": "train.trainer",
    "evaluate": "train.evaluate",
    "load_ensemble": "recipe.config",
    "load_run": "recipe.config",
    "load_weights": "weights",
    "task_contexts": "functional.checkpointing",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(f".{_LATER[name]}", __name__), name)
    if name == "Initialisation":
        warn_of_old_name(name, "Initialization")
        return Initialization
    if name in ("data", "imitation", "recipe", "report", "rl", "testing", "train", "use"):
        return importlib.import_module(f".{name}", __name__)
    if name in ("checkpointing", "config"):  # these modules exist for older programs only
        return importlib.import_module({"config": ".recipe.config"}.get(name, ".functional.checkpointing"), __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Adapted",
    "Batch",
    "Chain",
    "Clip",
    "ClipNorm",
    "ElementwiseSGD",
    "Ensemble",
    "Episode",
    "Evaluation",
    "FewShot",
    "FewShotClassifier",
    "FewShotRegressor",
    "FiniteSource",
    "GradientTransform",
    "Implicit",
    "Initialization",
    "InnerLoss",
    "Judgement",
    "KroneckerCurvature",
    "MetaLearner",
    "Metric",
    "MixedSource",
    "Momentum",
    "Objective",
    "Outcome",
    "Padded",
    "Params",
    "PerGroup",
    "PerStepSGD",
    "Pretrained",
    "Prototypes",
    "Proximal",
    "Query",
    "RMSprop",
    "Reptile",
    "ScaleByAdam",
    "ScaleByRMSprop",
    "Selection",
    "Sinusoid",
    "Step",
    "Strokes",
    "Task",
    "TaskSource",
    "Tasks",
    "Trainer",
    "Unrolled",
    "UpdateRule",
    "WeightDecay",
    "adapters",
    "anil",
    "body",
    "boil",
    "cavia",
    "config",
    "data",
    "evaluate",
    "everything",
    "fomaml",
    "head",
    "head_of",
    "imaml",
    "load_ensemble",
    "load_run",
    "load_weights",
    "losses",
    "maml",
    "maml_plus_plus",
    "meta_curvature",
    "meta_sgd",
    "metrics",
    "models",
    "named",
    "norms",
    "presets",
    "protomaml",
    "prototypical",
    "report",
    "reptile",
    "rl",
    "rules",
    "schedules",
    "task_contexts",
    "testing",
    "train",
    "use",
]
