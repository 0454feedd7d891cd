"""What the page asks of a learner: to adapt to a few examples, and what it then makes of something new."""

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
"""Of each character, the drawings of it."""
FEWEST, MOST = 2, 5
"""Characters to tell apart."""
MOST_STEPS = 20
GRID = 201
"""Points that a function is drawn by."""


class Characters:
    """Tells which of a few characters a drawing is, after having seen each of them once or a few times.

    Args:
        model: was meta-trained, by a recipe, to tell images of one channel apart.

    Raises:
        ValueError: its head cannot be cut.
    """

    def __init__(self, model: Pretrained) -> None:
        tasks = model.recipe["tasks"]
        self.name, self.size, self.temperature = model.name, tasks["size"], model.temperature or 1.0
        self.on_white = tasks["name"] == "image-folder"  # whose pixels are as in the files: paper is 1 and ink 0
        numbers = range(FEWEST, min(MOST, tasks["ways"]) + 1)
        self.learners = {number: with_classes(model.learner, number) for number in numbers}
        self.steps = _steps(model)
        self._last: tuple[Examples, int, Adaptation] | None = None

    def about(self) -> dict[str, Any]:
        """What the page has to know."""
        most = max(self.learners)
        return {"name": self.name, "fewest": FEWEST, "most": most, "size": self.size, **self.steps}

    def __call__(self, characters: Examples, drawing: Drawing, steps: int) -> dict[str, Any]:
        """What a drawing is, after so many inner steps on the examples of each character, and before them.

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
        """Return the last one again for the same examples: a page asks again with every line of a drawing."""
        last = self._last  # which another thread may set meanwhile
        if last is None or last[:2] != (characters, steps):
            sides = adaptation(self.learners[len(characters)], self._support(characters), steps)
            self._last = last = characters, steps, sides
        return last[2]

    def warm_up(self) -> None:
        """Do once what is slower the first time."""
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
    """Finds a function from a few points on it.

    Args:
        model: was meta-trained, by a recipe, on sinusoids.
    """

    def __init__(self, model: Pretrained) -> None:
        source = config.TASKS[model.recipe["tasks"]["name"]](**config.arguments(model.recipe, "tasks")).test
        assert isinstance(source, Sinusoid)
        self.name, self.learner, self.source, self.steps = model.name, model.learner, source, _steps(model)
        self.x = torch.linspace(*source.x, GRID)[:, None]
        self.height = 1.2 * source.amplitude[1]

    def about(self) -> dict[str, Any]:
        """What the page has to know."""
        bounds = {"x": list(self.source.x), "y": [-self.height, self.height], "grid": GRID}
        return {"name": self.name, **bounds, **self.steps}

    def __call__(self, points: Sequence[Point], steps: int) -> dict[str, Any]:
        """The function after so many inner steps on points ``(x, y)`` of it, and before them.

        Returns:
            ``before`` and ``after``: y on an even grid over the range of x, ``[GRID]``; ``losses`` as in `Characters`.
        """
        given = torch.tensor(points, dtype=torch.float32)
        sides = adaptation(self.learner, Batch(given[:, :1], given[:, 1:]), steps)
        before, after = (side(self.x)[:, 0].tolist() for side in sides)
        return {"before": before, "after": after, "losses": sides.after.losses.tolist()}

    def draw(self) -> dict[str, Any]:
        """Ten points of a random sinusoid, and the sinusoid itself, on the grid of `__call__`."""
        generator = torch.Generator().manual_seed(secrets.randbits(31))
        function = self.source.functions(1, generator)
        low, high = self.source.x
        x = low + (high - low) * torch.rand(1, 10, 1, generator=generator)
        points = torch.cat([x, function(x)], -1)[0]
        return {"points": points.tolist(), "y": function(self.x)[0, :, 0].tolist()}

    def warm_up(self) -> None:
        """Do once what is slower the first time."""
        self([[0.0, 0.0]], self.steps["steps"])


class Adaptation(NamedTuple):
    """A model before and after adapting to a support set."""

    before: Adapted
    after: Adapted


def adaptation(learner: MetaLearner, support: Batch, steps: int) -> Adaptation:
    """Adapt to a support set; each input is then judged by itself."""
    before, after = (learner.adapt(support, number, transductive=False) for number in (0, steps))
    return Adaptation(before, after)


def answering(models: Sequence[Pretrained]) -> tuple[Characters | None, Functions | None]:
    """What answers for some models: of each kind, the last.

    Raises:
        ValueError: one is of neither kind.
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
            channels = f" of {tasks['channels']} channels" if "channels" in tasks else ""
            raise ValueError(
                f"{model.name} was trained on tasks of {what}{channels}; the demo takes models of pictures of one "
                "channel (strokes, omniglot, image-folder with tasks.channels=1) or of sinusoids (sinusoid, "
                "sinusoid-two-phase)"
            )
    return characters, functions


def _steps(model: Pretrained) -> dict[str, int]:
    """The inner steps that the model was tested with, those to begin with, and the most that are offered."""
    told = model.recipe.get("evaluate", {}).get("steps")
    tested = model.learner.steps if told is None else int(told)
    return {
        "tested": tested,
        "steps": min(tested, MOST_STEPS),
        "most_steps": min(max(10, 2 * tested), MOST_STEPS),
    }
