"""Film strips of unseen imitation tasks: the demonstration, what the robot did, and where its learned loss looks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..imitation import Encoder, Imitation
from ..learner import MetaLearner
from ..losses import TemporalLoss
from ..task import Batch, select, to
from .figures import AFTER, BEFORE, new_figure
from .series import NothingToDrawError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TASKS = 4
"""The number of tasks that are shown."""
PICTURES = 10
"""The largest number of pictures in a strip: evenly spaced, with the first and the last."""
PAUSE, ENLARGED = 250, 6
"""The milliseconds per frame of a film, and the factor by which it is enlarged."""


@dataclass(frozen=True)
class Attempts:
    """Rollouts of a robot in some unseen tasks, from the same initial state before and after each inner step.

    Attributes:
        support: the demonstrations.
        pictures: what the robot saw after 0, 1, ..., K inner steps, each ``[T, horizon + 1, 3, h, w]``.
        success: whether it succeeded, ``[K + 1, T]``.
    """

    support: Batch
    pictures: tuple[Tensor, ...]
    success: Tensor

    @property
    def shown(self) -> Tensor:
        """The pictures of the demonstrations, ``[T, frames, 3, h, w]``."""
        images: Tensor = self.support.x["images"]
        return images[:, 0]


def attempt(learner: MetaLearner, source: Imitation, steps: int | None, tasks: int = TASKS, seed: int = 0) -> Attempts:
    """Let the robot attempt unseen tasks; the same seed gives the same tasks."""
    source.require(learner)
    generator = torch.Generator().manual_seed(seed)
    drawn = source.environment.tasks(tasks, source.split, generator)
    support, begin = source.shows(drawn, generator), generator.get_state()
    pictures, success = [], []
    for step in range(source.steps(learner, steps) + 1):
        seen = source.attempt(learner, drawn, support, step, generator.set_state(begin))
        pictures.append(torch.stack(list(seen), 1))
        success.append(source.environment.success()[:, 0])
    return Attempts(support, tuple(pictures), torch.stack(success))


def strips(learner: MetaLearner, source: Imitation, steps: int | None = None, seed: int = 0) -> Figure:
    """Draw four unseen tasks as strips: the demonstration, and the robot before and after adaptation.

    If the inner loss is learned, a strip shows its value for every picture of the demonstration.
    """
    attempts = attempt(learner, source, steps, seed=seed)
    losses = [_over_time(learner, attempts.support, task) for task in range(TASKS)]
    last = len(attempts.pictures) - 1
    rows: list[tuple[str, Tensor]] = [("demonstration", attempts.shown)]
    rows += [("before adaptation" if last else "the robot", attempts.pictures[0])]
    rows += [(f"after {last} step{'s' * (last > 1)}", attempts.pictures[last])] if last else []
    number = len(rows) + any(losses)
    figure = new_figure(13, 1.15 * number * 2)
    parts: Any = figure.subfigures(2, 2)
    for task, part in enumerate(parts.flat):
        panels = part.subplots(number, 1)
        for axes, (name, pictures) in zip(panels, rows, strict=False):
            axes.imshow(_row(pictures[task]), aspect="equal", interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_title(name, fontsize="small", loc="left")
        for (name, values), color in zip(losses[task].items(), ("C0", "C2", "C3", "C4"), strict=False):
            panels[-1].plot(range(1, len(values) + 1), values, marker="o", markersize=3, color=color, label=name)
        if losses[task]:
            panels[-1].set_title("learned loss over the demonstration", fontsize="small", loc="left")
            panels[-1].legend(fontsize="x-small")
        words = ["no", "yes"]
        outcome = " → ".join(words[int(attempts.success[step, task])] for step in ([0, last] if last else [0]))
        part.suptitle(f"task {task}: success: {outcome}", fontsize="medium")
    return figure


def _over_time(learner: MetaLearner, support: Batch, task: int) -> dict[str, list[float]]:
    """Return the value of each head of a learned loss at every step of a demonstration, before adaptation."""
    if not isinstance(learner.inner_loss, TemporalLoss) or not learner.steps:
        return {}
    own = _there(learner, select(support, task))
    with torch.no_grad():
        heads = learner.inner_loss.over_time(learner.adapt(own, steps=0)(own.x))
    return {name: values[0].tolist() for name, values in heads.items()}


def _there(learner: MetaLearner, support: Batch) -> Batch:
    """Move the support set to the learner's device."""
    there: Batch = to(support, next(learner.parameters()).device)
    return there


