"""What saved models consist of, checked before it is used: types, checksums and number formats."""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..common.disk import read_bytes, read_text, reading
from ..common.streams import shown

FORMAT = 1
"""Of the folder; raised when older versions could not read it."""
HEADER = 100_000_000
"""Bytes of the header of a safetensors file, at most, as safetensors itself has it."""
WEIGHTS, SETTINGS, CARD = "model.safetensors", "config.json", "README.md"

Check = tuple[str, Callable[[Any], bool]]
"""What a value is to be, in words, and whether one is."""


def _is_number(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def _is_whole(value: Any) -> bool:
    return type(value) is int and abs(value) < 2**63  # JSON has no limit, floats and torch have


def _is_score(value: Any) -> bool:
    return value is None or _is_number(value)


NUMBER: Check = ("a number", _is_number)
SCORE: Check = ("a number or null", _is_score)
SCORES: Check = ("a list of numbers", lambda value: isinstance(value, list) and all(map(_is_score, value)))
COUNT: Check = ("a whole number", lambda value: _is_whole(value) and value >= 0)
SHARE: Check = ("a number from 0.001 to 1", lambda value: _is_number(value) and 1e-3 <= value <= 1)
TEXT: Check = ("a text", lambda value: isinstance(value, str))
FLAG: Check = ("true or false", lambda value: isinstance(value, bool))
OBJECT: Check = ("an object", lambda value: isinstance(value, dict))
TEMPERATURE: Check = ("a number from 0.0001 to 10,000", lambda value: _is_number(value) and 1e-4 <= value <= 1e4)
CLASSES: Check = (
    "a list of two texts or more",
    lambda value: isinstance(value, list) and len(value) > 1 and all(isinstance(name, str) for name in value),
)
DIGESTS: Check = (
    "an object of texts",
    lambda value: isinstance(value, dict) and all(isinstance(digest, str) for digest in value.values()),
)
RESULTS: dict[str, Check] = {
    "metric": TEXT, "higher_is_better": FLAG, "unit": TEXT, "mean": SCORE, "ci95": SCORE, "num_tasks": COUNT,
    "steps": SCORES, "steps_ci95": SCORES, "transductive": FLAG, "command": TEXT, "seed": ("an integer",
    _is_whole),
}  # fmt: skip
TESTED = ("mean", "num_tasks", "steps", "steps_ci95", "transductive")
"""What results have that name a metric."""
FOLDER: dict[str, Check] = {
    "format": COUNT, "library_name": TEXT, "recipe": OBJECT, "temperature": TEMPERATURE, "results": OBJECT,
    "sha256": DIGESTS,
}  # fmt: skip


_COUNTS: Check = ("a list of whole numbers", lambda value: isinstance(value, list) and all(map(COUNT[1], value)))
TENSOR: dict[str, Check] = {
    "dtype": TEXT, "shape": _COUNTS, "data_offsets": ("two whole numbers", lambda v: _COUNTS[1](v) and len(v) == 2),
}  # fmt: skip
"""What the header of a safetensors file has of every tensor."""


def require(where: str, told: Mapping[str, Any], checks: Mapping[str, Check], optional: tuple[str, ...] = ()) -> None:
    """Check the values that are there.

    Args:
        where: for the message.
        told: the values.
        checks: by key.
        optional: keys whose value may be null.

    Raises:
        ValueError: a value is of another type.
    """
    for key, (wanted, fits) in checks.items():
        if key in told and not (told[key] is None and key in optional) and not fits(told[key]):
            found = shown(json.dumps(told[key], default=str))
            raise ValueError(f"{where}: {key} is {wanted}, got {found[:60]}{'...' if len(found) > 60 else ''}")


def require_results(where: str, results: Mapping[str, Any]) -> None:
    """Check what a test found.

    Raises:
        ValueError: a value is of another type, or missing.
    """
    require(where, results, RESULTS)
    if results.get("metric") and (missing := [key for key in TESTED if key not in results]):
        raise ValueError(f"{where}: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing")
    if results.get("metric") and not 0 < len(results["steps"]) == len(results["steps_ci95"]):
        raise ValueError(f"{where}: steps and steps_ci95 are lists of the same length, and not empty")


def parsed(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        ValueError: it does not.
    """
    try:
        told = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(told, dict):
        raise ValueError(f"{path} is damaged: it holds no object")
    return told


def score(value: float | None, digits: str) -> str:
    """A score in words; JSON has null for one that is not finite."""
    return "not finite" if value is None else f"{value:{digits}}"


def settings(path: Path) -> dict[str, Any]:
    """What ``config.json`` of a saved folder says, checked.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is damaged, of another format, or a value is of another type.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} has no {path.name}: it is not a folder that save_pretrained wrote")
    try:
        told = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    found = told.get("format") if isinstance(told, Mapping) else None
    if type(found) is not int or found != FORMAT:
        raise ValueError(
            f"{path} is of format {shown(found)}, this version reads {FORMAT}: another innerloop wrote it, or none"
        )
    if unknown := sorted(told.keys() - FOLDER.keys()):
        raise ValueError(f"{path}: unknown key {shown(unknown[0])}; it has {', '.join(FOLDER)}")
    require(str(path), told, FOLDER, optional=("recipe", "temperature", "results", "sha256"))
    results = told.get("results") or {}
    require_results(f"{path}: results", results)
    digests = told.get("sha256")
    if digests is not None and digests.get(SETTINGS) != _digest_of(told):
        raise ValueError(f"{path} is damaged or was changed: its checksum (sha256) does not match")
    return {
        "recipe": told.get("recipe") or {},
        "temperature": told.get("temperature"),
        "results": results,
        "sha256": digests or {},
    }


def digests(told: Mapping[str, Any], files: Mapping[str, bytes]) -> dict[str, str]:
    """The checksums of a folder's files, by name; that of ``config.json`` is of all that it says besides."""
    found = {name: sha256(content) for name, content in files.items()}
    return {**found, SETTINGS: _digest_of({**told, "sha256": found})}


def _digest_of(told: Mapping[str, Any]) -> str:
    """The checksum of what ``config.json`` says, however it is laid out."""
    others = {name: digest for name, digest in told["sha256"].items() if name != SETTINGS}
    return sha256(json.dumps({**told, "sha256": others}, sort_keys=True).encode())


def sha256(content: bytes) -> str:
    """In hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def require_digest(path: Path, content: bytes, digests: Mapping[str, str]) -> None:
    """Compare the weights with their checksum. Folders of earlier versions have none.

    Raises:
        ValueError: they differ.
    """
    if path.name in digests and sha256(content) != digests[path.name]:
        raise ValueError(
            f"the weights in {path} do not fit its {SETTINGS}: the checksum (sha256) does not match, so the file is "
            "damaged or was changed; get or save it again"
        )


def compare_card(path: Path, digests: Mapping[str, str]) -> None:
    """Warn of a model card that was changed: people edit it, and nothing is read from it."""
    try:
        changed = path.name in digests and sha256(read_bytes(path)) != digests[path.name]
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        warnings.warn(str(error), stacklevel=4)
        return
    if changed:
        warnings.warn(f"{path} was changed since it was saved: its checksum (sha256) does not match", stacklevel=4)


def require_dtypes(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that would be cast when they are loaded.

    Raises:
        ValueError: one is of another number format than the module's.
    """
    for name, own in module.state_dict().items():
        if name in tensors and isinstance(own, Tensor) and tensors[name].dtype != own.dtype:
            found, wanted = (str(dtype).removeprefix("torch.") for dtype in (tensors[name].dtype, own.dtype))
            raise ValueError(f"{name} is saved as {found}, and the model has {wanted}: they have to be the same")


class Packed(NamedTuple):
    """What a safetensors file says at its beginning.

    Attributes:
        size: of the whole file, in bytes.
        numbers: how many all tensors have together.
        about: its metadata.
    """

    size: int
    numbers: int
    about: dict[str, Any]


def packed_header(path: Path) -> Packed:
    """The beginning of a safetensors file, which says how large the whole is; that is read only if it is as large.

    Raises:
        ValueError: it is no such file, or it is not as large as it says.
        OSError: it cannot be read.
    """
    with reading(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= min(size - 8, HEADER):
            raise ValueError("it is no safetensors file, or it is damaged")
        header = json.loads(file.read(length))
    if not isinstance(header, dict) or not all(isinstance(value, dict) for value in header.values()):
        raise ValueError("its header is damaged: it holds no objects")
    about = header.pop("__metadata__", {})
    for name, told in header.items():
        require(f"its header: {shown(name)}", told, TENSOR)
        if missing := sorted(TENSOR.keys() - told.keys()):
            raise ValueError(f"its header: {shown(name)} has no {missing[0]}")
    end = 8 + length + max((told["data_offsets"][1] for told in header.values()), default=0)
    if size != end:
        raise ValueError(f"it has {size:,} bytes, and by its header {end:,}")
    return Packed(size, sum(math.prod(told["shape"]) for told in header.values()), about)


def packed_digest(content: bytes) -> tuple[str, str | None]:
    """The checksum of a safetensors file, and the one that its metadata have.

    Raises:
        ValueError: it is no such file, or it has metadata that are not ours.
    """
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    about = header.pop("__metadata__", {})
    claimed = about.pop("sha256", None)
    if unknown := sorted(about.keys() - {"format", "innerloop"}):
        raise ValueError(f"its metadata have an unknown key {shown(unknown[0])}")
    return sha256(json.dumps([header, about], sort_keys=True).encode() + content[8 + size :]), claimed
