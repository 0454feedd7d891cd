"""Gradient transforms, and the common optimizers of deep learning.

An optimizer of ``torch.optim`` is a chain of gradient transforms and a rule with a rate. Any transform can be combined
with any kind of rate (`SGD`, `PerStepSGD`, `ElementwiseSGD`):

>>> from innerloop import Chain, PerStepSGD
>>> rule = Chain(ScaleByAdam(), WeightDecay(0.01), PerStepSGD(0.001))  # AdamW with learned per-step rates
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .rules import SGD, ElementwiseSGD, GradientTransform, OneRate, PerGroup, PerParameter, PerStepSGD, UpdateRule
from .task import Params
from .updates import as_given, as_reals, root


class Momentum(GradientTransform):
    """Heavy-ball momentum: replaces the gradient by the velocity ``v <- momentum * v + g`` (Polyak 1964).

    Args:
        momentum: the fraction of the velocity that is kept.
        nesterov: return ``g + momentum * v`` with the new velocity (Sutskever et al. 2013, as ``torch.optim.SGD``).
    """

    def __init__(self, momentum: float = 0.9, nesterov: bool = False) -> None:
        super().__init__()
        self.momentum, self.nesterov = momentum, nesterov

    def init(self, params: Params) -> Any:
        """Return the velocity of each parameter, initially zero."""
        return {name: torch.zeros_like(p) for name, p in params.items()}

    def forward(self, grads: Params, params: Params, state: Any, step: int) -> tuple[Params, Any]:
        """Return the new velocity as the gradient, or the Nesterov direction, and as the state."""
        velocity = {name: self.momentum * state[name] + grad for name, grad in grads.items()}
        if not self.nesterov:
            return velocity, velocity
        return {name: grad + self.momentum * velocity[name] for name, grad in grads.items()}, velocity


class Clip(GradientTransform):
    """Clamps each element of the inner gradient to ``[-limit, limit]`` (the reference MAML code clips to 10).

    The real and the imaginary part of complex elements are clamped separately.

    Args:
        limit: the largest absolute value, above 0.

    Raises:
        ValueError: ``limit`` is not above 0.
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


class ClipNorm(GradientTransform):
    """Scales the inner gradient down if its norm over all parameters is above a limit.

    It does the same as ``torch.nn.utils.clip_grad_norm_``.

    Args:
        limit: the largest norm, above 0.

    Raises:
        ValueError: ``limit`` is not above 0.
    """

    def __init__(self, limit: float = 1.0) -> None:
        super().__init__()
        if limit <= 0:
            raise ValueError(f"ClipNorm needs a limit above 0, got {limit}")
        self.limit = limit

    def forward(self, grads: Params, params: Params, state: Any, step: int) -> tuple[Params, Any]:
        """Return the gradient times ``min(1, limit / norm)``; the state passes through."""
        reals = as_reals(grads)
        norm = root(torch.stack([grad.square().sum() for grad in reals.values()]).sum())
        scale = (self.limit / (norm + 1e-6)).clamp(max=1.0)
        return as_given({name: scale.to(grad.dtype) * grad for name, grad in reals.items()}, grads), state


class WeightDecay(GradientTransform):
    """Adds ``strength * params``: the gradient of ``strength / 2 * ||params||^2``.

    Before a transform such as `ScaleByAdam` it is the penalty of ``torch.optim.Adam``. After it, it is the decoupled
    decay of ``AdamW`` (Loshchilov and Hutter 2019, Algorithm 2), which is scaled by the rate.

    Args:
        strength: the strength of the decay.
    """

    def __init__(self, strength: float = 0.01) -> None:
        super().__init__()
        self.strength = strength

    def forward(self, grads: Params, params: Params, state: Any, step: int) -> tuple[Params, Any]:
        """Return the gradient plus the decay; the state passes through."""
        return _decayed(grads, params, self.strength), state


