"""A real server process on real sockets.

It refuses other sites, answers in parallel, tells a flood to come back, waits for no slow client, and keeps its size.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from innerloop.demo.application import PAGE, WAITING
from innerloop.demo.requests import BYTES

from .figures import drawn

ROOT = Path(__file__).parents[2]
THREADS = 2
PATIENCE = 600.0
"""Seconds after which a test fails that would otherwise wait forever. Nothing is expected to be quicker."""
LINE, HOOK = [[[0.1, 0.2], [0.8, 0.7]]], [[[0.1, 0.1], [0.1, 0.9], [0.5, 0.9]], [[0.7, 0.2]]]
ASKED = {"characters": [[LINE], [HOOK]], "drawing": HOOK, "steps": 1}
POINTS = {"points": [[0, 1], [2.5, -1]], "steps": 3}
JSON = {"Content-Type": "application/json"}

on_linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")


class Response(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes


class Demo(NamedTuple):
    """A server process.

    Attributes:
        port: where it listens.
        folder: see `process`.
        process: the server.
    """

    port: int
    folder: Path
    process: subprocess.Popen[str]

    def get(self, path: str = "/api/about", **headers: str) -> Response:
        return self._ask("GET", path, None, headers)

    def post(self, path: str = "/api/function", asked: object = POINTS, **headers: str) -> Response:
        return self._ask("POST", path, json.dumps(asked), {**JSON, **headers})

    def _ask(self, method: str, path: str, body: str | None, headers: dict[str, str]) -> Response:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return Response(response.status, response.headers, response.read())
        finally:
            connection.close()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)

    def raw(self, request: bytes) -> bytes:
        """Everything that the server answers to some bytes."""
        with self.connect() as connection:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            return received(connection)

    @property
    def inside(self) -> int:
        """The number of adaptations that wait inside the model."""
        return len(list((self.folder / "inside").iterdir()))

    @property
    def forwards(self) -> int:
        """The number of times that the model was called."""
        return (self.folder / "forwards").stat().st_size

    @property
    def memory(self) -> int:
        """Bytes of the server that are resident."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(re.search(r"VmRSS:\s+(\d+) kB", status)[1])

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let no adaptation end meanwhile."""
        (self.folder / "hold").touch()
        try:
            yield
        finally:
            (self.folder / "hold").unlink()

    def lives(self) -> None:
        """Check that everything is answered."""
        assert self.get().status == 200
        assert self.post().status == 200
        assert self.post("/api/characters", ASKED).status == 200


def request(demo: Demo) -> tuple[bytes, bytes]:
    """Header and body of a question."""
    body = json.dumps(POINTS).encode()
    lines = ("POST /api/function HTTP/1.1", f"Host: 127.0.0.1:{demo.port}", "Content-Type: application/json",
             f"Content-Length: {len(body)}", "Connection: close", "", "")  # fmt: skip
    return "\r\n".join(lines).encode(), body


def received(connection: socket.socket) -> bytes:
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def until(condition: Callable[[], bool]) -> None:
    """Wait for a state. It has to last, since the condition is looked at now and then."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


@contextmanager
def serving(folder: Path) -> Iterator[Demo]:
    (folder / "inside").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.demo.process", str(folder)], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=(folder / "stderr").open("w"),
        env={**os.environ, "OMP_NUM_THREADS": str(THREADS)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which background jobs of a shell ignore
    )  # fmt: skip
    try:
        first = process.stdout.readline()
        found = re.match(r"http://127\.0\.0\.1:(\d+)/", first)
        assert found, (folder / "stderr").read_text()
        demo = Demo(int(found[1]), folder, process)
        demo.lives()  # when it has warmed up
        yield demo
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Iterator[Demo]:
    with serving(tmp_path_factory.mktemp("demo")) as demo:
        yield demo
        assert demo.process.poll() is None
        assert "Traceback" not in (demo.folder / "stderr").read_text()


# -- other sites ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["example.com", "example.com:{port}", "127.0.0.1.example.com", "localhost.example.com",
                                  "10.0.0.1:{port}", "[::1]:{port}", "0.0.0.0:{port}", ""])  # fmt: skip
def test_a_name_that_another_site_gave_this_machine_is_refused(demo, host):
    """As after DNS rebinding, where the browser takes this server for the other site's."""
    name = host.format(port=demo.port)
    for response in (demo.get("/", Host=name), demo.get(Host=name), demo.post(Host=name, Origin=f"http://{name}")):
        assert response.status == 400
        assert b"innerloop" not in response.body
    demo.lives()


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: example.com\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: example.com\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET http://127.0.0.1/ HTTP/1.1\r\nHost: example.com\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: example.com\r\nX-Forwarded-Host: 127.0.0.1\r\n\r\n",
    ],
    ids=["none in 1.0", "none in 1.1", "second", "first", "address", "forwarded"],
)
def test_requests_without_the_one_right_host_are_refused(demo, request_):
    answer = demo.raw(request_)
    assert re.match(rb"HTTP/1\.1 400 ", answer)
    assert b"innerloop" not in answer
    demo.lives()


