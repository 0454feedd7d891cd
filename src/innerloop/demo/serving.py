"""Serving the demo on this machine alone."""

from __future__ import annotations

import os
import socket
import threading
import webbrowser

from ..common import streams
from .answers import Characters, Functions

try:
    import uvicorn

    from .application import application
except ModuleNotFoundError as error:
    missing = (error.name or "").split(".")[0]
    if missing not in ("starlette", "uvicorn"):
        raise
    raise ImportError(f"the demo needs {missing}: pip install 'innerloop[demo]'") from error

HOST, PORT = "127.0.0.1", 8765
_TRIED = 20


def listen(port: int = 0) -> socket.socket:
    """A socket that listens on this machine's own address.

    Args:
        port: 0 takes the first that is free from `PORT` on.

    Raises:
        OSError: the port is in use, or may not be used.
    """
    for tried in [port] if port else [*range(PORT, PORT + _TRIED), 0]:
        listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if os.name == "posix":  # so that a port can be used again at once; elsewhere it lets two programs share it
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((HOST, tried))
            listening.listen(128)
            return listening
        except OSError as error:
            listening.close()
            reason = error
    raise OSError(
        f"port {port} cannot be used ({reason.strerror}): give another with --port, or none to take the next free one"
    ) from reason


def serve(
    listening: socket.socket, characters: Characters | None, functions: Functions | None, browser: bool = True
) -> None:
    """Serve the demo until Ctrl-C, which then raises `KeyboardInterrupt`.

    Args:
        listening: from `listen`.
        characters: see `application`.
        functions: see `application`.
        browser: whether to open the page.
    """
    address = f"http://{HOST}:{listening.getsockname()[1]}/"
    streams.out(f"{address} (Ctrl-C ends it)")
    streams.flush()
    if browser:  # which waits in the socket's line until the server is there; a browser in the terminal does not return
        threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
    server(characters, functions).run([listening])


def server(characters: Characters | None, functions: Functions | None) -> uvicorn.Server:
    """What serves the demo, on the sockets that it is run with.

    Uses h11, since httptools, which uvicorn prefers where it is installed, takes headers of any length.
    """
    demo = application(characters, functions)
    config = uvicorn.Config(
        demo, http="h11", ws="none", log_level="warning", server_header=False, timeout_graceful_shutdown=1
    )
    return uvicorn.Server(config)
