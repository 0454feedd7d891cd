"""The problems that a recipe can name: builders of task sources, with signatures that define the options."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ..task import Source
from .episodes import FewShot
from .folders import image_folder
from .functions import Linear, Sinusoid
from .images import Splits
from .pairs import Pairs
from .sequences import Oscillator
from .strokes import Strokes
from .vision import OmniglotSplit, mini_imagenet, omniglot


class Sources(NamedTuple):
    """The task sources for training, validation and test."""

    train: Source
    val: Source
    test: Source


def sinusoid_tasks(shots: int = 10, queries: int | None = None) -> Sources:
    """`Sinusoid`; the three sources are the same, because functions never run out."""
    source = Sinusoid(shots, queries)
    return Sources(source, source, source)


def two_phase_tasks(shots: int = 4, queries: int | None = None) -> Sources:
    """`Sinusoid.two_phase`."""
    source = Sinusoid.two_phase(shots, queries)
    return Sources(source, source, source)


def linear_tasks(shots: int = 10, queries: int | None = None) -> Sources:
    """`Linear`."""
    source = Linear(shots, queries)
    return Sources(source, source, source)


def oscillator_tasks(shots: int = 5, queries: int | None = None, horizon: int = 30) -> Sources:
    """`Oscillator`: sequences of an unknown damped oscillator."""
    source = Oscillator(shots, queries, horizon)
    return Sources(source, source, source)


def strokes_tasks(
    ways: int = 5,
    shots: int = 1,
    queries: int = 1,
    eval_queries: int | None = None,
    size: int = 28,
    device: str = "cpu",
) -> Sources:
    """`Strokes`; ``eval_queries`` is the number of queries per class in val and test, by default ``queries``."""
    later = queries if eval_queries is None else eval_queries
    return Sources(
        Strokes(ways, shots, queries, size, "train", device),
        Strokes(ways, shots, later, size, "val", device),
        Strokes(ways, shots, later, size, "test", device),
    )


def omniglot_tasks(
    ways: int = 5,
    shots: int = 1,
    queries: int = 1,
    eval_queries: int | None = None,
    train_shots: int | None = None,
    split: OmniglotSplit = "random",
    rotations: bool = True,
    size: int = 28,
    seed: int = 1,
    within_groups: bool = False,
    root: str | Path | None = None,
    device: str = "cpu",
    download: bool = False,
) -> Sources:
    """`FewShot` on `omniglot`; ``within_groups`` draws the classes of a task from one alphabet."""
    splits = omniglot(root, split, rotations, size, seed, download, device)
    return few_shot(splits, ways, shots, queries, eval_queries, train_shots, within_groups)


def omniglot_pairs_tasks(
    shots: int = 15,
    queries: int = 3,
    test_queries: int = 2,
    size: int = 105,
    seed: int = 1,
    root: str | Path | None = None,
    device: str = "cpu",
    download: bool = False,
) -> Sources:
    """`Pairs` of characters of one alphabet; no alphabet is in two splits.

    By default, 30 of the 40 drawings of a task are support examples. Query examples are 6 in meta-training and
    validation, and 4 in the test.
    """
    splits = omniglot(root, "alphabets", False, size, seed, download, device)
    return Sources(
        Pairs(splits.train, shots, queries), Pairs(splits.val, shots, queries), Pairs(splits.test, shots, test_queries)
    )


def mini_imagenet_tasks(
    ways: int = 5,
    shots: int = 1,
    queries: int = 15,
    eval_queries: int | None = None,
    train_shots: int | None = None,
    size: int = 84,
    root: str | Path | None = None,
    device: str = "cpu",
) -> Sources:
    """`FewShot` on `mini_imagenet`."""
    return few_shot(mini_imagenet(root, size, device), ways, shots, queries, eval_queries, train_shots)


def image_folder_tasks(
    ways: int = 5,
    shots: int = 1,
    queries: int = 1,
    eval_queries: int | None = None,
    train_shots: int | None = None,
    size: int = 84,
    channels: int = 3,
    split: tuple[float, float, float] = (0.64, 0.16, 0.2),
    seed: int = 0,
    skip_unreadable: bool = False,
    root: str | Path | None = None,
    device: str = "cpu",
) -> Sources:
    """`FewShot` on `image_folder`."""
    root = os.environ.get("INNERLOOP_DATA") if root is None else root
    if not root:
        raise ValueError("image-folder needs a folder with one folder for each class: give --data DIR (or root=)")
    splits = image_folder(root, size, channels, split, seed, skip_unreadable, device)
    return few_shot(splits, ways, shots, queries, eval_queries, train_shots)


def few_shot(
    splits: Splits,
    ways: int,
    shots: int,
    queries: int,
    eval_queries: int | None = None,
    train_shots: int | None = None,
    within_groups: bool = False,
) -> Sources:
    """`FewShot` on each split.

    Val and test have ``eval_queries`` query images per class, by default as many as train. Train has ``train_shots``
    support images per class, by default as many as val and test: Reptile trains with more than it is tested with.

    Args:
        splits: the data sets of the three splits.
        ways: number of classes of a task.
        shots: number of support images of each class.
        queries: number of query images of each class.
        eval_queries: number of query images of each class in val and test; by default ``queries``.
        train_shots: number of support images of each class in train; by default ``shots``.
        within_groups: see `FewShot`.
    """
    later = queries if eval_queries is None else eval_queries
    # Names for errors about too few classes or images.
    named = (replace(part, name=f"the {split} split of {part.name}") for split, part in splits._asdict().items())
    splits = Splits(*named)
    return Sources(
        FewShot(splits.train, ways, shots if train_shots is None else train_shots, queries, within_groups),
        FewShot(splits.val, ways, shots, later, within_groups),
        FewShot(splits.test, ways, shots, later, within_groups),
    )


TASKS: dict[str, Callable[..., Sources]] = {
    "sinusoid": sinusoid_tasks,
    "sinusoid-two-phase": two_phase_tasks,
    "linear": linear_tasks,
    "oscillator": oscillator_tasks,
    "strokes": strokes_tasks,
    "omniglot": omniglot_tasks,
    "omniglot-pairs": omniglot_pairs_tasks,
    "mini-imagenet": mini_imagenet_tasks,
    "image-folder": image_folder_tasks,
}
"""The builders by their names in recipes. Their arguments, annotations and defaults are the schema of recipes."""


class Drawing(NamedTuple):
    """The typical size of drawings with light ink on a dark ground: medians over images, as fractions of the side.

    Attributes:
        fill: the longer side of the drawn figure.
        pen: the width of a line.
    """

    fill: float
    pen: float


DRAWINGS = {"strokes": Drawing(0.75, 0.105), "omniglot": Drawing(0.64, 0.073)}
"""The problems with drawings as images, and the typical size of these drawings."""
