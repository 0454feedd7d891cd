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
            help="A run directory, or a folder of save_pretrained: of pictures of one channel, or of sinusoids.",
            show_default="the models that come with innerloop",
        ),
    ] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Of this machine.", show_default="8765, or the next free one")
    ] = 0,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Whether to open the page.")] = True,
    _trust: TrustOption = False,
) -> None:
    """Draw a few characters, and watch a model that never saw them learn to tell them apart, in the browser.

    The page is served to this machine alone, until Ctrl-C, and asks for nothing from any other.
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
