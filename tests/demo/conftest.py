"""Models to show, of the real shapes but small and untrained, and the demo that shows them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache

import pytest

pytest.importorskip("starlette", reason="the demo needs starlette: pip install 'innerloop[demo]'")
pytest.importorskip("uvicorn", reason="the demo needs uvicorn: pip install 'innerloop[demo]'")

from innerloop.demo import Characters, Functions, answering
from innerloop.demo.serving import listen, server
from innerloop.recipe import config
from innerloop.use import Pretrained, shipped

Answering = tuple[Characters | None, Functions | None]


def untrained(recipe: str, *overrides: str) -> Pretrained:
    """What a recipe begins with."""
    resolved = config.load_recipe(recipe, overrides)
    return Pretrained(config.build_learner(resolved), resolved, name=recipe)


@pytest.fixture(scope="session")
def small() -> Answering:
    """Both tabs, quick to answer."""
    models = [untrained("strokes-5w1s-maml", "model.width=4"), untrained("sinusoid-maml")]
    return answering(models)


@pytest.fixture(scope="session")
def trained() -> Answering:
    """Both tabs, with the models that come with the package."""
    if missing := {"strokes", "sinusoid"} - shipped().keys():
        pytest.skip(f"the package comes without {' and '.join(sorted(missing))}")
    return answering([Pretrained.load("strokes"), Pretrained.load("sinusoid")])


@contextmanager
def running(listening: socket.socket, answers: Answering) -> Iterator[str]:
    """The address of a demo that runs in a thread."""
    demo = server(*answers)
    thread = threading.Thread(target=demo.run, args=([listening],), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    demo.should_exit = True
    thread.join(600)


@pytest.fixture(scope="session")
def served() -> Iterator[Callable[[Answering], str]]:
    """``(characters, functions) -> address`` of a demo that runs until the end of the tests."""
    with ExitStack() as stack:
        yield cache(lambda answers: stack.enter_context(running(listen(), answers)))
