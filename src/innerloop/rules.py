"""Update rules: how one inner step turns gradients into a move of the adapted parameters.

A rule is an ``nn.Module``, so whatever it holds as a parameter that requires a gradient is meta-learned with the
model. Rules that only reshape the gradient (`Clip`, `Momentum`, `Proximal`, `KroneckerCurvature`) are
`GradientTransform`s; a `Chain` puts them in front of a rule that takes the step:

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
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .task import Params
from .updates import as_given, as_reals, require_dense, require_kept, require_updates


class UpdateRule(nn.Module, ABC):
    """The contract of an inner update. Your own rule needs only `forward`; `innerloop.testing.check_rule` checks it.

    Raises:
        ValueError: on call, for a sparse gradient, or an update that is missing or has another shape or type than its
            parameter.
    """

    citation: ClassVar[str] = ""

    def bind(self, params: Params, steps: int) -> None:  # most rules hold nothing per parameter
        """Make what depends on the adapted parameters or on the number of trained steps. Called once, by the learner.

        Args:
            params: the adapted parameters of the model.
            steps: the number K of inner steps that training takes.
        """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.asks = "inner" in inspect.signature(cls.forward).parameters

    asks: ClassVar[bool] = False
    """Whether `forward` takes the inner loss."""

    def __call__(self, grads: Params, params: Params, state: Any, step: int, inner: Any = None) -> tuple[Params, Any]:
        """`forward`, whose arguments and result are checked."""
        require_dense(grads)
        if self.asks and inner is None and not isinstance(self, Chain):
            raise ValueError(
                f"{type(self).__name__} asks for the inner loss, but was not given it: whatever calls it hands it on, "
                "as in rule(grads, params, state, step, inner)"
            )
        asked = {"inner": inner} if self.asks else {}
        result = super().__call__(grads, params, state, step, **asked)
        return require_updates(result, grads, params, type(self).__name__)

    def init(self, params: Params) -> Any:
        """The rule's state before the first step on a task (a pytree of tensors, such as velocities)."""
        return ()

    def rates(self) -> Params:
        """The meta-learned rates, by the name of their parameter ("" for all), ``[K]`` or scalars; often none."""
        return {}

    def kept(self, state: Any) -> Params:
        """What of the state after a task's last step is for later tasks; nothing, in most rules.

        `MetaLearner.meta_gradient` gives its mean over the tasks of a meta-batch to `keep`, where it is finite.
        """
        return {}

    def keep(self, mean: Params) -> None:
        """Take up what `kept` gave, averaged over tasks: into buffers, for `init` to start from."""

    @abstractmethod
    def forward(self, grads: Params, params: Params, state: Any, step: int) -> tuple[Params, Any]:
        """Take one inner step.

        A rule that needs the inner loss elsewhere than at ``params`` (a line search, sharpness-aware steps) has a
        further keyword argument ``inner``: ``inner.loss(params)`` and ``inner.gradient(params)`` are on the step's
        mini-batch, and ``inner.order`` says whether gradients can be differentiated (`innerloop.InnerLoss`).

        Args:
            grads: gradient of the inner loss, by name.
            params: the parameters at which it was taken; the same names.
            state: what `init` or the step before returned.
            step: index of this step, from 0; may exceed the trained number of steps.

        Returns:
            The updates, to be *added* to the parameters, and the new state.
        """


class GradientTransform(UpdateRule, ABC):
    """A rule whose output is again a gradient: it needs a rule behind it in a `Chain` that takes the step."""


