"""Learners in folders."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import innerloop as il
from innerloop.recipe import config
from innerloop.recipe.experiment import Place, conduct
from innerloop.train.calibration import plain
from innerloop.use import Pretrained, shipped
from innerloop.use.card import card

safetensors = pytest.importorskip("safetensors.torch")

SHORT = (
    "model.width=4", "train.iterations=2", "train.tasks=2", "train.val_tasks=4", "evaluate.num_tasks=4",
    "train.validate_every=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "tiny"
    settings = config.load_recipe("strokes-5w1s-maml", SHORT)
    conduct(settings, path, Place(), command="innerloop train tiny", progress=False)
    return path


def outputs(model: Pretrained) -> torch.Tensor:
    tasks = il.Strokes().sample(2, torch.Generator().manual_seed(0))
    found: torch.Tensor = model.learner.predict(tasks)
    return found


def test_a_folder_gives_back_what_was_saved_to_the_bit(run: Path, tmp_path: Path) -> None:
    model = Pretrained.load(run)
    assert model.temperature is not None
    assert model.results["num_tasks"] == 4
    folder = model.save_pretrained(tmp_path / "kept")
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    for again in (Pretrained.load(folder), Pretrained.from_pretrained(folder)):
        assert torch.equal(outputs(again), outputs(model))
        assert (again.temperature, again.results, again.recipe) == (model.temperature, model.results, model.recipe)
    Pretrained.load(folder).save_pretrained(folder)  # over itself


def test_the_card_has_protocol_numbers_recipe_and_papers(run: Path, tmp_path: Path) -> None:
    model = Pretrained.load(run)
    text = (model.save_pretrained(tmp_path / "kept") / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: innerloop\n")
    assert "4 unseen tasks, transductive" in text
    assert f"{model.results['mean']:.4g} %" in text
    assert "innerloop train tiny" in text
    assert 'preset = "maml"' in text
    assert f"{model.temperature:.3g}" in text


@pytest.mark.parametrize(("name", "kind"), [("strokes", "FewShotClassifier"), ("sinusoid", "FewShotRegressor")])
def test_the_code_of_a_card_runs(name: str, kind: str, tmp_path: Path) -> None:
    folder = Pretrained.load(name).save_pretrained(tmp_path / "kept")
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert kind in code
    task = il.Strokes().sample(1, torch.Generator().manual_seed(0)).support
    given = {"pictures": task.x[0], "names": list("abcde"), "x": torch.rand(5, 1), "y": torch.rand(5)}
    exec(code.replace("FOLDER", str(folder)), given)


def test_the_card_of_what_acts_speaks_of_neither(run: Path) -> None:
    learner = Pretrained.load(run).learner
    results = {"metric": "return", "steps": [1.0], "steps_ci95": [0.1], "num_tasks": 4, "transductive": False}
    text = card("cheetah", {}, results, None, learner.citations)
    assert "FewShot" not in text
    assert "pipeline_tag" not in text
    assert "model.learner.adapt(support)" in text


def test_a_learner_without_a_recipe_is_loaded_into_one_like_it(tmp_path: Path) -> None:
    one, other = (il.maml(il.models.mlp(1, size, 1), loss=torch.nn.functional.mse_loss) for size in (4, 4))
    folder = Pretrained(one).save_pretrained(tmp_path / "own")
    with pytest.raises(ValueError, match="give learner="):
        Pretrained.from_pretrained(folder)
    Pretrained.from_pretrained(folder, learner=other)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    with pytest.raises(ValueError, match="do not fit the learner"):
        Pretrained.from_pretrained(folder, learner=il.maml(il.models.mlp(1, 5, 1)))


def test_nothing_is_written_over(run: Path, tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("dear")
    with pytest.raises(FileExistsError, match=r"has the file letters\.txt"):
        Pretrained.load(run).save_pretrained(tmp_path)
    assert (tmp_path / "letters.txt").read_text() == "dear"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", b"{", "is damaged"),
        ("config.json", b'{"format": 9}', "has format 9, but this version reads 1"),
        ("config.json", b"[]", "has format None"),
        ("config.json", None, "has no config.json"),
        ("model.safetensors", b"\0" * 20, "do not fit"),
        ("model.safetensors", None, "has no model.safetensors"),
    ],
)
def test_damaged_folders(run: Path, tmp_path: Path, file: str, content: bytes | None, message: str) -> None:
    folder = Pretrained.load(run).save_pretrained(tmp_path / "kept")
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Pretrained.from_pretrained(folder)


def folder_of_the_former_version(run: Path, path: Path) -> Path:
    """Without checksums."""
    folder = Pretrained.load(run).save_pretrained(path)
    told = json.loads((folder / "config.json").read_text())
    assert set(told.pop("sha256")) == {"model.safetensors", "config.json", "README.md"}
    (folder / "config.json").write_text(json.dumps(told))
    return folder


def test_a_folder_of_the_former_version_loads(run: Path, tmp_path: Path) -> None:
    folder = folder_of_the_former_version(run, tmp_path / "kept")
    assert torch.equal(outputs(Pretrained.load(folder)), outputs(Pretrained.load(run)))


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.float64, torch.bfloat16])
def test_weights_are_never_cast(run: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    folder = folder_of_the_former_version(run, tmp_path / "kept")
    weights = safetensors.load((folder / "model.safetensors").read_bytes())
    name = next(name for name, tensor in weights.items() if tensor.is_floating_point())
    weights[name] = weights[name].to(dtype)
    (folder / "model.safetensors").write_bytes(safetensors.save(weights))
    wrong = f"{name} is saved as {str(dtype)[6:]}, but the model has float32"
    with pytest.raises(ValueError, match=re.escape(wrong)):
        Pretrained.load(folder)


def test_a_learner_in_double_precision_comes_back_exactly(tmp_path: Path) -> None:
    one, other = (il.maml(il.models.mlp(1, 4, 1), loss=torch.nn.functional.mse_loss).double() for _ in range(2))
    Pretrained.from_pretrained(Pretrained(one).save_pretrained(tmp_path / "own"), learner=other)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_any_flipped_byte_is_noticed(run: Path, tmp_path: Path) -> None:
    """One that makes no difference, in the white space of JSON, may pass."""
    folder = Pretrained.load(run).save_pretrained(tmp_path / "kept")
    for name in ("model.safetensors", "config.json"):
        content = (folder / name).read_bytes()
        for position in range(0, len(content), max(1, len(content) // 40)):
            damaged = bytearray(content)
            damaged[position] ^= 1
            if name == "config.json" and chr(content[position]).isspace():
                continue
            (folder / name).write_bytes(damaged)
            with pytest.raises(ValueError, match=re.escape(name)) as caught:
                Pretrained.load(folder)
            assert "\n" not in str(caught.value)
        (folder / name).write_bytes(content)
    (folder / "README.md").write_text("my own words")
    with pytest.warns(UserWarning, match=r"README\.md was changed"):
        Pretrained.load(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("recipe", [1]), ("recipe", {"model": 3}), ("recipe", {"model": {"name": ["mlp"]}}), ("recipe", "text"),
        ("temperature", "warm"), ("temperature", 0), ("temperature", True), ("temperature", [1.0]),
        ("results", "good"), ("results", {"metric": 3}), ("results", {"metric": "accuracy"}), ("format", True),
        ("results", {"metric": "accuracy", "mean": "x", "num_tasks": 1, "steps": [1], "steps_ci95": [1],
                     "transductive": True}),
        ("results", {"metric": "accuracy", "mean": 1, "num_tasks": 1, "steps": [], "steps_ci95": [],
                     "transductive": True}),
        ("sha256", "abc"), ("sha256", {"config.json": 1}), ("library_name", 3), ("tempreature", 1.0),
    ],
)  # fmt: skip
def test_odd_values_in_the_settings_are_one_line(run: Path, tmp_path: Path, key: str, value: Any) -> None:
    folder = folder_of_the_former_version(run, tmp_path / "kept")
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**told, key: value}))
    with pytest.raises(ValueError, match=r"config\.json") as caught:
        Pretrained.load(folder)
    assert key in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[" * 100_000, b"null", b"3"])
def test_settings_that_are_none(run: Path, tmp_path: Path, content: bytes) -> None:
    folder = Pretrained.load(run).save_pretrained(tmp_path / "kept")
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.json (is damaged|has format)"):
        Pretrained.load(folder)


@pytest.mark.parametrize("value", [5e-324, 1e308, 10**400, -(10**400)])
def test_temperatures_that_no_logits_can_be_divided_by(run: Path, tmp_path: Path, value: float) -> None:
    folder = folder_of_the_former_version(run, tmp_path / "kept")
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**told, "temperature": value}))
    with pytest.raises(ValueError, match=r"config\.json: temperature must be a number from 0\.0001 to 10,000"):
        Pretrained.load(folder)


@pytest.mark.parametrize("size", [2**40, 2**33, 5])
def test_weights_of_another_size_than_their_header_says_are_not_read(run: Path, tmp_path: Path, size: int) -> None:
    folder = Pretrained.load(run).save_pretrained(tmp_path / "kept")
    os.truncate(folder / "model.safetensors", size)
    with pytest.raises(ValueError, match=rf"model\.safetensors do not fit .*({size:,} bytes|not a safetensors)"):
        Pretrained.load(folder)


def test_weights_that_are_far_more_than_the_learner_has_are_not_read(run: Path, tmp_path: Path) -> None:
    """The file has no blocks on the disk, and would fill any memory."""
    folder = folder_of_the_former_version(run, tmp_path / "kept")
    header = json.dumps({"huge": {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}}).encode()
    path = folder / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + 2**40)
    with pytest.raises(ValueError, match=r"do not fit the learner: they have 274,877,906,944 values, and it has"):
        Pretrained.load(folder)


def test_a_recipe_that_asks_for_more_than_its_weights_is_refused_before_it_is_built(run: Path, tmp_path: Path) -> None:
    folder = folder_of_the_former_version(run, tmp_path / "kept")
    told = json.loads((folder / "config.json").read_text())
    told["recipe"]["model"]["width"] = 10**8
    (folder / "config.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match=r"model\.safetensors do not fit the learner: its model has 270,"):
        Pretrained.load(folder)
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "config.toml").write_text((copy / "config.toml").read_text().replace("width = 4", "width = 100_000_000"))
    with pytest.raises(ValueError, match=r"not those of its config\.toml: its model has 270,"):
        Pretrained.load(copy)


@pytest.mark.skipif(os.name != "posix", reason="pipes and devices of POSIX")
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "huge"])
@pytest.mark.parametrize("name", ["README.md", "config.json", "model.safetensors"])
def test_what_is_no_file_is_neither_waited_for_nor_read(run: Path, tmp_path: Path, name: str, kind: str) -> None:
    folder = Pretrained.load(run).save_pretrained(tmp_path / "kept")
    path = folder / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        path.touch()
        os.truncate(path, 2**40)
    if name == "README.md":  # nothing is read from it
        with pytest.warns(UserWarning, match=r"README\.md"):
            Pretrained.load(folder)
    else:
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            Pretrained.load(folder)
        assert str(folder) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("results", [[], {"test": 3}, {"temperature": "x"}, {"test": {"metric": "accuracy"}}])
def test_odd_results_of_a_run_are_one_line(run: Path, tmp_path: Path, results: Any) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "results.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match=r"results\.json"):
        Pretrained.load(copy)


def test_a_test_that_was_not_finite_is_said(run: Path, tmp_path: Path) -> None:
    model = Pretrained.load(run)
    model.results["mean"] = model.results["steps"][-1] = float("nan")
    again = Pretrained.load(model.save_pretrained(tmp_path / "kept"))
    assert "accuracy not finite" in again.tested()
    again.save_pretrained(tmp_path / "again")


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no trained model"):
        Pretrained.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no trained model ~nobody-of-this-name/x"):
        Pretrained.load("~nobody-of-this-name/x")
    with pytest.raises(FileNotFoundError, match="nor the name of a Hub repository"):
        Pretrained.from_pretrained("./missing/folder")


def test_models_that_come_with_the_package_load_and_know_their_test() -> None:
    assert {"sinusoid", "strokes"} <= set(shipped())
    for name in shipped():
        model = Pretrained.load(name)
        assert model.results["num_tasks"] >= 600, name
        assert "innerloop train" in model.results["command"]
        changed = config.differences(model.recipe, config.load_recipe(model.results["command"].split()[2]))
        assert not changed, f"{name} was trained by another {changed}"


def test_pushing_and_pulling(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a folder in place of the Hub: what is sent there is what comes back."""
    hub = pytest.importorskip("huggingface_hub")
    there = tmp_path / "there"

    class Api:
        def __init__(self, token: str | None = None) -> None:
            assert token == "secret"

        def create_repo(self, name: str, private: bool, exist_ok: bool) -> Any:
            assert (private, exist_ok) == (True, True)
            return SimpleNamespace(repo_id=name)

        def upload_folder(self, repo_id: str, folder_path: str, commit_message: str) -> str:
            shutil.copytree(folder_path, there / repo_id)
            return f"https://example.org/{repo_id}"

    monkeypatch.setattr(hub, "HfApi", Api)
    monkeypatch.setattr(
        hub, "snapshot_download", lambda name, revision, allow_patterns: str(there / name / (revision or ""))
    )
    model = Pretrained.load(run)
    assert model.push_to_hub("me/tiny", private=True, token="secret") == "https://example.org/me/tiny"
    assert torch.equal(outputs(Pretrained.from_pretrained("me/tiny")), outputs(model))
    assert json.loads((there / "me/tiny/config.json").read_text())["library_name"] == "innerloop"


