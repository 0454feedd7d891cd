"""Text on standard output and standard error that is safe to show and does not end a training.

Names of files, classes and runs come from outside. `plain` and `shown` escape control sequences of terminals. `out` and
`err` print. `protect` prepares the streams of a whole process: text that cannot be encoded is escaped, and errors in
writing only lose text. Only errors of standard output end a command, with an `OutputError`, unless the command called
`keep_going` because it does more than print.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import re
import select
import signal
import sys
from typing import Any, TextIO

HANDLER = "innerloop-escape"
"""The name of the error handler that escapes what an encoding lacks."""
READER_GONE = 128 + 13
"""The exit code of a program that SIGPIPE ends."""
_UNSAFE = (
    "\x00-\x09\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f"
)
"""Control, invisible and reordering characters, and the bytes of names that are not UTF-8, without the line feed."""
_IN_TEXT, _IN_NAME = re.compile(f"[{_UNSAFE}]"), re.compile(f"[\n{_UNSAFE}]")
_FORMULA = "=+-@'\uff1d\uff0b\uff0d\uff20"
"""The first characters of formulas, also in full width, and the apostrophe that marks text."""
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_ASCII = dict(
    zip(
        "▁▂▃▄▅▆▇█±→…•━╸╺\N{MULTIPLICATION SIGN}\N{EN DASH}\N{EM DASH}",
        ("_", ".", "-", "~", "=", "+", "*", "#", "+-", "->", "...", "*", "-", "-", "-", "x", "-", "-"),
        strict=True,
    )
)
"""Replacements of some characters that the encoding lacks."""
_going_on = False


class OutputError(Exception):
    """Standard output cannot be written to. It is not an `OSError`, which libraries in between could handle.

    Attributes:
        errno: the number of the system error.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"standard output cannot be written to: {os.strerror(number)}")
        self.errno = number

    @property
    def status(self) -> int:
        """The exit code, which is that of SIGPIPE if the reader has closed the pipe, else 1."""
        return READER_GONE if self.errno == errno.EPIPE else 1


def keep_going(wanted: bool = True) -> None:
    """Continue if standard output cannot be written to, for commands that do more than print."""
    global _going_on
    _going_on = wanted


# -- what is safe to show ---------------------------------------------------------------------------------------------


def plain(text: str) -> str:
    r"""Return text without control sequences of terminals, apart from line feeds.

    >>> plain("one\x1b[31m" + chr(0xDCFF))
    'one\\x1b[31m\\xff'
    """
    return _IN_TEXT.sub(_escaped, text)


def shown(name: object) -> str:
    r"""Return a name or a path on one line, without control sequences of terminals.

    >>> shown("two\nlines")
    'two\\nlines'
    """
    return _IN_NAME.sub(_escaped, str(name))


def brief(value: object, most: int = 80) -> str:
    """Return the ``repr`` of a value on one line, shortened if it is long.

    >>> brief("x" * 100, 10)
    "'xxxxxxxxx..."
    """
    try:
        text = shown(repr(value))
    except ValueError:  # Python does not format integers with more than some thousand digits
        text = f"a {type(value).__name__} of very many digits"
    return text if len(text) <= most else f"{text[:most]}..."


def is_utf8(text: str) -> bool:
    """Return whether text can be encoded, which names from the system need not be."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def cell(text: str) -> str:
    r"""Return a cell of a CSV file that a spreadsheet reads as text.

    Text that looks like a formula gets an apostrophe in front, and so does text that starts with one. Numbers stay as
    they are.

    >>> cell("=1+1"), cell("-5"), cell("\t@a")
    ("'=1+1", '-5', '\\t@a')
    """
    safe = shown(text)
    formula = safe.lstrip()[:1] in _FORMULA and not _NUMBER.fullmatch(safe)
    return f"'{safe}" if safe and formula else safe


def json_safe(text: str) -> str:
    r"""Return equivalent JSON that any terminal can show and any file can hold.

    >>> import json
    >>> json.loads(json_safe(json.dumps("\x9b\udcff", ensure_ascii=False))) == "\x9b\udcff"
    True
    """
    return _IN_TEXT.sub(lambda found: _utf16(found[0]), text)


def _utf16(letter: str) -> str:
    units = letter.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))


def _escaped(found: re.Match[str]) -> str:
    return _escape(found[0])


def _escape(letter: str) -> str:
    code = ord(letter)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return _SHORT.get(letter) or (
        f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    )


def _replaced(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    part = error.object[error.start : error.end]
    return "".join(_ASCII.get(letter) or _escape(letter) for letter in part), error.end


codecs.register_error(HANDLER, _replaced)


# -- printing ---------------------------------------------------------------------------------------------------------


def out(text: str = "") -> None:
    """Print a line on standard output.

    Raises:
        OutputError: standard output cannot be written to, and `keep_going` was not called.
    """
    _print(sys.stdout, text, _going_on)


def err(text: str) -> None:
    """Print a line on standard error immediately, if possible."""
    _print(sys.stderr, text, True)


def flush() -> None:
    """Flush standard output.

    Raises:
        OutputError: as for `out`.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError) as error:
        _lost(error, _going_on)