class ScaleByAdam(GradientTransform):
    """The direction of Adam: the mean of gradients over the root of the mean of their squares (Kingma and Ba 2015).

    Moments start at zero on every task and are bias-corrected. The real and the imaginary part of complex parameters
    are treated as two parameters; moments of 16-bit parameters are float32. If all gradients so far are zero, the
    derivative of the root is set to zero, so that the derivative of the direction is finite, ``1 / eps``.

    Args:
        betas: decay rates of the running means of gradients and of their squares.
        eps: added to the root. Use 1e-4 for float16.
    """

    citation = "Kingma, Ba. Adam: A Method for Stochastic Optimization. ICLR 2015. arXiv:1412.6980"

    def __init__(self, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> None:
        super().__init__()
        self.betas, self.eps = betas, eps

    def init(self, params: Params) -> Any:
        """Return the first and the second moments, all zero."""
        return _zeros(params), _zeros(params)

    def forward(self, grads: Params, params: Params, state: Any, step: int) -> tuple[Params, Any]:
        """Return the direction, and the new moments."""
        means, roots, correction, state = self.moved(grads, state, step)
        return as_given({n: mean / correction / roots[n] for n, mean in means.items()}, grads), state

    def moved(self, grads: Params, state: Any, step: int) -> tuple[Params, Params, float, Any]:
        """Return the uncorrected means and the roots, all real, the bias correction of the means, and the moments."""
        (b1, b2), (first, second), reals = self.betas, state, as_reals(grads)
        first = {n: first[n].lerp(g, 1 - b1) for n, g in reals.items()}
        second = {n: (b2 * second[n]).addcmul(g, g, value=1 - b2) for n, g in reals.items()}
        bias = (1 - b2 ** (step + 1)) ** 0.5
        roots = {n: root(square) / bias + self.eps for n, square in second.items()}
        return first, roots, 1 - b1 ** (step + 1), (first, second)


class ScaleByRMSprop(GradientTransform):
    """Divides the gradient by the root of the running mean of its square.

    It does the same as ``torch.optim.RMSprop`` (Tieleman and Hinton 2012).

    Args:
        alpha: the fraction of the running mean that is kept.
        eps: added to the root.
        centered: use the running variance instead of the mean square.
    """

    def __init__(self, alpha: float = 0.99, eps: float = 1e-8, centered: bool = False) -> None:
        super().__init__()
        self.alpha, self.eps, self.centered = alpha, eps, centered

    def init(self, params: Params) -> Any:
        """Return the running means of squares and, if centered, of gradients, all zero."""
        return _zeros(params), _zeros(params) if self.centered else {}

    def forward(self, grads: Params, params: Params, state: Any, step: int) -> tuple[Params, Any]:
        """Return the scaled gradient, and the new running means."""
        reals, roots, state = self.moved(grads, state)
        return as_given({n: g / roots[n] for n, g in reals.items()}, grads), state

    def moved(self, grads: Params, state: Any) -> tuple[Params, Params, Any]:
        """Return the gradients and the roots, both real, and the new running means."""
        (square, mean), reals, keep = state, as_reals(grads), self.alpha
        square = {n: (keep * square[n]).addcmul(g, g, value=1 - keep) for n, g in reals.items()}
        about = square
        if self.centered:
            mean = {n: mean[n].lerp(g, 1 - keep) for n, g in reals.items()}
            about = {n: s.addcmul(mean[n], mean[n], value=-1) for n, s in square.items()}
        return reals, {n: root(s) + self.eps for n, s in about.items()}, (square, mean)


def _zeros(params: Params) -> Params:
    return {name: torch.zeros_like(p) for name, p in as_reals(params).items()}


class Proximal(GradientTransform):
    """Adds the gradient of ``strength / 2 * ||params - start||^2`` (Rajeswaran et al. 2019, Eq. 3).

    Args:
        strength: the strength of the pull towards the meta-parameters, lambda in the paper.
    """

    citation = "Rajeswaran, Finn, Kakade, Levine. Meta-Learning with Implicit Gradients. NeurIPS 2019. arXiv:1909.04630"

    def __init__(self, strength: float = 2.0) -> None:
        super().__init__()
        self.strength = strength

    def init(self, params: Params) -> Any:
        """Return the parameters at the start of the task."""
        return dict(params)

    def forward(self, grads: Params, params: Params, state: Any, step: int) -> tuple[Params, Any]:
        """Return the gradient plus the pull towards the start; the state passes through."""
        return {name: grad + self.strength * (params[name] - state[name]) for name, grad in grads.items()}, state


class KroneckerCurvature(GradientTransform):
    """A learned linear map of each gradient tensor (Meta-Curvature; Park and Oliva 2019, section 3.1).

    It has one square matrix for each axis, initially the identity. Axes past the second are flattened into one, as the
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


class Adam(OneRate):
    """Adam with a fresh state on every task (Kingma and Ba 2015, Algorithm 1). Reptile uses ``betas=(0, 0.999)``.

    It is ``Chain(ScaleByAdam(betas, eps), SGD(lr))``; see `ScaleByAdam` for gradients of zero.

    Args:
        lr: the inner rate.
        betas: decay rates of the running means of gradients and of their squares.
        eps: added to the root. Use 1e-4 for float16.
        weight_decay: the strength of a penalty; see `WeightDecay`.
        learned: whether the rate, one scalar for all, is meta-learned.
    """

    citation = ScaleByAdam.citation

    def __init__(
        self,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        *,
        weight_decay: float = 0.0,
        learned: bool = False,
    ) -> None:
        super().__init__(lr, learned)
        self.scale, self.weight_decay = ScaleByAdam(betas, eps), weight_decay

    def init(self, params: Params) -> Any:
        """Return the first and the second moments, all zero."""
        return self.scale.init(params)

    def forward(self, grads: Params, params: Params, state: Any, step: int) -> tuple[Params, Any]:
        """Return the updates, and the new moments."""
        return self._step(_decayed(grads, params, self.weight_decay), params, state, step)

    def _step(self, grads: Params, params: Params, state: Any, step: int) -> tuple[Params, Any]:
        means, roots, correction, state = self.scale.moved(grads, state, step)
        rate = -self.lr / correction
        return as_given({n: rate * mean / roots[n] for n, mean in means.items()}, params), state


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, Algorithm 2).

    It is ``Chain(ScaleByAdam(betas, eps), WeightDecay(weight_decay), SGD(lr))``.

    Args:
        lr: the inner rate.
        betas: decay rates of the running means of gradients and of their squares.
        eps: added to the root. Use 1e-4 for float16.
        weight_decay: the decay; in every step parameters shrink by the rate times this.
        learned: whether the rate, one scalar for all, is meta-learned.
    """

    citation = "Loshchilov, Hutter. Decoupled Weight Decay Regularization. ICLR 2019. arXiv:1711.05101"

    def __init__(
        self,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        *,
        weight_decay: float = 0.01,
        learned: bool = False,
    ) -> None:
        super().__init__(lr, betas, eps, weight_decay=weight_decay, learned=learned)

    def forward(self, grads: Params, params: Params, state: Any, step: int) -> tuple[Params, Any]:
        """Return the updates, and the new moments."""
        updates, state = self._step(grads, params, state, step)
        return _decayed(updates, params, -self.lr * self.weight_decay), state


class RMSprop(OneRate):
    """RMSprop with a fresh state on every task (Tieleman and Hinton 2012, as ``torch.optim.RMSprop``).

    It is ``Chain(ScaleByRMSprop(alpha, eps, centered), Momentum(momentum), SGD(lr))``.

    Args:
        lr: the inner rate.
        alpha: the fraction of the running mean of squares that is kept.
        eps: added to the root.
        weight_decay: the strength of a penalty; see `WeightDecay`.
        momentum: the momentum of the scaled gradients; see `Momentum`.
        centered: use the running variance instead of the mean square.
        learned: whether the rate, one scalar for all, is meta-learned.
    """

    def __init__(
        self,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        *,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        learned: bool = False,
    ) -> None:
        super().__init__(lr, learned)
        self.scale, self.weight_decay, self.momentum = ScaleByRMSprop(alpha, eps, centered), weight_decay, momentum

    def init(self, params: Params) -> Any:
        """Return the running means, and the velocities if there is momentum, all zero."""
        return self.scale.init(params), _zeros(params) if self.momentum else {}

    def forward(self, grads: Params, params: Params, state: Any, step: int) -> tuple[Params, Any]:
        """Return the updates, and the new means and velocities."""
        means, velocity = state
        reals, roots, means = self.scale.moved(_decayed(grads, params, self.weight_decay), means)
        rate = -self.lr
        if not self.momentum:
            return as_given({n: rate * g / roots[n] for n, g in reals.items()}, params), (means, velocity)
        velocity = {n: self.momentum * velocity[n] + g / roots[n] for n, g in reals.items()}
        return as_given({n: rate * v for n, v in velocity.items()}, params), (means, velocity)


def _decayed(grads: Params, params: Params, strength: float | Tensor) -> Params:
    """Add ``strength`` times the parameters to gradients or updates."""
    if isinstance(strength, float) and not strength:
        return grads
    return {name: grad + strength * params[name] for name, grad in grads.items()}


RULES: dict[str, type[UpdateRule]] = {
    "sgd": SGD,
    "per-step-sgd": PerStepSGD,
    "elementwise-sgd": ElementwiseSGD,
    "adam": Adam,
    "adamw": AdamW,
    "rmsprop": RMSprop,
    "per-group": PerGroup,
    "momentum": Momentum,
    "weight-decay": WeightDecay,
    "clip": Clip,
    "clip-norm": ClipNorm,
    "scale-by-adam": ScaleByAdam,
    "scale-by-rmsprop": ScaleByRMSprop,
    "proximal": Proximal,
    "kronecker-curvature": KroneckerCurvature,
}
"""The rules that a recipe can name."""
