"""A forked process does what Python itself would, as far as anyone outside can see."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.forked import python

SCRIPT = "import sys; print(sys.argv, __name__, sys.path[0], file=sys.stderr)"
ALONE = 'exec "$@"'
STREAMS = "import sys; print(sys.stdin, sys.stdout, open('/dev/null').fileno(), file=sys.stderr)"


def outcome(command: list[str], folder: Path, shell: str) -> tuple[int, str, list[str]]:
    """The exit status, and what is printed; of tracebacks, which begin elsewhere, the last line."""
    line = ["bash", "-c", shell, "bash", *command]
    environment = {"PATH": "/usr/bin:/bin", "MINE": "ä"}
    done = subprocess.run(line, cwd=folder, env=environment, input="given\n", capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr.splitlines()[-1:]


@pytest.mark.parametrize(
    ("words", "shell"),
    [
        (["-c", "import os; print(os.getcwd(), input(), os.environ['MINE']); print(*sorted(os.environ))"], ALONE),
        (["-c", SCRIPT, "a", "b c"], ALONE),
        (["script.py", "--option"], ALONE),
        (["-m", "json.tool", "--no-such-option"], ALONE),
        (["-c", "raise SystemExit('why')"], ALONE),
        (["-c", "raise SystemExit(3)"], ALONE),
        (["-c", "import os; os.kill(os.getpid(), 9)"], ALONE),
        (["-c", "import signal; signal.signal(13, signal.SIG_DFL); signal.raise_signal(13)"], ALONE),
        (["-c", STREAMS], 'exec "$@" <&- >&-'),
        (["-c", "import sys; sys.stdout.write('x' * 9**6)"], '"$@" | head -c 1; exit ${PIPESTATUS[0]}'),
    ],
)
def test_it_cannot_be_told_from_python_itself(words: list[str], shell: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    itself = outcome([sys.executable, *words], tmp_path, shell)
    assert outcome(python(*words), tmp_path, shell) == itself


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_reach_it(number: signal.Signals) -> None:
    code = "import time; print('ready', flush=True); time.sleep(600)"
    process = subprocess.Popen(python("-c", code), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert ("KeyboardInterrupt" in process.communicate(timeout=600)[1]) is (number == signal.SIGINT)
    assert process.returncode == -number


def test_it_ends_with_who_asked_for_it() -> None:
    """Whoever reads from it sees its end."""
    code = "import time; print('ready', flush=True); time.sleep(600)"
    process = subprocess.Popen(python("-c", code), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.kill()
    assert process.stdout.read() == ""


@pytest.mark.slow
def test_the_tests_pass_where_signals_are_ignored() -> None:
    """As in the background of a shell, and under nohup."""
    words = [sys.executable, "-m", "pytest", "-q", f"{__file__}::{test_signals_reach_it.__name__}"]
    found = subprocess.run(
        ["sh", "-c", 'trap "" INT HUP QUIT; exec "$@"', "sh", *words], capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout
