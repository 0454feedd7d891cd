"""Visual policies: they take images and a state, and return actions together with intermediate features."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..common.ranges import require_at_least
from ..models import BiasTransformed, Recurrent


class Behavior(NamedTuple):
    """The output of a policy for S sequences of H steps.

    Attributes:
        actions: the actions, ``[S, H, A]``.
        points: the mean position of each filter in the image, ``[S, H, 2 P]``: x of all, then y of all, in [-1, 1].
        seen: the mean features of all filters at the position of each filter, ``[S, H, P * P]``.
        hidden: the last hidden layer, ``[S, H, F]``.
    """

    actions: Tensor
    points: Tensor
    seen: Tensor
    hidden: Tensor


class SpatialSoftmax(nn.Module):
    """The spatial softmax of each filter, and the mean features under it (Levine et al. 2016, section 5.1).

    The softmax of a filter over the image has a mean position. The features of all filters are averaged with the same
    weights.

    Positions alone say little about the object there: the gradient of a position only gives filters the difference
    between its two sides. The gradient of the averaged features gives them the features at that position.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sharpness = nn.Parameter(torch.ones(()))

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Return positions and mean features: ``[N, P, h, w] -> [N, 2 P], [N, P * P]``."""
        height, width = maps.shape[-2:]
        weights = (self.sharpness * maps.flatten(-2)).softmax(-1)
        seen = weights @ maps.flatten(-2).mT
        weights = weights.view(*maps.shape)
        across, down = (torch.linspace(-1, 1, size, device=maps.device, dtype=maps.dtype) for size in (width, height))
        return torch.cat([weights.sum(-2) @ across, weights.sum(-1) @ down], -1), seen.flatten(1)


class Encoder(nn.Module):
    """Convolutions, of which the first halves the image, followed by a `SpatialSoftmax`.

    Args:
        filters: number of filters of each convolution.
        layers: number of convolutions.
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
        """Return points ``[S, H, 2 P]`` and features ``[S, H, P * P]`` of images, uint8 ``[S, H, 3, h, w]``."""
        pictures = images.flatten(0, 1).to(self.look.sharpness) / 255 - 0.5
        points, seen = self.look(self.filters(pictures))
        return points.unflatten(0, images.shape[:2]), seen.unflatten(0, images.shape[:2])


class Policy(nn.Module):
    """The base of visual policies: an encoder, and hidden layers on its output and the robot's state.

    Args:
        state: number of elements of the robot's state.
        actions: number of elements of an action.
        filters: the number P of filters of the convolutions.
        layers: number of convolutions.
        hidden: sizes of the hidden layers.
        transformation: size of the bias transformations.

    Attributes:
        sizes: the sizes of the parts of the output, for learned losses.
        reads_demonstration: whether the demonstration is one of the inputs.
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
        """Return the number of inputs of the hidden layers besides points and state."""
        return 0

    def behave(self, points: Tensor, seen: Tensor, state: Tensor, *more: Tensor) -> Behavior:
        """Return the behavior for the encoder's output ``[S, H, ...]``, the state, and other inputs ``more``."""
        hidden = torch.cat([points, *more, state], -1)
        for layer in self.body:
            hidden = torch.relu(layer(hidden))
        return Behavior(self.head(hidden), points, seen, hidden)


class Visuomotor(Policy):
    """A policy whose hidden layers read the points in the image and the state.

    Without a state, as in a video of a demonstrator, the state is zero. Arguments are those of `Policy`.
    """

    def forward(self, images: Tensor, state: Tensor | None = None) -> Behavior:
        """Return the behavior for images, uint8 ``[S, H, 3, h, w]``, and states ``[S, H, state]``."""
        points, seen = self.eye(images)
        return self.behave(points, seen, points.new_zeros(*points.shape[:2], self.state) if state is None else state)


class Contextual(Policy):
    """A policy that reads the last frame of the demonstration together with the current image, and does not adapt.

    The points and features of both images are inputs of its hidden layers (the contextual policy of Finn et al. 2017,
    One-Shot Visual Imitation Learning). Arguments are those of `Policy`.
    """

    reads_demonstration = True

    def more(self, filters: int) -> int:
        """Return the number of features of the current image, and of points and features of the last frame."""
        return 2 * filters + 2 * filters**2

    def forward(self, images: Tensor, state: Tensor, demonstration: Tensor) -> Behavior:
        """Return the behavior for images, states, and the demonstration ``[S, frames, 3, h, w]``."""
        points, seen = self.eye(images)
        shown = torch.cat(self.eye(demonstration[:, -1:]), -1).expand(-1, images.shape[1], -1)
        return self.behave(points, seen, state, seen, shown)


class Watching(Policy):
    """A policy whose recurrent network reads the demonstration frame by frame; it does not adapt.

    The state of the network after the last frame is an input of the hidden layers. It is an Elman network; the
    recurrent policy of Finn et al. 2017 (One-Shot Visual Imitation Learning) uses an LSTM.

    Args:
        state, actions, filters, layers, hidden, transformation: see `Policy`.
        memory: size of the state of the recurrent network.
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
        """Return the number of features of the current image plus the size of the memory."""
        return filters**2 + self.memory

    def forward(self, images: Tensor, state: Tensor, demonstration: Tensor) -> Behavior:
        """Return the behavior for images, states, and the demonstration ``[S, frames, 3, h, w]``."""
        points, seen = self.eye(images)
        remembered = self.watch(torch.cat(self.eye(demonstration), -1))[:, -1:].expand(-1, images.shape[1], -1)
        return self.behave(points, seen, state, seen, remembered)


visuomotor, contextual, watching = Visuomotor, Contextual, Watching

MODELS = {"visuomotor": visuomotor, "contextual": contextual, "watching": watching}
"""The policies that a recipe can name."""
