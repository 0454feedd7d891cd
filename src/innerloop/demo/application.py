"""The ASGI application that serves the page and answers its requests, for this machine only."""

from __future__ import annotations

import asyncio
import mimetypes
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..common.resources import folder
from ..train.record import dumps
from . import requests
from .answers import Characters, Functions

T = TypeVar("T")
PAGE = folder("demo/page")
HOSTS = ["127.0.0.1", "localhost"]
WAITING = 8
"""The largest number of waiting requests; further ones get the status 503."""
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}
mimetypes.add_type("text/javascript", ".js")  # the registry of some Windows machines says text/plain


class Answer(JSONResponse):
    """A JSON response in which numbers that are not finite, as after a diverged adaptation, are null."""

    def render(self, content: Any) -> bytes:
        """Encode a plain value as JSON in UTF-8; NaN and infinities become null."""
        return dumps(content).encode()


def application(characters: Characters | None, functions: Functions | None) -> Starlette:
    """Build the ASGI application of the demo.

    ``GET /`` is the page, and ``GET /api/about`` returns its settings. `Characters` and `Functions` answer ``POST
    /api/characters``, ``POST /api/function`` and ``GET /api/sinusoid``. Errors are ``{"error": message}``.

    Args:
        characters: answers the requests of the tab for characters; ``None`` leaves the tab out.
        functions: answers the requests of the tab for functions; ``None`` leaves the tab out.
    """
    workers = Workers()
    routes = [_about(characters, functions)]
    if characters is not None:
        routes.append(_characters(characters, workers))
    if functions is not None:
        routes += [_function(functions, workers), _sinusoid(functions)]

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        for answer in (characters, functions):
            if answer is not None:
                await workers.run(answer.warm_up)
        yield
        workers.close()

    return Starlette(
        routes=[*routes, Mount("/", StaticFiles(directory=PAGE, html=True))],
        middleware=[
            Middleware(_WithHeaders),
            Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS, www_redirect=False),
            Middleware(_FromThisPage),
        ],
        exception_handlers={HTTPException: _refused, ClientDisconnect: _gone},
        lifespan=lifespan,
    )


class Workers:
    """Threads that run adaptations in parallel; they divide torch's threads among them.

    Args:
        threads: the number of threads; default: as many as torch uses.
    """

    def __init__(self, threads: int | None = None) -> None:
        every = torch.get_num_threads()
        number = threads or every
        share = partial(torch.set_num_threads, max(1, every // number))
        self._threads = ThreadPoolExecutor(number, "adapting", initializer=share)
        self._turns, self._waiting = asyncio.Semaphore(number), 0

    async def run(self, function: Callable[..., T], *args: Any, request: Request | None = None) -> T:
        """Run a function as soon as a thread is free, and return its result.

        Raises:
            HTTPException: 503 if too many requests wait already.
            ClientDisconnect: the client no longer waits for this answer.
        """
        if self._waiting >= WAITING:
            raise HTTPException(
                503, "the server is busy with earlier drawings: try again", headers={"Retry-After": "1"}
            )
        self._waiting += 1
        try:
            async with self._turns:
                if request is not None and await request.is_disconnected():
                    raise ClientDisconnect
                return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """Stop the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _about(characters: Characters | None, functions: Functions | None) -> Route:
    settings = {"characters": characters and characters.about(), "functions": functions and functions.about()}

    async def about(_: Request) -> Response:
        return Answer(settings)

    return Route("/api/about", about)


def _characters(answer: Characters, workers: Workers) -> Route:
    most = max(answer.learners)

    async def classify(request: Request) -> Response:
        question = requests.characters(await requests.read(request), most)
        return Answer(await workers.run(answer, *question, request=request))

    return Route("/api/characters", classify, methods=["POST"])


def _function(answer: Functions, workers: Workers) -> Route:
    x, y = answer.source.x, (-answer.height, answer.height)

    async def fit(request: Request) -> Response:
        question = requests.function(await requests.read(request), x, y)
        return Answer(await workers.run(answer, *question, request=request))

    return Route("/api/function", fit, methods=["POST"])


def _sinusoid(answer: Functions) -> Route:
    async def draw(_: Request) -> Response:
        return Answer(answer.draw())

    return Route("/api/sinusoid", draw)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return Answer({"error": error.detail}, error.status_code, error.headers)


async def _gone(_: Request, __: Exception) -> Response:
    return Response(status_code=400)  # the client has gone


class _WithHeaders:
    """Add the headers that isolate the page to every response."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self.app(scope, receive, with_headers)


class _FromThisPage:
    """Reject requests from other sites that the browser has open.

    A site can send a form to any address, but not as JSON. If a browser says which page a request comes from, it has to
    be this one.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            headers = Headers(scope=scope)
            origin, kind = headers.get("origin"), headers.get("content-type", "").split(";")[0].strip().lower()
            refusal = None
            if origin not in (None, f"http://{headers.get('host')}"):
                refusal = Answer({"error": "requests must come from the demo's own page"}, 403)
            elif kind != "application/json":
                refusal = Answer(
                    {"error": f"the content type must be application/json, got {kind[:40] or 'none'}"}, 415
                )
            if refusal is not None:
                await refusal(scope, receive, send)
                return
        await self.app(scope, receive, send)
