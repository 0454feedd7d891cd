"""Metrics: the score of a learner, its direction, and its name and unit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

OLDER = {"accuracy": (True, "%"), "success": (True, "%"), "return": (True, "")}
"""Direction and unit of the metrics in old records, which have only the name. Every other metric is an error or a
loss: lower is better, and it has no unit."""


@dataclass(frozen=True)
class Scale:
    """The name, direction and unit of scores.

    Attributes:
        name: the name of the metric.
        higher_is_better: whether the higher of two scores is the better one.
        unit: the unit of the scores, such as ``"%"``; empty if they have none.
    """

    name: str
    higher_is_better: bool
    unit: str = ""

    def __post_init__(self) -> None:
        _check(self.name, self.higher_is_better, self.unit)

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Scale:
        """Return the scale of an evaluation in ``metrics.jsonl`` or ``results.json``.

        Only here are metrics known by their names, because records of older versions have nothing but the name.
        """
        name = str(record["metric"])
        higher, unit = OLDER.get(name, (False, ""))
        return cls(name, record.get("higher_is_better", higher), record.get("unit", unit))

    @classmethod
    def of(cls, metric: Any) -> Scale:
        """Return the scale of a `Metric`, of a `Scale`, or of the metric of an `InteractiveSource`."""
        if isinstance(metric, str) and metric in OLDER:
            return cls.read({"metric": metric})
        try:
            return cls(metric.name, metric.higher_is_better, metric.unit)
        except AttributeError:
            raise ValueError(
                f"the metric of an interactive source must be a scale, such as "
                f'innerloop.metrics.Scale("goals", higher_is_better=True), or one of {", ".join(map(repr, OLDER))}; '
                f"got {metric!r}"
            ) from None

    @property
    def label(self) -> str:
        """The title of an axis."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    @property
    def suffix(self) -> str:
        """The unit as it follows a number."""
        return f" {self.unit}" if self.unit else ""

    def digits(self, plain: str = ".4g") -> str:
        """Return the format of numbers: two decimals for percentages, else ``plain``."""
        return ".2f" if self.unit == "%" else plain


@dataclass(frozen=True)
class Metric:
    """A function that scores the predictions on the query set of one task, with its direction, name and unit.

    Args:
        function: ``(output, y) -> number``, with the model's output on the query examples first; returns a tensor
            without axes or a plain number. It can also be a torchmetrics object, which is reset before and after each
            task.
        higher_is_better: true if higher is better, as for an F1 score; false for errors and losses.
        name: the name for tables, figures and records; by default that of the function or the class.
        unit: the unit of the scores, such as ``"%"``; empty if they have none.

    Raises:
        TypeError: the function cannot be called, or ``higher_is_better`` is neither true nor false.
        ValueError: the function takes the targets first, as those of scikit-learn do.

    >>> import torch
    >>> def worst(output, y):
    ...     return (output - y).abs().max()
    >>> metric = Metric(worst, higher_is_better=False, unit="mm")
    >>> metric.name, metric.unit, float(metric(torch.zeros(3), torch.tensor([1.0, -2.0, 0.0])))
    ('worst', 'mm', 2.0)
    """

    function: Callable[[Any, Any], Any]
    higher_is_better: bool
    name: str = ""
    unit: str = ""

    def __post_init__(self) -> None:
        if not callable(self.function) or isinstance(self.function, type):
            hint = " instance: build it first" if isinstance(self.function, type) else " (output, y) -> number"
            raise TypeError(f"a metric needs a function{hint}; got {self.function!r}")
        if _module(self.function).partition(".")[0] == "sklearn":
            name = name_of(self.function)
            raise ValueError(
                f"scikit-learn's {name} takes the targets first, but a metric takes (output, y): wrap it, "
                f"il.Metric(lambda output, y: {name}(y, output), higher_is_better=..., name={name!r})"
            )
        object.__setattr__(self, "name", self.name or name_of(self.function) or "metric")
        _check(self.name, self.higher_is_better, self.unit)

    def __call__(self, output: Any, y: Any) -> Any:
        """Return the score of one task, as the function returns it."""
        return self.function(output, y)


def unwrapped(function: Any) -> Any:
    """Return the function behind ``functools.partial``."""
    while isinstance(function, partial):
        function = function.func
    return function


def name_of(function: Any) -> str:
    """Return the name of a function, or of the class of an object; empty for a lambda."""
    function = unwrapped(function)
    name = str(getattr(function, "__name__", type(function).__name__))
    return "" if name == "<lambda>" else name


def _module(function: Any) -> str:
    """Return the module in which a function, or the class of an object, was defined."""
    function = unwrapped(function)
    return str(getattr(function if hasattr(function, "__name__") else type(function), "__module__", ""))


def _check(name: Any, higher_is_better: Any, unit: Any) -> None:
    if not isinstance(higher_is_better, bool):
        raise TypeError(f"higher_is_better of the metric {name} must be True or False, got {higher_is_better!r}")
    for what, value in (("name", name), ("unit", unit)):
        if not isinstance(value, str):
            raise TypeError(f"the {what} of a metric must be a string, got {value!r}")


RETURN = Scale("return", higher_is_better=True)
"""The sum of rewards over an episode."""
SUCCESS = Scale("success", higher_is_better=True, unit="%")
"""The percentage of episodes in which the task was solved."""
