"""Mutations of recipes: of the file that is given, of one that it extends, and of the space of a sweep."""

from __future__ import annotations

import os
import random
from pathlib import Path

from .mutations import ANY, NAMES, Mutation, named

RECIPE, BASE, SPACE = "recipe.toml", "base.toml", "space.toml"
VALUES = (
    "'x'", "true", "-1", "0", "1e400", "-inf", "nan", "[]", "{}", "[[[]]]", "9" * 400, "-" + "9" * 400, "9" * 5000, "",
    "'<!--<script>'", "'none'", "1979-05-27", "07:32:00", "[1, 'a']", "{a = 1}", "''", "1e308", "5e-324", "1.5",
    "9223372036854775808", "9223372036854775807", "{schedule = 'linear'}", "{schedule = 3}", "'\\u0000'", "'a\nb'",
    "{schedule = 'cosine', start = 1.0, end = 0.0, iterations = 0}", "[1, 1]", '"\\ud800"', '"\\u202e"', "[[1], [2]]",
)  # fmt: skip
BIG = ("1_000_000_000", "1_000_000_000_000")
TIMES = ("steps", "iterations", "num_tasks", "val_tasks", "horizon", "trace_tasks", "val_steps")
"""Of these a huge number is not wrong, it only takes long."""
EXTENDED = (
    "recipe.toml", "./recipe.toml", "../{folder}/recipe.toml", "base.toml", "/dev/zero", "/dev/stdin", "/dev/full.toml",
    "../home", "../home/.profile", "../home/pipe", "../home/pipe.toml", "pipe.toml", "folder.toml", "nonsense",
    "sinusoid-maml", "sinusoid_maml", "", "3.toml", "a\\u0000b.toml", "{long}.toml", "{path}", "~/x.toml",
    "~nobody-of-this-name/x.toml", "chain-0.toml", "..", ".", "/", "x\\ny.toml", "\\u001b[2J.toml",
    "self.toml/../recipe.toml",
)  # fmt: skip


def files(folder: Path) -> list[Path]:
    """Those whose mutation is seen: both recipes, more often than the space."""
    return [folder / name for name in (RECIPE, BASE, BASE, BASE, SPACE)]


def texts(folder: Path, rng: random.Random) -> tuple[Path, list[str]]:
    path = rng.choice(files(folder))
    return path, path.read_text().splitlines()


def value(folder: Path, rng: random.Random) -> str:
    """A value is another one."""
    path, lines = texts(folder, rng)
    at = rng.choice([index for index, text in enumerate(lines) if "=" in text])
    key = lines[at].partition("=")[0]
    given = rng.choice([*VALUES, *BIG] if key.strip() not in TIMES else VALUES[:-1])
    if key.strip() in TIMES and given == "9223372036854775807":
        given = "'x'"
    lines[at] = f"{key}= {given}"
    path.write_text("\n".join(lines))
    return f"{path.name}: {lines[at][:80]}"


def key(folder: Path, rng: random.Random) -> str:
    """A key or a section is dropped, given twice or renamed, or there is one more."""
    path, lines = texts(folder, rng)
    at, how = rng.choice([index for index, text in enumerate(lines) if text.strip()]), rng.randrange(5)
    before = lines[at]
    if how == 0:
        del lines[at]
    elif how == 1:
        lines.insert(at, before)
    elif how == 2:
        name, equals, rest = before.partition("=")
        odd = rng.choice(['"a b"', '""', '"\\u0000"', "model", "x.y.z", '"<!--<script>"', name.strip(" []").upper()])
        lines[at] = f"{odd} ={rest}" if equals else f"[{odd}]"
    elif how == 3:
        odd = rng.choice(["[[model]]", "[model.name]", "[train.lr]", "[x]", "x = 3", "[", "]", "= 3", '"', "'''", "\\"])
        lines.insert(at, odd)
    else:
        lines[at] = before.strip("[]")
    path.write_text("\n".join(lines))
    return f"{path.name}: key, {how}: {before[:40]}"


def extends(folder: Path, rng: random.Random) -> str:
    """The recipe extends something odd: itself, a device, a pipe, a folder, something far away."""
    path, given = folder / rng.choice([RECIPE, BASE]), rng.choice(EXTENDED)
    given = given.format(folder=folder.name, long="é" * 300, path="../recipes/" * 400 + BASE)
    (folder / "folder.toml").mkdir()
    if "pipe" in given:
        os.mkfifo(folder / "pipe.toml")
    for number in range(1200 if "chain" in given else 0):
        (folder / f"chain-{number}.toml").write_text(f'extends = "chain-{number + 1}.toml"\n')
    text = "\n".join(one for one in path.read_text().splitlines() if not one.startswith("extends"))
    path.write_text(f'extends = "{given}"\n{text}')
    return f"{path.name} extends {given[:40]!r}"


def deep(folder: Path, rng: random.Random) -> str:
    """A value is nested deeper than any stack, or very long."""
    path = rng.choice(files(folder))
    given = rng.choice([
        "x = " + "[" * 5000, "x = " + "[" * 400 + "]" * 400, "x = " + "{a = " * 3000, ".".join("a" * 3000) + " = 1",
        "[" + ".".join("b" * 3000) + "]", "x = '" + "a" * 2_000_000 + "'", "#" * 2_000_000,
        "x = [" + "1," * 200_000 + "]", "\n" * 100_000, "x = " + "9" * 100_000,
    ])  # fmt: skip
    path.write_text(f"{given}\n{path.read_text()}")
    return f"{path.name}: deep {given[:12]}"


def renamed(folder: Path, rng: random.Random) -> str:
    """The recipe that is given has an odd name."""
    name = rng.choice([*NAMES, "", ".", "recipe.toml", "a b", "sinusoid-maml", "x" * 245, "\t", "..x", "CON", "a/../b"])
    suffix = rng.choice([".toml", ".toml", ".toml", ".TOML", ""])
    target = folder / f"{name}{suffix}".replace("/", "")
    if target.name not in ("", ".", "..") and not target.exists():
        (folder / RECIPE).rename(target)
    return f"renamed {target.name!r}"


RECIPES: tuple[Mutation, ...] = (
    value, value, value, value, value, value, key, key, key, extends, extends, deep, renamed,
    *(mutation for mutation in ANY if mutation is not named), named,
)  # fmt: skip
