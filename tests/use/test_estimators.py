"""Few-shot learners as scikit-learn estimators."""

from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import innerloop as il
from innerloop.use import Pretrained

sklearn = pytest.importorskip("sklearn")
np = pytest.importorskip("numpy")

from sklearn.base import clone  # noqa: E402
from sklearn.model_selection import GridSearchCV, cross_val_score  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.utils.estimator_checks import parametrize_with_checks  # noqa: E402

from ..torches import exports_norms  # noqa: E402


@dataclass(frozen=True)
class Classifying:
    """Makes learners that are not meta-trained; what is tested does not depend on it."""

    def __call__(self, features: int, classes: int) -> il.MetaLearner:
        torch.manual_seed(0)
        return il.protomaml(il.models.mlp(features, 16, classes), lr=0.01, steps=2)


@dataclass(frozen=True)
class Regressing:
    """Likewise."""

    def __call__(self, features: int, targets: int) -> il.MetaLearner:
        torch.manual_seed(0)
        return il.maml(il.models.mlp(features, 16, targets), lr=0.1, steps=20, loss=F.mse_loss)


REASONS = {
    "check_methods_subset_invariance": "asks for 1e-7, and models compute in float32: a matrix product of other "
    "numbers of rows rounds otherwise. That predictions do not depend on each other is asserted below, to 1e-5",
}
"""What is not asked of the classifier, and why."""


def excluded(estimator: Any) -> dict[str, str]:
    return REASONS if isinstance(estimator, il.FewShotClassifier) else {}


@parametrize_with_checks(
    [il.FewShotClassifier(Classifying()), il.FewShotRegressor(Regressing())], expected_failed_checks=excluded
)
def test_scikit_learns_own_checks(estimator: Any, check: Any) -> None:
    check(estimator)


def task(seed: int = 0, ways: int = 5, shots: int = 1, queries: int = 4) -> tuple[Any, ...]:
    drawn = il.Strokes(ways, shots, queries, split="test").sample(1, torch.Generator().manual_seed(seed))
    names = np.array(["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta"])
    return tuple(part for batch in drawn for part in (batch.x[0].numpy(), names[batch.y[0].numpy()]))


@pytest.fixture
def learner() -> il.MetaLearner:
    torch.manual_seed(0)
    return il.maml_plus_plus(il.models.conv4(width=4, running=True), steps=2, lr=0.1)


def test_what_it_predicts_is_what_the_learner_does(learner: il.MetaLearner) -> None:
    """In the labels of the examples, each new one judged by itself, as the plain module does."""
    x, y, new, _ = task()
    fitted = il.FewShotClassifier(learner).fit(x, y)
    assert list(fitted.classes_) == sorted(set(y))
    codes = torch.tensor([list(fitted.classes_).index(label) for label in y])
    module = learner.adapt(il.Batch(torch.from_numpy(x), codes), transductive=False).module()
    with torch.no_grad():
        logits = module(torch.from_numpy(new))
    assert list(fitted.predict(new)) == [fitted.classes_[i] for i in logits.argmax(1)]
    shares = fitted.predict_proba(new)
    assert np.allclose(shares, torch.softmax(logits / fitted.temperature_, 1), atol=1e-5)
    assert np.allclose(shares.sum(1), 1)
    assert np.allclose(fitted.predict_proba(new[:1]), shares[:1], atol=1e-5)
    assert len(fitted.losses_) == 3


def test_unequal_shots_more_classes_and_the_accuracy_to_expect(learner: il.MetaLearner) -> None:
    x, y, new, _ = task(ways=7, shots=3)
    kept = np.r_[:15, 16, 18]
    with pytest.raises(ValueError, match="7 classes, but the head was trained for 5"):
        il.FewShotClassifier(learner).fit(x[kept], y[kept])
    fitted = il.FewShotClassifier(learner, head="prototypes").fit(x[kept], y[kept])
    assert fitted.predict_proba(new).shape == (28, 7)
    expected = fitted.expectation_
    assert expected.examples == 17
    assert 0 <= expected.low <= expected.accuracy <= expected.high <= 100
    assert il.FewShotClassifier(learner).fit(*task()[:2]).expectation_ is None


