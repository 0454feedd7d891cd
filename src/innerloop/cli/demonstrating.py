"""`innerloop demo`."""

from __future__ import annotations

from typing import Annotated

import typer

from ..common import streams
from ..recipe.refusals import blaming
from ..use import Pretrained
from .app import TrustOption, app


@app.command()
def demo(
    run: Annotated[
        str | None,
        typer.Argument(
            help="A run directory, or a folder written by save_pretrained, for one-channel images or for sinusoids.",
            show_default="the models that come with innerloop",
        ),
    ] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on.", show_default="8765, or the next free one")
    ] = 0,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
    _trust: TrustOption = False,
) -> None:
    """Serve a page on which you draw a few new characters and watch a model learn to classify them.

    The server runs until Ctrl-C. Only this machine can reach it, and the page loads nothing from the network.
    """
    streams.keep_going()
    from ..demo import answering
    from ..demo.serving import listen, serve

    with listen(port) as listening:
        with blaming(run or ""):
            models = answering([Pretrained.load(name) for name in ([run] if run else ["strokes", "sinusoid"])])
        try:
            serve(listening, *models, browser=browser)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
