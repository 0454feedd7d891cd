"""The command line itself: its options, its errors, and running it."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from .. import __version__
from ..train import NonFiniteError, OutOfMemoryError

EXPECTED = (ValueError, OSError, ImportError, NonFiniteError, OutOfMemoryError)
"""What the user can mend: shown as one message. Anything else is a bug, and shown with its traceback."""

app = typer.Typer(
    help="Gradient-based meta-learning: train a model to learn from a few examples.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

DataOption = Annotated[
    Path | None,
    typer.Option("--data", help="Where the data are; else $INNERLOOP_DATA and the cache.", show_default=False),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a value of the recipe, e.g. learner.lr=0.1.", show_default=False
    ),
]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ... or auto.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object, as the last line.")]


def run(arguments: list[str]) -> int:
    """Run a command line; errors that the user can mend become one message on standard error.

    Returns:
        The exit code: 0, 1 after an error, 2 after wrong usage, 130 after Ctrl-C, 143 after SIGTERM.
    """
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    if hasattr(sys.stdout, "reconfigure"):  # a file may have a name that is no Unicode
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app(arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except EXPECTED as error:
        if "--debug" in arguments:
            raise
        print(f"error: {_shown(error)}", file=sys.stderr)
        return 1
    return 0


def _shown(error: BaseException) -> str:
    """A message without control characters of others, such as those in the name of a file, which a terminal obeys."""
    return "".join(letter if letter.isprintable() or letter == "\n" else ascii(letter)[1:-1] for letter in str(error))


def _version(wanted: bool) -> None:
    if wanted:
        print(f"innerloop {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of every error.")] = False,
) -> None:
    """Options of all commands; what they do is done by their callbacks and by `run`."""
