"""A meta-trained learner without its run: all that adapting it needs, in a folder or on the Hugging Face Hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..common import resources
from ..common.disk import expanded, read_bytes, writing
from ..common.streams import shown
from ..learner import MetaLearner
from ..metrics import Scale
from ..recipe import config
from ..recipe.imports import from_elsewhere, trusting
from ..recipe.refusals import UnfitError
from ..train.checkpoint import Checkpoints, holds_run
from ..train.record import dumps
from ..weights import fill
from . import contents
from .card import card, predicted
from .contents import CARD, FORMAT, SETTINGS, WEIGHTS


@dataclass
class Pretrained:
    """A meta-trained learner with its recipe, calibration and test results.

    Attributes:
        learner: with its trained weights.
        recipe: the resolved recipe that it was trained by; empty if it was trained without one.
        temperature: the divisor of the logits that calibrates probabilities, fitted on tasks of the validation split
            (Guo et al. 2017); None if it is not known, or the learner is not a classifier.
        results: of its test, as `Evaluation.as_dict` returns them, with ``command`` and ``seed``; may be empty.
        name: for messages.
    """

    learner: MetaLearner
    recipe: config.Config = field(default_factory=dict)
    temperature: float | None = None
    results: dict[str, Any] = field(default_factory=dict)
    name: str = "a learner"

    @classmethod
    def load(
        cls, source: str | Path, device: str = "cpu", *, learner: MetaLearner | None = None, trust: bool = False
    ) -> Pretrained:
        """Load a run directory, a folder that `save_pretrained` wrote, or a model that comes with innerloop, by name.

        Args:
            source: the run directory, the folder or the name.
            device: where the learner is, if it is made by a recipe.
            learner: one to load the weights into, built as it was for the training. It is needed where the learner was
                made in Python, without a recipe.
            trust: whether the run or the folder may name parts of your own (``model.name = "my_package.nets:ResNet"``),
                which are then imported, so that their code is run.

        Raises:
            FileNotFoundError: the source is none of these.
            ValueError: its files are damaged or do not fit each other or the learner, or it needs a learner.
        """
        folder = shipped().get(str(source)) or expanded(source)
        if (folder / "config.toml").is_file() or holds_run(folder):
            return cls.from_run(folder, device, learner=learner, trust=trust)
        if (folder / SETTINGS).is_file():
            return cls.from_pretrained(folder, learner=learner, device=device, trust=trust)
        if folder.is_file():
            raise ValueError(
                f"{source} is a file: if `innerloop adapt --save` wrote it, it is adapted already; open it with "
                "innerloop.use.Classifier.load, or with `innerloop adapt` without --support"
            )
        raise FileNotFoundError(
            f"there is no trained model {source}: give a run directory, a folder that save_pretrained wrote, or one of "
            f"{', '.join(shipped())}, which come with innerloop"
        )

    @classmethod
    def from_run(
        cls, run: str | Path, device: str = "cpu", *, learner: MetaLearner | None = None, trust: bool = False
    ) -> Pretrained:
        """Load a run, with the weights of its best validation score; see `load`."""
        recipe: config.Config = {}
        if learner is None:
            learner, recipe = config.load_learner(run, device, trust=trust)
        else:
            fill(learner, Checkpoints(Path(run)).weights()["learner"], f"the run {shown(run)}")
        path = Path(run) / "results.json"
        saved = contents.parsed(path) if path.is_file() else {}
        contents.require(
            str(path), saved, {"test": contents.OBJECT, "temperature": contents.TEMPERATURE}, ("test", "temperature")
        )
        saved["test"] = saved.get("test") or {}
        results = {**saved["test"], **{key: saved[key] for key in ("command", "seed") if key in saved}}
        results.pop("scores", None)
        contents.require_results(f"{path}: test", results)
        return cls(learner, recipe, saved.get("temperature"), results, shown(Path(run).name))

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        learner: MetaLearner | None = None,
        revision: str | None = None,
        device: str = "cpu",
        trust: bool = False,
    ) -> Pretrained:
        """Load a folder that `save_pretrained` wrote, or a repository that `push_to_hub` wrote on the Hub.

        Args:
            source: the folder, or the name of a repository, ``user/name``.
            learner: a learner to load the weights into, if no recipe made the saved one.
            revision: a branch, a tag or a commit of the repository.
            device: the device of the learner.
            trust: see `load`.

        Raises:
            FileNotFoundError: the folder lacks a file.
            ValueError: its files are damaged, have another format, or do not fit the learner.
            ImportError: safetensors, or for the Hub huggingface_hub, is not installed.
        """
        folder = expanded(source)
        if not folder.is_dir():
            folder = _download(str(source), revision)
        settings = contents.settings(folder / SETTINGS)
        if learner is None and not settings["recipe"]:
            raise ValueError(
                f"{source} has no recipe: give learner=, built like the saved one, to load the weights into"
            )
        header = _header(folder / WEIGHTS)
        try:
            with trusting(trust), from_elsewhere():
                recipe = (
                    config.resolve(settings["recipe"]) if settings["recipe"] and learner is None else settings["recipe"]
                )
                learner = learner or config.build_learner(recipe, device, header.numbers, weights=False)
        except UnfitError as error:
            raise ValueError(f"the weights in {folder / WEIGHTS} do not fit the learner: {error}") from error
        except Exception as error:  # what another program wrote can fail in any way
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"{folder / SETTINGS}: its recipe cannot be used: {reason}") from error
        _load_weights(learner, folder / WEIGHTS, header, settings["sha256"])
        contents.compare_card(folder / CARD, settings["sha256"])
        return cls(learner, recipe, settings["temperature"], settings["results"], shown(folder.name))

    def tested(self) -> str:
        """Return the result of its test in words."""
        if not self.results.get("metric"):
            return "not tested"
        scale, tasks = Scale.read(self.results), self.recipe.get("tasks", {})
        numbers = [config.spoken(tasks[key]) for key in ("ways", "shots") if key in tasks]
        kind = "{}-way {}-shot ".format(*numbers) if len(numbers) == 2 else ""
        steps, mean = len(self.results["steps"]) - 1, contents.score(self.results["mean"], ".4g")
        return (
            f"{scale.name} {mean}{scale.suffix} on {self.results['num_tasks']} unseen {kind}"
            f"tasks after {steps} step{'' if steps == 1 else 's'}"
        )

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the weights (safetensors), the settings (JSON) and a model card (README.md); return the folder.

        Raises:
            FileExistsError: the folder has other files.
            ImportError: safetensors is not installed.
        """
        weights = packed(self.learner)
        folder = expanded(folder)
        known = {WEIGHTS, SETTINGS, CARD}
        if folder.exists() and (foreign := [path.name for path in folder.iterdir() if path.name not in known]):
            raise FileExistsError(f"{folder} has the file {foreign[0]}: give a new or empty folder")
        folder.mkdir(parents=True, exist_ok=True)
        settings = {
            "format": FORMAT,
            "library_name": "innerloop",
            "recipe": self.recipe,
            "temperature": self.temperature,
            "results": self.results,
        }
        predicts = predicted(self.learner.loss) if self.recipe else ""
        text = card(self.name, self.recipe, self.results, self.temperature, self.learner.citations, predicts)
        files, plain = {WEIGHTS: weights, CARD: text.encode("utf-8", "backslashreplace")}, json.loads(dumps(settings))
        plain["sha256"] = contents.digests(plain, files)
        for name, content in {**files, SETTINGS: (dumps(plain, indent=2) + "\n").encode()}.items():
            with writing(folder / name) as file:
                file.write(content)
        return folder

    def push_to_hub(self, repository: str, *, private: bool = False, token: str | None = None) -> str:
        """Upload what `save_pretrained` writes to the Hugging Face Hub; return its address there.

        Args:
            repository: ``user/name``; it is created if it does not exist.
            private: whether a repository that is created is private.
            token: of the Hub; by default that of ``hf auth login``.

        Raises:
            ImportError: huggingface_hub or safetensors is not installed.
        """
        from tempfile import TemporaryDirectory

        api = _hub().HfApi(token=token)
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            name = api.create_repo(repository, private=private, exist_ok=True).repo_id
            return str(api.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload innerloop learner"))


def shipped() -> dict[str, Path]:
    """Return the folders of the learners that come with the package, by name."""
    return {path.name: path for path in sorted(resources.folder("pretrained").iterdir()) if path.is_dir()}


def description(folder: Path) -> str:
    """Return the description in the recipe of a folder that `Pretrained.save_pretrained` wrote."""
    return str(contents.settings(folder / SETTINGS)["recipe"].get("description", ""))


def _header(path: Path) -> contents.Packed:
    """Read the header of the weights."""
    safetensors()
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} has no {path.name}: it is not a folder that save_pretrained wrote")
    try:
        return contents.packed_header(path)
    except ValueError as error:
        raise ValueError(f"the weights in {path} do not fit the learner: {error}") from error


def _load_weights(learner: MetaLearner, path: Path, header: contents.Packed, digests: Mapping[str, str]) -> None:
    """Load the weights into the learner."""
    library, own = safetensors(), config.numbers(learner.state_dict())
    if header.numbers > 2 * own + 1_000:  # not read, because they may not fit into memory
        raise ValueError(
            f"the weights in {path} do not fit the learner: they have {header.numbers:,} values, and it has {own:,}"
        )
    content = read_bytes(path, header.size)
    contents.require_digest(path, content, digests)
    try:
        weights: dict[str, torch.Tensor] = library.load(content)
        contents.require_dtypes(learner, weights)
        learner.load_state_dict(weights)
    except Exception as error:  # a file of another program can fail in any way
        raise ValueError(
            f"the weights in {path} do not fit the learner: {str(error).splitlines()[-1].strip()}"
        ) from error


def packed(module: nn.Module, **about: str) -> bytes:
    """Return the parameters and buffers of a module as a safetensors file, with further metadata.

    Raises:
        ImportError: safetensors is not installed.
    """
    # Clone, because safetensors rejects tensors that share memory.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()}
    content: bytes = safetensors().save(tensors, {"format": "pt", **about})
    return content


def safetensors() -> Any:
    """Import ``safetensors.torch``.

    Raises:
        ImportError: it is not installed; the message says how to install it.
    """
    try:
        import safetensors.torch as module
    except ImportError as error:
        raise ImportError("saved models need safetensors: pip install 'innerloop[use]'") from error
    return module


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError("the Hugging Face Hub needs huggingface_hub: pip install 'innerloop[hub]'") from error
    return huggingface_hub


def _download(repository: str, revision: str | None) -> Path:
    """Download a repository of the Hub; return its folder."""
    if len(Path(repository).parts) != 2 or repository.startswith((".", "~", "/")):
        raise FileNotFoundError(f"{repository} is neither a folder nor the name of a Hub repository (user/name)")
    wanted = [WEIGHTS, SETTINGS, CARD]
    return Path(_hub().snapshot_download(repository, revision=revision, allow_patterns=wanted))
