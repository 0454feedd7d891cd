"""The problems that a recipe can name: builders of task sources, with signatures that define the options."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ..task import Source
from .episodes import FewShot, VaryingFewShot
from .folders import image_folder
from .functions import Linear, Sinusoid
from .images import Splits
from .mixture import Mixture
from .pairs import Pairs
from .sequences import Oscillator
from .strokes import Strokes
from .vision import OmniglotSplit, mini_imagenet, omniglot


class Sources(NamedTuple):
    """The task sources for training, validation and test."""

    train: Source
    val: Source
    test: Source


Number = int | tuple[int, int]
"""A number that is the same for all tasks, or the fewest and the most (see `VaryingFewShot`)."""


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
    ways: Number = 5,
    shots: Number = 1,
    queries: int = 1,
    eval_queries: int | None = None,
    train_shots: Number | None = None,
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
    ways: Number = 5,
    shots: Number = 1,
    queries: int = 15,
    eval_queries: int | None = None,
    train_shots: Number | None = None,
    size: int = 84,
    root: str | Path | None = None,
    device: str = "cpu",
) -> Sources:
    """`FewShot` on `mini_imagenet`."""
    return few_shot(mini_imagenet(root, size, device), ways, shots, queries, eval_queries, train_shots)


def image_folder_tasks(
    ways: Number = 5,
    shots: Number = 1,
    queries: int = 1,
    eval_queries: int | None = None,
    train_shots: Number | None = None,
    size: int = 84,
    channels: int = 3,
    split: tuple[float, float, float] = (0.64, 0.16, 0.2),
    seed: int = 0,
    skip_unreadable: bool = False,
    folder: str = "",
    root: str | Path | None = None,
    device: str = "cpu",
) -> Sources:
    """`FewShot` on `image_folder`; ``folder`` is that of the classes in ``root``, if it is not ``root`` itself."""
    root = os.environ.get("INNERLOOP_DATA") if root is None else root
    if not root:
        raise ValueError("image-folder needs a folder with one folder for each class: give --data DIR (or root=)")
    splits = image_folder(Path(root) / folder, size, channels, split, seed, skip_unreadable, device)
    return few_shot(splits, ways, shots, queries, eval_queries, train_shots)


def few_shot(
    splits: Splits,
    ways: Number,
    shots: Number,
    queries: int,
    eval_queries: int | None = None,
    train_shots: Number | None = None,
    within_groups: bool = False,
) -> Sources:
    """`FewShot` on each split, or `VaryingFewShot` if a number of ways or shots varies.

    Val and test have ``eval_queries`` query images per class, by default as many as train. Train has ``train_shots``
    support images per class, by default as many as val and test: Reptile trains with more than it is tested with.

    Args:
        splits: the data sets of the three splits.
        ways: number of classes of a task, or the fewest and the most.
        shots: number of support images of each class, or the fewest and the most.
        queries: number of query images of each class.
        eval_queries: number of query images of each class in val and test; by default ``queries``.
        train_shots: number of support images of each class in train; by default ``shots``.
        within_groups: see `FewShot`.
    """
    later = queries if eval_queries is None else eval_queries
    # Names for errors about too few classes or images.
    named = (replace(part, name=f"the {split} split of {part.name}") for split, part in splits._asdict().items())
    splits = Splits(*named)
    trained = shots if train_shots is None else train_shots
    varies = not all(isinstance(number, int) for number in (ways, shots, trained))
    episodes: Any = VaryingFewShot if varies else FewShot
    return Sources(
        episodes(splits.train, ways, trained, queries, within_groups),
        episodes(splits.val, ways, shots, later, within_groups),
        episodes(splits.test, ways, shots, later, within_groups),
    )


TaskBuilder = Callable[..., Sources]
"""Builds the sources of a problem. Of ``root``, ``device`` and ``download`` it takes those that it has a use for."""


def mixture_tasks(
    sets: Mapping[str, TaskBuilder],
    weights: Mapping[str, float] | None = None,
    root: str | Path | None = None,
    device: str = "cpu",
    download: bool = False,
) -> Sources:
    """`Mixture` of other problems, in each split.

    Args:
        sets: what builds each problem, by a name for it. In a recipe each is a table as ``[tasks]`` is:
            ``[tasks.sets.drawn]`` with ``name = "strokes"``.
        weights: see `Mixture`.
        root: the folder of the data of all problems.
        device: where the tasks are.
        download: whether to download missing data.
    """
    given = {"root": root, "device": device, "download": download}
    built: dict[str, Any] = {}
    for name, build in sets.items():
        accepted = inspect.signature(build).parameters
        built[name] = build(**{key: value for key, value in given.items() if key in accepted})
    splits = ({name: sources[split] for name, sources in built.items()} for split in range(3))
    return Sources(*(Mixture(split, weights) for split in splits))


TASKS: dict[str, TaskBuilder] = {
    "sinusoid": sinusoid_tasks,
    "sinusoid-two-phase": two_phase_tasks,
    "linear": linear_tasks,
    "oscillator": oscillator_tasks,
    "strokes": strokes_tasks,
    "omniglot": omniglot_tasks,
    "omniglot-pairs": omniglot_pairs_tasks,
    "mini-imagenet": mini_imagenet_tasks,
    "image-folder": image_folder_tasks,
    "mixture": mixture_tasks,
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
