"""Run directories, saved models and recipes as somebody else may send them: truncated files, other types, huge sizes,
odd names, links. This file has what fits all of them, and the mutations of run directories."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from innerloop.train.checkpoint import load, save

VALUES: tuple[Any, ...] = (
    None, True, "310", "", "<!--<script>", "\ud800", "[/bold]", "$x^$", -1, 0, 10**400, 2**63, 1.5, 1e308, [], [[]], {},
    [None], ["x"], {"a": None}, {"": []}, [1, 2, 3], float("nan"), float("inf"), "none", "a\nb", [[[1]]], -(10**400),
)  # fmt: skip
NAMES = (
    "<!--<script>", "a\nb", "[bold]", "$x^$", "\x1b[2J", "%s{0}", "--run", "_", "é" * 60, "a'b\"c", "a\udcffb", "~",
    "x=1",
)  # fmt: skip
ENCODINGS = ("utf-16", "utf-8-sig", "latin-1", "utf-32")

Mutation = Callable[[Path, random.Random], str]
"""Takes the folder and a generator of random numbers, changes the folder, and returns what it did."""


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The addresses of all values within a value."""
    found = [at] if at else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found += places(item, (*at, key))
    return found


def changed(value: Any, rng: random.Random, depth: int = 99) -> Any:
    """A plain value with one part of it, down to some depth, changed, dropped or renamed."""
    address = rng.choice([address for address in places(value) if len(address) <= depth])
    owner = value
    for key in address[:-1]:
        owner = owner[key]
    key, how = address[-1], rng.randrange(4)
    if how == 0:
        del owner[key]
    elif how == 1 and isinstance(owner, dict):
        owner[rng.choice([*NAMES, str(key).upper()])] = owner.pop(key)
    else:
        owner[key] = rng.choice(VALUES)
    return value


def files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


# -- of any folder ----------------------------------------------------------------------------------------------------


def cut(folder: Path, rng: random.Random) -> str:
    """A file is cut off, or is empty."""
    path = rng.choice(files(folder))
    os.truncate(path, rng.choice([0, rng.randrange(path.stat().st_size + 1)]))
    return f"cut {path.name}"


def noise(folder: Path, rng: random.Random) -> str:
    """Some bytes of a file are others."""
    path = rng.choice(files(folder))
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 20])):
        content[rng.randrange(len(content))] = rng.randrange(256)
    path.write_bytes(content)
    return f"noise {path.name}"


def huge(folder: Path, rng: random.Random) -> str:
    """A file has a size that no memory has, or that some have, or a depth that no stack has."""
    path, how = rng.choice(files(folder)), rng.randrange(4)
    if how < 2:
        os.truncate(path, (2**40, 2**33)[how])
        return f"huge {path.name}, {how}"
    with path.open("ab") as file:
        file.write(b"[" * 200_000 + b"\n")
    return f"deep {path.name}"


def gone(folder: Path, rng: random.Random) -> str:
    """A file or a folder is not there, or is of the other sort."""
    path = rng.choice(sorted(folder.rglob("*")))
    was_file = path.is_file()
    path.unlink() if was_file else shutil.rmtree(path)
    how = rng.randrange(3)
    if how == 1:
        path.mkdir() if was_file else path.write_text("x")
    elif how == 2:
        os.mkfifo(path)
    return f"gone {path.name}, {how}"


def linked(folder: Path, rng: random.Random) -> str:
    """A file or a folder is a link, to something of the user's or to a device."""
    path = rng.choice([*sorted(folder.rglob("*")), *(folder / name for name in (".lock", "figures", "report.html"))])
    if path.exists():
        path.unlink() if path.is_file() else shutil.rmtree(path)
    home = folder.parent / "home"
    devices = [Path("/dev/zero"), Path("/proc/self/mem"), Path("/dev/full")]
    target = rng.choice([home, home / ".profile", home / "new", home / "pipe", *devices, path])
    path.symlink_to(target)
    return f"link {path.name} -> {target.name}"


def named(folder: Path, rng: random.Random) -> str:
    """The folder has an odd name, as if it was moved."""
    name = rng.choice(NAMES)
    folder.rename(folder.with_name(name))
    return f"named {name!r}"


def swapped(folder: Path, rng: random.Random) -> str:
    """A file has the content of another one."""
    one, other = rng.choice(files(folder)), rng.choice(files(folder))
    one.write_bytes(other.read_bytes())
    return f"{one.name} is {other.name}"


def encoded(folder: Path, rng: random.Random) -> str:
    """A file of text is in another encoding, or has the line ends of Windows."""
    path = rng.choice([path for path in files(folder) if path.suffix in (".toml", ".json", ".md", ".jsonl")])
    text, how = path.read_text(), rng.choice([*ENCODINGS, "crlf"])
    text = text.replace("# ", "# é ", 1) if how == "latin-1" else text
    path.write_bytes(text.replace("\n", "\r\n").encode() if how == "crlf" else text.encode(how, "replace"))
    return f"{path.name} in {how}"


ANY: tuple[Mutation, ...] = (cut, noise, huge, gone, linked, swapped, encoded, named)


# -- of run directories -----------------------------------------------------------------------------------------------


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
    """A part of the results or of the plans is changed."""
    path = run / rng.choice(["results.json", "results.json", "plans.json"])
    path.write_text(json.dumps(changed(json.loads(path.read_text()), rng)))
    return path.name


def setting(run: Path, rng: random.Random) -> str:
    """A value of the recipe is changed."""
    path = run / "config.toml"
    lines = path.read_text().splitlines()
    at = rng.choice([index for index, text in enumerate(lines) if "=" in text])
    value = rng.choice(["'x'", "true", "-1", "1e400", "[]", "{}", "nan", "[[[]]]", "9" * 400, "", "'<!--<script>'"])
    lines[at] = f"{lines[at].partition('=')[0]}= {value}"
    path.write_text("\n".join(lines))
    return f"setting: {lines[at][:60]}"


def checkpoint(run: Path, rng: random.Random) -> str:
    """A value or a tensor in a checkpoint is changed, and the checksum fits."""
    path = rng.choice(sorted((run / "checkpoints").glob("*.pt")))
    state = load(path)
    if rng.random() < 0.7:
        changed(state, rng, rng.choice([1, 1, 3, 99]))
    else:
        tensors = [address for address in places(state) if isinstance(at(state, address), torch.Tensor)]
        address = rng.choice(tensors)
        at(state, address[:-1])[address[-1]] = other(at(state, address), rng)
    save(path, state)
    return f"checkpoint {path.name}"


def at(value: Any, address: tuple[Any, ...]) -> Any:
    for key in address:
        value = value[key]
    return value


def other(tensor: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """A tensor of another type or shape, or with other values."""
    kind = rng.choice([torch.int8, torch.bool, torch.float64, torch.bfloat16, torch.complex64])
    value = rng.choice([float("nan"), float("inf"), 1e38, 0.0, -1.0])
    full = torch.full_like(tensor, value if tensor.is_floating_point() else 1)
    return rng.choice([tensor.to(kind), tensor[None], tensor.flatten()[:1].clone(), torch.zeros(0), full, full])


RUNS: tuple[Mutation, ...] = (line, line, line, results, setting, checkpoint, *ANY)
