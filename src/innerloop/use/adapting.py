"""Adapt a model to a folder of pictures, and classify others."""

from __future__ import annotations

import csv
import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..common.disk import expanded
from ..common.streams import cell, shown
from ..data.files import some
from .heads import Head
from .pictures import Form, Pictures, read
from .pretrained import Pretrained
from .saved import Classifier

if TYPE_CHECKING:
    from .estimators import FewShotClassifier


@dataclass
class Adaptation:
    """A model adapted to a folder of pictures.

    Attributes:
        classifier: the adapted classifier.
        estimator: the fitted estimator behind it.
        support: the pictures that it was adapted to.
        labels: the class of each, by name.
    """

    classifier: Classifier
    estimator: FewShotClassifier
    support: Pictures
    labels: list[str]


def read_pictures(folder: str | Path, model: str | Path | Pretrained) -> Pictures:
    """Read the pictures of a folder into the form that a model takes.

    The result has ``x``, the inputs for the estimators, and ``labels``, the names of the class folders.

    Args:
        folder: ``folder/<class>/**/<image>``, a zip of the same, or pictures without classes.
        model: what `Pretrained.load` takes, or a `Pretrained`.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: no picture can be read, or the model's inputs are not pictures.
        ImportError: Pillow or scipy is not installed.
    """
    model = model if isinstance(model, Pretrained) else Pretrained.load(model)
    return read(expanded(folder), Form.of(model))


def adapt_to(model: Pretrained, folder: str | Path, steps: int | None = None, head: Head | None = None) -> Adaptation:
    """Adapt a model to the pictures of a folder that has a folder for each class.

    Args:
        model: one that was trained on pictures.
        folder: ``folder/<class>/**/<image>``, or a zip of the same, with any number of classes and of pictures in each.
        steps: the number of inner steps; None takes that of training.
        head: see `innerloop.use.with_classes`.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the folder has fewer than two classes, a class without a readable picture, more classes than the
            head takes, or a picture that links put in two classes; or the model's inputs are not pictures.
        ImportError: Pillow, scipy or scikit-learn is not installed.
    """
    from .estimators import FewShotClassifier

    form, path = Form.of(model), expanded(folder)
    support = read(path, form)
    labels = support.labels
    if loose := [name for name, label in zip(support.names, labels, strict=True) if not label]:
        raise ValueError(
            f"{path}: {some(loose)} {'is' if len(loose) == 1 else 'are'} not in a folder of a class: give the folder "
            "that has one folder of pictures for each class"
        )
    if empty := sorted(_folders(path, support) - set(labels)):
        because = f": {support.left_out()}" if support.unreadable else ""
        raise ValueError(f"{path}: no picture of {some(empty)} can be read{because}")
    estimator = FewShotClassifier(model, steps=steps, head=head).fit(support.x, labels)
    classifier = Classifier(
        estimator.predictor_,
        tuple(map(str, estimator.classes_)),
        estimator.temperature_,
        form,
        model.recipe["model"],
        estimator.device_,
    )
    return Adaptation(classifier, estimator, support, labels)


def _folders(path: Path, pictures: Pictures) -> set[str]:
    """Return the class folders, including those without a picture."""
    inside = {name.partition("/")[0] for name in pictures.unreadable if "/" in name}
    visible = (one.name for one in path.iterdir() if one.is_dir()) if path.is_dir() else ()
    return inside | {name for name in visible if not name.startswith(".")}


@dataclass
class Predictions:
    """The predictions of a classifier for some pictures.

    Attributes:
        pictures: the pictures, and how they were converted.
        classes: the names of the classes.
        probabilities: of each class, ``[N, classes]``.
    """

    pictures: Pictures
    classes: tuple[str, ...]
    probabilities: Tensor

    @property
    def predicted(self) -> list[str]:
        """The most probable class of each picture."""
        return [self.classes[index] for index in self.probabilities.argmax(1).tolist()]

    @property
    def truth(self) -> list[str] | None:
        """The class of each picture by its folder, or None unless all are in folders of known classes."""
        labels = self.pictures.labels
        return labels if set(labels) <= set(self.classes) else None

    @property
    def accuracy(self) -> float | None:
        """The accuracy in percent, or None if the true classes are not known."""
        if (truth := self.truth) is None:
            return None
        return 100 * sum(a == b for a, b in zip(truth, self.predicted, strict=True)) / len(truth)

    def as_csv(self) -> str:
        """Return a line for each picture: file, predicted class, its probability, and that of every class.

        ``innerloop.common.streams.cell`` writes the names, so that no spreadsheet takes one for a formula.
        """
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(["file", "predicted", "probability", *map(cell, self.classes)])
        for name, label, row in zip(self.pictures.names, self.predicted, self.probabilities.tolist(), strict=True):
            writer.writerow([cell(name), cell(label), f"{max(row):.4f}", *(f"{share:.4f}" for share in row)])
        return table.getvalue()


def predict(classifier: Classifier, folder: str | Path) -> Predictions:
    """Classify the pictures in a folder, at any depth, or a single picture.

    Raises:
        FileNotFoundError: there is no such folder or file.
        ValueError: no picture can be read.
    """
    pictures = read(expanded(folder), classifier.form)
    parts = [classifier.probabilities(part) for part in torch.split(pictures.x, 64)]
    return Predictions(pictures, classifier.classes, torch.cat(parts))


def counted(labels: list[str]) -> str:
    """Say how many pictures each class has."""
    return ", ".join(f"{number} of {shown(label)}" for label, number in sorted(Counter(labels).items()))
