"""Convert recipes from TOML to plain values and back."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from typing import Any

from ..common.streams import brief, is_utf8, shown

Config = dict[str, Any]
"""A recipe as plain values, as in its TOML."""


def parse(text: str) -> Config:
    """Parse TOML into plain values.

    Raises:
        ValueError: it is not TOML.
    """
    for library in ("tomllib", "tomli"):  # the first is part of Python 3.11
        try:
            module = importlib.import_module(library)
        except ModuleNotFoundError:
            continue
        try:
            return dict(module.loads(text))
        except RecursionError as error:
            raise ValueError("its values are nested too deeply") from error
    raise ImportError("reading recipes needs tomli on Python 3.10: pip install 'innerloop[cli]'")


def override(config: Config, text: str) -> None:
    """Apply one ``section.key=value``.

    Raises:
        ValueError: it does not have that form.
    """
    if not is_utf8(text):
        raise ValueError(f"{shown(text)} is not UTF-8, which recipes must be")
    place, equals, word = text.partition("=")
    *path, last = place.strip().split(".")
    if not equals or not last or len(path) > 3:
        raise ValueError(f"{brief(text)} does not have the form section.key=value")
    for part in path:
        config = config.setdefault(part, {})
        if not isinstance(config, dict):
            raise ValueError(f"{brief(text)}: {part} is a value, not a table")
    try:
        config[last] = parse(f"value = {word.strip()}")["value"]
    except ValueError:
        config[last] = word.strip()


def dumps(config: Mapping[str, Any]) -> str:
    """Write plain values as TOML, from which `parse` restores them exactly."""
    lines = [f"{_key(key)} = {toml(value)}" for key, value in config.items() if not isinstance(value, dict)]
    for name, section in config.items():
        if isinstance(section, dict):
            lines += ["", f"[{_key(name)}]", *(f"{_key(key)} = {toml(value)}" for key, value in section.items())]
    return "\n".join(lines) + "\n"


def toml(value: Any) -> str:
    """Write one value as TOML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else toml(key)
