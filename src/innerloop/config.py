"""The name that `innerloop.recipe.config` had up to version 0.2; version 0.4 will no longer have it."""

import warnings

from .common.errors import user_level
from .recipe import config as _now

warnings.warn(
    "innerloop.config is now innerloop.recipe.config, and version 0.4 will no longer know the old name",
    FutureWarning,
    stacklevel=user_level(),
)
globals().update({name: value for name, value in vars(_now).items() if not name.startswith("__")})
