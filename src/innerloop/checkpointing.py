"""The name of `innerloop.functional.checkpointing` up to version 0.2; version 0.4 will remove it."""

from .common.errors import warn_of_old_name
from .functional import checkpointing as _now

warn_of_old_name("checkpointing", "task_contexts")
globals().update({name: value for name, value in vars(_now).items() if not name.startswith("__")})
