"""Update rules: how one inner step turns gradients into updates of the adapted parameters.

A rule is an ``nn.Module``, so its parameters that require a gradient are meta-learned together with the model. Rules
that only transform the gradient are `GradientTransform`s (see `optimizers`). A `Chain` puts them in front of a rule
that takes the step, and `PerGroup` gives groups of parameters different rules:

>>> from innerloop import Clip, Momentum
>>> rule = Chain(Clip(10.0), Momentum(0.9), SGD(0.01))
>>> rule.bind({"w": torch.zeros(3)}, steps=1)
>>> state = rule.init({"w": torch.zeros(3)})
>>> updates, state = rule({"w": torch.full((3,), 99.0)}, {"w": torch.zeros(3)}, state, 0)
>>> updates["w"]
tensor([-0.1000, -0.1000, -0.1000])
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from .task import Params
from .updates import require_dense, require_kept, require_updates


class UpdateRule(nn.Module, ABC):
    """Base class of inner updates. Your own rule needs only `forward`; `innerloop.testing.check_rule` checks it.

    Raises:
        ValueError: when called, if a gradient is sparse, or an update is missing or does not have the shape and type of
            its parameter.
    """

    citation: ClassVar[str] = ""

    def bind(self, params: Params, steps: int) -> None:  # most rules hold nothing per parameter
        """Make what depends on the adapted parameters or on the number of steps. The learner calls this once.

        Args:
            params: the adapted parameters of the model.
            steps: the number K of inner steps that training takes.
        """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        inner = inspect.signature(cls.forward).parameters.get("inner")
        cls.asks = inner is not None
        cls._needs = inner is not None and inner.default is inspect.Parameter.empty

    asks: ClassVar[bool] = False
    """Whether `forward` takes the inner loss."""
    _needs: ClassVar[bool] = False

    def __call__(self, grads: Params, params: Params, state: Any, step: int, inner: Any = None) -> tuple[Params, Any]:
        """Call `forward`, and check its arguments and its result."""
        require_dense(grads)
        if self._needs and inner is None:
            raise ValueError(
                f"{type(self).__name__} needs the inner loss, but did not get it: pass it in the call, as in "
                "rule(grads, params, state, step, inner)"
            )
        asked = {"inner": inner} if self.asks else {}
        result = super().__call__(grads, params, state, step, **asked)
        return require_updates(result, grads, params, type(self).__name__)

    def init(self, params: Params) -> Any:
        """Return the state before the first step on a task, a pytree of tensors such as velocities."""
        return ()

    def rates(self) -> Params:
        """Return the meta-learned rates, ``[K]`` or scalars, by the name of their parameter ("" for all)."""
        return {}

    def kept(self, state: Any) -> Params:
        """Return the part of the state after a task's last step that later tasks use; most rules have none.

        `MetaLearner.meta_gradient` passes its mean over the tasks of a meta-batch to `keep` if the mean is finite.
        """
        return {}

    def keep(self, mean: Params) -> None:
        """Store the mean of `kept` over tasks, for example in buffers that `init` then starts from."""

    @abstractmethod
    def forward(self, grads: Params, params: Params, state: Any, step: int) -> tuple[Params, Any]:
        """Take one inner step.

        A rule that needs the inner loss at other points than ``params`` (a line search, sharpness-aware steps) has an
        additional keyword argument ``inner``: ``inner.loss(params)`` and ``inner.gradient(params)`` use the step's
        mini-batch, and gradients can be differentiated if ``inner.order`` is 2 (`innerloop.InnerLoss`).

        Args:
            grads: the gradient of the inner loss, by name.
            params: the parameters at which it was computed, under the same names.
            state: the state that `init` or the previous step returned.
            step: the index of this step, from 0; it may exceed the trained number of steps.

        Returns:
            The updates, which are *added* to the parameters, and the new state.
        """


class GradientTransform(UpdateRule, ABC):
    """A rule that returns a transformed gradient: in a `Chain`, another rule after it takes the step."""


class Composed(UpdateRule, ABC):
    """A rule that is composed of other ``rules``; its state is the tuple of their states."""

    def __init__(self, rules: Iterable[UpdateRule]) -> None:
        super().__init__()
        self.rules = nn.ModuleList(rules)

    def __iter__(self) -> Iterator[UpdateRule]:
        return iter(self.rules)  # type: ignore[arg-type]

    def kept(self, state: Any) -> Params:
        """Return what all rules keep for later tasks, under the number of the rule and the name."""
        return {
            f"{number}.{name}": tensor
            for number, (rule, own) in enumerate(zip(self, state, strict=True))
            for name, tensor in require_kept(rule.kept(own), rule).items()
        }

    def keep(self, mean: Params) -> None:
        """Pass to each rule its own part."""
        for number, rule in enumerate(self):
            start = f"{number}."
            rule.keep({name.removeprefix(start): t for name, t in mean.items() if name.startswith(start)})


class Chain(Composed):
    """Applies rules one after another: each transforms the gradient for the next, and the last takes the step.

    Args:
        rules: gradient transforms, followed by one rule that takes the step.

    Raises:
        ValueError: there are no rules, a rule before the last takes a step, or the last only transforms.
    """

    def __init__(self, *rules: UpdateRule) -> None:
        names = [type(rule).__name__ for rule in rules]
        if not rules or not all(isinstance(rule, GradientTransform) for rule in rules[:-1]):
            raise ValueError(f"a Chain takes gradient transforms followed by one rule that takes the step; got {names}")
        require_step(rules[-1])
        super().__init__(rules)

    def bind(self, params: Params, steps: int) -> None:
        """Bind each rule."""
        for rule in self:
            rule.bind(params, steps)

    def init(self, params: Params) -> Any:
        """Return the tuple of the states of all rules."""
        return tuple(rule.init(params) for rule in self)

    def rates(self) -> Params:
        """Return the meta-learned rates of all rules."""
        return {name: rate for rule in self for name, rate in rule.rates().items()}

    def forward(self, grads: Params, params: Params, state: Any, step: int, *, inner: Any = None) -> tuple[Params, Any]:
        """Pass the gradient through all rules; return the updates of the last and the new states."""
        states = []
        for rule, before in zip(self, state, strict=True):
            grads, after = rule(grads, params, before, step, inner)
            states.append(after)
        return grads, tuple(states)


class PerGroup(Composed):
    """Different rules for groups of parameters, similar to the parameter groups of ``torch.optim``.

    >>> rule = PerGroup({"head.*": SGD(0.1), "*": SGD(0.01)})

    Args:
        groups: rules by a pattern of parameter names, with ``*`` for any characters. The first pattern that matches a
            parameter counts.

    Raises:
        ValueError: there are no groups, or the rule of a group only transforms gradients; in `bind`, if no pattern
            matches a parameter, or no parameter is left for a pattern.
    """

    def __init__(self, groups: Mapping[str, UpdateRule]) -> None:
        if not groups:
            raise ValueError('PerGroup needs at least one pattern of names with a rule, such as {"*": SGD(0.01)}')
        for rule in groups.values():
            require_step(rule)
        super().__init__(groups.values())
        self.patterns = tuple(groups)
        self._names: list[list[str]] = []

    def bind(self, params: Params, steps: int) -> None:
        """Find the group of each parameter, and bind each rule to the parameters of its group."""
        groups: list[list[str]] = [[] for _ in self.patterns]
        for name in params:
            matching = [number for number, pattern in enumerate(self.patterns) if fnmatchcase(name, pattern)]
            if not matching:
                raise ValueError(
                    f"PerGroup has no rule for {name!r}: its patterns are {', '.join(map(repr, self.patterns))}; add "
                    'a last pattern "*" for all other parameters'
                )
            groups[matching[0]].append(name)
        for pattern, names in zip(self.patterns, groups, strict=True):
            if not names:
                raise ValueError(
                    f"PerGroup has a rule for {pattern!r}, but no adapted parameter is left for it: the parameters are "
                    f"{', '.join(map(repr, params))}, and the first pattern that matches counts"
                )
        self._names = groups
        for _, rule, own in self._each(params):
            rule.bind(own, steps)

    def _each(self, *tensors: Params) -> Iterator[tuple[Any, ...]]:
        """Yield the pattern and the rule of each group, and its part of some tensors."""
        for pattern, rule, names in zip(self.patterns, self, self._names, strict=True):
            yield pattern, rule, *({name: each[name] for name in names} for each in tensors)

    def init(self, params: Params) -> Any:
        """Return the tuple of the states of all rules."""
        return tuple(rule.init(own) for _, rule, own in self._each(params))

    def rates(self) -> Params:
        """Return the meta-learned rates of all rules; the name of a rate for a whole group is its pattern."""
        return {name or pattern: rate for pattern, rule in self._each() for name, rate in rule.rates().items()}

    def forward(self, grads: Params, params: Params, state: Any, step: int, *, inner: Any = None) -> tuple[Params, Any]:
        """Take one step of each rule; return all updates and the new state of each rule."""
        updates: Params = {}
        states = []
        for (_, rule, own, at), before in zip(self._each(grads, params), state, strict=True):
            of_group, after = rule(own, at, before, step, None if inner is None else _Within(inner, params))
            updates.update(of_group)
            states.append(after)
        return updates, tuple(states)


class _Within(NamedTuple):
    """The inner loss as a function of some of the parameters, while the others stay fixed."""

    inner: Any
    params: Params

    @property
    def order(self) -> int:
        return int(self.inner.order)

    def loss(self, params: Params) -> Tensor:
        loss: Tensor = self.inner.loss({**self.params, **params})
        return loss

    def gradient(self, params: Params) -> Params:
        grads = self.inner.gradient({**self.params, **params})
        return {name: grads[name] for name in params}


def require_step(rule: UpdateRule) -> None:
    """Refuse a rule that takes no step: adding its output, a gradient, would increase the loss.

    Raises:
        ValueError: the rule is a `GradientTransform`.
    """
    if isinstance(rule, GradientTransform):
        name = type(rule).__name__
        raise ValueError(f"{name} only transforms gradients and takes no step: write Chain({name}(...), SGD(lr))")


class PerParameter(nn.Module):
    """Tensors by qualified parameter name; ``nn.ParameterDict`` does not allow names with dots."""

    def __init__(self, tensors: Params, learned: bool = True) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_parameter(name.replace(".", "/"), nn.Parameter(tensor, requires_grad=learned))

    def __getitem__(self, name: str) -> Tensor:
        return self._parameters[name.replace(".", "/")]  # type: ignore[return-value]

    def learned(self) -> Params:
        """Return the tensors that are meta-learned, by qualified name."""
        return {name.replace("/", "."): p for name, p in self.named_parameters() if p.requires_grad}


class Rated(nn.Module):
    """A rule with one or more rates ``lr`` that start at ``initial_lr``, a number or a tuple of numbers."""

    initial_lr: Any

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        """Convert the parameters, as in ``double()`` and ``to()``."""
        result = super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        self._exactly()
        return result

    def _exactly(self) -> None:
        """Set rates that still have their initial value to full precision: in float32, 0.1 is off by 1e-9."""
        for name, rate in self.named_parameters():
            if name.split(".")[0] == "lr" and rate.dtype in (torch.float32, torch.float64):
                for first in self.initial_lr if isinstance(self.initial_lr, tuple) else (self.initial_lr,):
                    for coarse in (torch.bfloat16, torch.float16, torch.float32):
                        rounded = rate.detach() == torch.tensor(first, dtype=coarse).item()
                        rate.data = torch.where(rounded, first, rate.data)

    def _fit(self, rate: nn.Parameter, params: Params) -> None:
        """Promote a rate to the type of the parameters."""
        for param in params.values():
            rate.data = rate.data.to(torch.promote_types(rate.dtype, param.real.dtype))
        self._exactly()


class OneRate(Rated, UpdateRule):
    """A rule with one rate ``lr`` for all parameters.

    Args:
        lr: the inner rate.
        learned: whether the rate is meta-learned.
    """

    def __init__(self, lr: float, learned: bool) -> None:
        super().__init__()
        self.initial_lr = float(lr)
        self.lr = nn.Parameter(torch.tensor(self.initial_lr), requires_grad=learned)

    def bind(self, params: Params, steps: int) -> None:
        """Promote the rate to the type of the parameters."""
        self._fit(self.lr, params)

    def rates(self) -> Params:
        """Return the rate under an empty name, if it is meta-learned."""
        return {"": self.lr} if self.lr.requires_grad else {}


class SGD(OneRate):
    """Gradient descent: the update is ``-lr * g`` (Finn et al. 2017, Eq. 1).

    Args:
        lr: the inner rate.
        learned: whether the rate, one scalar for all, is meta-learned.
    """

    def __init__(self, lr: float = 0.01, learned: bool = False) -> None:
        super().__init__(lr, learned)

    def forward(self, grads: Params, params: Params, state: Any, step: int) -> tuple[Params, Any]:
        """Return ``-lr * g``; the state passes through."""
        rate = -self.lr  # compute this once, since autograd keeps it for every product
        return {name: rate * grad for name, grad in grads.items()}, state


class PerStepSGD(Rated, UpdateRule):
    """Learned rates, one for each parameter tensor and step (LSLR; Antoniou et al. 2019, section 4).

    Rates may become negative. Steps beyond the trained number use the rates of the last step.

    Args:
        lr: the initial rate, or a sequence with a rate for each step; steps beyond the sequence use its last rate.
        learned: whether rates are meta-learned.
    """

    citation = "Antoniou, Edwards, Storkey. How to train your MAML. ICLR 2019. arXiv:1810.09502"

    def __init__(self, lr: float | Sequence[float] = 0.01, learned: bool = True) -> None:
        super().__init__()
        self.initial_lr, self.learned = tuple(lr) if isinstance(lr, Sequence) else (float(lr),), learned

    def bind(self, params: Params, steps: int) -> None:
        """Make ``steps`` rates for each parameter, or as many as ``lr`` has if that is more."""
        rates = [*self.initial_lr, *self.initial_lr[-1:] * (steps - len(self.initial_lr))]
        self.lr = PerParameter({name: p.real.new_tensor(rates) for name, p in params.items()}, self.learned)

    def rates(self) -> Params:
        """Return the meta-learned rates of each parameter, ``[K]``."""
        return self.lr.learned()

    def forward(self, grads: Params, params: Params, state: Any, step: int) -> tuple[Params, Any]:
        """Return ``-lr[name][step] * g``; the state passes through."""
        rates = {name: self.lr[name] for name in grads}
        return {n: -rates[n][min(step, len(rates[n]) - 1)] * grad for n, grad in grads.items()}, state


class ElementwiseSGD(Rated, UpdateRule):
    """A learned rate for every single weight (Meta-SGD; Li et al. 2017, Eq. 1). Rates may become negative.

    Args:
        lr: the initial value of every rate.
        learned: whether the rates are meta-learned.
    """

    citation = "Li, Zhou, Chen, Li. Meta-SGD: Learning to Learn Quickly for Few-Shot Learning. arXiv:1707.09835"

    def __init__(self, lr: float = 0.01, learned: bool = True) -> None:
        super().__init__()
        self.initial_lr, self.learned = float(lr), learned

    def bind(self, params: Params, steps: int) -> None:
        """Make a rate for every weight; rates of complex weights are real."""
        rates = {n: torch.full_like(p.real, self.initial_lr, requires_grad=False) for n, p in params.items()}
        self.lr = PerParameter(rates, self.learned)

    def rates(self) -> Params:
        """Return the mean rate of each tensor."""
        return {name: rate.mean() for name, rate in self.lr.learned().items()}

    def forward(self, grads: Params, params: Params, state: Any, step: int) -> tuple[Params, Any]:
        """Return ``-lr[name] * g``, elementwise; the state passes through."""
        return {name: -self.lr[name] * grad for name, grad in grads.items()}, state
