"""The name that `innerloop.engine.checkpointing` had up to version 0.2; version 0.4 will no longer have it."""

import sys
import warnings
from importlib import import_module

from .common.errors import user_level

warnings.warn(
    "innerloop.checkpointing is now innerloop.task_contexts, and version 0.4 will no longer know the old name",
    FutureWarning,
    stacklevel=user_level(),
)
sys.modules[__name__] = import_module("innerloop.engine.checkpointing")
