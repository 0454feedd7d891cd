"""The server takes what the page sends, refuses the rest with a reason, and lives."""

from __future__ import annotations

import asyncio
import json
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.testclient import TestClient

from innerloop.demo.application import HEADERS, PAGE, WAITING, Workers, application
from innerloop.demo.requests import BYTES

LINE, HOOK = [[[0.1, 0.2], [0.8, 0.7]]], [[[0.1, 0.1], [0.1, 0.9], [0.5, 0.9]], [[0.7, 0.2]]]
ASKED = {"characters": [[LINE], [HOOK]], "drawing": HOOK, "steps": 1}
POINTS = {"points": [[0, 1], [2.5, -1]], "steps": 3}


@pytest.fixture(scope="module")
def client(small):
    with TestClient(application(*small), base_url="http://127.0.0.1:8765", raise_server_exceptions=False) as client:
        yield client


def refused(response, status):
    assert response.status_code == status, response.text
    assert all(response.headers[name] == value for name, value in HEADERS.items())
    return response.json()["error"]


def lives(client):
    assert client.post("/api/characters", json=ASKED).status_code == 200
    assert client.post("/api/function", json=POINTS).status_code == 200


def test_what_the_page_asks_is_answered(client):
    about = client.get("/api/about").json()
    assert about["characters"]["most"] == 5
    assert about["functions"]["x"] == [-5, 5]
    told = client.post("/api/characters", json=ASKED).json()
    assert {name: len(value) for name, value in told.items()} == {"before": 2, "after": 2, "losses": 2, "image": 28}
    assert sum(told["after"]) == pytest.approx(1)
    told = client.post("/api/function", json=POINTS).json()
    assert {name: len(value) for name, value in told.items()} == {"before": 201, "after": 201, "losses": 4}
    assert len(client.get("/api/sinusoid").json()["points"]) == 10


def test_every_file_of_the_page_is_served_with_its_type_and_headers(client):
    types = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
    for path in ["", *(file.name for file in PAGE.iterdir())]:
        response = client.get(f"/{path}")
        assert response.status_code == 200
        assert response.headers["content-type"].startswith(types["." + (path or ".html").rsplit(".", 1)[1]])
        assert all(response.headers[name] == value for name, value in HEADERS.items())
        assert "http" not in response.text.replace("http://www.w3.org/2000/svg", ""), f"{path} names another address"
    assert "default-src 'self'" in HEADERS["Content-Security-Policy"]


@pytest.mark.parametrize("path", ["/none", "/../answers.py", "/%2e%2e/answers.py", "/api/characters", "/api"])
def test_there_is_nothing_else(client, path):
    refused(client.get(path), 404)


def test_a_tab_that_is_left_out_has_no_address(small):
    with TestClient(application(None, small[1]), base_url="http://localhost") as client:
        assert client.get("/api/about").json()["characters"] is None
        assert client.post("/api/characters", json=ASKED).status_code in (404, 405)
        assert client.post("/api/function", json=POINTS).status_code == 200


@pytest.mark.parametrize(("method", "path"), [("POST", "/api/about"), ("POST", "/"),
                                              ("PUT", "/api/function"), ("DELETE", "/index.html")])  # fmt: skip
def test_other_methods(client, method, path):
    refused(client.request(method, path, json={}), 405)


@pytest.mark.parametrize("host", ["example.com", "127.0.0.1.example.com", "10.0.0.1:8765", "", "localhost.evil:8765"])
def test_other_names_of_this_machine_are_refused(client, host):
    response = client.get("/", headers={"Host": host})
    assert response.status_code == 400
    assert "innerloop" not in response.text


@pytest.mark.parametrize("origin", ["http://example.com", "null", "http://127.0.0.1:9999", "https://127.0.0.1:8765"])
def test_other_sites_are_refused(client, origin):
    assert "own page" in refused(client.post("/api/characters", json=ASKED, headers={"Origin": origin}), 403)
    assert client.post("/api/characters", json=ASKED, headers={"Origin": "http://127.0.0.1:8765"}).status_code == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_what_a_form_of_another_site_can_send_is_refused(client, kind):
    response = client.post("/api/characters", content=json.dumps(ASKED), headers={"Content-Type": kind})
    assert "application/json" in refused(response, 415)


