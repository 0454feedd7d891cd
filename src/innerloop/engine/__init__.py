"""Running tasks quickly: everything here knows tasks and no algorithm."""

from .engine import Engine, Vectorize

__all__ = ["Engine", "Vectorize"]
