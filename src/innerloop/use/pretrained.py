"""A meta-trained learner by itself: what adapting to one's own examples needs of a run, kept in a folder or hub."""

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
    """A learner that was meta-trained, and what there is to know about it.

    Attributes:
        learner: with its trained weights.
        recipe: the resolved recipe it was trained by; empty where it was trained without one.
        temperature: what logits are divided by to become calibrated probabilities, found on tasks of the validation
            split (Guo et al. 2017); None where it is not known, or the learner tells no classes apart.
        results: what its test found, as `Evaluation.as_dict` has it, with ``command`` and ``seed``; may be empty.
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
        """From a run directory, a folder that `save_pretrained` wrote, or by the name of one that comes with us.

        Args:
            source: the run directory, the folder or the name.
            device: where the learner is, if it is made by a recipe.
            learner: one to load the weights into, built as it was for the training. It is needed where the learner was
                made in Python, without a recipe.
            trust: whether the run or the folder may name parts of your own (``model.name = "my_package.nets:ResNet"``),
                which are then imported, so that their code is run.

        Raises:
            FileNotFoundError: there is nothing of the kind.
            ValueError: files that are damaged or do not fit each other or the learner, or no recipe and no learner.
        """
        folder = shipped().get(str(source)) or expanded(source)
        if (folder / "config.toml").is_file() or holds_run(folder):
            return cls.from_run(folder, device, learner=learner, trust=trust)
        if (folder / SETTINGS).is_file():
            return cls.from_pretrained(folder, learner=learner, device=device, trust=trust)
        if folder.is_file():
            raise ValueError(
                f"{source} is a file: if `innerloop adapt --save` wrote it, it is adapted already, and opened by "
                "innerloop.use.Classifier.load, or by `innerloop adapt` without --support"
            )
        raise FileNotFoundError(
            f"no trained model at {source}: give a run directory, a folder that save_pretrained wrote, or one of "
            f"{', '.join(shipped())}, which come with innerloop"
        )

    @classmethod
    def from_run(
        cls, run: str | Path, device: str = "cpu", *, learner: MetaLearner | None = None, trust: bool = False
    ) -> Pretrained:
        """The best validated weights of a run; see `load` and `innerloop.recipe.config.load_learner`."""
        recipe: config.Config = {}
        if learner is None:
            learner, recipe = config.load_learner(run, device, trust=trust)
        else:
            fill(learner, Checkpoints(Path(run)).weights()["learner"], f"the run {shown(run)}")
        path = Path(run) / "results.json"
        found = contents.parsed(path) if path.is_file() else {}
        contents.require(
            str(path), found, {"test": contents.OBJECT, "temperature": contents.TEMPERATURE}, ("test", "temperature")
        )
        found["test"] = found.get("test") or {}
        results = {**found["test"], **{key: found[key] for key in ("command", "seed") if key in found}}
        results.pop("scores", None)
        contents.require_results(f"{path}: test", results)
        return cls(learner, recipe, found.get("temperature"), results, shown(Path(run).name))

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
        """From a folder that `save_pretrained` wrote, or what `push_to_hub` put on the Hugging Face Hub.

        Args:
            source: the folder, or the name of a repository, ``user/name``.
            learner: one to load the weights into, where it was not made by a recipe.
            revision: of the repository: a branch, a tag or a commit.
            device: where the learner is.
            trust: see `load`.

        Raises:
            FileNotFoundError: the folder lacks a file.
            ValueError: its files are damaged, of another format, or do not fit the learner.
            ImportError: safetensors, or for the Hub huggingface_hub, is not installed.
        """
        folder = expanded(source)
        if not folder.is_dir():
            folder = _download(str(source), revision)
        told = contents.settings(folder / SETTINGS)
        if learner is None and not told["recipe"]:
            raise ValueError(
                f"{source} was not made by a recipe: give learner=, built as it was, to load its weights into"
            )
        held = _header(folder / WEIGHTS)
        try:
            with trusting(trust), from_elsewhere():
                recipe = config.resolve(told["recipe"]) if told["recipe"] and learner is None else told["recipe"]
                learner = learner or config.build_learner(recipe, device, held.numbers, weights=False)
        except UnfitError as error:
            raise ValueError(f"the weights in {folder / WEIGHTS} do not fit the learner: {error}") from error
        except Exception as error:  # what another program wrote can fail in any way
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"{folder / SETTINGS}: its recipe cannot be used: {reason}") from error
        _fill(learner, folder / WEIGHTS, held, told["sha256"])
        contents.compare_card(folder / CARD, told["sha256"])
        return cls(learner, recipe, told["temperature"], told["results"], shown(folder.name))

    def tested(self) -> str:
        """What its test found, in words."""
        if not self.results.get("metric"):
            return "not tested"
        scale, tasks = Scale.read(self.results), self.recipe.get("tasks", {})
        kind = f"{tasks['ways']}-way {tasks['shots']}-shot " if {"ways", "shots"} <= tasks.keys() else ""
        steps, mean = len(self.results["steps"]) - 1, contents.score(self.results["mean"], ".4g")
        return (
            f"{scale.name} {mean}{scale.suffix} on {self.results['num_tasks']} unseen {kind}"
            f"tasks after {steps} step{'' if steps == 1 else 's'}"
        )

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the weights (safetensors), the settings (JSON) and a model card (README.md); returns the folder.

        Raises:
            FileExistsError: the folder holds something else.
            ImportError: safetensors is not installed.
        """
        weights = packed(self.learner)
        folder = expanded(folder)
        known = {WEIGHTS, SETTINGS, CARD}
        if folder.exists() and (foreign := [path.name for path in folder.iterdir() if path.name not in known]):
            raise FileExistsError(f"{folder} holds {foreign[0]}: give a folder that is new, or empty")
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
        """Put what `save_pretrained` writes on the Hugging Face Hub; returns its address there.

        Args:
            repository: ``user/name``; made if it is not there.
            private: whether only its owner sees a repository that is made.
            token: of the Hub; else that of ``hf auth login``.

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
    """The folders of the learners that come with the package, by name."""
    return {path.name: path for path in sorted(resources.folder("pretrained").iterdir()) if path.is_dir()}


def description(folder: Path) -> str:
    """What the recipe of a folder that `Pretrained.save_pretrained` wrote says of itself."""
    return str(contents.settings(folder / SETTINGS)["recipe"].get("description", ""))


def _header(path: Path) -> contents.Packed:
    """What the weights say of themselves."""
    safetensors()
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} has no {path.name}: it is not a folder that save_pretrained wrote")
    try:
        return contents.packed_header(path)
    except ValueError as error:
        raise ValueError(f"the weights in {path} do not fit the learner: {error}") from error


def _fill(learner: MetaLearner, path: Path, header: contents.Packed, digests: Mapping[str, str]) -> None:
    """Load the weights."""
    library, own = safetensors(), config.numbers(learner.state_dict())
    if header.numbers > 2 * own + 1_000:  # not read, for no memory may hold as much
        raise ValueError(
            f"the weights in {path} do not fit the learner: they are {header.numbers:,}, and it has {own:,}"
        )
    content = read_bytes(path, header.size)
    contents.require_digest(path, content, digests)
    try:
        weights: dict[str, torch.Tensor] = library.load(content)
        contents.require_dtypes(learner, weights)
        learner.load_state_dict(weights)
    except Exception as error:  # a file that is not ours can fail in any way
        raise ValueError(
            f"the weights in {path} do not fit the learner: {str(error).splitlines()[-1].strip()}"
        ) from error


def packed(module: nn.Module, **about: str) -> bytes:
    """The parameters and buffers of a module as a safetensors file, with what else it says of itself.

    Raises:
        ImportError: safetensors is not installed.
    """
    # Copies, for tensors that share memory are refused.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()}
    content: bytes = safetensors().save(tensors, {"format": "pt", **about})
    return content


def safetensors() -> Any:
    """The module ``safetensors.torch``.

    Raises:
        ImportError: it is not installed; the message says how to install it.
    """
    try:
        import safetensors.torch as module
    except ImportError as error:
        raise ImportError("saved models are read and written by safetensors: pip install 'innerloop[use]'") from error
    return module


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError("the Hugging Face Hub needs huggingface_hub: pip install 'innerloop[hub]'") from error
    return huggingface_hub


def _download(repository: str, revision: str | None) -> Path:
    """The folder of a repository of the Hub."""
    if len(Path(repository).parts) != 2 or repository.startswith((".", "~", "/")):
        raise FileNotFoundError(f"no folder at {repository}, which is no name of a repository (user/name) either")
    wanted = [WEIGHTS, SETTINGS, CARD]
    return Path(_hub().snapshot_download(repository, revision=revision, allow_patterns=wanted))
