"""The command ``innerloop``, and ``python -m innerloop``."""

from __future__ import annotations

import gc
import sys

from .common import streams


def main() -> None:
    """Run the command line, or say which extra it needs."""
    streams.protect()
    try:
        from .cli import run
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing not in ("typer", "rich"):
            raise
        sys.exit(f"error: the command line needs {missing}: pip install 'innerloop[cli]'")
    except KeyboardInterrupt:  # importing the command line takes a second or two
        sys.exit(130)
    gc.freeze()  # imported objects stay, so the garbage collector need not scan them
    code = run(sys.argv[1:])
    if code == streams.READER_GONE:
        streams.end_by_sigpipe()
    sys.exit(code)


if __name__ == "__main__":
    main()