def test_probabilities_of_the_model_that_comes_with_the_package_mean_what_they_say() -> None:
    """On unseen characters of one drawing each: as often right as they say, and right about as often as its test."""
    model = Pretrained.load("strokes")
    right, sure = [], []
    for seed in range(80):
        task = il.Strokes(queries=2, split="test").sample(1, torch.Generator().manual_seed(seed))
        support, query = (il.Batch(part.x[0], part.y[0]) for part in task)
        with torch.no_grad():
            logits = plain(model.learner.adapt(support, transductive=False))(query.x)
        sure.append(torch.softmax(logits / model.temperature, 1).max(1).values)
        right.append((logits.argmax(1) == query.y).float())
    accuracy, confidence = (100 * torch.cat(part).mean().item() for part in (right, sure))
    assert accuracy == pytest.approx(model.results["mean"], abs=3)
    assert confidence == pytest.approx(accuracy, abs=2.5)
    doubted = torch.cat(sure) < 0.8
    assert torch.cat(right)[doubted].mean() < torch.cat(right)[~doubted].mean() - 0.1


@pytest.mark.parametrize("name", shipped())
def test_models_of_the_package_have_checksums(name: str, tmp_path: Path) -> None:
    folder = Pretrained.load(name).save_pretrained(tmp_path / "saved")
    (kept,) = Path(il.__file__).parent.glob(f"pretrained/{name}")
    for path in folder.iterdir():
        assert path.read_bytes() == (kept / path.name).read_bytes()
    assert json.loads((kept / "config.json").read_text())["sha256"].keys() == {path.name for path in folder.iterdir()}