JSON = {"Content-Type": "application/json; charset=utf-8"}
MALFORMED = [
    b"",
    b"{",
    b"nonsense",
    b"\xff\xfe\x00",
    b"[" * 60_000,
    b'{"a":' * 10_000,
    b"1" * 50_000,
    b'"\\ud800"',
    b"[]",
    b"1e999",
]


@pytest.mark.parametrize("body", MALFORMED, ids=lambda body: repr(body[:12]))
@pytest.mark.parametrize("path", ["/api/characters", "/api/function"])
def test_what_is_no_json_object(client, path, body):
    assert "JSON" in refused(client.post(path, content=body, headers=JSON), 400)
    lives(client)


def test_requests_that_are_too_large_are_refused_unread(client):
    large = json.dumps(ASKED).encode() + b" " * BYTES
    assert f"{BYTES} bytes" in refused(client.post("/api/characters", content=large, headers=JSON), 413)

    sent = []

    def chunks():  # of which nobody said how many there are
        for _ in range(10_000):
            sent.append(1)
            yield b" " * 1024

    assert "bytes" in refused(client.post("/api/characters", content=chunks(), headers=JSON), 413)
    for length in ("999999999999999999999", "-1", "x", "1e3"):
        response = client.post("/api/characters", content=b"{}", headers={**JSON, "Content-Length": length})
        assert refused(response, 413)
    lives(client)


def changed(**fields):
    return {**ASKED, **fields}


MANY = [[0.5, 0.5]] * 1_001
BAD = [
    ({}, "the request must have characters, drawing, steps"),
    (changed(more=1), "the request must have characters, drawing, steps"),
    (changed(characters={}), "characters must be a list of 2 to 5 characters, got an object of 0"),
    (changed(characters=[[LINE]]), "characters must have 2 to 5 characters, got 1"),
    (changed(characters=[[LINE]] * 6), "characters must have 2 to 5 characters, got 6"),
    (changed(characters=[[LINE], []]), r"characters[1] must have 1 to 5 drawings, got 0"),
    (changed(characters=[[LINE], [LINE] * 6]), r"characters[1] must have 1 to 5 drawings, got 6"),
    (changed(characters=[[LINE], [[]]]), r"characters[1][0] must have 1 to 32 strokes, got 0"),
    (changed(characters=[[LINE], "x" * 99]), 'characters[1] must be a list of 1 to 5 drawings, got "xxx'),
    (changed(drawing=LINE * 33), "drawing must have 1 to 32 strokes, got 33"),
    (changed(drawing=[[]]), "drawing[0] must have 1 to 1000 points, got 0"),
    (changed(drawing=[MANY]), "drawing[0] must have 1 to 1000 points, got 1001"),
    (changed(drawing=[[[0.5]]]), "drawing[0][0] must have 2 numbers, got 1"),
    (changed(drawing=[[[0.5, 0.5, 0.5]]]), "drawing[0][0] must have 2 numbers, got 3"),
    (changed(drawing=[[[0.5, 1.01]]]), "drawing[0][0] must have numbers from 0 to 1, got 1.01"),
    (changed(drawing=[[[math.nan, 0.5]]]), "drawing[0][0] must have numbers from 0 to 1, got NaN"),
    (changed(drawing=[[[math.inf, 0.5]]]), "drawing[0][0] must have numbers from 0 to 1, got Infinity"),
    (changed(drawing=[[[10**400, 0.5]]]), "drawing[0][0] must have numbers from 0 to 1, got an integer too large"),
    (changed(drawing=[[[True, 0.5]]]), "drawing[0][0] must have numbers from 0 to 1, got true"),
    (changed(drawing=[[["0", None]]]), 'drawing[0][0] must have numbers from 0 to 1, got "0"'),
    (changed(steps=-1), "steps must be an integer from 0 to 20, got -1"),
    (changed(steps=21), "steps must be an integer from 0 to 20, got 21"),
    (changed(steps=1.0), "steps must be an integer from 0 to 20, got 1.0"),
    (changed(steps=True), "steps must be an integer from 0 to 20, got true"),
    (changed(steps=None), "steps must be an integer from 0 to 20, got null"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "message"), BAD, ids=lambda value: value[:60] if isinstance(value, str) else "")
