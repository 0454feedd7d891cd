"""Checks of the ranges of arguments."""

from __future__ import annotations


def require_at_least(least: float, **numbers: float | None) -> None:
    """Raise a ValueError that names a number below ``least``."""
    for name, number in numbers.items():
        if number is not None and number < least:
            raise ValueError(f"{name} must be at least {least}, got {number}")
