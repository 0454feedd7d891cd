"""Check an installation with one extra, or with none: `python -I tests/extras.py EXTRA`, as `nox -s minimal` runs it.

What the extra serves must work. What needs a package that is not installed must raise an error that names its extra.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import urllib.request
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

import innerloop as il

Check = Callable[[Path], None]


class Use(NamedTuple):
    """A use of an extra.

    Attributes:
        extra: the extra that the error must name if a package is missing.
        packages: what it needs.
        check: what to run in an empty folder.
    """

    extra: str
    packages: tuple[str, ...]
    check: Check

    def possible(self) -> bool:
        """Whether all packages are installed."""
        return all(importlib.util.find_spec(name) for name in self.packages)


def core(folder: Path) -> None:
    """Compute a meta-gradient, train, and evaluate."""
    learner = il.maml(il.models.mlp(1, 8, 1), lr=0.01, steps=2, loss=F.mse_loss)
    grads, _ = learner.meta_gradient(il.Sinusoid().sample(4, torch.Generator().manual_seed(0)))
    assert len(grads) == 4
    assert all(float(grad.abs().sum()) > 0 for grad in grads.values())
    trained(folder)
    assert il.evaluate(learner, il.Sinusoid(), num_tasks=4).num_tasks == 4


def trained(folder: Path, **options: Any) -> Path:
    """A short run on sinusoids."""
    learner = il.maml(il.models.mlp(1, 8, 1), lr=0.01, steps=2, loss=F.mse_loss)
    sinusoids, run = il.Sinusoid(), folder / "run"
    il.Trainer(
        learner, sinusoids, sinusoids, run, iterations=4, tasks=2, validate_every=2, val_tasks=2, log_every=1,
        progress=False, **options,
    ).fit()  # fmt: skip
    return run


def png(path: Path, level: int, size: int = 12) -> None:
    """Write a gray image without the help of a package."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", size, size, 8, 0, 0, 0, 0)
    rows = (b"\0" + bytes([level]) * size) * size
    path.parent.mkdir(parents=True, exist_ok=True)
    content = b"".join([chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")])
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


def vision(folder: Path) -> None:
    """Read a folder of images."""
    for number in range(9):
        for name in "ab":
            png(folder / "images" / f"class{number}" / f"{name}.png", 20 * number + ord(name) - 97)
    splits = il.data.image_folder(folder / "images", size=12, channels=1)
    assert sum(part.num_classes for part in splits) == 9


def cli(folder: Path) -> None:
    """Train and evaluate by commands."""
    sets = ["train.iterations=3", "train.tasks=2", "train.val_tasks=2", "evaluate.num_tasks=2"]
    words = [word for value in sets for word in ("--set", value)]
    command(folder, "train", "sinusoid-maml", "--run", "run", "--quiet", *words)
    command(folder, "evaluate", "run", "--json")


def command(folder: Path, *words: str) -> str:
    """Run a command; an error that names an extra is an ImportError, as in Python."""
    result = subprocess.run(
        [sys.executable, "-I", "-m", "innerloop", *words], cwd=folder, capture_output=True, text=True, timeout=300
    )
    if result.returncode and "pip install 'innerloop[" in result.stderr:
        raise ImportError(result.stderr.strip())
    assert result.returncode == 0, result.stderr
    return result.stdout


def plot(folder: Path) -> None:
    """Draw a loss curve."""
    figure = il.report.new_figure(4, 3)
    il.report.meta_loss(figure.subplots(), il.report.read_run(trained(folder)))
    figure.savefig(folder / "loss.png")
    assert (folder / "loss.png").stat().st_size > 1_000


def report(folder: Path) -> None:
    """Write the page of a run."""
    run = trained(folder)
    assert il.report.write_report([run], folder / "report.html", models=False) == []
    assert (folder / "report.html").stat().st_size > 1_000_000  # plotly is in the page


def frames(folder: Path) -> None:
    """Read the record of a run as a data frame."""
    assert len(il.report.read_run(trained(folder)).frame("train")) == 4


def tensorboard(folder: Path) -> None:
    """Log a training."""
    run = trained(folder, loggers=[importlib.import_module("innerloop.train.loggers").TensorBoard()])
    assert any((run / "tensorboard").iterdir())


def sweep(folder: Path) -> None:
    """Run two trials."""
    sweeps, experiment = (importlib.import_module(f"innerloop.{name}") for name in ("sweep", "experiment"))
    (folder / "space.toml").write_text("learner.lr = {low = 0.001, high = 1.0, log = true}\n")
    short = ("train.iterations=2", "train.tasks=2", "train.val_tasks=2", "model.sizes=[1, 4, 1]")
    space = sweeps.load_space(folder / "space.toml", "sinusoid-maml", short)
    searching = sweeps.Sweep("sinusoid-maml", short, space, folder, experiment.Place())
    study = searching.study(f"sqlite:///{folder / 'sweep.db'}", "sinusoids")
    searching.run(study, 2, lambda line: None)
    assert sweeps.counts(study) == (2, 0)


def rl(folder: Path) -> None:
    """Step a simulated body, and Gymnasium's environment of it."""
    locomotion = importlib.import_module("innerloop.rl.locomotion")
    body = locomotion.Locomotion("half-cheetah", "direction", horizon=3)
    assert body.horizon == 3
    gym = importlib.import_module("innerloop.rl.gym")
    environment = gym.HalfCheetahDirection()
    environment.reset(seed=0)
    assert environment.step(environment.action_space.sample())[0].shape == environment.observation_space.shape
    assert il.rl.VectorTasks.__name__ == "VectorTasks"


def estimators(folder: Path) -> None:
    """Fit an estimator of the model that ships with the package."""
    task = il.Strokes(ways=3, shots=2, queries=2, split="test").sample(1, torch.Generator().manual_seed(0))
    classifier = il.FewShotClassifier("strokes").fit(task.support.x[0].numpy(), ["ba", "du", "ga"] * 2)
    assert classifier.predict_proba(task.query.x[0].numpy()).shape == (6, 3)


def saved(folder: Path) -> None:
    """Save the model that ships with the package, and load it again."""
    il.Pretrained.load("sinusoid").save_pretrained(folder / "sinusoid")
    il.Pretrained.from_pretrained(folder / "sinusoid")


def hub(folder: Path) -> None:
    """Push a model and pull it, with a folder in place of the Hub."""
    if importlib.util.find_spec("huggingface_hub"):
        module: Any = importlib.import_module("huggingface_hub")

        class Api:
            def __init__(self, token: str | None = None) -> None:
                pass

            def create_repo(self, name: str, private: bool, exist_ok: bool) -> Any:
                return SimpleNamespace(repo_id=name)

            def upload_folder(self, repo_id: str, folder_path: str, commit_message: str) -> str:
                return str(shutil.copytree(folder_path, folder / repo_id))

        module.HfApi = Api
        module.snapshot_download = lambda name, revision, allow_patterns: str(folder / name)
        il.Pretrained.load("sinusoid").push_to_hub("user/name")
    il.Pretrained.from_pretrained("user/name")


def demo(folder: Path) -> None:
    """Serve the page and get it."""
    serving = importlib.import_module("innerloop.demo.serving")
    answers = importlib.import_module("innerloop.demo").answering([il.Pretrained.load("sinusoid")])
    listening, server = serving.listen(), serving.server(*answers)
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    with urllib.request.urlopen(f"http://127.0.0.1:{listening.getsockname()[1]}/", timeout=600) as page:
        assert b"innerloop" in page.read()
    server.should_exit = True
    thread.join(600)


def adapters(folder: Path) -> None:
    """Compute a meta-gradient of a transformer's adapters."""
    peft, transformers = importlib.import_module("peft"), importlib.import_module("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.BertConfig(vocab_size=20, num_labels=2, **sizes)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    model = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"]))
    learner = il.maml(model, lr=0.1, steps=1, output="logits")
    ids = torch.randint(1, 20, (2, 4, 6))
    batch = il.Batch({"input_ids": ids}, ids[..., 0] % 2)
    grads, _ = learner.meta_gradient(il.Task(batch, batch))
    assert any("lora" in name for name in grads)


TOML = () if sys.version_info >= (3, 11) else ("tomli",)
USES = (
    Use("vision", ("PIL",), vision),
    Use("cli", ("typer", "rich", *TOML), cli),
    Use("plot", ("matplotlib",), plot),
    Use("report", ("pandas",), frames),
    Use("report", ("plotly", "scipy", "jinja2"), report),
    Use("tensorboard", ("tensorboard",), tensorboard),
    Use("sweep", ("optuna", *TOML), sweep),
    Use("rl", ("gymnasium", "mujoco", "numpy"), rl),
    Use("use", ("safetensors", "sklearn", "numpy"), estimators),
    Use("use", ("safetensors",), saved),
    Use("hub", ("huggingface_hub", "safetensors"), hub),
    Use("demo", ("starlette", "uvicorn", "safetensors"), demo),
    Use("adapters", ("transformers", "peft"), adapters),
)
IMPORTED_BY_USERS = {"adapters"}
"""Extras whose packages innerloop itself never imports, so no error of its own can name them."""


def main(extra: str) -> None:
    """Run the core, the uses of the extra, and see what the others raise."""
    assert il.__version__ == importlib.metadata.version("innerloop")
    known = {name for use in USES for name in (use.extra, "none")}
    if extra not in known:
        sys.exit(f"{extra!r} is not one of {', '.join(sorted(known))}")
    for use in USES:
        assert use.extra != extra or use.possible(), f"{extra} does not install {', '.join(use.packages)}"
    for use in (Use(extra, (), core), *USES):
        with tempfile.TemporaryDirectory() as folder:
            os.environ["XDG_CACHE_HOME"] = str(Path(folder, "cache"))  # no images and plans of earlier runs
            if use.extra == extra:
                use.check(Path(folder))
                print(f"works: {use.check.__doc__}", flush=True)
            elif not use.possible() and use.extra not in IMPORTED_BY_USERS:
                refused(use, Path(folder))


def refused(use: Use, folder: Path) -> None:
    """Check that a use of an extra which is not installed raises an error that names the extra."""
    try:
        use.check(folder)
    except ImportError as error:
        message = str(error)
    else:
        raise AssertionError(f"{use.extra} works without {', '.join(use.packages)}")
    assert f"innerloop[{use.extra}]" in message, f"the error should name the extra {use.extra}: {message}"
    print(f"refused: {use.check.__doc__} {message}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