def test_the_two_names_of_this_machine_are_served(demo):
    for name in ("127.0.0.1", "localhost"):
        host = f"{name}:{demo.port}"
        assert demo.get("/", Host=host).status == 200
        assert demo.post(Host=host, Origin=f"http://{host}").status == 200


@pytest.mark.parametrize("origin", ["http://example.com", "https://127.0.0.1:{port}", "http://127.0.0.1", "null", "",
                                    "http://localhost:{port}", "http://127.0.0.1:{port}.example.com"])  # fmt: skip
def test_requests_that_another_site_sends_are_refused(demo, origin):
    for path, asked in (("/api/function", POINTS), ("/api/characters", ASKED)):
        response = demo.post(path, asked, Origin=origin.format(port=demo.port))
        assert response.status == 403
        assert "own page" in json.loads(response.body)["error"]
    demo.lives()


def test_no_other_site_may_read_what_is_answered(demo):
    for response in (demo.get(Origin="http://example.com"), demo.get("/", Origin="http://example.com")):
        assert not [name for name in response.headers if name.lower().startswith("access-control-")]
        assert response.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    preflight = b"OPTIONS /api/function HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nOrigin: http://example.com\r\n" % demo.port
    answer = demo.raw(preflight + b"Access-Control-Request-Method: POST\r\nConnection: close\r\n\r\n")
    assert re.match(rb"HTTP/1\.1 405 ", answer)
    assert b"access-control" not in answer.lower()


@pytest.mark.parametrize("path", ["/", "/api/function", "/none"])
@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "example.com"])
def test_there_are_no_web_sockets(demo, host, path):
    """Which the rules for pages of different origins do not hold for."""
    lines = (f"GET {path} HTTP/1.1", f"Host: {host.format(port=demo.port)}", "Origin: http://example.com",
             "Upgrade: websocket", "Connection: Upgrade, close", "Sec-WebSocket-Version: 13",
             "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", "", "")  # fmt: skip
    assert not re.match(rb"HTTP/1\.1 101 ", demo.raw("\r\n".join(lines).encode()))
    demo.lives()


# -- many at once -----------------------------------------------------------------------------------------------------


def test_requests_that_arrive_together_are_worked_on_at_the_same_time(demo):
    with ThreadPoolExecutor(THREADS) as threads:
        with demo.held():
            asked = [threads.submit(demo.post) for _ in range(THREADS)]
            until(lambda: demo.inside == THREADS)
            assert not any(one.done() for one in asked)
            assert demo.get("/").status == demo.get().status == demo.get("/api/sinusoid").status == 200
        answers = [json.loads(one.result().body)["after"] for one in asked]
    alone = json.loads(demo.post().body)["after"]
    assert answers == [pytest.approx(alone, abs=1e-5)] * THREADS


def test_of_a_flood_as_many_as_may_wait_are_answered_and_the_others_are_told_to_come_back(demo):
    flood = 5 * WAITING
    with ThreadPoolExecutor(flood) as threads:
        with demo.held():
            asked = [threads.submit(demo.post) for _ in range(flood)]
            until(lambda: sum(one.done() for one in asked) == flood - WAITING)
            refused = [one.result() for one in asked if one.done()]
            until(lambda: demo.inside == THREADS)
            assert demo.get().status == 200
            refused.append(demo.post("/api/characters", ASKED))
        wait(asked)
    for response in refused:
        assert (response.status, response.headers["Retry-After"]) == (503, "1")
        assert "try again" in json.loads(response.body)["error"]
    assert sorted(one.result().status for one in asked) == [200] * WAITING + [503] * (flood - WAITING)
    demo.lives()


def test_nobody_adapts_for_those_who_left(demo):
    head, body = request(demo)
    before = demo.forwards
    demo.post()
    each = demo.forwards - before
    with demo.held():
        with ExitStack() as stack:
            leaving = [stack.enter_context(demo.connect()) for _ in range(2 * WAITING)]
            for connection in leaving:
                connection.sendall(head + body)
            until(lambda: len(select.select(leaving, [], [], 0)[0]) == WAITING)  # that were refused; the others wait
            until(lambda: demo.inside == THREADS)
        demo.get()  # by when the server has seen that they left
    before = demo.forwards
    until(lambda: demo.post().status == 200)
    assert demo.forwards - before <= (THREADS + 1) * each
    demo.lives()


