"""Python processes that need not import torch: they are forked from one that has imported it.

`subprocess.run(python("-m", "innerloop", "list"))` does what `[sys.executable, "-m", "innerloop", "list"]` would, with
the same streams (what is closed is closed), folder, environment, signals and exit status, up to four seconds sooner.
Tests about importing, memory, terminals, ignored signals and how Python itself starts do not use it.

The command is a small program, `client`, which hands its streams to a process that `server` forks.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from typing import Any

MODULES = ("innerloop.cli", "innerloop.report", "innerloop.use", "torch._dynamo", "torch.distributed")
"""What has been imported. Any optimizer of torch imports `torch._dynamo`."""
STREAMS = range(3)
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_servers: dict[int, tuple[Any, str]] = {}  # by process: one that was forked starts its own


def python(*words: object) -> list[str]:
    """The command that runs Python with these words: `-m` and a module, `-c` and code, or a script."""
    if os.getpid() not in _servers:
        _servers[os.getpid()] = _serve()
    return [sys.executable, "-I", "-S", __file__, _servers[os.getpid()][1], *map(str, words)]


def _serve() -> tuple[Any, str]:
    """Start a server, which ends when this process does. It is asked from now on, and answers when it is ready."""
    import secrets
    import subprocess

    name = secrets.token_hex(16)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"\0{name}")  # which leaves no file behind
        listening.listen(64)
        number = listening.fileno()
        words = [sys.executable, __file__, "serve", str(number)]
        return subprocess.Popen(words, stdin=subprocess.PIPE, pass_fds=[number], start_new_session=True), name


# -- the program that stands for the process --------------------------------------------------------------------------


def client(name: str, words: list[str]) -> None:
    """Have Python run these words, and end as it ends."""
    opened = [number for number in STREAMS if _is_open(number)]
    asking = socket.socket(socket.AF_UNIX)
    if asking.fileno() in STREAMS:  # of one that is closed
        asking = socket.socket(fileno=os.dup(asking.fileno()))
    asking.connect(f"\0{name}")
    for number in FORWARDED:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, _: asking.sendall(bytes([number])))
    request = json.dumps([words, os.getcwd(), dict(os.environ), opened]).encode()  # noqa: PTH109 - pathlib is slow
    size = len(request).to_bytes(8, "big")
    socket.send_fds(asking, [size], opened) if opened else asking.sendall(size)
    asking.sendall(request)
    status = int.from_bytes(_received(asking, 4), "big", signed=True)
    if status < 0:
        if -status not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _received(asking: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size and (more := asking.recv(size - len(found))):
        found += more
    return found


# -- the server -------------------------------------------------------------------------------------------------------


def server(listening: socket.socket) -> list[str]:
    """Fork a process for each that asks, until the tests are over. In a forked process, the words that it is to run."""
    import gc
    import importlib
    import select

    for name in MODULES:
        importlib.import_module(name)
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the guards of processes
    waited_for: list[Any] = [listening, 0]
    while listening in select.select(waited_for, [], [])[0]:
        asking, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return guard(asking)
        asking.close()
    os._exit(0)


def guard(asking: socket.socket) -> list[str]:
    """Fork the process that is asked for, and wait for it. In that process, the words that it is to run."""
    import contextlib
    import select

    size, streams, _, _ = socket.recv_fds(asking, 8, len(STREAMS))
    words, folder, environment, opened = json.loads(_received(asking, int.from_bytes(size, "big")))
    if (child := os.fork()) == 0:
        asking.close()
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        take(dict(zip(opened, streams, strict=True)))
        return words
    for number in (*streams, *STREAMS):  # whoever reads them is to see their end
        os.close(number)
    ended = os.pidfd_open(child)
    waited_for: list[Any] = [asking, ended]
    while ended not in select.select(waited_for, [], [])[0]:
        for number in asking.recv(16) or [signal.SIGKILL]:  # who asked is gone
            os.kill(child, number)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(OSError):
        asking.sendall(status.to_bytes(4, "big", signed=True))
    os._exit(0)


def take(streams: dict[int, int]) -> None:
    """Take over standard streams, as Python does when it starts."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = None
        if number in streams:
            os.dup2(streams[number], number)
            os.close(streams[number])
            errors = "backslashreplace" if name == "stderr" else "strict"
            stream = open(number, "w" if number else "r", encoding="utf-8", errors=errors, closefd=False)  # noqa: SIM115
            if number and (name == "stderr" or stream.isatty()):
                stream.reconfigure(line_buffering=True)
        else:
            os.close(number)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def run(words: list[str]) -> None:
    """What `python` does with these words."""
    import runpy
    from pathlib import Path

    if words[0] == "-m":
        sys.argv, sys.path[0] = words[1:], str(Path.cwd())
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv, sys.path[0] = ["-c", *words[2:]], ""
        exec(compile(words[1], "<string>", "exec"), sys.modules["__main__"].__dict__)
    else:
        sys.argv, sys.path[0] = words, str(Path(words[0]).resolve().parent)
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        run(server(socket.socket(fileno=int(sys.argv[2]))))
    else:
        client(sys.argv[1], sys.argv[2:])
