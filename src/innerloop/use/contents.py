"""The contents of saved models, and checks of them before use: types, checksums and number formats."""

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
"""The format of the folder, raised when older versions cannot read it."""
HEADER = 100_000_000
"""The largest header of a safetensors file in bytes, which is the limit of safetensors itself."""
WEIGHTS, SETTINGS, CARD = "model.safetensors", "config.json", "README.md"

Check = tuple[str, Callable[[Any], bool]]
"""The expected kind of value in words, and a function that says whether a value is of it."""


def _is_number(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def _is_whole(value: Any) -> bool:
    return type(value) is int and abs(value) < 2**63  # JSON has no limit, but floats and torch do


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
"""The keys that results with a metric must have."""
FOLDER: dict[str, Check] = {
    "format": COUNT, "library_name": TEXT, "recipe": OBJECT, "temperature": TEMPERATURE, "results": OBJECT,
    "sha256": DIGESTS,
}  # fmt: skip


_COUNTS: Check = ("a list of whole numbers", lambda value: isinstance(value, list) and all(map(COUNT[1], value)))
TENSOR: dict[str, Check] = {
    "dtype": TEXT, "shape": _COUNTS, "data_offsets": ("two whole numbers", lambda v: _COUNTS[1](v) and len(v) == 2),
}  # fmt: skip
"""The fields of every tensor in the header of a safetensors file."""


def require(where: str, values: Mapping[str, Any], checks: Mapping[str, Check], optional: tuple[str, ...] = ()) -> None:
    """Check the values that are present.

    Args:
        where: the place of the values, for the message.
        values: the values to check.
        checks: by key.
        optional: keys whose value may be null.

    Raises:
        ValueError: a value is of another type.
    """
    for key, (expected, fits) in checks.items():
        if key in values and not (values[key] is None and key in optional) and not fits(values[key]):
            text = shown(json.dumps(values[key], default=str))
            raise ValueError(f"{where}: {key} must be {expected}, got {text[:60]}{'...' if len(text) > 60 else ''}")


def require_results(where: str, results: Mapping[str, Any]) -> None:
    """Check the results of a test.

    Raises:
        ValueError: a value is of another type, or missing.
    """
    require(where, results, RESULTS)
    if results.get("metric") and (missing := [key for key in TESTED if key not in results]):
        raise ValueError(f"{where}: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing")
    if results.get("metric") and not 0 < len(results["steps"]) == len(results["steps_ci95"]):
        raise ValueError(f"{where}: steps and steps_ci95 must be lists of the same length, and not empty")


def parsed(path: Path) -> dict[str, Any]:
    """Read a JSON file that contains an object.

    Raises:
        ValueError: it does not.
    """
    try:
        values = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} is damaged: it is not a JSON object")
    return values


def score(value: float | None, digits: str) -> str:
    """Format a score; JSON has null for one that is not finite."""
    return "not finite" if value is None else f"{value:{digits}}"


def settings(path: Path) -> dict[str, Any]:
    """Read and check ``config.json`` of a saved folder.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, has another format, or a value has another type.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} has no {path.name}: it is not a folder that save_pretrained wrote")
    try:
        values = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    version = values.get("format") if isinstance(values, Mapping) else None
    if type(version) is not int or version != FORMAT:
        raise ValueError(
            f"{path} has format {shown(version)}, but this version reads {FORMAT}: it was written by another version "
            "of innerloop, or by something else"
        )
    if unknown := sorted(values.keys() - FOLDER.keys()):
        raise ValueError(f"{path}: unknown key {shown(unknown[0])}; known keys: {', '.join(FOLDER)}")
    require(str(path), values, FOLDER, optional=("recipe", "temperature", "results", "sha256"))
    results = values.get("results") or {}
    require_results(f"{path}: results", results)
    digests = values.get("sha256")
    if digests is not None and digests.get(SETTINGS) != _digest_of(values):
        raise ValueError(f"{path} is damaged or was changed: its checksum (sha256) does not match")
    return {
        "recipe": values.get("recipe") or {},
        "temperature": values.get("temperature"),
        "results": results,
        "sha256": digests or {},
    }


def digests(values: Mapping[str, Any], files: Mapping[str, bytes]) -> dict[str, str]:
    """Return the checksums of a folder's files, by name; that of ``config.json`` covers all of its other values."""
    content_digests = {name: sha256(content) for name, content in files.items()}
    return {**content_digests, SETTINGS: _digest_of({**values, "sha256": content_digests})}