def is_terminal(stream: Any) -> bool:
    """Return whether a stream exists, is open, and is a terminal."""
    try:
        return stream is not None and bool(stream.isatty())
    except (OSError, ValueError, AttributeError):
        return False


def _print(stream: TextIO | None, text: str, lossy: bool) -> None:
    if stream is None:  # the descriptor was closed when Python started
        return
    line = plain(text) + "\n"
    try:
        try:
            stream.write(line)
        except UnicodeEncodeError:
            encoding = stream.encoding or "ascii"
            stream.write(line.encode(encoding, HANDLER).decode(encoding))
        if lossy:
            stream.flush()
    except (OSError, ValueError) as error:  # a closed stream raises ValueError
        _lost(error, lossy)


def _lost(error: Exception, lossy: bool) -> None:
    if not lossy:
        raise OutputError(getattr(error, "errno", None) or errno.EBADF) from error


# -- the streams of a process -----------------------------------------------------------------------------------------


def protect() -> None:
    """Protect this process against errors of standard output and standard error.

    Closed descriptors are opened on the null device first. Otherwise the next opened file, such as a checkpoint, would
    get the number, and the output of libraries to standard error.
    """
    closed = []
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            closed.append(number)
            _silence(number)
    sys.stdout = _sturdy(sys.stdout, 1, sys.stdout is None or 1 in closed)
    sys.stderr = _sturdy(sys.stderr, 2, sys.stderr is None or 2 in closed)


def end_by_sigpipe() -> None:
    """End this process by SIGPIPE, as Unix tools do when their reader has gone, if the system has this signal."""
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGPIPE)


class _Descriptor(io.FileIO):
    """A descriptor for writing; after the first error, all output is lost."""

    def __init__(self, number: int, closed: bool) -> None:
        super().__init__(number, "w", closefd=False)
        self.number, self.failed, self.reported = number, errno.EBADF if closed else 0, False

    def write(self, content: Any, /) -> int:
        """Write all of the content, or raise an error once if it is lost."""
        view = memoryview(content).cast("B")
        done = 0
        while not self.failed and done < len(view):
            try:
                written = super().write(view[done:])
            except OSError as error:
                self.failed = error.errno or errno.EIO
                _silence(self.number)  # so that writes of libraries and other processes do not fail either
                break
            if written is None:  # the descriptor is non-blocking, and its reader is slower
                select.select([], [self.number], [])
            done += written or 0
        if self.failed and self.number == 1 and not _going_on and not self.reported:
            self.reported = True  # only once, since cleaning up may also print
            raise OutputError(self.failed)
        return len(view)


def _silence(number: int) -> None:
    """Redirect a descriptor to the null device."""
    null = os.open(os.devnull, os.O_RDWR)
    if null != number:
        os.dup2(null, number)
        os.close(null)
    else:
        os.set_inheritable(number, True)


def _sturdy(stream: Any, number: int, closed: bool) -> Any:
    """Return a stream that replaces one of Python's standard streams."""
    if os.name != "posix" and stream is not None:  # Windows consoles are not descriptors
        stream.reconfigure(errors=HANDLER)
        return stream
    if stream is not None and stream.fileno() != number:
        return stream
    raw = _Descriptor(number, closed)
    prompt = number == 2 or is_terminal(raw)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=getattr(stream, "encoding", None) or "utf-8",
        errors=HANDLER,
        newline="\n" if os.name == "posix" else None,
        line_buffering=prompt,
        write_through=getattr(stream, "write_through", False),
    )
