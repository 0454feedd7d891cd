"""Standard streams that fail: a training goes on, other commands end as Unix tools do. Names are safe to show."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from innerloop import cli
from innerloop.common import streams
from innerloop.train.checkpoint import Checkpoints
from innerloop.train.progress import Progress
from innerloop.train.record import dumps
from tests.forked import python

TRAIN = [
    *("train", "sinusoid-maml", "--set", "train.iterations=12", "--set", "train.tasks=2", "--set", "train.val_tasks=2"),
    *("--set", "evaluate.num_tasks=3", "--set", "train.log_every=3", "--set", "model.sizes=[1, 4, 1]"),
    *("--set", "learner.compile=false"),
]
PROGRAM = [sys.executable, "-m", "innerloop"]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120", **more}


def shell(script: str, *words: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which "$@" is the program."""
    line = ["bash", "-c", script, "bash", *python("-m", "innerloop", *words)]
    return subprocess.run(line, capture_output=True, text=True, timeout=600, cwd=cwd, env=environment(**more))


def whole(run: Path) -> bool:
    """Whether a training came to its end, the test included, and its record is whole."""
    kinds = [json.loads(line)["kind"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    return "test" in json.loads((run / "results.json").read_text()) and kinds.count("train") == 4


# -- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "streams_of_it",
    ["2>&-", ">&-", "<&- >&- 2>&-", "2>/dev/full", ">/dev/full", "&>/dev/full", "2>&1 | head -1", "2>&1 | true"],
)
def test_a_training_goes_on_whatever_becomes_of_its_streams(streams_of_it: str, tmp_path: Path) -> None:
    done = shell(f'"$@" {streams_of_it}; exit ${{PIPESTATUS[0]}}', *TRAIN, "--run", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert whole(tmp_path / "run")


def test_what_a_closed_stream_would_show_gets_into_no_file(tmp_path: Path) -> None:
    """The next file that is opened gets the number of a closed descriptor."""
    code = (
        "import os\nfrom innerloop.common import streams\nstreams.protect()\nfile = open('file', 'w')\n"
        "os.write(2, b'from a library')\nprint(file.fileno() > 2, file=file)\nfile.close()"
    )
    subprocess.run(["bash", "-c", '"$@" <&- >&- 2>&-', "bash", sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert (tmp_path / "file").read_text() == "True\n"


def on_a_terminal(*words: str, cwd: Path, controlling: bool) -> tuple[subprocess.Popen[bytes], int]:
    """The program on a terminal, which has the progress bar; and the terminal's other end."""
    ours, theirs = pty.openpty()
    claim = "import fcntl, os, signal, sys, termios\nif sys.argv[1] == '1': fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
    claim += "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # which nohup would have had it ignore
    code = f"{claim}os.execv(sys.executable, [sys.executable, '-m', 'innerloop', *sys.argv[2:]])"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(int(controlling)), *words],
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, cwd=cwd, env=environment(TERM="xterm"),
    )  # fmt: skip
    os.close(theirs)
    return process, ours


def read_until(terminal: int, text: bytes) -> None:
    seen = b""
    while text not in seen:
        seen += os.read(terminal, 4096)


def test_a_terminal_that_goes_does_not_end_a_training(tmp_path: Path) -> None:
    words = [*TRAIN, "--set", "train.iterations=400", "--run", "run"]
    process, terminal = on_a_terminal(*words, cwd=tmp_path, controlling=False)
    read_until(terminal, b"/400")
    os.close(terminal)
    assert process.wait(timeout=600) == 0
    assert "test" in json.loads((tmp_path / "run" / "results.json").read_text())


def test_a_closed_terminal_saves_a_checkpoint(tmp_path: Path) -> None:
    words = [*TRAIN, "--set", "train.iterations=100000", "--run", "run"]
    process, terminal = on_a_terminal(*words, cwd=tmp_path, controlling=True)
    while process.poll() is None and not started(tmp_path / "run"):
        if select.select([terminal], [], [], 0.01)[0]:  # lest the process waits for a reader
            os.read(terminal, 4096)
    os.close(terminal)
    assert process.wait(timeout=600) == 129
    assert Checkpoints(tmp_path / "run").newest()["iteration"] > 0


def started(run: Path) -> bool:
    metrics = run / "metrics.jsonl"
    return metrics.exists() and b'"train"' in metrics.read_bytes()


@pytest.mark.parametrize("ignored", [False, True])
def test_sighup_ends_like_sigterm_unless_it_is_ignored(ignored: bool, tmp_path: Path) -> None:
    """Twice in a row, as a shell and its terminal send it; under nohup it does nothing."""
    words = [*PROGRAM, *TRAIN, "--set", f"train.iterations={300 if ignored else 100000}", "--run", "run"]
    handler = signal.SIG_IGN if ignored else signal.SIG_DFL
    process = subprocess.Popen(
        words, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, handler),
    )  # fmt: skip
    while process.poll() is None and not started(tmp_path / "run"):
        time.sleep(0.01)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGHUP)
    _, err = process.communicate(timeout=600)
    assert process.returncode == (0 if ignored else 129), err
    assert ("--run run --resume" in err) is not ignored
    assert Checkpoints(tmp_path / "run").newest()["iteration"] > 0