def test_the_accuracy_to_expect_is_that_of_examples_left_out(learner: il.MetaLearner) -> None:
    x, y, _, _ = task(ways=3, shots=2)
    fitted = il.FewShotClassifier(learner).fit(x, y)
    right = 0
    for index in range(len(x)):
        others = np.delete(np.arange(len(x)), index)
        right += il.FewShotClassifier(learner).fit(x[others], y[others]).predict(x[index : index + 1])[0] == y[index]
    assert fitted.expectation_.accuracy == pytest.approx(100 * right / len(x))


def test_in_pipelines_searches_and_pickles(learner: il.MetaLearner) -> None:
    x, y, new, truth = task(ways=3, shots=4)
    flat, more = (part.reshape(len(part), -1) for part in (x, new))
    model = Pretrained(learner, recipe={"model": {"channels": 1, "image_size": 28}})
    pipeline = make_pipeline(StandardScaler(), il.FewShotClassifier(model)).fit(flat, y)
    assert pipeline.predict(more).shape == truth.shape
    search = GridSearchCV(il.FewShotClassifier(model), {"steps": [0, 2]}, cv=2).fit(flat, y)
    assert search.best_params_["steps"] in (0, 2)
    assert cross_val_score(clone(search.best_estimator_), flat, y, cv=2).shape == (2,)
    again = pickle.loads(pickle.dumps(pipeline))
    assert np.array_equal(again.predict_proba(more), pipeline.predict_proba(more))
    with pytest.raises(ValueError, match=r"takes inputs of shape \(1, 28, 28\), or flattened, got \(7,\)"):
        il.FewShotClassifier(model).fit(flat[:, :7], y)


def test_inputs_are_refused_in_words(learner: il.MetaLearner) -> None:
    x, y, new, _ = task(ways=3, shots=2)
    model = Pretrained(learner, recipe={"model": {"channels": 1, "image_size": 28}}, name="mine")
    fitted = il.FewShotClassifier(model).fit(x, y)
    flat = fitted.predict_proba(new.reshape(len(new), -1))
    assert np.array_equal(flat, fitted.predict_proba(new))  # either form, whichever it was fitted to
    assert np.array_equal(flat, fitted.predict_proba(torch.from_numpy(new)))
    with pytest.raises(ValueError, match="X has 560 features, but FewShotClassifier is expecting 784"):
        fitted.predict(new[:, :, :20])
    with pytest.raises(ValueError, match=r"mine takes pictures in \[0, 1\], got values up to 255: divide by 255"):
        il.FewShotClassifier(model).fit(np.round(255 * x / x.max()), y)
    with pytest.raises(ValueError, match="strokes is a classifier: use FewShotClassifier"):
        il.FewShotRegressor("strokes").fit(x, np.zeros(len(x)))
    with pytest.raises(ValueError, match="a regressor"):
        il.FewShotClassifier("sinusoid").fit(np.zeros((4, 1)), list("abab"))


def test_a_regressor_adapts_to_points_of_a_sinusoid() -> None:
    x = np.linspace(-4, 4, 10)[:, None]
    fitted = il.FewShotRegressor("sinusoid", steps=10).fit(x, 2 * np.sin(x[:, 0] + 1))
    new = np.linspace(-4, 4, 50)[:, None]
    assert fitted.score(new, 2 * np.sin(new[:, 0] + 1)) > 0.8
    assert il.FewShotRegressor("sinusoid", steps=0).fit(x, 2 * np.sin(x[:, 0] + 1)).score(new, np.sin(new[:, 0])) < 0.5
    with pytest.raises(ValueError, match="takes inputs of shape"):
        il.FewShotRegressor("sinusoid").fit(np.zeros((4, 2)), np.zeros(4))
    with pytest.raises(ValueError, match="steps must be at least 0, got -1"):
        il.FewShotRegressor("sinusoid", steps=-1).fit(x, x[:, 0])


OUTSIDE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "innerloop":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
sys.path = [p for p in sys.path if not p.endswith("src")]
import numpy, torch
x = numpy.load("x.npy")
if "torch" in sys.argv:
    out = torch.export.load("model.pt2").module()(torch.from_numpy(x)).detach().numpy()
    numpy.save("torch.npy", out)
if "onnx" in sys.argv:
    import onnxruntime
    session = onnxruntime.InferenceSession("model.onnx")
    numpy.save("onnx.npy", session.run(None, {session.get_inputs()[0].name: x})[0])
