"""Run directories as somebody else may send them: truncated files, other types, huge sizes, odd names, links."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

VALUES: tuple[Any, ...] = (
    None, True, "310", "", "<!--<script>", "\ud800", "[/bold]", "$x^$", -1, 0, 10**400, 2**63, 1.5, 1e308, [], [[]], {},
    [None], ["x"], {"a": None}, {"": []}, [1, 2, 3], float("nan"), float("inf"),
)  # fmt: skip
NAMES = ("<!--<script>", "a\nb", "[/red]", "$x^$", "\x1b[2J", "%s{0}", "--run", "_", "é" * 60, "a'b\"c")
FILES = ("metrics.jsonl", "config.toml", "results.json")


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The addresses of all values within a value."""
    found = [at] if at else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found += places(item, (*at, key))
    return found


def changed(value: Any, rng: random.Random) -> Any:
    """A plain value with one part of it changed, dropped or renamed."""
    address = rng.choice(places(value))
    owner = value
    for key in address[:-1]:
        owner = owner[key]
    key, how = address[-1], rng.randrange(4)
    if how == 0:
        del owner[key]
    elif how == 1 and isinstance(owner, dict):
        owner[rng.choice([*NAMES, key.upper()])] = owner.pop(key)
    else:
        owner[key] = rng.choice(VALUES)
    return value


# -- mutations: each takes the run directory and a generator, and says what it did ------------------------------------


def line(run: Path, rng: random.Random) -> str:
    """Some lines of one kind are changed, or all."""
    path = run / "metrics.jsonl"
    lines = [json.loads(one) for one in path.read_text().splitlines()]
    kind = rng.choice([one["kind"] for one in lines])
    chosen = [one for one in lines if one["kind"] == kind]
    state = rng.getstate()
    for one in chosen if rng.random() < 0.5 else chosen[-1:]:
        if rng.random() < 0.8:
            rng.setstate(state)  # the same change in all of them
        changed(one, rng)
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    return f"line {kind}"


def results(run: Path, rng: random.Random) -> str:
    """A part of the results is changed."""
    path = run / "results.json"
    path.write_text(json.dumps(changed(json.loads(path.read_text()), rng)))
    return "results"


def recipe(run: Path, rng: random.Random) -> str:
    """A value of the recipe is changed."""
    path = run / "config.toml"
    lines = path.read_text().splitlines()
    at = rng.choice([index for index, text in enumerate(lines) if "=" in text])
    value = rng.choice(["'x'", "true", "-1", "1e400", "[]", "{}", "nan", "[[[]]]", "9" * 400, "", "'<!--<script>'"])
    lines[at] = f"{lines[at].partition('=')[0]}= {value}"
    path.write_text("\n".join(lines))
    return f"recipe: {lines[at][:60]}"


def cut(run: Path, rng: random.Random) -> str:
    """A file is cut off, or is empty."""
    path = rng.choice([path for path in sorted(run.rglob("*")) if path.is_file()])
    os.truncate(path, rng.choice([0, rng.randrange(path.stat().st_size + 1)]))
    return f"cut {path.name}"


def noise(run: Path, rng: random.Random) -> str:
    """Some bytes of a file are others."""
    path = rng.choice([path for path in sorted(run.rglob("*")) if path.is_file()])
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 20])):
        content[rng.randrange(len(content))] = rng.randrange(256)
    path.write_bytes(content)
    return f"noise {path.name}"


def huge(run: Path, rng: random.Random) -> str:
    """A file has a size that no memory has, or a depth that no stack has."""
    path = rng.choice([path for path in sorted(run.rglob("*")) if path.is_file()])
    if rng.random() < 0.5:
        os.truncate(path, 2**40)
        return f"huge {path.name}"
    with path.open("ab") as file:
        file.write(b"[" * 200_000 + b"\n")
    return f"deep {path.name}"


def gone(run: Path, rng: random.Random) -> str:
    """A file or a folder is not there, or is of the other sort."""
    path = rng.choice(sorted(run.rglob("*")))
    was_file = path.is_file()
    path.unlink() if was_file else shutil.rmtree(path)
    how = rng.randrange(3)
    if how == 1:
        path.mkdir() if was_file else path.write_text("x")
    elif how == 2:
        os.mkfifo(path)
    return f"gone {path.name}, {how}"


def linked(run: Path, rng: random.Random) -> str:
    """A file or a folder is a link, to something of the user's or to a device."""
    path = rng.choice([*sorted(run.rglob("*")), *(run / name for name in (".lock", "figures", "report.html"))])
    if path.exists():
        path.unlink() if path.is_file() else shutil.rmtree(path)
    home = run.parent / "home"
    target = rng.choice([home, home / ".profile", home / "new", Path("/dev/zero"), path])
    path.symlink_to(target)
    return f"link {path.name} -> {target.name}"


def named(run: Path, rng: random.Random) -> str:
    """The run has an odd name; the directory is moved."""
    name = rng.choice(NAMES)
    run.rename(run.with_name(name))
    return f"named {name!r}"


MUTATIONS: tuple[Callable[[Path, random.Random], str], ...] = (
    line, line, line, results, recipe, cut, noise, huge, gone, linked, named
)  # fmt: skip