class Chain(UpdateRule):
    """Rules one after another: each transforms the gradient for the next, the last takes the step.

    Args:
        rules: gradient transforms, and last a rule that takes the step.

    Raises:
        ValueError: nothing is chained, a rule before the last takes a step, or the last only transforms.
    """

    def __init__(self, *rules: UpdateRule) -> None:
        super().__init__()
        names = [type(rule).__name__ for rule in rules]
        if not rules or not all(isinstance(rule, GradientTransform) for rule in rules[:-1]):
            raise ValueError(f"a Chain is gradient transforms followed by one rule that takes the step; got {names}")
        require_step(rules[-1])
        self.rules = nn.ModuleList(rules)

    def __iter__(self) -> Iterator[UpdateRule]:
        return iter(self.rules)  # type: ignore[arg-type]

    def bind(self, params: Params, steps: int) -> None:
        """Bind each rule."""
        for rule in self:
            rule.bind(params, steps)

    def init(self, params: Params) -> Any:
        """The states of all rules, a tuple."""
        return tuple(rule.init(params) for rule in self)

    def kept(self, state: Any) -> Params:
        """What of the states of all rules is for later tasks, by the number of the rule and the name."""
        return {
            f"{number}.{name}": tensor
            for number, (rule, own) in enumerate(zip(self, state, strict=True))
            for name, tensor in require_kept(rule.kept(own), rule).items()
        }

    def keep(self, mean: Params) -> None:
        """Hand on to each rule what is its own."""
        for number, rule in enumerate(self):
            start = f"{number}."
            rule.keep({name.removeprefix(start): t for name, t in mean.items() if name.startswith(start)})

    def rates(self) -> Params:
        """The meta-learned rates of all rules."""
        return {name: rate for rule in self for name, rate in rule.rates().items()}

    def forward(self, grads: Params, params: Params, state: Any, step: int, *, inner: Any = None) -> tuple[Params, Any]:
        """Pass the gradient through all rules; returns the updates of the last and the new state of each."""
        states = []
        for rule, before in zip(self, state, strict=True):
            grads, after = rule(grads, params, before, step, inner)
            states.append(after)
        return grads, tuple(states)


def require_step(rule: UpdateRule) -> None:
    """Refuse a rule that would walk uphill because it hands the gradient on unscaled.

    Raises:
        ValueError: the rule is a bare `GradientTransform`.
    """
    if isinstance(rule, GradientTransform):
        name = type(rule).__name__
        raise ValueError(f"{name} transforms gradients and takes no step: write Chain({name}(...), SGD(lr))")


class PerParameter(nn.Module):
    """Tensors by qualified parameter name; ``nn.ParameterDict`` refuses names with dots."""

    def __init__(self, tensors: Params, learned: bool = True) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_parameter(name.replace(".", "/"), nn.Parameter(tensor, requires_grad=learned))

    def __getitem__(self, name: str) -> Tensor:
        return self._parameters[name.replace(".", "/")]  # type: ignore[return-value]

    def learned(self) -> Params:
        """Those that are meta-learned, by their qualified names."""
        return {name.replace("/", "."): p for name, p in self.named_parameters() if p.requires_grad}


class _Rated(nn.Module):
    """A rule with a rate, or rates, ``lr``, which start at ``initial_lr``: a number, or several."""

    initial_lr: Any

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        """Convert as ``double()`` or ``to()`` ask."""
        result = super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        self._exactly()
        return result

    def _exactly(self) -> None:
        """Give rates that are still the first ones all the digits of their type: in float32, 0.1 is off by 1e-8."""
        for name, rate in self.named_parameters():
            if name.split(".")[0] == "lr" and rate.dtype in (torch.float32, torch.float64):
                for first in self.initial_lr if isinstance(self.initial_lr, tuple) else (self.initial_lr,):
                    for coarse in (torch.bfloat16, torch.float16, torch.float32):
                        rounded = rate.detach() == torch.tensor(first, dtype=coarse).item()
                        rate.data = torch.where(rounded, first, rate.data)

    def _fit(self, rate: nn.Parameter, params: Params) -> None:
        """Give a rate at least the type of the parameters."""
        for param in params.values():
            rate.data = rate.data.to(torch.promote_types(rate.dtype, param.real.dtype))
        self._exactly()


class SGD(_Rated, UpdateRule):
    """Gradient descent: the update is ``-lr * g`` (Finn et al. 2017, Eq. 1).

    Args:
        lr: the inner rate.
        learned: whether the rate, one scalar for all, is meta-learned.
    """

    def __init__(self, lr: float = 0.01, learned: bool = False) -> None:
        super().__init__()
        self.initial_lr = float(lr)
        self.lr = nn.Parameter(torch.tensor(self.initial_lr), requires_grad=learned)

    def bind(self, params: Params, steps: int) -> None:
        """Give the rate at least the type of the parameters."""
        self._fit(self.lr, params)

    def rates(self) -> Params:
        """The rate under an empty name, if it is meta-learned."""
        return {"": self.lr} if self.lr.requires_grad else {}

    def forward(self, grads: Params, params: Params, state: Any, step: int) -> tuple[Params, Any]:
        """Return ``-lr * g``; the state passes through."""
        rate = -self.lr  # once: autograd keeps it for every product
        return {name: rate * grad for name, grad in grads.items()}, state