class Broken(io.StringIO):
    """A stream whose reader has gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


@pytest.mark.parametrize("stream", [None, Broken()])
def test_progress_of_the_library_outlives_standard_error(stream: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the command line, whose process has other streams."""
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress(10) as progress:
        progress.note("text")
        went_on = True
    assert went_on
    assert sys.stderr is stream


# -- other commands ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["list"], ["list", "--json"], ["--help"], ["train", "--help"], ["--version"]])
def test_a_command_whose_reader_has_gone_ends_as_by_sigpipe(words: list[str], tmp_path: Path) -> None:
    done = shell('"$@" | true; echo ${PIPESTATUS[0]}', *words, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("141\n", "")


@pytest.mark.parametrize(("where", "why"), [(">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")])
@pytest.mark.parametrize("words", [["list"], ["--help"]])
def test_a_command_that_cannot_print_says_so_in_one_line(
    words: list[str], where: str, why: str, tmp_path: Path
) -> None:
    done = shell(f'"$@" {where}', *words, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == f"error: standard output cannot be written to: {why}\n"


def test_errors_keep_their_exit_code_without_standard_error(tmp_path: Path) -> None:
    for where in ("2>&-", "2>/dev/full"):
        assert shell(f'"$@" {where}', "train", "no-such-recipe", cwd=tmp_path).returncode == 1
        assert shell(f'"$@" {where}', "train", "--no-such-option", cwd=tmp_path).returncode == 2


def test_a_broken_stream_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Broken())
    assert cli.run(["list", "--json"]) == streams.READER_GONE
    monkeypatch.setattr(sys, "stdout", None)
    assert cli.run(["list", "--json"]) == 0


# -- what is shown ----------------------------------------------------------------------------------------------------


def test_watch_shows_any_name_in_an_ascii_terminal(tmp_path: Path) -> None:
    run = tmp_path / os.fsdecode(b"a[bold]b\x1b[31m\xff")
    run.mkdir()
    line = {"kind": "train", "iteration": 1, "loss": 1.0, "grad_norm": 1.0, "lr": 0.1, "tasks_per_second": 5.0}
    rates = {"kind": "rates", "iteration": 1, "rates": {"[red]w": [0.1]}}
    lines = [{**line, "iteration": i, "loss": float(i), "seconds": 1.0, "steps": [1.0]} for i in (1, 2, 3)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in [*lines, rates]))
    for encoding in ("ascii", "latin-1", "utf-8"):
        arguments = [*PROGRAM, "watch", str(run)]
        done = subprocess.run(arguments, capture_output=True, env=environment(PYTHONIOENCODING=encoding, LC_ALL="C"))
        assert done.returncode == 0, done.stderr
        out = done.stdout.decode(encoding)
        assert "a[bold]b\\x1b[31m\\xff" in out
        assert "[red]w" in out
        assert ("▁▅█" in out) == (encoding == "utf-8")
        assert ("_=#" in out) == (encoding != "utf-8")


def test_errors_and_warnings_obey_no_control_character(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["watch", "no\x1b[2Jrun\nerror: other\udcff\u202e"]) == 1
    assert capsys.readouterr().err == "error: no\\x1b[2Jrun\\nerror: other\\xff\\u202e does not exist\n"


@pytest.mark.parametrize(
    "words", [["--a\x1b[2J"], ["b\x1b[2J"], ["train", "--c\x1b[2J"], ["evaluate", "r", "--split", "d\x1b"]]
)
def test_wrong_usage_is_quoted_without_control_characters(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(words) == 2
    err = capsys.readouterr().err
    assert "\x1b" not in err
    assert "\\x1b" in err


@given(st.text(alphabet=st.characters(), max_size=30))
def test_what_is_shown_can_be_printed_and_json_reads_back(text: str) -> None:
    for safe in (streams.shown(text), dumps({"name": text})):
        assert not any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in safe)
        safe.encode()
    assert json.loads(dumps({text: text})) == {text: text}
    assert text.isascii() or text.encode("ascii", streams.HANDLER).isascii()