def test_what_is_past_a_bound_is_named(client, body, message):
    response = client.post("/api/characters", content=json.dumps(body), headers=JSON)
    assert message in refused(response, 422)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"points": [], "steps": 1}, "points must have 1 to 1000 points, got 0"),
        ({"points": MANY, "steps": 1}, "points must have 1 to 1000 points, got 1001"),
        ({"points": [[5.1, 0]], "steps": 1}, "points[0] must have numbers from -5 to 5, got 5.1"),
        ({"points": [[0, -6.5]], "steps": 1}, "points[0] must have numbers from -6 to 6, got -6.5"),
        ({"points": [[0, 0]]}, "the request must have points, steps"),
        ({"points": [[0, 0]], "steps": 10**30}, "steps must be an integer from 0 to 20, got an integer too large"),
    ],
    ids=lambda value: value[:60] if isinstance(value, str) else "",
)
def test_functions_have_bounds_too(client, body, message):
    assert message in refused(client.post("/api/function", content=json.dumps(body), headers=JSON), 422)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda some: st.lists(some, max_size=4) | st.dictionaries(st.text(max_size=8), some, max_size=4),
    max_leaves=12,
)
NEARLY = st.fixed_dictionaries(
    {},
    optional={
        "characters": ANYTHING | st.lists(st.lists(st.just(LINE) | ANYTHING, max_size=2), max_size=6),
        "drawing": ANYTHING | st.just(LINE),
        "points": ANYTHING | st.lists(st.tuples(st.floats(), st.floats()), max_size=3),
        "steps": ANYTHING | st.integers(-1, 2),
    },
)


@settings(max_examples=150)
@given(body=ANYTHING | NEARLY, path=st.sampled_from(["/api/characters", "/api/function"]))
def test_whatever_is_sent_is_answered_or_refused_with_a_reason(client, body, path):
    response = client.post(path, content=json.dumps(body), headers=JSON)
    assert response.status_code in (200, 400, 422)
    if response.status_code != 200:
        assert 0 < len(response.json()["error"]) < 300
        assert response.json()["error"].isprintable()


def test_an_adaptation_that_diverges_is_told_as_such(client, small, monkeypatch):
    monkeypatch.setattr(small[1], "learner", _Diverging())
    told = client.post("/api/function", json=POINTS).json()
    assert told["losses"] == [1.0, None]


class _Diverging:
    def adapt(self, support, steps, transductive):
        import torch

        class Adapted:
            losses = torch.tensor([1.0, math.nan])

            def __call__(self, x):
                return x * math.inf

        return Adapted()


def test_a_bug_is_an_error_of_the_server_and_it_lives(client, small, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(small[1], "learner", None)
        assert client.post("/api/function", json=POINTS).status_code == 500
    lives(client)


def test_requests_that_come_at_once_are_answered_each(client, small):
    def ask(number):
        asked = {**ASKED, "characters": [[LINE], [HOOK]] + [[LINE]] * (number % 3)}
        return number % 3, client.post("/api/characters", json=asked)

    with ThreadPoolExecutor(6) as threads:
        for more, response in threads.map(ask, range(18)):
            assert response.status_code == 200
            assert len(response.json()["after"]) == 2 + more


class _Leaving:
    """A request whose browser is gone."""

    async def is_disconnected(self):
        return True


def alone(coroutine):
    """Run in a thread of its own, since this one may have a loop that runs a browser."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()


@pytest.mark.parametrize("number", [1, 2, 3])
def test_so_many_adaptations_run_at_once_and_too_many_are_told_to_come_back(number):
    running, most, go = [], [], threading.Event()

    def adapt():
        running.append(1)
        most.append(len(running))
        go.wait(600)
        running.pop()

    async def crowd():
        worker = Workers(number)
        waiting = [asyncio.create_task(worker.run(adapt)) for _ in range(WAITING)]
        while len(running) < number:
            await asyncio.sleep(0.001)
        with pytest.raises(HTTPException, match="try again") as refused:
            await worker.run(adapt)
        assert (refused.value.status_code, refused.value.headers) == (503, {"Retry-After": "1"})
        go.set()
        await asyncio.gather(*waiting)
        await worker.run(adapt)  # there is room again
        worker.close()

    alone(crowd())
    assert len(most) == WAITING + 1
    assert max(most) == number


def test_nobody_adapts_for_a_browser_that_is_gone():
    called = []

    async def leave():
        worker = Workers()
        with pytest.raises(ClientDisconnect):
            await worker.run(called.append, 1, request=_Leaving())
        worker.close()

    alone(leave())
    assert called == []
