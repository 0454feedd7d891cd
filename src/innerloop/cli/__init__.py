"""The command line: train, sweep, evaluate, plot, adapt and demonstrate.

The commands list recipes and models, train a recipe, sweep its hyperparameters, evaluate a run, draw its figures, adapt
a model to your own pictures, and serve a demo in the browser.
"""

from . import adapting, demonstrating, evaluating, looking, training
from .app import run

__all__ = ["adapting", "demonstrating", "evaluating", "looking", "run", "training"]
