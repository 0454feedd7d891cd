"""Networks of the papers. They are ordinary modules without code for meta-learning."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .operations.replacements import norm_pool
from .support_norm import SupportNorm2d

Pooling = Literal["max", "stride"]
Norm = Literal["batch", "support"]


def mlp(*sizes: int) -> nn.Sequential:
    """A multi-layer perceptron with ReLUs, e.g. ``mlp(1, 40, 40, 1)`` for sinusoids (Finn et al. 2017, 5.1).

    Weights start uniform on +-1 / sqrt(fan-in) and biases at zero. These are small enough that inner steps at the usual
    rates do not diverge before meta-training, as they do with the He initialization.

    Raises:
        ValueError: there are fewer than two sizes.
    """
    if len(sizes) < 2:
        raise ValueError(f"an mlp needs an input and an output size, got {sizes}")
    layers: list[nn.Module] = []
    for index, (inputs, outputs) in enumerate(pairwise(sizes)):
        linear = nn.Linear(inputs, outputs)
        nn.init.uniform_(linear.weight, -(inputs**-0.5), inputs**-0.5)
        nn.init.zeros_(linear.bias)
        layers += [nn.ReLU(), linear] if index else [linear]
    return nn.Sequential(*layers)


class ConvBlock(nn.Module):
    """A 3x3 convolution, a norm and a ReLU; max-pooling or the convolution's stride halves the image."""

    def __init__(
        self, inputs: int, outputs: int, pooling: Pooling = "max", running: bool = False, norm: Norm = "batch"
    ) -> None:
        super().__init__()
        # Batch norm removes any bias that the convolution adds, so it has none.
        self.conv = nn.Conv2d(inputs, outputs, 3, stride=1 if pooling == "max" else 2, padding=1, bias=False)
        nn.init.xavier_uniform_(self.conv.weight)
        self.norm: nn.BatchNorm2d | SupportNorm2d = (
            nn.BatchNorm2d(outputs, track_running_stats=running) if norm == "batch" else SupportNorm2d(outputs)
        )
        self.pooling = pooling

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W] -> [N, outputs, H / 2, W / 2]``."""
        # Pooling and ReLU commute, and ReLU is cheaper after pooling.
        y = self.conv(x)
        if self.pooling == "stride":
            return torch.relu(self.norm(y))
        if isinstance(self.norm, SupportNorm2d):
            return torch.relu(F.max_pool2d(self.norm(y), 2))
        return torch.relu(norm_pool(y, self.norm, 2))


class Conv4(nn.Module):
    """Four blocks of ``width`` filters and a linear head (Vinyals et al. 2016; Finn et al. 2017, 5.2).

    Args:
        channels: number of channels of the images.
        ways: number of classes, the size of the head.
        width: number of filters: 64 in most papers' Omniglot networks, 32 for mini-ImageNet.
        image_size: height and width of the images.
        pooling: ``"max"`` pools and flattens, ``"stride"`` strides and averages over space (Finn et al. 2017).
        running: whether batch norm keeps running statistics, which a learner with ``statistics="running"`` needs.
        norm: ``"batch"``, or ``"support"`` for `innerloop.support_norm.SupportNorm2d`.

    Raises:
        ValueError: an option is unknown, the images are too small, or ``running`` is given without batch norm.
    """

    def __init__(
        self,
        channels: int = 1,
        ways: int = 5,
        width: int = 64,
        image_size: int = 28,
        pooling: Pooling = "max",
        running: bool = False,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        if pooling not in ("max", "stride"):
            raise ValueError(f'pooling must be "max" or "stride", got {pooling!r}')
        if norm not in ("batch", "support"):
            raise ValueError(f'norm must be "batch" or "support", got {norm!r}')
        if running and norm != "batch":
            raise ValueError(f'running=True needs norm="batch", which keeps running statistics, got norm={norm!r}')
        if image_size < 16 and pooling == "max":
            raise ValueError(f"four poolings need images of at least 16 x 16, got {image_size}")
        blocks = [ConvBlock(channels if index == 0 else width, width, pooling, running, norm) for index in range(4)]
        last = nn.Flatten() if pooling == "max" else nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.body = nn.Sequential(*blocks, last)
        self.head = nn.Linear(width * (image_size // 16) ** 2 if pooling == "max" else width, ways)
        nn.init.xavier_uniform_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[N, channels, image_size, image_size]`` -> logits ``[N, ways]``."""
        return self.head(self.body(x))  # type: ignore[no-any-return]


