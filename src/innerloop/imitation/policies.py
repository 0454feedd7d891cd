"""Policies that see: pictures and a state go in, actions come out, and what was computed on the way."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..common.ranges import require_at_least
from ..models import BiasTransformed, Recurrent


class Behavior(NamedTuple):
    """What a policy makes of S sequences of H steps.

    Attributes:
        actions: ``[S, H, A]``.
        points: where in the picture each filter looks, ``[S, H, 2 P]``: x of all, then y of all, in [-1, 1].
        seen: what every filter finds where each filter looks, ``[S, H, P * P]``.
        hidden: the units before the actions, ``[S, H, F]``.
    """

    actions: Tensor
    points: Tensor
    seen: Tensor
    hidden: Tensor


class SpatialSoftmax(nn.Module):
    """The spatial softmax of each filter, and the mean features under it (Levine et al. 2016, section 5.1).

    The softmax of a filter over the picture has a mean position; the features of all filters are averaged under the
    same weights.

    Positions alone say little of what is there: the gradient of a position reaches the filters as a difference between
    its two sides. The gradient of the averaged features reaches them as the features at that position.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sharpness = nn.Parameter(torch.ones(()))

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """``[N, P, h, w] -> [N, 2 P], [N, P * P]``."""
        height, width = maps.shape[-2:]
        weights = (self.sharpness * maps.flatten(-2)).softmax(-1)
        seen = weights @ maps.flatten(-2).mT
        weights = weights.view(*maps.shape)
        across, down = (torch.linspace(-1, 1, size, device=maps.device, dtype=maps.dtype) for size in (width, height))
        return torch.cat([weights.sum(-2) @ across, weights.sum(-1) @ down], -1), seen.flatten(1)


