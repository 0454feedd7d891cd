"""The command line: list what there is, train by a recipe, search for better values, evaluate a run, look at it,
adapt it to pictures of one's own, try it in a browser."""

from . import adapting, demonstrating, evaluating, looking, training
from .app import run

__all__ = ["adapting", "demonstrating", "evaluating", "looking", "run", "training"]
