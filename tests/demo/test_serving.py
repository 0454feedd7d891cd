"""The command: it listens on this machine alone, says what is wrong before it does, and ends on Ctrl-C."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import urllib.request
import webbrowser

import pytest
import uvicorn

import innerloop
from innerloop import cli
from innerloop.demo.serving import PORT, listen, serve

from .conftest import untrained


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Models in folders, as `save_pretrained` writes them."""
    pytest.importorskip("safetensors")
    folder = tmp_path_factory.mktemp("saved")
    for recipe in ("strokes-5w1s-maml", "sinusoid-maml", "linear-maml"):
        untrained(recipe).save_pretrained(folder / recipe)
    return folder


def test_a_free_port_is_found_and_only_this_machine_reaches_it():
    with listen() as first, listen() as second:
        (host, one), (_, two) = first.getsockname(), second.getsockname()
        assert host == "127.0.0.1"
        assert PORT <= one != two
        with pytest.raises(OSError, match=f"port {one} cannot be used .* --port, or none"):
            listen(one)


@pytest.mark.parametrize("recipe", ["strokes-5w1s-maml", "sinusoid-maml"])
def test_it_serves_until_ctrl_c(saved, recipe):
    words = [sys.executable, "-m", "innerloop", "demo", str(saved / recipe), "--no-browser"]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which background jobs of a shell ignore
    )  # fmt: skip
    try:
        address = process.stdout.readline().split(" ")[0]
        assert address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(address + "api/about", timeout=600) as response:
            about = json.load(response)
        assert [name for name, found in about.items() if found] == [
            "functions" if recipe == "sinusoid-maml" else "characters"
        ]
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=600)
        assert (process.returncode, err) == (130, "")
    finally:
        process.kill()


def failing(capsys, *words):
    """What a command that fails at once says."""
    assert cli.run(["demo", "--no-browser", *map(str, words)]) == 1
    return capsys.readouterr().err


def test_a_port_that_is_taken(capsys, saved):
    with listen() as taken:
        port = taken.getsockname()[1]
        err = failing(capsys, saved / "sinusoid-maml", "--port", port)
    assert err.startswith(f"error: port {port} cannot be used (")
    assert "give another --port" in err


def test_a_run_of_another_kind(capsys, saved):
    err = failing(capsys, saved / "linear-maml")
    whose = f"error: {saved / 'linear-maml'}: linear-maml"
    assert err.startswith(f"{whose} was trained on linear tasks; the demo takes models of one-channel images")
    assert "there is no trained model" in failing(capsys, saved / "none")


@pytest.mark.parametrize("module", ["starlette", "uvicorn"])
def test_a_package_that_is_missing_is_named(capsys, monkeypatch, module):
    for name in [name for name in sys.modules if name.split(".")[0] == module or name.startswith("innerloop.demo")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(innerloop, "demo", innerloop.demo)  # so that the package has its own again, too
    assert failing(capsys) == f"error: the demo needs {module}: pip install 'innerloop[demo]'\n"


@pytest.mark.parametrize("browser", [True, False])
def test_the_browser_is_opened_where_it_is_wanted(small, monkeypatch, capsys, browser):
    opened = queue.SimpleQueue()
    monkeypatch.setattr(webbrowser, "open", opened.put)
    monkeypatch.setattr(uvicorn.Server, "run", lambda server, sockets: None)
    before = threading.enumerate()
    with listen() as listening:
        serve(listening, *small, browser=browser)
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/"
    for thread in set(threading.enumerate()) - set(before):
        thread.join(600)
    assert capsys.readouterr().out == f"{address} (press Ctrl-C to stop)\n"
    assert (opened.get_nowait() == address) if browser else opened.empty()


def test_what_comes_with_the_package_is_shown_without_a_run(trained):
    assert None not in trained