class Encoder(nn.Module):
    """Convolutions, the first of which halves the picture, and a `SpatialSoftmax`.

    Args:
        filters: of each convolution.
        layers: of them.
    """

    def __init__(self, filters: int, layers: int) -> None:
        super().__init__()
        parts: list[nn.Module] = [nn.Conv2d(3, filters, 5, stride=2, padding=2)]
        for _ in range(layers - 1):
            parts += [nn.ReLU(), nn.Conv2d(filters, filters, 3, padding=1)]
        for part in parts:
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight)
                nn.init.zeros_(part.bias)  # type: ignore[arg-type]
        self.filters, self.look = nn.Sequential(*parts), SpatialSoftmax()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures, uint8 ``[S, H, 3, h, w]`` -> points ``[S, H, 2 P]`` and what is seen there, ``[S, H, P * P]``."""
        pictures = images.flatten(0, 1).to(self.look.sharpness) / 255 - 0.5
        points, seen = self.look(self.filters(pictures))
        return points.unflatten(0, images.shape[:2]), seen.unflatten(0, images.shape[:2])


class Policy(nn.Module):
    """What policies have in common: an eye, hidden layers that are told what it sees and the robot's state, actions.

    Args:
        state: numbers of the robot's state.
        actions: numbers of an action.
        filters: of the convolutions, P.
        layers: convolutions.
        hidden: sizes of the linear layers between.
        transformation: size of the bias transformations.

    Attributes:
        sizes: of the parts of its output, for losses that look at them.
        reads_demonstration: whether the demonstration is one of its inputs.
    """

    reads_demonstration = False

    def __init__(
        self,
        state: int = 2,
        actions: int = 2,
        filters: int = 16,
        layers: int = 2,
        hidden: tuple[int, ...] = (64, 64),
        transformation: int = 10,
    ) -> None:
        super().__init__()
        require_at_least(
            1, state=state, actions=actions, filters=filters, layers=layers, hidden=len(hidden),
            transformation=transformation,
        )  # fmt: skip
        self.state, self.actions = state, actions
        self.sizes = {"actions": actions, "points": 2 * filters, "seen": filters**2, "hidden": hidden[-1]}
        self.eye = Encoder(filters, layers)
        sizes = (2 * filters + self.more(filters) + state, *hidden)
        self.body = nn.ModuleList(BiasTransformed(i, o, transformation) for i, o in zip(sizes, hidden, strict=False))
        self.head = BiasTransformed(hidden[-1], actions, transformation)

    def more(self, filters: int) -> int:
        """Numbers that the hidden layers are told beside points and state."""
        return 0

    def behave(self, points: Tensor, seen: Tensor, state: Tensor, *more: Tensor) -> Behavior:
        """From what the eye gives, ``[S, H, ...]``, the state, and whatever else the hidden layers are told."""
        hidden = torch.cat([points, *more, state], -1)
        for layer in self.body:
            hidden = torch.relu(layer(hidden))
        return Behavior(self.head(hidden), points, seen, hidden)


class Visuomotor(Policy):
    """Pictures -> points -> hidden layers, which read the state too -> actions.

    Where the state is not given, as in a video of another demonstrator, it is zero. Arguments are those of `Policy`.
    """

    def forward(self, images: Tensor, state: Tensor | None = None) -> Behavior:
        """Pictures, uint8 ``[S, H, 3, h, w]``, and states ``[S, H, state]``."""
        points, seen = self.eye(images)
        return self.behave(points, seen, points.new_zeros(*points.shape[:2], self.state) if state is None else state)


class Contextual(Policy):
    """A policy that reads the last picture of the demonstration beside the present one, and does not adapt.

    The points and features of both pictures are inputs of its hidden layers (the contextual policy of Finn et al. 2017,
    One-Shot Visual Imitation Learning). Arguments are those of `Policy`.
    """

    reads_demonstration = True

    def more(self, filters: int) -> int:
        """What is seen now, and points and what is seen in the last picture."""
        return 2 * filters + 2 * filters**2

    def forward(self, images: Tensor, state: Tensor, demonstration: Tensor) -> Behavior:
        """Pictures, states, and the demonstration ``[S, frames, 3, h, w]``."""
        points, seen = self.eye(images)
        shown = torch.cat(self.eye(demonstration[:, -1:]), -1).expand(-1, images.shape[1], -1)
        return self.behave(points, seen, state, seen, shown)


class Watching(Policy):
    """A policy whose recurrent network reads the demonstration frame by frame; it does not adapt.

    The state of the network after the last frame is an input of the hidden layers. It is an Elman network, where the
    recurrent policy of Finn et al. 2017 (One-Shot Visual Imitation Learning) has a long short-term memory.

    Args:
        state, actions, filters, layers, hidden, transformation: see `Policy`.
        memory: numbers that the recurrent network remembers.
    """

    reads_demonstration = True

    def __init__(
        self,
        state: int = 2,
        actions: int = 2,
        filters: int = 16,
        layers: int = 2,
        hidden: tuple[int, ...] = (64, 64),
        transformation: int = 10,
        memory: int = 64,
    ) -> None:
        self.memory = memory
        super().__init__(state, actions, filters, layers, hidden, transformation)
        self.watch = Recurrent(2 * filters + filters**2, memory, memory)

    def more(self, filters: int) -> int:
        """What is seen now, and what is remembered."""
        return filters**2 + self.memory

    def forward(self, images: Tensor, state: Tensor, demonstration: Tensor) -> Behavior:
        """Pictures, states, and the demonstration ``[S, frames, 3, h, w]``."""
        points, seen = self.eye(images)
        remembered = self.watch(torch.cat(self.eye(demonstration), -1))[:, -1:].expand(-1, images.shape[1], -1)
        return self.behave(points, seen, state, seen, remembered)


visuomotor, contextual, watching = Visuomotor, Contextual, Watching

MODELS = {"visuomotor": visuomotor, "contextual": contextual, "watching": watching}
"""The policies that a recipe can name."""