def made(width: int = 8) -> il.MetaLearner:
    torch.manual_seed(width)
    return il.maml(il.models.mlp(1, width, 1), lr=0.01, loss=torch.nn.functional.mse_loss)


@pytest.fixture(scope="module")
def python_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, il.MetaLearner]:
    path, learner, source = tmp_path_factory.mktemp("runs") / "python", made(), il.Sinusoid(5)
    il.Trainer(
        learner, source, source, path, iterations=4, tasks=2, val_tasks=4, validate_every=2, progress=False
    ).fit()
    return path, learner


def test_a_run_made_in_python_is_loaded_into_a_learner(python_run: tuple[Path, il.MetaLearner], tmp_path: Path) -> None:
    path, trained = python_run
    for load in (Pretrained.load, Pretrained.from_run):
        model = load(path, learner=made())
        for name, tensor in trained.state_dict().items():
            assert torch.equal(tensor, model.learner.state_dict()[name])
    folder = model.save_pretrained(tmp_path / "kept")
    again = Pretrained.load(folder, learner=made())
    assert torch.equal(again.learner.model[0].weight, trained.model[0].weight)


def test_a_run_made_in_python_says_what_it_needs(python_run: tuple[Path, il.MetaLearner]) -> None:
    path, _ = python_run
    with pytest.raises(FileNotFoundError, match=r"made in Python, without a recipe .*load\(run, learner=\.\.\.\)"):
        Pretrained.load(path)
    with pytest.raises(ValueError, match=r"run .* do not fit MetaLearner: of another shape: model\.0\.weight"):
        Pretrained.load(path, learner=made(9))


def test_a_run_by_a_recipe_is_loaded_into_a_learner_of_its_kind(run: Path) -> None:
    own = Pretrained.load(run).learner
    for parameter in own.parameters():
        parameter.data.zero_()
    model = Pretrained.load(run, learner=own)
    assert torch.equal(outputs(model), outputs(Pretrained.load(run)))
