"""MuJoCo, set up to render without a screen."""

from __future__ import annotations

import os
import sys
from typing import Any


def headless() -> None:
    """Let MuJoCo render without a screen if there is none; MuJoCo reads this once, when it is imported."""
    if sys.platform.startswith("linux") and not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")


def mujoco_for(what: str) -> Any:
    """Return the module ``mujoco``.

    Raises:
        ImportError: it is not installed; the message says what needs it and how to install it.
    """
    headless()
    try:
        import mujoco
    except ImportError as error:
        raise ImportError(f"{what} needs MuJoCo: pip install 'innerloop[rl]' ({error})") from error
    return mujoco


def renderer(model: Any, width: int, height: int) -> Any:
    """Return a renderer of a model.

    Raises:
        RuntimeError: this machine cannot render; the message says what may help.
    """
    import mujoco

    try:
        return mujoco.Renderer(model, height, width)
    except Exception as error:  # each rendering backend has its own errors
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RuntimeError(
            f"MuJoCo cannot render here ({reason}): without a screen, install libegl1 and set MUJOCO_GL=egl, or "
            "install libosmesa6 and set MUJOCO_GL=osmesa"
        ) from error
