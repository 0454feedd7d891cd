"""Fast execution of tasks, independent of the algorithm."""

from .engine import Engine, Vectorize

__all__ = ["Engine", "Vectorize"]