class PerStepSGD(_Rated, UpdateRule):
    """Learned rates, one for each parameter tensor and step (LSLR; Antoniou et al. 2019, section 4).

    They may turn negative. Beyond the trained number of steps the last step's rates are repeated.

    Args:
        lr: the rate at first, or a rate for each step, of which the last is that of the steps beyond, too.
        learned: whether rates are meta-learned.
    """

    citation = "Antoniou, Edwards, Storkey. How to train your MAML. ICLR 2019. arXiv:1810.09502"

    def __init__(self, lr: float | Sequence[float] = 0.01, learned: bool = True) -> None:
        super().__init__()
        self.initial_lr, self.learned = tuple(lr) if isinstance(lr, Sequence) else (float(lr),), learned

    def bind(self, params: Params, steps: int) -> None:
        """Make ``steps`` rates for each parameter, or as many as were given if these are more."""
        rates = [*self.initial_lr, *self.initial_lr[-1:] * (steps - len(self.initial_lr))]
        self.lr = PerParameter({name: p.real.new_tensor(rates) for name, p in params.items()}, self.learned)

    def rates(self) -> Params:
        """The meta-learned rates of each parameter, ``[K]``."""
        return self.lr.learned()

    def forward(self, grads: Params, params: Params, state: Any, step: int) -> tuple[Params, Any]:
        """Return ``-lr[name][step] * g``; the state passes through."""
        rates = {name: self.lr[name] for name in grads}
        return {n: -rates[n][min(step, len(rates[n]) - 1)] * grad for n, grad in grads.items()}, state


class ElementwiseSGD(_Rated, UpdateRule):
    """A learned rate for every single weight (Meta-SGD; Li et al. 2017, Eq. 1). Rates may turn negative.

    Args:
        lr: every rate at first.
        learned: whether they are meta-learned.
    """

    citation = "Li, Zhou, Chen, Li. Meta-SGD: Learning to Learn Quickly for Few-Shot Learning. arXiv:1707.09835"

    def __init__(self, lr: float = 0.01, learned: bool = True) -> None:
        super().__init__()
        self.initial_lr, self.learned = float(lr), learned

    def bind(self, params: Params, steps: int) -> None:
        """Make a rate for every weight, real even where the weight is complex."""
        rates = {n: torch.full_like(p.real, self.initial_lr, requires_grad=False) for n, p in params.items()}
        self.lr = PerParameter(rates, self.learned)

    def rates(self) -> Params:
        """The mean over the weights of each tensor."""
        return {name: rate.mean() for name, rate in self.lr.learned().items()}

    def forward(self, grads: Params, params: Params, state: Any, step: int) -> tuple[Params, Any]:
        """Return ``-lr[name] * g``, elementwise; the state passes through."""
        return {name: -self.lr[name] * grad for name, grad in grads.items()}, state