class PairNet(nn.Module):
    """A network of four convolutions that decides whether an image belongs to the second of two classes.

    The convolutions are 5x5 with 6, 10, 12 and 16 filters, each with ReLU and max-pooling. A linear layer of 10 units
    and one with a single logit follow. Weights are initialized as in He et al. 2015, and biases at zero: with smaller
    weights an inner loop of plain gradient descent does not get below the loss of a random guess.

    Args:
        image_size: height and width of the images, at least 16; Omniglot's drawings have 105. Below 76 the convolutions
            are padded, so that they keep the size.

    Raises:
        ValueError: the images are too small.
    """

    def __init__(self, image_size: int = 105) -> None:
        super().__init__()
        if image_size < 16:
            raise ValueError(f"four poolings need images of at least 16 x 16, got {image_size}")
        padding, size = 0 if image_size >= 76 else 2, image_size
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise((1, 6, 10, 12, 16)):
            layers += [nn.Conv2d(inputs, outputs, 5, padding=padding), nn.ReLU(), nn.MaxPool2d(2)]
            size = (size + 2 * padding - 4) // 2
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * size**2, 10), nn.ReLU())
        self.head = nn.Linear(10, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[N, 1, image_size, image_size]`` -> logits ``[N]``."""
        return self.head(self.body(x)).squeeze(-1)  # type: ignore[no-any-return]


class ResidualBlock(nn.Module):
    """Three 3x3 convolutions with batch norm and a leaky ReLU, a 1x1 shortcut, and 2x2 max-pooling."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()

        def unit(c: int, kernel: int) -> list[nn.Module]:
            convolution = nn.Conv2d(c, outputs, kernel, padding=kernel // 2, bias=False)
            nn.init.kaiming_normal_(convolution.weight, a=0.1, nonlinearity="leaky_relu")
            return [convolution, nn.BatchNorm2d(outputs, track_running_stats=False)]

        self.path = nn.Sequential(
            *unit(inputs, 3), nn.LeakyReLU(0.1), *unit(outputs, 3), nn.LeakyReLU(0.1), *unit(outputs, 3)
        )
        self.shortcut = nn.Sequential(*unit(inputs, 1))
        self.after = nn.Sequential(nn.LeakyReLU(0.1), nn.MaxPool2d(2))

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W] -> [N, outputs, H / 2, W / 2]``."""
        return self.after(self.path(x) + self.shortcut(x))  # type: ignore[no-any-return]


class ResNet12(nn.Module):
    """The twelve-layer residual network of few-shot learning (Lee et al. 2019, MetaOptNet), without DropBlock.

    Args:
        channels: number of channels of the images, which may have any size from 16 x 16.
        ways: number of classes, the size of the head.
        widths: number of filters of each of the four blocks.
    """

    citation = "Lee, Maji, Ravichandran, Soatto. Meta-Learning with Differentiable Convex Optimization. CVPR 2019"

    def __init__(
        self, channels: int = 3, ways: int = 5, widths: tuple[int, int, int, int] = (64, 160, 320, 640)
    ) -> None:
        super().__init__()
        sizes = (channels, *widths)
        self.body = nn.Sequential(*(ResidualBlock(a, b) for a, b in pairwise(sizes)))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(widths[-1], ways)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[N, channels, H, W]`` -> logits ``[N, ways]``."""
        return self.head(self.pool(self.body(x)))  # type: ignore[no-any-return]


class WithContext(nn.Module):
    """A model with a context vector that is appended to the input of one layer (CAVIA).

    The vector starts every task at zero and is adapted, never meta-learned (Zintgraf et al. 2019, section 3).

    Args:
        model: the model; its layer must expect ``size`` more features (or channels) than the previous layer returns.
        size: length of the context vector.
        at: the qualified name of the layer that reads the context; by default the model's own input.
    """

    citation = (
        "Zintgraf, Shiarlis, Kurin, Hofmann, Whiteson. Fast Context Adaptation via Meta-Learning. ICML 2019. "
        "arXiv:1810.03642"
    )

    def __init__(self, model: nn.Module, size: int, at: str = "") -> None:
        super().__init__()
        self.model = model
        self.context = nn.Parameter(torch.zeros(size), requires_grad=False)
        model.get_submodule(at).register_forward_pre_hook(self._append)

    def _append(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x = inputs[0]
        shape = (len(x), len(self.context), *x.shape[2:])
        context = self.context.reshape(1, -1, *[1] * (x.ndim - 2)).expand(shape)
        return (torch.cat([x, context], dim=1), *inputs[1:])

    def forward(self, *inputs: Any) -> Any:
        """Return the model's output with the context."""
        return self.model(*inputs)


class BiasTransformed(nn.Linear):
    """A linear layer with ``size`` learned inputs in addition to the given ones, called a bias transformation.

    Its gradient has more freedom than that of a bias (Finn et al. 2017, One-Shot Visual Imitation Learning).

    Args:
        inputs, outputs: number of inputs and outputs of the layer.
        size: number of learned inputs.
    """

    def __init__(self, inputs: int, outputs: int, size: int = 10) -> None:
        super().__init__(inputs + size, outputs)
        nn.init.xavier_uniform_(self.weight)
        nn.init.zeros_(self.bias)
        self.transformation = nn.Parameter(0.1 * torch.randn(size))

    def forward(self, x: Tensor) -> Tensor:
        """``[..., inputs] -> [..., outputs]``."""
        return super().forward(torch.cat([x, self.transformation.expand(*x.shape[:-1], -1)], -1))


class Recurrent(nn.Module):
    """An Elman network: a recurrent state, and a linear output at each step of a sequence (Elman 1990).

    Unlike torch's own recurrent layers, it can be vectorized over tasks.

    Args:
        inputs: number of features of a step of a sequence.
        outputs: number of outputs at each step.
        hidden: size of the state.
    """

    def __init__(self, inputs: int = 1, outputs: int = 1, hidden: int = 32) -> None:
        super().__init__()
        self.hidden = hidden
        self.read, self.keep, self.head = (
            nn.Linear(i, o) for i, o in ((inputs, hidden), (hidden, hidden), (hidden, outputs))
        )
        nn.init.orthogonal_(self.keep.weight, 0.9)  # so that a state fades slowly
        nn.init.zeros_(self.keep.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Sequences ``[N, H, inputs]`` -> ``[N, H, outputs]``."""
        read, states = self.read(x), []
        state = torch.zeros_like(read[:, 0])
        for step in read.unbind(1):
            state = torch.tanh(step + self.keep(state))
            states.append(state)
        return self.head(torch.stack(states, 1))  # type: ignore[no-any-return]


conv4 = Conv4
recurrent = Recurrent
resnet12 = ResNet12
pair_net = PairNet

MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp, "conv4": conv4, "pair-net": pair_net, "recurrent": recurrent, "resnet12": resnet12,
}  # fmt: skip
"""The models that a recipe can name."""