def _row(pictures: Tensor) -> Any:
    """Return some of the pictures ``[H, 3, h, w]`` in a row, with white lines between them."""
    some = torch.linspace(0, len(pictures) - 1, min(PICTURES, len(pictures))).round().long()
    framed = torch.nn.functional.pad(pictures[some], (0, 1, 0, 0), value=255)
    return torch.cat([*framed], -1).permute(1, 2, 0).numpy()


def gaze(learner: MetaLearner, source: Imitation, steps: int | None = None, seed: int = 0) -> Figure:
    """Draw where the learned loss and the policy's filters look in four unseen tasks.

    A row shows the end of the demonstration, the pixels in it on which the gradient of the learned loss with respect to
    the filters depends most, the robot's picture, and where its filters look before and after adaptation.

    Raises:
        NothingToDrawError: the inner loss is not learned, or the policy has no such filters.
    """
    eye = getattr(learner.model, "eye", None)
    if not isinstance(eye, Encoder) or not isinstance(learner.inner_loss, TemporalLoss):
        raise NothingToDrawError("the run has no learned loss with an Encoder, whose filters could be drawn")
    attempts = attempt(learner, source, steps, seed=seed)
    last, titles = len(attempts.pictures) - 1, ["end of the demonstration", "the learned loss depends on",
                                                "the robot sees", "it looks at: before", "after"]  # fmt: skip
    figure = new_figure(11, 2.3 * TASKS)
    for task, row in enumerate(figure.subplots(TASKS, 5)):
        demonstration, scene = attempts.shown[task], attempts.pictures[0][task, :1]
        support = _there(learner, select(attempts.support, task))
        before, after = (_adapted_eye(learner, support, step) for step in (0, last))
        maps = [None, _learned_from(learner, support), None, _where(before, scene), _where(after, scene)]
        for axes, picture, over, title in zip(
            row, (demonstration[-1], demonstration[-1], scene[0], scene[0], scene[0]), maps, titles, strict=True
        ):
            axes.imshow(picture.permute(1, 2, 0).numpy(), interpolation="nearest")
            if over is not None:
                extent = (-0.5, picture.shape[-1] - 0.5, picture.shape[-2] - 0.5, -0.5)
                axes.imshow(over.numpy(), cmap="inferno", alpha=0.75, extent=extent, interpolation="bilinear")
            axes.set_xticks([])
            axes.set_yticks([])
            if not task:
                axes.set_title(title, fontsize="small", color={3: BEFORE, 4: AFTER}.get(titles.index(title), "black"))
    return figure


def _adapted_eye(learner: MetaLearner, support: Batch, steps: int) -> Encoder:
    eye = learner.adapt(support, steps).module().eye
    assert isinstance(eye, Encoder)
    return eye


def _where(eye: Encoder, picture: Tensor) -> Tensor:
    """Return how much all filters together attend to each position of a picture ``[1, 3, h, w]``."""
    with torch.no_grad():
        maps = eye.filters(picture.to(eye.look.sharpness) / 255 - 0.5)[0].cpu()
        looks: Tensor = (eye.look.sharpness.cpu() * maps.flatten(1)).softmax(-1).mean(0).view(maps.shape[1:])
    return looks


def _learned_from(learner: MetaLearner, support: Batch) -> Tensor:
    """Return how much the inner gradient of the filters depends on each pixel of the last picture, ``[h, w]``."""
    images = support.x["images"].float().requires_grad_()
    parameters = [p for name, p in learner.model.named_parameters() if name in learner.adapted]
    loss = learner.inner_loss(learner.model(images), support.y)
    grads = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
    size = torch.stack([grad.square().sum() for grad in grads if grad is not None]).sum()
    (by,) = torch.autograd.grad(size, images)
    pixels: Tensor = by[0, -1].abs().sum(0).cpu()
    return pixels


def film(learner: MetaLearner, source: Imitation, path: Path, steps: int | None = None, seed: int = 0) -> None:
    """Write a GIF of four unseen tasks below each other: the demonstration, and the robot before and after adaptation.

    Raises:
        ImportError: Pillow is missing.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("films need Pillow: pip install 'innerloop[vision]'") from error
    attempts = attempt(learner, source, steps, seed=seed)
    parts = [attempts.shown, attempts.pictures[0], *attempts.pictures[-1:]][: 2 + (len(attempts.pictures) > 1)]
    length = max(part.shape[1] for part in parts)
    moments = [torch.cat([part[:, min(t, part.shape[1] - 1)] for part in parts], -1) for t in range(length)]
    moments += moments[-1:] * 4  # hold the last frame
    frames = []
    for moment in moments:
        picture = Image.fromarray(torch.cat([*moment], -2).permute(1, 2, 0).numpy())
        frames.append(picture.resize((picture.width * ENLARGED, picture.height * ENLARGED), Image.Resampling.NEAREST))
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=PAUSE, loop=0)
