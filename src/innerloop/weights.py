"""Weights of your own to begin with: read from a file, and loaded only if every one of them fits."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

WITHIN = ("state_dict", "model_state_dict", "model", "learner")
"""Entries of a file under which others keep the state dictionary."""
SHOWN = 5
"""Names in a message, at most."""


def load_weights(
    module: nn.Module,
    weights: str | Path | Mapping[str, Tensor],
    *,
    prefix: str = "",
    fresh: Collection[str] = (),
) -> None:
    """Load weights into a model, such as those of another training, and refuse them if they do not fit.

    If anything is missing, superfluous or of another shape, nothing is loaded.

    Args:
        module: the model, or a learner.
        weights: a state dictionary, or a file with one: ``.safetensors``, or what ``torch.save`` wrote. No code in the
            file is run.
        prefix: what the names in the file begin with, such as ``"module."``; it is taken off, and names without it are
            left out.
        fresh: patterns of names (``"head.*"``) that keep their values, such as those of a new last layer.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: safetensors is not installed.
        ValueError: the file holds no state dictionary, or the weights do not fit; the message names what is missing,
            superfluous and of another shape.

    >>> model, other = nn.Linear(2, 3), nn.Linear(2, 4)
    >>> load_weights(model, other.state_dict(), fresh=["bias"])
    Traceback (most recent call last):
        ...
    ValueError: the weights given do not fit Linear: of another shape: weight ((4, 2), and (3, 2) in the model)
    """
    given = weights if isinstance(weights, Mapping) else read_weights(weights)
    source = "the weights given" if isinstance(weights, Mapping) else f"the weights in {weights}"
    if prefix:
        given = {name.removeprefix(prefix): tensor for name, tensor in given.items() if name.startswith(prefix)}
    own = module.state_dict()
    for pattern in fresh:
        if not any(fnmatchcase(name, pattern) for name in own):
            raise ValueError(
                f"fresh={pattern!r} matches none of the names of {type(module).__name__}: {_names(list(own))}"
            )
    kept = {name: tensor for name, tensor in own.items() if any(fnmatchcase(name, pattern) for pattern in fresh)}
    given = {name: tensor for name, tensor in given.items() if not any(fnmatchcase(name, p) for p in fresh)}
    fill(module, {**given, **kept}, source)


def fill(module: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Load a state dictionary if it has the module's names, shapes and kinds of numbers.

    Args:
        module: the module.
        weights: by name.
        source: what they are, for the message.

    Raises:
        ValueError: they do not fit.
    """
    own = module.state_dict()
    both = [name for name in own if name in weights]
    shapes = [name for name in both if weights[name].shape != own[name].shape]
    kinds = [name for name in both if _kind(weights[name]) != _kind(own[name]) and name not in shapes]
    problems = {
        "missing": [name for name in own if name not in weights],
        "superfluous": [name for name in weights if name not in own],
        "of another shape": [
            f"{name} ({tuple(weights[name].shape)}, and {tuple(own[name].shape)} in the model)" for name in shapes
        ],
        "of another kind": [f"{name} ({weights[name].dtype}, and {own[name].dtype} in the model)" for name in kinds],
    }
    if any(problems.values()):
        what = "; ".join(f"{kind}: {_names(names)}" for kind, names in problems.items() if names)
        raise ValueError(f"{source} do not fit {type(module).__name__}: {what}")
    module.load_state_dict(dict(weights))


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a state dictionary from a file. No code in it is run.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: safetensors is not installed.
        ValueError: it holds something else.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file with weights at {path}")
    try:
        content = _content(path)
    except ImportError:
        raise
    except Exception as error:  # a file that is not ours can fail in any way
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} cannot be read as weights: {reason}") from error
    while isinstance(content, Mapping) and not _is_state(content):
        within = [name for name in WITHIN if isinstance(content.get(name), Mapping)]
        if not within:
            break
        content = content[within[0]]
    if not _is_state(content):
        raise ValueError(
            f"{path} holds no state dictionary (names and tensors), also not under {', '.join(WITHIN)}: save "
            "model.state_dict()"
        )
    return dict(content)


def _content(path: Path) -> Any:
    if path.suffix != ".safetensors":
        return torch.load(path, map_location="cpu", weights_only=True)
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(f"{path} needs safetensors: pip install 'innerloop[use]'") from error
    return load_file(path)


def _is_state(content: Any) -> bool:
    return isinstance(content, Mapping) and bool(content) and all(isinstance(t, Tensor) for t in content.values())


def _kind(tensor: Tensor) -> tuple[bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex()


def _names(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
