"""Mutations of saved models: the folders of `Pretrained.save_pretrained`, and the files of `innerloop adapt --save`.

Most change a value and then write fitting checksums, as an attacker or another program would: a wrong checksum is an
error before anything else is looked at.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from safetensors.torch import load, save

from innerloop.use.contents import CARD, SETTINGS, WEIGHTS, digests, packed_digest

from .mutations import ANY, NAMES, Mutation, changed, other

FILE = "classifier.safetensors"
"""The adapted classifier, which lies in the folder beside the weights, so that all mutations meet it."""
SIZES = (-1, 0, 10**5, 10**9, 2**40)
TIMES = ("steps", "iterations", "num_tasks", "val_tasks")
"""Of these a huge number is not wrong, it only takes long."""


def sealed(folder: Path) -> None:
    """Have the checksums in ``config.json`` fit the folder, whatever is in it."""
    path = folder / SETTINGS
    told = json.loads(path.read_text())
    told["sha256"] = digests(told, {name: (folder / name).read_bytes() for name in (WEIGHTS, CARD)})
    path.write_text(json.dumps(told, indent=2))


def unsealed(folder: Path) -> None:
    """Leave the checksums out, as earlier versions did."""
    path = folder / SETTINGS
    told = json.loads(path.read_text())
    told.pop("sha256", None)
    path.write_text(json.dumps(told, indent=2))


def seal(folder: Path, rng: random.Random) -> None:
    rng.choice([sealed, sealed, unsealed])(folder)


def packed(header: dict[str, Any], data: bytes) -> bytes:
    """A safetensors file, with a fitting checksum if it is one of ours."""
    about = header.get("__metadata__")
    text = json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text + data
    if isinstance(about, dict) and "sha256" in about:
        try:
            header = {**header, "__metadata__": {**about, "sha256": packed_digest(content)[0]}}
        except (ValueError, AttributeError, TypeError):
            return content
        text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def unpacked(content: bytes) -> tuple[dict[str, Any], bytes]:
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def settings(folder: Path, rng: random.Random) -> str:
    """A part of what the folder says of itself is changed."""
    path = folder / SETTINGS
    path.write_text(json.dumps(changed(json.loads(path.read_text()), rng)))
    if rng.random() < 0.8:
        seal(folder, rng)
    return "settings"


def sizes(folder: Path, rng: random.Random) -> str:
    """A whole number of the recipe in the folder or in the file is another one."""
    inside = rng.random() < 0.3
    path = folder / (FILE if inside else SETTINGS)
    if inside:
        header, data = unpacked(path.read_bytes())
        told = json.loads(header["__metadata__"]["innerloop"])
        found = [(told[part], key) for part in ("model", "pictures") for key in told[part]]
    else:
        told = json.loads(path.read_text())
        found = [(part, key) for part in told["recipe"].values() if isinstance(part, dict) for key in part]
    owner, key = rng.choice([(owner, key) for owner, key in found if type(owner[key]) is int and key not in TIMES])
    owner[key] = rng.choice(SIZES)
    if inside:
        header["__metadata__"]["innerloop"] = json.dumps(told)
        path.write_bytes(packed(header, data))
    else:
        path.write_text(json.dumps(told))
        seal(folder, rng)
    return f"size {path.name}: {key} = {owner[key]}"


def header(folder: Path, rng: random.Random) -> str:
    """A part of the header of a safetensors file is changed: types, shapes, places, names."""
    path = folder / rng.choice([WEIGHTS, FILE])
    told, data = unpacked(path.read_bytes())
    path.write_bytes(packed(changed(told, rng), data))
    seal(folder, rng)
    return f"header {path.name}"


def told(folder: Path, rng: random.Random) -> str:
    """A part of what the adapted classifier says of itself is changed."""
    path = folder / FILE
    about, data = unpacked(path.read_bytes())
    inside = changed(json.loads(about["__metadata__"]["innerloop"]), rng)
    about["__metadata__"]["innerloop"] = json.dumps(inside)
    path.write_bytes(packed(about, data))
    return "told"


def tensors(folder: Path, rng: random.Random) -> str:
    """A tensor has another type, shape, name or values, or is not there."""
    path = folder / rng.choice([WEIGHTS, FILE])
    about = unpacked(path.read_bytes())[0].get("__metadata__")
    found = load(path.read_bytes())
    name = rng.choice(sorted(found))
    how = rng.randrange(8)
    if how == 0:
        del found[name]
    elif how == 1:
        found[rng.choice(NAMES).encode("utf-8", "replace").decode()] = found.pop(name)
    else:
        found[name] = other(found[name], rng)
    path.write_bytes(packed(*unpacked(save(found, about))))
    seal(folder, rng)
    return f"tensor {path.name} {name}, {how}"


SAVED: tuple[Mutation, ...] = (settings, settings, settings, sizes, header, told, told, tensors, *ANY)
