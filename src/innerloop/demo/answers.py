"""Compute the answers for the page: adapt a learner to a few examples, and predict for a new input."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..adapted import Adapted
from ..data import Sinusoid
from ..learner import MetaLearner
from ..recipe import config
from ..task import Batch
from ..use import Pretrained, with_classes
from .drawing import Drawing, Point, render

Examples = Sequence[Sequence[Drawing]]
"""The drawings of each character."""
FEWEST, MOST = 2, 5
"""The smallest and largest number of characters to classify."""
MOST_STEPS = 20
GRID = 201
"""The number of points with which a function is drawn."""


class Characters:
    """Classify a drawing as one of a few characters, given one or a few examples of each.

    Args:
        model: a classifier of one-channel images, meta-trained by a recipe.

    Raises:
        ValueError: its head cannot be resized.
    """

    def __init__(self, model: Pretrained) -> None:
        tasks = model.recipe["tasks"]
        self.name, self.size, self.temperature = model.name, tasks["size"], model.temperature or 1.0
        self.on_white = tasks["name"] == "image-folder"  # its pixels are those of the files: paper is 1 and ink 0
        numbers = range(FEWEST, min(MOST, config.shared(tasks, "ways")) + 1)
        self.learners = {number: with_classes(model.learner, number) for number in numbers}
        self.steps = _steps(model)
        self._last: tuple[Examples, int, Adaptation] | None = None

    def about(self) -> dict[str, Any]:
        """Return the settings that the page needs."""
        most = max(self.learners)
        return {"name": self.name, "fewest": FEWEST, "most": most, "size": self.size, **self.steps}

    def __call__(self, characters: Examples, drawing: Drawing, steps: int) -> dict[str, Any]:
        """Classify a drawing before and after inner steps on the examples of each character.

        Returns:
            ``before`` and ``after``: probabilities of the characters; ``losses`` of the support set before each step
            and after the last, ``[steps + 1]``; ``image``: the drawing as the model sees it, ``[size][size]`` from 0
            to 255 (ink).
        """
        sides = self._adaptation(characters, steps)
        image = render(drawing, self.size)
        before, after = ((side(self._pixels(image)[None]) / self.temperature).softmax(-1) for side in sides)
        return {
            "before": before[0].tolist(),
            "after": after[0].tolist(),
            "losses": sides.after.losses.tolist(),
            "image": (255 * image[0]).round().int().tolist(),
        }

    def _adaptation(self, characters: Examples, steps: int) -> Adaptation:
        """Adapt, or reuse the last adaptation for the same examples: the page asks again after every stroke."""
        last = self._last  # read it once, because another thread may set it
        if last is None or last[:2] != (characters, steps):
            sides = adaptation(self.learners[len(characters)], self._support(characters), steps)
            self._last = last = characters, steps, sides
        return last[2]

    def warm_up(self) -> None:
        """Run once before the first request, because the first call is slower."""
        for number in self.learners:
            self(
                [[[[[0.1, 0.1], [0.9, 0.1 + place / 10]]]] for place in range(number)],
                [[[0.5, 0.5]]],
                self.steps["steps"],
            )

    def _support(self, characters: Examples) -> Batch:
        # Shot by shot, as few-shot sources order them.
        shots = zip_longest(*characters)
        examples = [(render(x, self.size), label) for shot in shots for label, x in enumerate(shot) if x is not None]
        images, labels = zip(*examples, strict=True)
        return Batch(self._pixels(torch.stack(images)), torch.tensor(labels))

    def _pixels(self, image: Tensor) -> Tensor:
        return 1 - image if self.on_white else image


class Functions:
    """Fit a function to a few points.

    Args:
        model: a model that was meta-trained, by a recipe, on sinusoids.
    """

    def __init__(self, model: Pretrained) -> None:
        source = config.TASKS[model.recipe["tasks"]["name"]](**config.arguments(model.recipe, "tasks")).test
        assert isinstance(source, Sinusoid)
        self.name, self.learner, self.source, self.steps = model.name, model.learner, source, _steps(model)
        self.x = torch.linspace(*source.x, GRID)[:, None]
        self.height = 1.2 * source.amplitude[1]

    def about(self) -> dict[str, Any]:
        """Return the settings that the page needs."""
        bounds = {"x": list(self.source.x), "y": [-self.height, self.height], "grid": GRID}
        return {"name": self.name, **bounds, **self.steps}

    def __call__(self, points: Sequence[Point], steps: int) -> dict[str, Any]:
        """Return the function before and after inner steps on points ``(x, y)``.

        Returns:
            ``before`` and ``after``: y on an even grid over the range of x, ``[GRID]``; ``losses`` as in `Characters`.
        """
        given = torch.tensor(points, dtype=torch.float32)
        sides = adaptation(self.learner, Batch(given[:, :1], given[:, 1:]), steps)
        before, after = (side(self.x)[:, 0].tolist() for side in sides)
        return {"before": before, "after": after, "losses": sides.after.losses.tolist()}

    def draw(self) -> dict[str, Any]:
        """Return ten points of a random sinusoid, and the sinusoid itself on the grid of `__call__`."""
        generator = torch.Generator().manual_seed(secrets.randbits(31))
        function = self.source.functions(1, generator)
        low, high = self.source.x
        x = low + (high - low) * torch.rand(1, 10, 1, generator=generator)
        points = torch.cat([x, function(x)], -1)[0]
        return {"points": points.tolist(), "y": function(self.x)[0, :, 0].tolist()}

    def warm_up(self) -> None:
        """Run once before the first request, because the first call is slower."""
        self([[0.0, 0.0]], self.steps["steps"])


class Adaptation(NamedTuple):
    """A model before and after adapting to a support set."""

    before: Adapted
    after: Adapted


def adaptation(learner: MetaLearner, support: Batch, steps: int) -> Adaptation:
    """Adapt to a support set; the predictions for each input do not depend on other inputs."""
    before, after = (learner.adapt(support, number, transductive=False) for number in (0, steps))
    return Adaptation(before, after)


def answering(models: Sequence[Pretrained]) -> tuple[Characters | None, Functions | None]:
    """Return what answers the page's requests: for each kind of task, the last model of that kind.

    Raises:
        ValueError: a model has neither kind of task.
    """
    characters = functions = None
    for model in models:
        tasks = model.recipe.get("tasks", {})
        what = tasks.get("name", "an unknown kind")
        if what in ("strokes", "omniglot") or (what == "image-folder" and tasks["channels"] == 1):
            characters = Characters(model)
        elif what in ("sinusoid", "sinusoid-two-phase"):
            functions = Functions(model)
        else:
            channels = f" with {tasks['channels']} channels" if "channels" in tasks else ""
            raise ValueError(
                f"{model.name} was trained on {what} tasks{channels}; the demo takes models of one-channel images "
                "(strokes, omniglot, image-folder with tasks.channels=1) or of sinusoids (sinusoid, sinusoid-two-phase)"
            )
    return characters, functions


def _steps(model: Pretrained) -> dict[str, int]:
    """Return the inner steps of the model's test, the initial value of the slider, and its maximum."""
    steps = model.recipe.get("evaluate", {}).get("steps")
    tested = model.learner.steps if steps is None else int(steps)
    return {
        "tested": tested,
        "steps": min(tested, MOST_STEPS),
        "most_steps": min(max(10, 2 * tested), MOST_STEPS),
    }
