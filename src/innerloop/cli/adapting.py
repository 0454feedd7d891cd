"""`innerloop adapt`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from ..common import streams
from ..common.disk import writing
from ..common.streams import shown
from ..recipe.refusals import blaming
from ..train.record import dumps
from ..use.adapting import Adaptation, Predictions, adapt_to, counted, predict
from ..use.heads import Head
from ..use.pretrained import Pretrained
from ..use.saved import Classifier
from .app import DeviceOption, JsonOption, TrustOption, app

Start = Enum("Start", {name: name for name in get_args(Head)}, type=str)  # type: ignore[misc]
ModelArgument = Annotated[
    str,
    typer.Argument(
        help="A run directory, a folder of save_pretrained, or the name of a model that comes with us; without "
        "--support, a file that --save wrote."
    ),
]
SupportOption = Annotated[
    Path | None, typer.Option(help="Your examples: a folder with one folder of pictures for each class.")
]
QueryOption = Annotated[Path | None, typer.Option(help="A folder of pictures to predict the classes of.")]
StepsOption = Annotated[int | None, typer.Option(min=0, help="Inner steps.", show_default="as in training")]
HeadOption = Annotated[
    Start | None,
    typer.Option(help="Where the head starts, for more classes than it was trained for.", show_default="trained"),
]
OutputOption = Annotated[Path | None, typer.Option("-o", help="Predictions, a CSV file.", show_default=False)]
PictureOption = Annotated[
    Path | None, typer.Option(help="A picture of the result, PNG, PDF or SVG.", show_default=False)
]
SaveOption = Annotated[
    Path | None, typer.Option(help="The adapted classifier, a safetensors file.", show_default=False)
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Write over files that are there.")]


@app.command()
def adapt(
    model: ModelArgument,
    support: SupportOption = None,
    query: QueryOption = None,
    steps: StepsOption = None,
    head: HeadOption = None,
    output: OutputOption = None,
    picture: PictureOption = None,
    save: SaveOption = None,
    overwrite: OverwriteOption = False,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
    _trust: TrustOption = False,
) -> None:
    """Adapt a trained model to a few pictures of your own, and predict the classes of others.

    Pictures of any size and kind are brought to what the model was trained on, and what was done to them is told. The
    JSON has `support`, `query` (files, predicted classes and probabilities), `expected` (the accuracy, in per cent, of
    examples left out in turn, with its 95 % interval) and `temperature`.
    """
    say = streams.err if as_json else streams.out
    streams.keep_going(any(path is not None for path in (output, picture, save)))
    _require_fitting(model, support, query, output, of_support=(steps, head, save))
    _require_paths([support, query], [output, picture, save], overwrite)
    with blaming(model, *(place for place in (support, query) if place is not None)):
        adaptation, classifier, found = _adapted(say, model, support, query, steps, head, device)
    for path in _written(adaptation, classifier, found, output, picture, save):
        say(f"written: {shown(path)}")
    if as_json:
        streams.out(dumps(_told(adaptation, classifier, found)))


def _adapted(
    say: Any, model: str, support: Path | None, query: Path | None, steps: int | None, head: Start | None, device: str
) -> tuple[Adaptation | None, Classifier, Predictions | None]:
    """Adapt, or load what was adapted, and predict."""
    adaptation = None
    if support is None:
        classifier = Classifier.load(model)
        say(
            f"{shown(model)} tells {len(classifier.classes)} classes apart: {', '.join(map(shown, classifier.classes))}"
        )
    else:
        pretrained = Pretrained.load(model, device)
        adaptation = adapt_to(pretrained, support, steps, head.value if head else None)
        classifier = adaptation.classifier
        _tell_adaptation(say, pretrained, adaptation)
    found = predict(classifier, query) if query else None
    if found is not None:
        _tell_predictions(say, found)
    return adaptation, classifier, found


def _require_fitting(
    model: str, support: Path | None, query: Path | None, output: Path | None, of_support: tuple[Any, ...]
) -> None:
    """Refuse options that do not go together.

    Raises:
        BadParameter: there are some.
    """
    if support is None and query is None:
        raise typer.BadParameter("give --support, your examples, or --query, pictures to predict, or both")
    if output is not None and query is None:
        raise typer.BadParameter("-o is for predictions: give --query, the pictures to predict")
    if support is None and any(option is not None for option in of_support):
        raise typer.BadParameter("--steps, --head and --save are for what --support, your examples, makes of a model")
    if support is None and not Path(model).is_file():
        raise typer.BadParameter(
            f"give --support, your examples: only a file that --save wrote does without; {shown(model)} is none"
        )


def _require_paths(read: list[Path | None], written: list[Path | None], overwrite: bool) -> None:
    """Refuse places that are not there, or taken, before any work.

    Raises:
        FileExistsError: a file would be written over.
        FileNotFoundError: a folder is not there.
    """
    for folder in filter(None, read):
        if not folder.exists():
            raise FileNotFoundError(f"no folder at {folder}")
    for path in filter(None, written):
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path} exists: give another name, or --overwrite")
        if not path.parent.is_dir():
            raise FileNotFoundError(f"no folder {path.parent} to write {path.name} to")


def _tell_adaptation(say: Any, model: Pretrained, adaptation: Adaptation) -> None:
    estimator, support = adaptation.estimator, adaptation.support
    say(f"{model.name}: {model.tested()}; it reads {adaptation.classifier.form}")
    say(f"support: {len(support.names)} pictures, {counted(adaptation.labels)}")
    for line in support.told():
        say(f"  {line}")
    losses = estimator.losses_.tolist()
    say(f"adapted: support loss {losses[0]:.3g} -> {losses[-1]:.3g} in {len(losses) - 1} steps")
    if estimator.expectation_ is None:
        say("accuracy to expect: not to be told from one picture a class (two or more of some, and it is)")
    else:
        say(f"accuracy to expect: {estimator.expectation_}")
    if model.temperature is None and estimator.expectation_ is None:
        say("probabilities are not calibrated: the run tells no temperature, and no class has two pictures")


def _tell_predictions(say: Any, found: Predictions) -> None:
    say(f"query: {len(found.pictures.names)} pictures")
    for line in found.pictures.told():
        say(f"  {line}")
    names = [shown(name) for name in found.pictures.names]
    width = max(map(len, names))
    shares = found.probabilities.max(1).values.tolist()
    for name, label, share in zip(names, found.predicted, shares, strict=True):
        say(f"  {name:{width}}  {shown(label)}  {100 * share:.1f} %")
    if found.accuracy is not None:
        say(f"right by their folders: {found.accuracy:.1f} %")


def _written(
    adaptation: Adaptation | None,
    classifier: Classifier,
    found: Predictions | None,
    output: Path | None,
    picture: Path | None,
    save: Path | None,
) -> list[Path]:
    """Write what is wanted; which files that were."""
    if picture is not None:
        from ..use.figure import figure

        with writing(picture) as file:
            figure(adaptation, found).savefig(file, format=picture.suffix.lstrip(".") or "png", dpi=120)
    if output is not None and found is not None:
        with writing(output) as file:
            file.write(found.as_csv().encode())
    if save is not None:
        classifier.save(save)
    return [path for path in (output, picture, save) if path is not None]


def _told(adaptation: Adaptation | None, classifier: Classifier, found: Predictions | None) -> dict[str, Any]:
    told: dict[str, Any] = {"classes": classifier.classes, "temperature": classifier.temperature}
    if adaptation is not None:
        support, expectation = adaptation.support, adaptation.estimator.expectation_
        told["support"] = {"files": support.names, "classes": adaptation.labels, **_done(support)}
        told["losses"] = adaptation.estimator.losses_.tolist()
        told["expected"] = expectation and expectation._asdict()
    if found is not None:
        told["query"] = {
            "files": found.pictures.names,
            "predicted": found.predicted,
            "probabilities": found.probabilities.tolist(),
            "accuracy": found.accuracy,
            **_done(found.pictures),
        }
    return told


def _done(pictures: Any) -> dict[str, Any]:
    return {"done": dict(pictures.done), "unreadable": pictures.unreadable}
