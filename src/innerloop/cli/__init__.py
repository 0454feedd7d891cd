"""The command line: list what there is, train by a recipe, search for better values, evaluate a run, look at it,
adapt it to pictures of one's own."""

from . import adapting, evaluating, looking, training
from .app import run

__all__ = ["adapting", "evaluating", "looking", "run", "training"]
