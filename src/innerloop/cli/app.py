"""The command line itself: its options, its errors, and running it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .. import __version__
from ..common import streams
from ..recipe.imports import trusting
from ..train import NonFiniteError, OutOfMemoryError

EXPECTED = (ValueError, OSError, ImportError, NonFiniteError, OutOfMemoryError)
"""Errors that the user can fix are shown as one message. Any other error is a bug and is shown with its traceback."""


class Commands(TyperGroup):
    """All commands; usage errors escape control characters in the arguments that they quote."""

    def make_context(self, *args: Any, **options: Any) -> Any:
        """Parse the options that all commands share."""
        with _quoting():
            return super().make_context(*args, **options)

    def invoke(self, *args: Any, **options: Any) -> Any:
        """Parse the options of one command, and run it."""
        with _quoting():
            return super().invoke(*args, **options)


@contextmanager
def _quoting() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if hasattr(error, "format_message") and isinstance(getattr(error, "message", None), str):
            error.message = streams.plain(error.message)  # type: ignore[attr-defined]
        raise


app = typer.Typer(
    cls=Commands,
    help="Gradient-based meta-learning: train a model to learn from a few examples.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

DataOption = Annotated[
    Path | None,
    typer.Option("--data", help="The folder of the data.", show_default="$INNERLOOP_DATA, then the cache"),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a value of the recipe, e.g. learner.lr=0.1 (repeatable).",
        show_default=False,
    ),
]
DeviceOption = Annotated[str, typer.Option(help="The device: cpu, cuda, cuda:1, ... or auto.")]


def _trust(context: typer.Context, wanted: bool) -> None:
    """Trust runs until the command ends."""
    if wanted:
        context.with_resource(trusting())


TrustOption = Annotated[
    bool,
    typer.Option(
        "--trust", callback=_trust, help="Import the code that the run's recipe names, such as my_package.nets:ResNet."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object, on the last line.")]


def run(arguments: list[str]) -> int:
    """Run a command line; print errors that the user can fix as one message on standard error.

    Returns:
        The exit code: 0 after success, 1 after an error, 2 after a usage error, 129 after SIGHUP, 130 after Ctrl-C, 141
        if the reader of standard output closed it, 143 after SIGTERM.
    """
    warnings.showwarning = lambda message, *_, **__: streams.err(f"warning: {_line(message)}")
    streams.keep_going(False)
    try:
        code = _run(arguments)
        streams.flush()
    except streams.OutputError as lost:
        if lost.status != streams.READER_GONE:
            streams.err(f"error: {lost}")
        return lost.status
    return code


def _run(arguments: list[str]) -> int:
    try:
        app(arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except EXPECTED as error:
        if "--debug" in arguments:
            raise
        streams.err(f"error: {_line(error)}")
        return 1
    return 0


def _line(message: object) -> str:
    """Join the lines of a message. Messages of torch continue on indented lines."""
    return streams.shown(re.sub(r"\n\s+", " ", str(message).strip()))


def _version(wanted: bool) -> None:
    if wanted:
        streams.out(f"innerloop {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of every error.")] = False,
) -> None:
    """Declare the options that all commands share; their callbacks and `run` act on them."""
