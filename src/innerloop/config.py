"""The name that `innerloop.recipe.config` had up to version 0.2; version 0.4 will no longer have it."""

from .common.errors import warn_of_old_name
from .recipe import config as _now

warn_of_old_name("config", "recipe.config")
globals().update({name: value for name, value in vars(_now).items() if not name.startswith("__")})
