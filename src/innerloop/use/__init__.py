"""Use a meta-trained model: adapt it to a few examples, save it, share it.

`FewShotClassifier` and `FewShotRegressor` need scikit-learn, which is imported when they are first used.
"""

import importlib
from typing import Any

from .adapting import read_pictures
from .expectation import Expectation
from .heads import Head, with_classes
from .pretrained import Pretrained, shipped
from .saved import Classifier

_LATER = {"FewShotClassifier": "estimators", "FewShotRegressor": "estimators"}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(f".{_LATER[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "Classifier",
    "Expectation",
    "FewShotClassifier",
    "FewShotRegressor",
    "Head",
    "Pretrained",
    "read_pictures",
    "shipped",
    "with_classes",
]
