"""Serve the demo on this machine only."""

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
    """Open a socket that listens on the loopback address.

    Args:
        port: 0 takes the first free port from `PORT` on.

    Raises:
        OSError: the port is in use, or not permitted.
    """
    for tried in [port] if port else [*range(PORT, PORT + _TRIED), 0]:
        listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if os.name == "posix":  # to reuse a port at once; on Windows the option lets two programs share it
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((HOST, tried))
            listening.listen(128)
            return listening
        except OSError as error:
            listening.close()
            reason = error
    raise OSError(
        f"port {port} cannot be used ({reason.strerror}): give another --port, or none to take the next free one"
    ) from reason


def serve(
    listening: socket.socket, characters: Characters | None, functions: Functions | None, browser: bool = True
) -> None:
    """Serve the demo until Ctrl-C, which then raises `KeyboardInterrupt`.

    Args:
        listening: the socket from `listen`.
        characters: see `application`.
        functions: see `application`.
        browser: whether to open the page in a browser.
    """
    address = f"http://{HOST}:{listening.getsockname()[1]}/"
    streams.out(f"{address} (press Ctrl-C to stop)")
    streams.flush()
    if browser:  # its request waits in the socket's queue; in a thread, because a terminal browser blocks
        threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
    server(characters, functions).run([listening])


def server(characters: Characters | None, functions: Functions | None) -> uvicorn.Server:
    """Return the server of the demo; its ``run`` takes the sockets.

    It uses h11, because httptools, which uvicorn prefers if it is installed, accepts headers of any length.
    """
    demo = application(characters, functions)
    config = uvicorn.Config(
        demo, http="h11", ws="none", log_level="warning", server_header=False, timeout_graceful_shutdown=1
    )
    return uvicorn.Server(config)