assert "innerloop" not in sys.modules
"""
SEVERAL = ({0: torch.export.Dim("inputs")},)


def outside(fitted: il.FewShotClassifier, new: Any, folder: Path, *formats: str) -> None:
    """Compare what exported models answer in a process that cannot import innerloop, on another number of inputs."""
    np.save(folder / "x.npy", new)
    words = [sys.executable, "-c", OUTSIDE, *formats]
    result = subprocess.run(words, capture_output=True, text=True, timeout=600, cwd=folder, check=False)
    assert result.returncode == 0, result.stderr
    logits = fitted.module()(torch.from_numpy(new)).detach().numpy()
    for name in formats:
        found = np.load(folder / f"{name}.npy")
        assert np.abs(found - logits).max() < 1e-5
        shares = torch.softmax(torch.from_numpy(found).double() / fitted.temperature_, 1).numpy()
        assert np.abs(shares - fitted.predict_proba(new)).max() < 1e-5


def test_an_exported_model_runs_outside_the_library(learner: il.MetaLearner, tmp_path: Path) -> None:
    x, y, new, _ = task()
    fitted = il.FewShotClassifier(learner).fit(x, y)
    exported = torch.export.export(fitted.module(), (torch.from_numpy(new)[:2],), dynamic_shapes=SEVERAL)
    torch.export.save(exported, tmp_path / "model.pt2")
    outside(fitted, new, tmp_path, "torch")


def test_a_model_exported_to_onnx_runs_outside_the_library(learner: il.MetaLearner, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    x, y, new, _ = task()
    fitted = il.FewShotClassifier(learner).fit(x, y)
    options: dict[str, Any] = {"dynamo": True, "dynamic_shapes": SEVERAL, "verbose": False}
    try:
        torch.onnx.export(fitted.module(), (torch.from_numpy(new)[:2],), tmp_path / "model.onnx", **options)
    except torch.onnx.OnnxExporterError:
        if exports_norms():
            raise
        pytest.skip(f"torch {torch.__version__} cannot export batch norm to ONNX with this onnxscript")
    outside(fitted, new, tmp_path, "onnx")


@pytest.mark.parametrize("shots", [1, 3])
def test_outputs_that_are_no_numbers_are_not_the_first_class(shots: int) -> None:
    class Broken(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x) * float("nan")

    x, y = torch.randn(2 * shots, 3).numpy(), ["a", "b"] * shots
    classifier = il.FewShotClassifier(il.maml(Broken(), steps=0))
    with pytest.raises(ValueError, match=r"of \d outputs of the adapted model are NaN"):
        classifier.fit(x, y).predict(x)
    with pytest.raises(ValueError, match="are NaN"):
        classifier.fit(x, y).predict_proba(x)


def squared(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Broadcasts where there are several outputs for one target."""
    return ((output - y) ** 2).mean()


@pytest.mark.parametrize(("outputs", "targets"), [(3, 1), (1, 3)])
def test_a_regressor_has_an_output_for_each_target(outputs: int, targets: int) -> None:
    x = np.random.default_rng(0).normal(size=(8, 2))
    fitted = il.FewShotRegressor(lambda *_: il.maml(nn.Linear(2, outputs), 0.1, loss=squared))
    with pytest.raises(ValueError, match=rf"outputs of shape \({outputs},\) for each input, but .* {targets} targets"):
        fitted.fit(x, np.ones((8, targets))).predict(x)


def test_logits_are_no_targets_of_a_regression() -> None:
    loss = nn.BCEWithLogitsLoss()
    with pytest.raises(ValueError, match="returns logits of yes or no"):
        il.FewShotRegressor(lambda *_: il.maml(nn.Linear(2, 1), 0.1, loss=loss)).fit(np.ones((4, 2)), np.ones(4))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_inputs_and_targets_have_the_dtype_of_the_model(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, y = np.random.default_rng(0).normal(size=(8, 3)), np.arange(8) % 2
    regressor = il.FewShotRegressor(il.maml(nn.Linear(3, 1).to(dtype), 0.1, loss=F.l1_loss)).fit(x, y * 0.5)
    assert regressor.predict(x).shape == (8,)
    classifier = il.FewShotClassifier(il.maml(nn.Sequential(nn.Linear(3, 2)).to(dtype), 0.1)).fit(x, y)
    assert classifier.predict(x).shape == (8,)
