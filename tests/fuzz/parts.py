"""Small modules and losses that random models are put together from, beside torch's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from innerloop.functional.checkpointing import task_contexts


class Residual(nn.Module):
    """Adds what a part computes to its input."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.parts(x)


class Twice(nn.Module):
    """One module under two names."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.first = self.second = part

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


class Tied(nn.Module):
    """Two layers with one weight, of which the second is transposed."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.encode, self.bias = nn.Linear(features, hidden), nn.Parameter(torch.zeros(features))
        self.decode = nn.Linear(features, hidden)
        self.decode.weight = self.encode.weight

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.encode(x)) @ self.encode.weight + self.bias + self.decode(x).mean(-1, keepdim=True)


class Frozen(nn.Module):
    """A part whose parameters are not learned."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x)


class Counter(nn.Module):
    """A buffer that every forward changes, and that matters."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * (1 + 0.1 * self.calls)


class Average(nn.Module):
    """A running mean of inputs, kept by setting the buffer anew, which later inputs are shifted by."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean()
        return x - self.mean


class Scale(nn.Module):
    """A learned factor, which is a parameter without axes."""

    def __init__(self, value: float = 1.0) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(float(value)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class Gated(nn.Module):
    """Two parts of the same shape, one of which is the other's gate."""

    def __init__(self, value: nn.Module, gate: nn.Module) -> None:
        super().__init__()
        self.value, self.gate = value, gate

    def forward(self, x: Tensor) -> Tensor:
        return self.value(x) * torch.sigmoid(self.gate(x))


class Checkpointed(nn.Module):
    """A part that is computed again in the backward pass."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part, self.again = part, True

    def forward(self, x: Tensor) -> Tensor:
        if not self.again:
            return self.part(x)
        return checkpoint(self.part, x, use_reentrant=False, context_fn=task_contexts)


class Keeps(nn.Module):
    """A part that keeps what it computed as an attribute."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part
        self.features: Any = None

    def forward(self, x: Tensor) -> Tensor:
        self.features = self.part(x)
        return self.features


class Unbatched(nn.Module):
    """A part that sees examples one by one, without a batch axis."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.part(one) for one in x])


class Output(nn.Module):
    """The first thing that a part returns: the outputs of recurrent layers."""

    def __init__(self, part: nn.Module, swap: bool = False) -> None:
        super().__init__()
        self.part, self.swap = part, swap

    def forward(self, x: Tensor) -> Tensor:
        out = self.part(x.transpose(0, 1) if self.swap else x)[0]
        return out.transpose(0, 1) if self.swap else out


class State(nn.Module):
    """The last state of a recurrent layer, ``[N, features]``."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        state = self.part(x)[1]
        state = state[0] if isinstance(state, tuple) else state
        return state.transpose(0, 1).flatten(1)


class Unroll(nn.Module):
    """A recurrent cell, run over a sequence ``[N, L, features]``."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        state: Any = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return state[0] if isinstance(state, tuple) else state


class Attend(nn.Module):
    """Self-attention, or attention to a learned memory, with a mask if wanted."""

    def __init__(self, part: nn.MultiheadAttention, causal: bool = False, weights: bool = False) -> None:
        super().__init__()
        self.part, self.causal, self.weights = part, causal, weights

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1] if self.part.batch_first else x.shape[0]
        mask = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1) if self.causal else None
        out, weights = self.part(x, x, x, attn_mask=mask, need_weights=self.weights)
        return out + weights.mean((-2, -1), keepdim=True) if self.weights and self.part.batch_first else out


class Pair(nn.Module):
    """A part with two inputs, which are both made from one."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x, torch.tanh(x.flip(-1)))


class Apply(nn.Module):
    """A function of tensors."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Unpool(nn.Module):
    """Max-pooling, and back to where the largest were."""

    def __init__(self, axes: int, size: int) -> None:
        super().__init__()
        self.pool = getattr(nn, f"MaxPool{axes}d")(size, return_indices=True)
        self.back = getattr(nn, f"MaxUnpool{axes}d")(size)

    def forward(self, x: Tensor) -> Tensor:
        values, indices = self.pool(x)
        return self.back(values, indices, x.shape)


class Bag(nn.Module):
    """An embedding bag with a weight for each token."""

    def __init__(self, part: nn.EmbeddingBag, length: int) -> None:
        super().__init__()
        self.part, self.weights = part, nn.Parameter(torch.rand(length))

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x, per_sample_weights=self.weights.expand(x.shape))


class Film(nn.Module):
    """A scale and a shift of all features from a learned context."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.context, self.make = nn.Parameter(torch.zeros(2)), nn.Linear(2, 2 * features)

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self.make(self.context).chunk(2)
        return x * (1 + scale) + shift


class Decode(nn.Module):
    """A part that attends to a memory, made from its input."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x, torch.sin(x.flip(1)))


# -- losses -----------------------------------------------------------------------------------------------------------


class Judge(nn.Module):
    """A learned loss of outputs and targets of the same shape."""

    def __init__(self, hidden: int = 3) -> None:
        super().__init__()
        self.judge = nn.Sequential(nn.Linear(2, hidden), nn.Softplus(), nn.Linear(hidden, 1))

    def forward(self, output: Tensor, y: Tensor) -> Tensor:
        return F.softplus(self.judge(torch.stack([output, y], -1))).mean()


class Uncertain(nn.Module):
    """A loss weighted by a learned uncertainty."""

    def __init__(self, loss: Callable[[Any, Any], Tensor]) -> None:
        super().__init__()
        self.loss, self.log_variance = loss, nn.Parameter(torch.tensor(0.3))

    def forward(self, output: Any, y: Any) -> Tensor:
        return self.loss(output, y) * torch.exp(-self.log_variance) + self.log_variance


class Tempered(nn.Module):
    """Cross-entropy at a learned temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(1.5))

    def forward(self, output: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(output / self.temperature, y)
