"""The command line: list what there is, train by a recipe, search for better values, evaluate a run, look at it."""

from . import evaluating, looking, training
from .app import run

__all__ = ["evaluating", "looking", "run", "training"]
