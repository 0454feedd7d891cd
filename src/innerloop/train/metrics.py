"""The choice of a metric for an evaluation, and the score of a task by a metric."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from ..common import private
from ..common.errors import is_out_of_memory
from ..losses import LOSSES
from ..metrics import Metric, name_of, unwrapped
from .accuracy import DoesNotFitError, accuracy, floating, number, require_same_shape, shape

Judged = str | Metric | Callable[..., Any]
"""A metric as users give it: a name of `METRICS`, a `Metric`, a torchmetrics object, or a loss."""


def _root_mean_square(output: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(output, y).sqrt()


METRICS: dict[str, Metric] = {
    "accuracy": Metric(accuracy, True, "accuracy", "%"),
    "mse": Metric(F.mse_loss, False, "mse"),
    "rmse": Metric(_root_mean_square, False, "rmse"),
    **{name: Metric(loss, False, name) for name, loss in LOSSES.items() if name != "mse"},
}
"""The metrics with a name, which recipes and the command line use. Errors and losses are better when lower."""

SAME_SHAPE = (
    "binary_cross_entropy", "binary_cross_entropy_with_logits", "hinge_embedding_loss", "huber_loss", "kl_div",
    "l1_loss", "mse_loss", "multilabel_soft_margin_loss", "poisson_nll_loss", "smooth_l1_loss", "soft_margin_loss",
)  # fmt: skip
"""Losses of torch that compare each element of the output with its own target, and broadcast if shapes differ."""
SAME_SHAPE_CLASSES = (
    nn.BCELoss, nn.BCEWithLogitsLoss, nn.HingeEmbeddingLoss, nn.HuberLoss, nn.KLDivLoss, nn.L1Loss, nn.MSELoss,
    nn.MultiLabelSoftMarginLoss, nn.PoissonNLLLoss, nn.SmoothL1Loss, nn.SoftMarginLoss,
)  # fmt: skip
NOT_NAMED_LOSS = ("cross_entropy", "binary_cross_entropy", "binary_cross_entropy_with_logits", "kl_div")
"""Losses of torch with names that do not end in ``_loss``."""
LIKE_NAMED: dict[type, Any] = {
    nn.CrossEntropyLoss: F.cross_entropy,
    nn.BCEWithLogitsLoss: F.binary_cross_entropy_with_logits,
    nn.MSELoss: F.mse_loss,
    nn.L1Loss: F.l1_loss,
}
"""Loss classes that get the name of the corresponding function."""


# -- choosing a metric ------------------------------------------------------------------------------------------------


def chosen(metric: Judged | None, loss: Any) -> Metric | None:
    """Convert a metric as users give it to a `Metric`; return ``None`` for the default.

    Args:
        metric: a name, a `Metric`, a torchmetrics object, the learner's loss, or a loss of torch.
        loss: the learner's outer loss.

    Raises:
        TypeError: ``metric`` cannot be a metric.
        ValueError: the name is unknown, or the direction of a function is unknown.
    """
    if metric is None:
        return None
    if isinstance(metric, str):
        if metric not in METRICS:
            raise ValueError(f"unknown metric {metric!r}: give one of {', '.join(METRICS)}, or an il.Metric")
        metric = METRICS[metric]
    elif not isinstance(metric, Metric):
        metric = _described(metric, loss)
    if unwrapped(metric.function) is accuracy:
        given = metric.function.keywords if isinstance(metric.function, partial) else {}
        return replace(metric, function=partial(accuracy, **{**_reading(loss), **given}))
    return metric


def default(loss: Any, y: Any) -> Metric:
    """Return the default metric of a learner.

    It is accuracy if the outer loss is plain cross-entropy and the targets are class indices, else the outer loss.
    """
    if tells_classes(loss, y):
        return replace(METRICS["accuracy"], function=partial(accuracy, **_reading(loss)))
    like = LIKE_NAMED.get(type(loss), loss)
    named = next((name for name, known in LOSSES.items() if known is like), None)
    plain = name_of(loss) if not isinstance(loss, partial) else ""
    return Metric(loss, False, named or plain or "loss")


def tells_classes(loss: Any, y: Any) -> bool:
    """Return whether a loss is plain cross-entropy and the targets are class indices."""
    module = type(loss) is nn.CrossEntropyLoss and loss.weight is None and not loss.label_smoothing
    return (module or loss is F.cross_entropy) and isinstance(y, Tensor) and _is_integer(y)


def _is_integer(y: Tensor) -> bool:
    return not (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool)


def ignored(loss: Any) -> int:
    """Return the class index that a cross-entropy ignores."""
    keywords = loss.keywords if isinstance(loss, partial) else {}
    return int(keywords.get("ignore_index", getattr(loss, "ignore_index", -100)))


def kind(loss: Any) -> str:
    """Return the kind of outputs that a loss takes, or ``""`` if it is unknown.

    The kinds are ``"classes"`` (logits, the classes along axis 1), ``"logits"`` and ``"probabilities"`` (both binary,
    each output by itself).
    """
    loss = unwrapped(loss)
    if loss is F.cross_entropy or isinstance(loss, nn.CrossEntropyLoss):
        return "classes"
    if loss is F.binary_cross_entropy_with_logits or isinstance(loss, nn.BCEWithLogitsLoss):
        return "logits"
    if loss is F.binary_cross_entropy or isinstance(loss, nn.BCELoss):
        return "probabilities"
    return ""


def compares_numbers(loss: Any) -> bool:
    """Return whether a loss compares each number of the output with its own target, as the squared error does."""
    loss = unwrapped(loss)
    functions = (F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss)
    return loss in functions or isinstance(loss, nn.MSELoss | nn.L1Loss | nn.SmoothL1Loss | nn.HuberLoss)


def _reading(loss: Any) -> dict[str, Any]:
    return {"ignore_index": ignored(loss), "outputs": kind(loss)}


def _described(metric: Any, loss: Any) -> Metric:
    """Make a `Metric` from a function or class, if its direction is known."""
    if metric is loss or (isinstance(metric, MethodType) and metric == loss):
        return default(loss, None)
    for known in METRICS.values():
        if metric is known.function and known.function is accuracy:
            return known
    if isinstance(metric, type):
        metric = _instance(metric)
    if not callable(metric):
        raise TypeError(
            f"a metric must be a name ({', '.join(METRICS)}), an il.Metric, a torchmetrics object, or a loss of torch; "
            f"got {metric!r}"
        )
    higher = False if _is_loss(metric) else direction(metric)
    if higher is None:
        name = name_of(metric) or "f"
        raise ValueError(
            f"it is unknown whether higher is better for the metric {name}: give il.Metric({name}, "
            "higher_is_better=True), or False"
        )
    return Metric(metric, higher)


def _is_loss(metric: Any) -> bool:
    if isinstance(metric, private.Loss):
        return True
    function = unwrapped(metric)
    name = name_of(function)
    return (name.endswith("_loss") or name in NOT_NAMED_LOSS) and getattr(F, name, None) is function


def _instance(kind: type) -> Any:
    """Make a metric object or a loss from its class, without arguments."""
    try:
        return kind()
    except Exception as error:
        raise ValueError(
            f"the metric {kind.__name__} is a class that cannot be built without arguments ({error}): give an "
            f"instance, {kind.__name__}(...)"
        ) from error


# -- metrics of torchmetrics, which is never imported here ------------------------------------------------------------


def direction(metric: Any) -> bool | None:
    """Return whether higher is better, as torchmetrics defines it; ``None`` if it is unknown.

    Metric objects have an attribute for it; for functions it is that of the class of the same name
    (``MeanSquaredError`` for ``mean_squared_error``).
    """
    own = getattr(metric, "higher_is_better", None)
    if isinstance(own, bool):
        return own
    function = unwrapped(metric)
    package = str(getattr(function, "__module__", "")).partition(".")[0]
    if package != "torchmetrics" or package not in sys.modules:
        return None
    plain = name_of(function).replace("_", "").lower()
    wanted = {plain, f"binary{plain}", f"multiclass{plain}", f"multilabel{plain}"}
    modules = [module for name, module in list(sys.modules.items()) if name.partition(".")[0] == package]
    classes = [c for m in modules for n, c in list(vars(m).items()) if n.lower() in wanted and isinstance(c, type)]
    answers = {own for c in classes if isinstance(own := getattr(c, "higher_is_better", None), bool)}
    return answers.pop() if len(answers) == 1 else None


def _is_stateful(function: Any) -> bool:
    """Return whether a metric is an object that accumulates values until it is reset."""
    return all(callable(getattr(function, name, None)) for name in ("update", "compute", "reset"))


def _call_stateful(function: Any, output: Any, y: Any) -> Any:
    """Return the value for one task alone.

    The ``forward`` method of torchmetrics returns it without synchronizing with other processes, which evaluate other
    tasks; ``compute`` would synchronize.
    """
    device = getattr(function, "device", None)
    if isinstance(device, torch.device):
        output, y = (pytree.tree_map_only(Tensor, lambda t: t.to(device), part) for part in (output, y))
    function.reset()
    try:
        if callable(function):
            return function(output, y)
        function.update(output, y)
        return function.compute()
    finally:
        function.reset()


def _as_probabilities(output: Any, y: Any, outputs: str) -> tuple[Any, Any]:
    """Convert outputs and targets to what torchmetrics' classification metrics expect.

    These metrics infer from the values whether outputs are logits, and would take logits that happen to lie in [0, 1]
    for probabilities. They need integers as binary targets.
    """
    if isinstance(output, Tensor) and output.is_floating_point():
        if outputs == "classes" and output.ndim > 1:
            output = output.softmax(1)
        elif outputs == "logits":
            output = output.sigmoid()
    yes_or_no = isinstance(y, Tensor) and y.is_floating_point() and outputs in ("logits", "probabilities")
    return output, y.long() if yes_or_no and bool(((y == 0) | (y == 1)).all()) else y


# -- scores -----------------------------------------------------------------------------------------------------------


class Judge:
    """Computes the score of a task by a metric.

    Args:
        metric: the metric.
        loss: the learner's outer loss, which determines the kind of outputs.
    """

    def __init__(self, metric: Metric, loss: Any) -> None:
        self.metric, self.outputs = metric, kind(loss)
        function, plain = metric.function, unwrapped(metric.function)
        named = getattr(F, name_of(plain), None) is plain and name_of(plain) in SAME_SHAPE
        self.same_shape = named or plain is _root_mean_square or isinstance(plain, SAME_SHAPE_CLASSES)
        self.knows_nan = plain is accuracy or function is loss
        self.stateful = _is_stateful(function)
        module = str(getattr(plain if hasattr(plain, "__name__") else type(plain), "__module__", ""))
        self.probabilities = module.startswith("torchmetrics.") and ".classification." in f"{module}."

    @torch.no_grad()
    def __call__(self, output: Any, y: Any) -> Tensor:
        """Return the score, a tensor without axes.

        Args:
            output: the model's output on the query examples of one task, ``[Q, ...]``.
            y: their targets.

        Raises:
            ValueError: the metric does not fit the output and the targets, or does not return one number.
        """
        if self.same_shape:
            require_same_shape(self.metric.name, output, y)
        output, y = pytree.tree_map_only(Tensor, Tensor.clone, (output, y))  # the metric may write to them
        if not self.knows_nan and any(bool(leaf.isnan().any()) for leaf in floating(output)):
            return torch.tensor(torch.nan, device=floating(output)[0].device)
        try:
            value = self._value(output, y)
        except Exception as error:
            if isinstance(error, DoesNotFitError) or is_out_of_memory(error):
                raise
            raise DoesNotFitError(
                f"the metric {self.metric.name} does not fit: it raised {type(error).__name__}: {error} (outputs of "
                f"shape {shape(output)}, targets of shape {shape(y)})"
            ) from error
        return number(self.metric.name, value)

    def _value(self, output: Any, y: Any) -> Any:
        if self.probabilities:
            output, y = _as_probabilities(output, y, self.outputs)
        if self.stateful:
            return _call_stateful(self.metric.function, output, y)
        return self.metric(output, y)
