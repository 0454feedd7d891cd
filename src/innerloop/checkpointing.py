"""The name that `innerloop.engine.checkpointing` had up to version 0.2; version 0.4 will no longer have it."""

import warnings

from .common.errors import user_level
from .engine import checkpointing as _now

warnings.warn(
    "innerloop.checkpointing is now innerloop.task_contexts, and version 0.4 will no longer know the old name",
    FutureWarning,
    stacklevel=user_level(),
)
globals().update({name: value for name, value in vars(_now).items() if not name.startswith("__")})
