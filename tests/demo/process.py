"""The demo in its own process, with adaptations that tests can stop: python -m tests.demo.process FOLDER

While FOLDER/hold exists, each adaptation to points waits inside the model, and FOLDER/inside has one file for each that
does. FOLDER/forwards has one byte for each call of that model.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import Any

from innerloop.demo import answering
from innerloop.demo.serving import listen, serve

from .conftest import untrained


def main(folder: Path) -> None:
    hold, inside = folder / "hold", folder / "inside"
    characters, functions = answering([untrained("strokes-5w1s-maml", "model.width=4"), untrained("sinusoid-maml")])

    def wait(*_: Any) -> None:
        with (folder / "forwards").open("ab") as file:
            file.write(b".")
        if hold.exists():
            mine = inside / str(threading.get_ident())
            mine.touch()
            while hold.exists():
                time.sleep(0.01)
            mine.unlink()

    assert functions is not None
    functions.learner.model.register_forward_pre_hook(wait)
    serve(listen(), characters, functions, browser=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