# -- slow clients -----------------------------------------------------------------------------------------------------

SLOW = 4 * WAITING


@pytest.mark.parametrize("part", ["header", "body"])
def test_clients_that_send_byte_by_byte_hold_nobody_up(demo, part):
    head, body = request(demo)
    question = head + body
    slow = range(len(head)) if part == "header" else range(len(head), len(question) - 1)
    with ExitStack() as stack:
        connections = [stack.enter_context(demo.connect()) for _ in range(SLOW)]
        for connection in connections:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(question[: slow.start])
        for place in slow:
            for connection in connections:
                connection.sendall(question[place : place + 1])
            if place % 20 == 0:
                demo.lives()
        for connection in connections:  # which are answered, too, when they come to an end
            connection.sendall(question[slow.stop :])
            assert re.match(rb"HTTP/1\.1 200 ", received(connection))
    demo.lives()


@on_linux
def test_clients_that_never_send_or_read_hold_nobody_up(demo):
    size, (head, body) = max(path.stat().st_size for path in PAGE.iterdir()), request(demo)
    many = f"GET /style.css HTTP/1.1\r\nHost: 127.0.0.1:{demo.port}\r\n\r\n".encode() * 2_000
    before = demo.memory
    with ExitStack() as stack, ThreadPoolExecutor(SLOW) as threads:
        silent, asking, greedy = ([stack.enter_context(demo.connect()) for _ in range(SLOW)] for _ in range(3))
        for connection in asking:
            connection.sendall(head + body)
        for connection in greedy:
            threads.submit(connection.sendall, many)
        until(lambda: demo.post().status == 200)
        for _ in range(20):
            demo.lives()
        assert demo.memory - before < SLOW * 2_000 * size / 10, "what nobody reads is kept"
        for connection in (*silent, *greedy):
            connection.shutdown(socket.SHUT_RDWR)  # which ends what is being sent
    demo.lives()


def test_what_has_no_end_is_cut_off(demo):
    for begin in (b"GET /", b"GET / HTTP/1.1\r\nHost: ", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: "):
        with demo.connect() as connection, contextlib.suppress(ConnectionError):  # for it is cut off while it sends
            connection.sendall(begin)
            for _ in range(1_000):
                connection.sendall(b"a" * 65536)
            pytest.fail("64 MB of a header were taken")
        demo.lives()
    head, _ = request(demo)
    head = re.sub(rb"Content-Length: \d+\r\nConnection: close", b"Transfer-Encoding: chunked", head)
    with demo.connect() as connection:
        connection.sendall(head)
        for _ in range(2 * BYTES // 4096):
            connection.sendall(b"1000\r\n" + b" " * 4096 + b"\r\n")
        assert connection.recv(12) == b"HTTP/1.1 413"
    demo.lives()


def test_ctrl_c_ends_it_whatever_clients_do(tmp_path):
    with serving(tmp_path) as demo, demo.connect() as slow, demo.connect() as asking:
        head, body = request(demo)
        slow.sendall(head[:-2])
        asking.sendall(head + body[:-1])
        demo.lives()  # after both have arrived
        demo.process.send_signal(signal.SIGINT)
        assert demo.process.wait(PATIENCE) == -signal.SIGINT


# -- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@on_linux
def test_2_000_requests_leave_no_memory_behind(tmp_path):
    """Between the 500th and the 2,000th: what is kept once, such as the shapes of tasks, is kept by then.

    3 MiB are 2 KiB a request. One that kept what it was asked, its answer (about 8 KiB) or the weights that it adapted
    (7 KiB of points) would leave more. Without such a fault it was 0.4 to 0.6 MiB.
    """
    letters, memory = "AEHST", []

    def ask(number: int) -> int:
        rng = random.Random(number)
        if number % 2:
            points = [[rng.uniform(-5, 5), rng.uniform(-5, 5)] for _ in range(1 + number % 20)]
            return demo.post("/api/function", {"points": points, "steps": 3}).status
        characters = [[drawn(name, rng)] for name in letters[: 2 + number // 2 % 4]]
        return demo.post("/api/characters", {"characters": characters, "drawing": drawn("S", rng), "steps": 1}).status

    with serving(tmp_path) as demo, ThreadPoolExecutor(2 * THREADS) as threads:
        for part in (range(500), range(500, 2_000)):
            assert set(threads.map(ask, part)) == {200}
            memory.append(demo.memory)
    assert memory[1] - memory[0] < 3 * 2**20
