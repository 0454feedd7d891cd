"""MuJoCo, set up to render without a screen."""

from __future__ import annotations

import os
import sys
from typing import Any


def headless() -> None:
    """Have MuJoCo render without a screen where there is none; it is read once, when MuJoCo is imported."""
    if sys.platform.startswith("linux") and not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")


def mujoco_for(what: str) -> Any:
    """The module ``mujoco``.

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
    """What makes pictures of a model.

    Raises:
        RuntimeError: nothing can be rendered here; the message says what may help.
    """
    import mujoco

    try:
        return mujoco.Renderer(model, height, width)
    except Exception as error:  # of whatever draws, in its own ways
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RuntimeError(
            f"MuJoCo cannot render here ({reason}); without a screen, install libegl1 and set MUJOCO_GL=egl, or "
            "libosmesa6 and MUJOCO_GL=osmesa"
        ) from error
