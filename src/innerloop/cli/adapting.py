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
        help="A run directory, a folder written by save_pretrained, or the name of a model that comes with innerloop; "
        "without --support, a file that --save wrote."
    ),
]
SupportOption = Annotated[
    Path | None, typer.Option(help="Your labeled examples: a folder that has one folder of pictures for each class.")
]
QueryOption = Annotated[Path | None, typer.Option(help="The folder of pictures to classify.")]
StepsOption = Annotated[int | None, typer.Option(min=0, help="Number of inner steps.", show_default="as in training")]
HeadOption = Annotated[
    Start | None,
    typer.Option(
        help="How to initialize the head; required for more classes than it was trained for.", show_default="trained"
    ),
]
OutputOption = Annotated[
    Path | None, typer.Option("-o", help="Write the predictions to this CSV file.", show_default=False)
]
PictureOption = Annotated[
    Path | None, typer.Option(help="Draw the result to this file: PNG, PDF or SVG.", show_default=False)
]
SaveOption = Annotated[
    Path | None, typer.Option(help="Save the adapted classifier to this safetensors file.", show_default=False)
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Overwrite existing files.")]


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
    """Adapt a trained model to a few of your pictures, and classify others.

    Pictures may have any size and kind: they are converted to what the model was trained on, and the output lists the
    conversions. The JSON has `support`, `query` (files, predicted classes and probabilities), `expected` (the
    leave-one-out accuracy in percent, with its 95 % interval) and `temperature`.
    """
    say = streams.err if as_json else streams.out
    streams.keep_going(any(path is not None for path in (output, picture, save)))
    _require_fitting(model, support, query, output, of_support=(steps, head, save))
    _require_paths([support, query], [output, picture, save], overwrite)
    with blaming(model, *(place for place in (support, query) if place is not None)):
        adaptation, classifier, predictions = _adapt_and_predict(say, model, support, query, steps, head, device)
    for path in _write(adaptation, classifier, predictions, output, picture, save):
        say(f"wrote {shown(path)}")
    if as_json:
        streams.out(dumps(_as_dict(adaptation, classifier, predictions)))


def _adapt_and_predict(
    say: Any, model: str, support: Path | None, query: Path | None, steps: int | None, head: Start | None, device: str
) -> tuple[Adaptation | None, Classifier, Predictions | None]:
    """Adapt a model, or load one that is adapted already, and predict."""
    adaptation = None
    if support is None:
        classifier = Classifier.load(model)
        say(f"{shown(model)} has {len(classifier.classes)} classes: {', '.join(map(shown, classifier.classes))}")
    else:
        pretrained = Pretrained.load(model, device)
        adaptation = adapt_to(pretrained, support, steps, head.value if head else None)
        classifier = adaptation.classifier
        _print_adaptation(say, pretrained, adaptation)
    predictions = predict(classifier, query) if query else None
    if predictions is not None:
        _print_predictions(say, predictions)
    return adaptation, classifier, predictions


def _require_fitting(
    model: str, support: Path | None, query: Path | None, output: Path | None, of_support: tuple[Any, ...]
) -> None:
    """Reject options that do not go together.

    Raises:
        BadParameter: some options do not go together.
    """
    if support is None and query is None:
        raise typer.BadParameter("give --support (your labeled examples), --query (pictures to classify), or both")
    if output is not None and query is None:
        raise typer.BadParameter("-o writes predictions: give --query, the pictures to classify")
    if support is None and any(option is not None for option in of_support):
        raise typer.BadParameter("--steps, --head and --save need --support, the examples to adapt to")
    if support is None and not Path(model).is_file():
        raise typer.BadParameter(
            f"give --support, the examples to adapt to: {shown(model)} is not a file that --save wrote"
        )


def _require_paths(read: list[Path | None], written: list[Path | None], overwrite: bool) -> None:
    """Reject missing inputs and existing outputs before any work starts.

    Raises:
        FileExistsError: an output file exists.
        FileNotFoundError: a folder does not exist.
    """
    for folder in filter(None, read):
        if not folder.exists():
            raise FileNotFoundError(f"there is no folder {folder}")
    for path in filter(None, written):
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path} exists already: give another name, or --overwrite")
        if not path.parent.is_dir():
            raise FileNotFoundError(f"cannot write {path.name}: there is no folder {path.parent}")


def _print_adaptation(say: Any, model: Pretrained, adaptation: Adaptation) -> None:
    estimator, support = adaptation.estimator, adaptation.support
    say(f"{model.name}: {model.tested()}; its inputs are {adaptation.classifier.form}")
    say(f"support: {len(support.names)} pictures, {counted(adaptation.labels)}")
    for line in support.told():
        say(f"  {line}")
    losses = estimator.losses_.tolist()
    say(f"adapted: support loss {losses[0]:.3g} -> {losses[-1]:.3g} in {len(losses) - 1} steps")
    if estimator.expectation_ is None:
        say("expected accuracy: cannot be estimated from one picture per class; add a second one to some class")
    else:
        say(f"expected accuracy: {estimator.expectation_}")
    if model.temperature is None and estimator.expectation_ is None:
        say("probabilities are not calibrated: the run has no temperature, and no class has two pictures")


def _print_predictions(say: Any, predictions: Predictions) -> None:
    say(f"query: {len(predictions.pictures.names)} pictures")
    for line in predictions.pictures.told():
        say(f"  {line}")
    names = [shown(name) for name in predictions.pictures.names]
    width = max(map(len, names))
    probabilities = predictions.probabilities.max(1).values.tolist()
    for name, label, probability in zip(names, predictions.predicted, probabilities, strict=True):
        say(f"  {name:{width}}  {shown(label)}  {100 * probability:.1f} %")
    if predictions.accuracy is not None:
        say(f"classified correctly, by the names of their folders: {predictions.accuracy:.1f} %")


def _write(
    adaptation: Adaptation | None,
    classifier: Classifier,
    predictions: Predictions | None,
    output: Path | None,
    picture: Path | None,
    save: Path | None,
) -> list[Path]:
    """Write the files that were asked for; return their paths."""
    if picture is not None:
        from ..use.figure import figure

        with writing(picture) as file:
            figure(adaptation, predictions).savefig(file, format=picture.suffix.lstrip(".") or "png", dpi=120)
    if output is not None and predictions is not None:
        with writing(output) as file:
            file.write(predictions.as_csv().encode())
    if save is not None:
        classifier.save(save)
    return [path for path in (output, picture, save) if path is not None]


def _as_dict(adaptation: Adaptation | None, classifier: Classifier, predictions: Predictions | None) -> dict[str, Any]:
    result: dict[str, Any] = {"classes": classifier.classes, "temperature": classifier.temperature}
    if adaptation is not None:
        support, expectation = adaptation.support, adaptation.estimator.expectation_
        result["support"] = {"files": support.names, "classes": adaptation.labels, **_done(support)}
        result["losses"] = adaptation.estimator.losses_.tolist()
        result["expected"] = expectation and expectation._asdict()
    if predictions is not None:
        result["query"] = {
            "files": predictions.pictures.names,
            "predicted": predictions.predicted,
            "probabilities": predictions.probabilities.tolist(),
            "accuracy": predictions.accuracy,
            **_done(predictions.pictures),
        }
    return result


def _done(pictures: Any) -> dict[str, Any]:
    return {"done": dict(pictures.done), "unreadable": pictures.unreadable}