class Adam(_Rated, UpdateRule):
    """Adam with a fresh state on every task (Kingma and Ba 2015, Algorithm 1). Reptile uses ``betas=(0, 0.999)``.

    The root is of the second moment *plus* ``eps`` squared. The paper adds ``eps`` to the root, whose derivative is
    infinite at a gradient of zero: the meta-gradient would be NaN. For gradients well above ``eps`` the two agree. The
    real and the imaginary part of complex parameters are two parameters; moments of 16-bit parameters are float32.

    Args:
        lr: the inner rate, which is not learned.
        betas: of the running means of gradients and of their squares.
        eps: keeps the root from zero. Where a gradient is zero, its derivative is 1 / eps: use 1e-4 for float16.
    """

    citation = "Kingma, Ba. Adam: A Method for Stochastic Optimization. ICLR 2015. arXiv:1412.6980"

    def __init__(self, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> None:
        super().__init__()
        self.initial_lr = float(lr)
        self.lr = nn.Parameter(torch.tensor(self.initial_lr), requires_grad=False)
        self.betas, self.eps = betas, eps

    def bind(self, params: Params, steps: int) -> None:
        """Give the rate at least the type of the parameters."""
        self._fit(self.lr, params)

    def init(self, params: Params) -> Any:
        """The first and the second moments, all zero."""
        return tuple({n: torch.zeros_like(p) for n, p in as_reals(params).items()} for _ in range(2))

    def forward(self, grads: Params, params: Params, state: Any, step: int) -> tuple[Params, Any]:
        """Return Adam's updates with bias correction, and the new moments."""
        (b1, b2), (first, second), reals = self.betas, state, as_reals(grads)
        first = {n: b1 * first[n] + (1 - b1) * g for n, g in reals.items()}
        second = {n: b2 * second[n] + (1 - b2) * g.square() for n, g in reals.items()}
        c1, c2 = 1 - b1 ** (step + 1), 1 - b2 ** (step + 1)
        scale = {n: (v / c2 + self.eps**2).sqrt() for n, v in second.items()}
        rate = -self.lr / c1
        return as_given({n: rate * m / scale[n] for n, m in first.items()}, params), (first, second)


class Momentum(GradientTransform):
    """Heavy-ball momentum: the gradient handed on is the velocity ``v <- momentum * v + g`` (Polyak 1964).

    Args:
        momentum: the part of the velocity that is kept.
    """

    def __init__(self, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum

    def init(self, params: Params) -> Any:
        """The velocity of each parameter, zero at first."""
        return {name: torch.zeros_like(p) for name, p in params.items()}

    def forward(self, grads: Params, params: Params, state: Any, step: int) -> tuple[Params, Any]:
        """Return the new velocity, as gradient and as state."""
        velocity = {name: self.momentum * state[name] + grad for name, grad in grads.items()}
        return velocity, velocity


class Clip(GradientTransform):
    """Each element of the inner gradient clamped to ``[-limit, limit]`` (the reference MAML code clips to 10).

    Of complex elements, the real and the imaginary part are clamped.

    Args:
        limit: above 0.

    Raises:
        ValueError: it is not.
    """

    def __init__(self, limit: float = 10.0) -> None:
        super().__init__()
        if limit <= 0:
            raise ValueError(f"Clip needs a limit above 0, got {limit}")
        self.limit = limit

    def forward(self, grads: Params, params: Params, state: Any, step: int) -> tuple[Params, Any]:
        """Return the clamped gradient; the state passes through."""
        clamped = {name: grad.clamp(-self.limit, self.limit) for name, grad in as_reals(grads).items()}
        return as_given(clamped, grads), state


class Proximal(GradientTransform):
    """Adds the gradient of ``strength / 2 * ||params - start||^2`` (Rajeswaran et al. 2019, Eq. 3).

    Args:
        strength: of the pull towards the meta-parameters, lambda in the paper.
    """

    citation = "Rajeswaran, Finn, Kakade, Levine. Meta-Learning with Implicit Gradients. NeurIPS 2019. arXiv:1909.04630"

    def __init__(self, strength: float = 2.0) -> None:
        super().__init__()
        self.strength = strength

    def init(self, params: Params) -> Any:
        """The parameters at the start of the task."""
        return dict(params)

    def forward(self, grads: Params, params: Params, state: Any, step: int) -> tuple[Params, Any]:
        """Return the gradient plus the pull towards the start; the state passes through."""
        return {name: grad + self.strength * (params[name] - state[name]) for name, grad in grads.items()}, state


class KroneckerCurvature(GradientTransform):
    """A learned linear map of each gradient tensor (Meta-Curvature; Park and Oliva 2019, section 3.1).

    It has one square matrix for each axis, the identity at first. Axes past the second are flattened into one, as the
    paper does with the spatial axes of a convolution.
    """

    citation = "Park, Oliva. Meta-Curvature. NeurIPS 2019. arXiv:1902.03356"

    def bind(self, params: Params, steps: int) -> None:
        """Make the identity matrices of each parameter."""
        factors = {
            f"{name}:{axis}": torch.eye(length, dtype=p.dtype, device=p.device)
            for name, p in params.items()
            for axis, length in enumerate(self._view(p))
        }
        self.factors = PerParameter(factors)

    @staticmethod
    def _view(tensor: Tensor) -> tuple[int, ...]:
        return tuple(tensor.shape) if tensor.ndim <= 2 else (*tensor.shape[:2], tensor[0, 0].numel())

    def forward(self, grads: Params, params: Params, state: Any, step: int) -> tuple[Params, Any]:
        """Return the mapped gradient; the state passes through."""
        return {name: self._transform(name, grad) for name, grad in grads.items()}, state

    def _transform(self, name: str, grad: Tensor) -> Tensor:
        out = grad.reshape(self._view(grad))
        for axis in range(out.ndim):
            out = torch.tensordot(self.factors[f"{name}:{axis}"], out.movedim(axis, 0), dims=1).movedim(0, axis)
        return out.reshape(grad.shape)


RULES: dict[str, type[UpdateRule]] = {
    "sgd": SGD,
    "per-step-sgd": PerStepSGD,
    "elementwise-sgd": ElementwiseSGD,
    "adam": Adam,
    "momentum": Momentum,
    "clip": Clip,
    "proximal": Proximal,
    "kronecker-curvature": KroneckerCurvature,
}
"""The rules that a recipe can name."""
