"""A classifier that was adapted, in one file: to use again, here or elsewhere."""

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
"""Of what the file says of itself."""
PICTURES = {"size": COUNT, "channels": COUNT, "drawing": OBJECT}
TOLD = {"model": OBJECT, "classes": CLASSES, "temperature": TEMPERATURE, "pictures": OBJECT}


@dataclass
class Classifier:
    """An adapted model, and what turns pictures into probabilities of named classes.

    Attributes:
        module: pictures ``[N, C, size, size]`` in [0, 1] -> logits ``[N, classes]``: a plain module, or where the model
            judges by the support set what `MetaLearner.adapt` returns, which cannot be saved.
        classes: their names.
        temperature: what logits are divided by.
        form: of the pictures.
        recipe: the ``[model]`` section of the recipe that it was trained by.
        device: where the module is.
    """

    module: Callable[[Tensor], Tensor]
    classes: tuple[str, ...]
    temperature: float
    form: Form
    recipe: dict[str, Any]
    device: torch.device | str = "cpu"

    @torch.no_grad()
    def probabilities(self, x: Tensor) -> Tensor:
        """``[N, classes]``, float64 on the CPU, of pictures as the model reads them."""
        return torch.softmax(require_finite(self.module(x.to(self.device))).double().cpu() / self.temperature, 1)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file: the module's parameters and buffers, and the rest as its metadata.

        Raises:
            ValueError: the model needs its support set beside every picture.
            ImportError: safetensors is not installed.
        """
        if not isinstance(self.module, nn.Module):
            raise ValueError(
                "this model judges pictures by those that it was adapted to, and cannot be saved without them"
            )
        told = {
            "format": FORMAT,
            "model": self.recipe,
            "classes": self.classes,
            "temperature": self.temperature,
            "pictures": {**self.form._asdict(), "drawing": self.form.drawing and self.form.drawing._asdict()},
        }
        about = {"innerloop": json.dumps(told)}
        about["sha256"], _ = packed_digest(packed(self.module, **about))
        content = packed(self.module, **about)
        with writing(Path(path)) as file:
            file.write(content)

    @classmethod
    def load(cls, path: str | Path, trust: bool = False) -> Classifier:
        """From what `save` wrote.

        Args:
            path: of the file.
            trust: whether the file may name a model of your own (``my_package.nets:ResNet``), which is then imported,
                so that its code is run.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged, or another library's.
            ImportError: safetensors is not installed.
        """
        library = safetensors()
        try:
            header = packed_header(Path(path))
            content = read_bytes(Path(path), header.size)
            told = json.loads(header.about["innerloop"])
            digest, claimed = packed_digest(content)
            if claimed is not None and claimed != digest:
                raise ValueError("its checksum (sha256) does not match: it is damaged or was changed")
            tensors = library.load(content)
            if told["format"] != FORMAT:
                raise ValueError(f"its format is {told['format']}, and this version reads {FORMAT}")
            require("it says of itself", told, TOLD)
            with trusting(trust), from_elsewhere():
                module = _built(told["model"], len(told["classes"]), tensors)
            form = _form(told["pictures"], told["model"])
            return cls(module, tuple(told["classes"]), told["temperature"], form, told["model"])
        except OSError:
            raise
        except Exception as error:  # a file that is not ours can fail in any way
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"{path} is not a classifier that `innerloop adapt --save` wrote: {reason}") from error


def require_finite(logits: Tensor) -> Tensor:
    """The logits ``[N, C]``, if each is a number: the largest of those that are not would be the first class.

    Raises:
        ValueError: some are not.
    """
    if lost := int(logits.isnan().any(1).sum()):
        raise ValueError(
            f"{lost} of {len(logits)} outputs of the adapted model are no numbers (NaN): adaptation diverged, or the "
            "inputs hold NaN or are far from those of meta-training; fewer inner steps (steps=) often help"
        )
    return logits


def _form(told: dict[str, Any], recipe: dict[str, Any]) -> Form:
    """The form of the pictures, which is that of the model's inputs.

    Raises:
        ValueError: it is not.
    """
    require("its pictures", told, PICTURES, ("drawing",))
    size, channels, drawing = (told[key] for key in Form._fields)
    if (size, channels) != (recipe.get("image_size", size), recipe.get("channels", channels)):
        raise ValueError(f"its pictures are of {channels} x {size} x {size}, and its model reads others")
    if drawing:
        if drawing.keys() != set(Drawing._fields):
            raise ValueError(f"its pictures: drawing has {', '.join(Drawing._fields)}, got {brief(drawing)}")
        require("its pictures: drawing", drawing, dict.fromkeys(Drawing._fields, SHARE))
    return Form(size, channels, Drawing(**drawing) if drawing else None)


def _built(recipe: dict[str, Any], classes: int, tensors: dict[str, Tensor]) -> nn.Module:
    """The model of a recipe with so many classes and these tensors."""
    with torch.random.fork_rng([]):
        module = config.build_model({**recipe, "ways": classes}, config.numbers(tensors))
    if any(name.endswith("running_mean") for name in tensors):
        keep_statistics(module)
    require_dtypes(module, tensors)
    module.load_state_dict(tensors)
    return module.eval()
