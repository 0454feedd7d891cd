"""A local web page on which a meta-trained model adapts, live, to what the user draws."""

from .answers import Characters, Functions, answering
from .drawing import Drawing, render

__all__ = ["Characters", "Drawing", "Functions", "answering", "render"]
