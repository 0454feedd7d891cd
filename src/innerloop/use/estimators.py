"""Few-shot learners as scikit-learn estimators, whose ``fit`` adapts a meta-trained model to a few examples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common.ranges import require_at_least
from ..learner import MetaLearner
from ..task import Batch
from ..train.calibration import plain, temperature
from ..train.metrics import kind
from .expectation import Expectation, left_out
from .heads import Head, with_classes
from .pictures import input_shape
from .pretrained import Pretrained
from .saved import require_finite

try:
    import numpy as np
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError("the estimators need scikit-learn: pip install 'innerloop[use]'") from error

Source = str | Path | Pretrained | MetaLearner | Callable[[int, int], MetaLearner]
"""The model of an estimator: what `Pretrained.load` takes, a learner, or ``(features, outputs) -> learner``."""

MOST = 100
"""The largest number of examples that are left out in turn."""


class _FewShot(BaseEstimator):  # type: ignore[misc]
    """The code that both estimators share."""

    model: Source
    steps: int | None

    def _learner(self, features: int, outputs: int) -> Pretrained:
        """Return the model, in whichever form it was given."""
        if isinstance(self.model, Pretrained):
            return self.model
        if isinstance(self.model, MetaLearner):
            return Pretrained(self.model)
        if callable(self.model):
            return Pretrained(self.model(features, outputs))
        return Pretrained.load(self.model)

    def _examples(self, x: Any, y: Any, **checks: Any) -> tuple[Tensor, Any]:
        """Check inputs and targets; return the inputs as float32 in their own shape."""
        x, shape = _flat(x)
        x, y = validate_data(self, x, y, dtype=np.float32, order="C", **checks)
        return torch.from_numpy(np.array(x)).view(len(x), *(shape or x.shape[1:])), y

    def _adapt(self, support: Batch) -> Callable[[Tensor], Tensor]:
        return plain(self.learner_.adapt(support, self.steps, transductive=False))

    def _outputs(self, x: Any) -> Tensor:
        """Return the outputs for inputs ``[N, ...]``."""
        check_is_fitted(self)
        array = validate_data(self, _flat(x)[0], reset=False, dtype=np.float32, order="C")
        tensor = torch.from_numpy(np.array(array)).view(len(array), *self.shape_)
        with torch.no_grad():
            return self.predictor_(tensor.to(self.device_, self.dtype_)).cpu()

    def _fit(self, x: Tensor, y: Tensor) -> None:
        """Adapt `learner_`, which must be set."""
        if self.steps is not None:
            require_at_least(0, steps=self.steps)
        like = next(p for p in self.learner_.parameters() if p.is_floating_point())
        self.device_, self.dtype_ = like.device, like.dtype
        targets = y.to(self.dtype_) if y.is_floating_point() else y
        self.support_ = Batch(x.to(self.device_, self.dtype_), targets.to(self.device_))
        adapted = self.learner_.adapt(self.support_, self.steps, transductive=False)
        self.predictor_, self.losses_ = plain(adapted), adapted.losses.cpu()

    def module(self) -> torch.nn.Module:
        """Return the adapted model as a plain module; see `Adapted.module`."""
        check_is_fitted(self)
        learner: MetaLearner = self.learner_
        return learner.adapt(self.support_, self.steps, transductive=False).module()


class FewShotClassifier(ClassifierMixin, _FewShot):  # type: ignore[misc]
    """A meta-trained classifier that ``fit`` adapts to the given examples.

    It takes any number of classes, and different numbers of examples in each. Each new example is classified by itself.

    Args:
        model: a run directory, a folder of `Pretrained.save_pretrained`, the name of a model that comes with the
            package, a `Pretrained`, a `MetaLearner`, or a function ``(features, classes) -> MetaLearner``.
        steps: the number of inner steps; None takes that of training.
        head: how the head is initialized, required for more classes than were trained; see
            `innerloop.use.with_classes`.

    Attributes:
        classes_: the labels, sorted.
        learner_: the `MetaLearner`, with a head for these classes.
        losses_: the support loss before each step and after the last, ``[K + 1]``.
        temperature_: the divisor of the logits that calibrates probabilities. It is fitted to examples left out in
            turn, around the temperature of meta-validation (or 1), which is used if every class has one example.
        expectation_: the accuracy on these, an `Expectation`; None if every class has only one example.
        n_features_in_: the number of values of an input.

    Inputs are ``[N, ...]`` in the shape that the model takes, or flattened, ``[N, D]``. Pictures are in [0, 1], and
    drawings are light on dark. `innerloop.use.read_pictures` reads files into this form.
    """

    def __init__(self, model: Source = "strokes", *, steps: int | None = None, head: Head | None = None) -> None:
        self.model, self.steps, self.head = model, steps, head

    def fit(self, X: Any, y: Any) -> FewShotClassifier:  # noqa: N803 - scikit-learn's names
        """Adapt to inputs ``[N, ...]`` and their labels ``[N]``.

        Raises:
            ValueError: there are fewer than two classes, or more than the head takes, or the model cannot take the
                inputs.
        """
        x, labels = self._examples(X, y)
        check_classification_targets(labels)
        self.classes_, codes = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"a classifier needs at least 2 classes, got only one class: {self.classes_[0]}")
        pretrained = self._learner(self.n_features_in_, len(self.classes_))
        self.learner_ = with_classes(pretrained.learner, len(self.classes_), self.head)
        x = _shaped(x, pretrained)
        self.shape_ = tuple(x.shape[1:])
        order = _shot_by_shot(codes)
        self._fit(x[order], torch.from_numpy(codes)[order])
        self._calibrate(pretrained.temperature)
        return self

    def _calibrate(self, around: float | None) -> None:
        logits, targets = (t.cpu() for t in left_out(self._adapt, self.support_, MOST))
        self.temperature_, self.expectation_ = around or 1.0, None
        if len(targets):
            require_finite(logits)
            self.temperature_ = temperature(logits, targets, around or 1.0)
            self.expectation_ = Expectation.of(int((logits.argmax(1) == targets).sum()), len(targets))

    def predict_proba(self, X: Any) -> Any:  # noqa: N803
        """Return probabilities ``[N, classes]``, in the order of ``classes_``."""
        return torch.softmax(require_finite(self._outputs(X)).double() / self.temperature_, 1).numpy()

    def predict(self, X: Any) -> Any:  # noqa: N803
        """Return the most probable labels ``[N]``."""
        outputs = require_finite(self._outputs(X))
        return self.classes_[outputs.argmax(1).numpy()]


class FewShotRegressor(RegressorMixin, _FewShot):  # type: ignore[misc]
    """A meta-trained regressor that ``fit`` adapts to the given examples.

    Args:
        model: see `FewShotClassifier`; a function gets the numbers of features and of targets.
        steps: the number of inner steps; None takes that of training.

    Attributes:
        learner_: the `MetaLearner`.
        losses_: the support loss before each step and after the last, ``[K + 1]``.
        n_features_in_: the number of features.
    """

    def __init__(self, model: Source = "sinusoid", *, steps: int | None = None) -> None:
        self.model, self.steps = model, steps

    def fit(self, X: Any, y: Any) -> FewShotRegressor:  # noqa: N803
        """Adapt to inputs ``[N, D]`` and targets ``[N]`` or ``[N, M]``."""
        x, given = self._examples(X, y, multi_output=True, y_numeric=True)
        targets = torch.from_numpy(given.astype(np.float32)).view(len(x), -1)
        self.single_, self.targets_ = given.ndim == 1, targets.shape[1]
        pretrained = self._learner(self.n_features_in_, targets.shape[1])
        if kind(pretrained.learner.loss) == "classes":
            raise ValueError(f"{pretrained.name} is a classifier: use FewShotClassifier")
        if kind(pretrained.learner.loss) == "logits":
            raise ValueError(
                f"{pretrained.name} returns logits of yes or no (its loss is binary cross-entropy): use a model "
                "trained with a regression loss, such as F.mse_loss"
            )
        self.learner_, x = pretrained.learner, _shaped(x, pretrained)
        self.shape_ = tuple(x.shape[1:])
        self._fit(x, targets)
        return self

    def predict(self, X: Any) -> Any:  # noqa: N803
        """Return targets ``[N]`` or ``[N, M]``, in the shape that `fit` got."""
        outputs = self._outputs(X).double().numpy()
        if outputs.shape[1:] != (self.targets_,):
            raise ValueError(
                f"the model returns outputs of shape {outputs.shape[1:]} for each input, but fit() got {self.targets_} "
                f"targets for each: use a model with outputs of shape ({self.targets_},)"
            )
        return outputs[:, 0] if self.single_ else outputs

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


def _flat(x: Any) -> tuple[Any, tuple[int, ...]]:
    """Flatten inputs of more than two axes, and return the shape of each; leave others as they are."""
    x = np.asarray(x) if isinstance(x, Tensor | list | tuple) else x
    if getattr(x, "ndim", 2) <= 2:
        return x, ()
    return np.asarray(x).reshape(len(x), -1), tuple(x.shape[1:])


def _shaped(x: Tensor, model: Pretrained) -> Tensor:
    """Give flattened pictures their shape; reject inputs that the model cannot take.

    Raises:
        ValueError: the shape is not the recipe's, or pictures are not in [0, 1].
    """
    given = model.recipe.get("model", {})
    if (pictured := input_shape(model.recipe)) is not None:
        shape = list(pictured)
    elif given.get("name") == "mlp":
        shape = given["sizes"][:1]
    else:
        return x
    if x[0].numel() != torch.Size(shape).numel():
        raise ValueError(f"{model.name} takes inputs of shape {tuple(shape)}, or flattened, got {tuple(x.shape[1:])}")
    if len(shape) == 3 and x.min() >= 0 and x.max() > 1:
        raise ValueError(f"{model.name} takes pictures in [0, 1], got values up to {x.max():g}: divide by 255")
    return x.view(len(x), *shape)


def _shot_by_shot(codes: Any) -> Tensor:
    """Return an order in which the classes alternate, as in meta-training, where inner steps may take slices."""
    seen: dict[int, int] = {}
    turns = []
    for code in codes.tolist():
        turns.append((seen.setdefault(code, 0), code))
        seen[code] += 1
    return torch.tensor(sorted(range(len(turns)), key=turns.__getitem__))
