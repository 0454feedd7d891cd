"""Numbers that have to be at least something."""

from __future__ import annotations


def require_at_least(least: float, **numbers: float | None) -> None:
    """Raise a ValueError that names the number which is below the least one."""
    for name, number in numbers.items():
        if number is not None and number < least:
            raise ValueError(f"{name} must be at least {least}, got {number}")
