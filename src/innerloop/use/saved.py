"""Save an adapted classifier in one file, and load it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..adapted import keep_statistics
from ..common.disk import read_bytes, writing
from ..common.streams import brief
from ..data.tasks import Drawing
from ..recipe import config
from ..recipe.imports import from_elsewhere, trusting
from .contents import CLASSES, COUNT, OBJECT, SHARE, TEMPERATURE, packed_digest, packed_header, require, require_dtypes
from .pictures import Form
from .pretrained import packed, safetensors

FORMAT = 1
"""The format of the file's metadata."""
PICTURES = {"size": COUNT, "channels": COUNT, "drawing": OBJECT}
METADATA = {"model": OBJECT, "classes": CLASSES, "temperature": TEMPERATURE, "pictures": OBJECT}


@dataclass
class Classifier:
    """An adapted model, with all that it needs to turn pictures into probabilities of named classes.

    Attributes:
        module: pictures ``[N, C, size, size]`` in [0, 1] -> logits ``[N, classes]``: a plain module, or, if the model
            needs its support set to predict, the result of `MetaLearner.adapt`, which cannot be saved.
        classes: the names of the classes.
        temperature: the divisor of the logits.
        form: the form of the pictures.
        recipe: the ``[model]`` section of the recipe that it was trained by.
        device: the device of the module.
    """

    module: Callable[[Tensor], Tensor]
    classes: tuple[str, ...]
    temperature: float
    form: Form
    recipe: dict[str, Any]
    device: torch.device | str = "cpu"

    @torch.no_grad()
    def probabilities(self, x: Tensor) -> Tensor:
        """Return probabilities ``[N, classes]``, float64 on the CPU, of pictures in the form that the model takes."""
        return torch.softmax(require_finite(self.module(x.to(self.device))).double().cpu() / self.temperature, 1)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file: the module's parameters and buffers, and the rest as its metadata.

        Raises:
            ValueError: the model needs its support set to predict.
            ImportError: safetensors is not installed.
        """
        if not isinstance(self.module, nn.Module):
            raise ValueError(
                "this model compares pictures with those that it was adapted to, and cannot be saved without them"
            )
        metadata = {
            "format": FORMAT,
            "model": self.recipe,
            "classes": self.classes,
            "temperature": self.temperature,
            "pictures": {**self.form._asdict(), "drawing": self.form.drawing and self.form.drawing._asdict()},
        }
        about = {"innerloop": json.dumps(metadata)}
        about["sha256"], _ = packed_digest(packed(self.module, **about))
        content = packed(self.module, **about)
        with writing(Path(path)) as file:
            file.write(content)

    @classmethod
    def load(cls, path: str | Path, trust: bool = False) -> Classifier:
        """Load a file that `save` wrote.

        Args:
            path: of the file.
            trust: whether the file may name a model of your own (``my_package.nets:ResNet``), which is then imported,
                so that its code is run.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged, or another program wrote it.
            ImportError: safetensors is not installed.
        """
        library = safetensors()
        try:
            header = packed_header(Path(path))
            content = read_bytes(Path(path), header.size)
            metadata = json.loads(header.about["innerloop"])
            digest, claimed = packed_digest(content)
            if claimed is not None and claimed != digest:
                raise ValueError("its checksum (sha256) does not match: it is damaged or was changed")
            tensors = library.load(content)
            if metadata["format"] != FORMAT:
                raise ValueError(f"its format is {metadata['format']}, but this version reads {FORMAT}")
            require("its metadata", metadata, METADATA)
            recipe, classes = metadata["model"], tuple(metadata["classes"])
            with trusting(trust), from_elsewhere():
                module = _built(recipe, len(classes), tensors)
            form = _form(metadata["pictures"], recipe)
            return cls(module, classes, metadata["temperature"], form, recipe)
        except OSError:
            raise
        except Exception as error:  # a file of another program can fail in any way
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"{path} is not a classifier that `innerloop adapt --save` wrote: {reason}") from error


def require_finite(logits: Tensor) -> Tensor:
    """Return the logits ``[N, C]`` if none is NaN; the argmax of NaN would be the first class.

    Raises:
        ValueError: some are NaN.
    """
    if lost := int(logits.isnan().any(1).sum()):
        raise ValueError(
            f"{lost} of {len(logits)} outputs of the adapted model are NaN: adaptation diverged, or the inputs contain "
            "NaN or are far from those of meta-training; fewer inner steps (steps=) often help"
        )
    return logits


def _form(fields: dict[str, Any], recipe: dict[str, Any]) -> Form:
    """Return the form of the pictures, which must be that of the model's inputs.

    Raises:
        ValueError: it is not.
    """
    require("its pictures", fields, PICTURES, ("drawing",))
    size, channels, drawing = (fields[key] for key in Form._fields)
    if (size, channels) != (recipe.get("image_size", size), recipe.get("channels", channels)):
        raise ValueError(f"its pictures have the shape {channels} x {size} x {size}, but its model takes others")
    if drawing:
        if drawing.keys() != set(Drawing._fields):
            raise ValueError(f"its pictures: drawing must have {', '.join(Drawing._fields)}, got {brief(drawing)}")
        require("its pictures: drawing", drawing, dict.fromkeys(Drawing._fields, SHARE))
    return Form(size, channels, Drawing(**drawing) if drawing else None)


def _built(recipe: dict[str, Any], classes: int, tensors: dict[str, Tensor]) -> nn.Module:
    """Build the model of a recipe with this number of classes, and load the tensors."""
    with torch.random.fork_rng([]):
        module = config.build_model({**recipe, "ways": classes}, config.numbers(tensors))
    if any(name.endswith("running_mean") for name in tensors):
        keep_statistics(module)
    require_dtypes(module, tensors)
    module.load_state_dict(tensors)
    return module.eval()
