"""The name of `innerloop.recipe.config` up to version 0.2; version 0.4 will remove it."""

from .common.errors import warn_of_old_name
from .recipe import config as _now

warn_of_old_name("config", "recipe.config")
globals().update({name: value for name, value in vars(_now).items() if not name.startswith("__")})