def _digest_of(values: Mapping[str, Any]) -> str:
    """Return the checksum of the values in ``config.json``, whatever their layout."""
    others = {name: digest for name, digest in values["sha256"].items() if name != SETTINGS}
    return sha256(json.dumps({**values, "sha256": others}, sort_keys=True).encode())


def sha256(content: bytes) -> str:
    """Return the checksum in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def require_digest(path: Path, content: bytes, digests: Mapping[str, str]) -> None:
    """Compare the weights with their checksum. Folders of earlier versions have none.

    Raises:
        ValueError: they differ.
    """
    if path.name in digests and sha256(content) != digests[path.name]:
        raise ValueError(
            f"the weights in {path} do not fit its {SETTINGS}: the checksum (sha256) does not match, so the file is "
            "damaged or was changed; download or save it again"
        )


def compare_card(path: Path, digests: Mapping[str, str]) -> None:
    """Warn about a model card that was changed. It is no error, because people edit cards and no code reads them."""
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
    """Reject tensors that would be cast when they are loaded.

    Raises:
        ValueError: a tensor has another dtype than the module's.
    """
    for name, own in module.state_dict().items():
        if name in tensors and isinstance(own, Tensor) and tensors[name].dtype != own.dtype:
            saved, expected = (str(dtype).removeprefix("torch.") for dtype in (tensors[name].dtype, own.dtype))
            raise ValueError(f"{name} is saved as {saved}, but the model has {expected}: they must be the same")


class Packed(NamedTuple):
    """The header of a safetensors file.

    Attributes:
        size: of the whole file, in bytes.
        numbers: the total number of elements in all tensors.
        about: its metadata.
    """

    size: int
    numbers: int
    about: dict[str, Any]


def packed_header(path: Path) -> Packed:
    """Read the header of a safetensors file, and check that the file has the size that the header says.

    Raises:
        ValueError: it is not a safetensors file, or has another size.
        OSError: it cannot be read.
    """
    with reading(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= min(size - 8, HEADER):
            raise ValueError("it is not a safetensors file, or it is damaged")
        header = json.loads(file.read(length))
    if not isinstance(header, dict) or not all(isinstance(value, dict) for value in header.values()):
        raise ValueError("its header is damaged: an entry is not an object")
    about = header.pop("__metadata__", {})
    for name, fields in header.items():
        require(f"its header: {shown(name)}", fields, TENSOR)
        if missing := sorted(TENSOR.keys() - fields.keys()):
            raise ValueError(f"its header: {shown(name)} has no {missing[0]}")
    end = 8 + length + max((fields["data_offsets"][1] for fields in header.values()), default=0)
    if size != end:
        raise ValueError(f"it has {size:,} bytes, but its header says {end:,}")
    return Packed(size, sum(math.prod(fields["shape"]) for fields in header.values()), about)


def packed_digest(content: bytes) -> tuple[str, str | None]:
    """Return the checksum of a safetensors file, and the checksum in its metadata.

    Raises:
        ValueError: it is not a safetensors file, or innerloop did not write its metadata.
    """
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    about = header.pop("__metadata__", {})
    claimed = about.pop("sha256", None)
    if unknown := sorted(about.keys() - {"format", "innerloop"}):
        raise ValueError(f"its metadata has an unknown key {shown(unknown[0])}")
    return sha256(json.dumps([header, about], sort_keys=True).encode() + content[8 + size :]), claimed
