"""What stands in for torch's operations while tasks run at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import innerloop as il
from innerloop.operations.replacements import TaskOperations
from tests import layers
from tests.fuzz.cases import Case
from tests.fuzz.operators import judge
from tests.torches import FITS_ROWS

READS: dict[str, Callable[[Tensor], Tensor]] = {
    "bool": lambda x: 2 * x if (x.abs() < 9).all() else x,
    "item": lambda x: x * (x > 9).sum().item() + x,
    "int": lambda x: x[: int((x.abs() < 9).all(1).sum())],
    "float": lambda x: x * float((x.abs() < 9).all()),
    "index": lambda x: x * (3, 4)[(x.abs() < 9).all().long()],
    "in": lambda x: x if 99.0 in x else 3 * x,
    "requires_grad_": lambda x: (2 * x).requires_grad_(),
}


class Reads(nn.Module):
    """Values say which code runs."""

    def __init__(self, read: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.read = nn.Linear(2, 1), read

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.read(x))  # type: ignore[no-any-return]


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("read", READS)
def test_values_that_are_the_same_for_all_tasks_can_be_read(
    read: str, order: int, regression: Callable[..., il.Task]
) -> None:
    tasks, model = regression(), Reads(READS[read])
    one_by_one, at_once = (il.maml(model, 0.1, order, loss=F.mse_loss, vectorize=v) for v in (False, True))
    torch.testing.assert_close(at_once.meta_gradient(tasks), one_by_one.meta_gradient(tasks), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(at_once.predict(tasks), one_by_one.predict(tasks))


def test_several_elements_are_not_one(regression: Callable[..., il.Task]) -> None:
    learner = il.maml(Reads(lambda x: 2 * x if x > 0 else x), 0.1, loss=F.mse_loss)
    with pytest.raises(RuntimeError, match="Boolean value of Tensor with more than one value is ambiguous"):
        learner.meta_gradient(regression())


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("vectorize", ["auto", True])
def test_where_tasks_differ_these_run_one_by_one(vectorize: object, regression: Callable[..., il.Task]) -> None:
    alike, different = regression(), regression()
    different.query.x[1, 0] += 99
    model = Reads(READS["bool"])
    learner = il.maml(model, 0.1, loss=F.mse_loss, vectorize=vectorize)  # type: ignore[arg-type]
    learner.meta_gradient(alike)
    if vectorize is True:
        with pytest.raises(
            ValueError, match=r"Reads .* cannot run these tasks at once, and vectorize=True does not allow"
        ):
            learner.meta_gradient(different)
        return
    expected = il.maml(model, 0.1, loss=F.mse_loss, vectorize=False).meta_gradient(different)
    with pytest.warns(UserWarning, match=r"Reads .* cannot run these tasks at once, so these run one by one"):
        torch.testing.assert_close(learner.meta_gradient(different), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learner.meta_gradient(different)
    assert learner.engine.vectorized
    assert any("some meta-batches one by one" in reason for reason in learner.choices)


def test_compiled_steps_read_nothing(regression: Callable[..., il.Task]) -> None:
    """Which would be what the example said."""
    learner = il.maml(Reads(READS["bool"]), 0.1, loss=F.mse_loss, vectorize=True, compile=True)
    with pytest.raises(ValueError, match="compile=True, but the step cannot be compiled: it cannot be recorded"):
        learner.meta_gradient(regression())


OPERATIONS: dict[str, tuple[Callable[..., Any], list[Any]]] = {
    "select_scatter": (lambda x, y: torch.select_scatter(x, y, 0, 1), [(3, 2), (2,)]),
    "its method": (lambda x, y: x.select_scatter(y, -1, -2), [(3, 2), (3,)]),
    "logcumsumexp of a number": (lambda x: torch.logcumsumexp(x, 0), [()]),
    "logcumsumexp": (lambda x: x.logcumsumexp(1), [(3, 2)]),
    "gaussian_nll_loss": (lambda x, y, v: F.gaussian_nll_loss(x, y, v.exp(), full=True), [(4, 3), (4, 3), (4, 1)]),
    "hardsigmoid": (F.hardsigmoid, [(4, 3)]),
    "bag": (lambda w: F.embedding_bag(torch.tensor([[0, 2, 2], [1, 0, 4]]), w, padding_idx=2), [(5, 3)]),
    "bag, offsets": (
        lambda w, p: F.embedding_bag(
            torch.tensor([0, 2, 2, 1]), w, torch.tensor([0, 0, 3]), mode="sum", per_sample_weights=p
        ),
        [(5, 3), (4,)],
    ),
    "bag, maxima": (lambda w: F.embedding_bag(torch.tensor([[0, 2, 2], [1, 0, 4]]), w, mode="max"), [(5, 3)]),
    "native layer norm": (lambda x, w, b: torch.native_layer_norm(x, (3,), w, b, 1e-5), [(4, 3), (3,), (3,)]),
    "native batch norm": (
        lambda x, w, b: torch.native_batch_norm(x, w, b, None, None, True, 0.1, 1e-5),
        [(4, 3), (3,), (3,)],
    ),
    "embedding": (lambda w: torch.embedding(w, torch.tensor([0, 2, 2]), 2), [(3, 2)]),
    "same": (lambda x, w: F.conv2d(x, w, padding="same"), [(1, 2, 5, 4), (3, 2, 3, 2)]),
    "one image": (lambda x, w: F.conv2d(x, w, padding=1), [(2, 5, 4), (3, 2, 3, 2)]),
    "one line": (lambda x, w, b: F.conv1d(x, w, b, padding="same", groups=2), [(2, 5), (4, 1, 2), (4,)]),
    "one volume": (lambda x, w: F.conv3d(x, w, padding="same", dilation=2), [(1, 2, 3, 2, 2), (2, 2, 2, 2, 2)]),
    "transposed": (
        lambda x, w: F.conv_transpose2d(x, w, stride=2, output_padding=1, groups=2),
        [(1, 4, 2, 2), (4, 1, 3, 3)],
    ),
}


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_right_to_the_third_derivative(name: str, onednn: bool) -> None:
    """And run at once."""
    function, shapes = OPERATIONS[name]
    if not onednn and "w" not in function.__code__.co_varnames:
        pytest.skip("no convolution")
    with torch.backends.mkldnn.flags(enabled=onednn):
        verdict = judge(name, Case(function, [torch.randn(shape) for shape in shapes]))
    assert verdict is not None
    assert verdict.looped.startswith("right"), verdict
    assert verdict.vectorized.startswith("right"), verdict


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("vectorized", [True, False])
def test_groups_of_one_image_with_channels_last_have_gradients(vectorized: bool, onednn: bool) -> None:
    """Torch's own by the weights are then memory that nobody has written to."""

    def convolved(x: Tensor, w: Tensor) -> Tensor:
        image, weight = x.movedim(-1, 0)[None], w.movedim(-1, 1)
        return F.conv2d(image, weight, groups=2)

    x, w = torch.randn(5, 4, 4, requires_grad=True), torch.randn(4, 2, 2, 2, requires_grad=True)
    with torch.backends.mkldnn.flags(enabled=onednn), TaskOperations(vectorized):
        torch.autograd.gradcheck(convolved, (x, w))
        torch.autograd.gradgradcheck(convolved, (x, w))


QUICK = [
    "BatchNorm2d", "LayerNorm", "InstanceNorm1d", "GroupNorm", "RMSNorm", "Embedding", "CrossEntropyLoss", "MaxPool2d",
    *(["LinearCrossEntropyLoss"] if hasattr(nn, "LinearCrossEntropyLoss") else []),
]  # fmt: skip


@pytest.mark.parametrize("name", QUICK)
def test_layers_are_right_to_the_third_derivative(name: str) -> None:
    for verdict in layers.verdicts(name):
        assert verdict.looped.startswith("right"), verdict
        assert verdict.vectorized.startswith("right"), verdict


@pytest.mark.usefixtures("double")
def test_what_the_models_of_papers_are_made_of_is_right_to_the_third_derivative() -> None:
    torch.manual_seed(3)
    model = il.models.conv4(channels=1, ways=2, width=2, image_size=16)
    verdict = judge("conv4", Case(lambda net, x: net(x), [torch.randn(3, 1, 16, 16)], module=model))
    assert verdict is not None
    assert verdict.looped == verdict.vectorized == "right", verdict


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("padding", [0, 3, -1])
def test_the_row_of_a_padding_token_stays(padding: int, vectorize: bool) -> None:
    row = padding % 20
    net = nn.Sequential(nn.Embedding(20, 4, padding_idx=padding), nn.Flatten(), nn.Linear(24, 3))
    x = torch.randint(20, (4, 6, 6))
    x[..., 3:] = row
    batch = il.Batch(x, torch.randint(3, (4, 6)))
    learner = il.maml(net, lr=1.0, steps=3, vectorize=vectorize)
    assert not learner.adapt_all(batch).parameters["0.weight"][:, row].any()
    grads, _ = learner.meta_gradient(il.Task(batch, batch))
    assert not grads["model.0.weight"][row].any()
    assert grads["model.0.weight"].any()


@pytest.mark.parametrize("vectorize", ["auto", True, False])
@pytest.mark.parametrize("bag", [False, True])
@pytest.mark.parametrize("option", ["max_norm", "scale_grad_by_freq"])
def test_embeddings_whose_gradient_is_none_are_refused(option: str, bag: bool, vectorize: Any) -> None:
    make = nn.EmbeddingBag if bag else nn.Embedding
    net = nn.Sequential(make(20, 4, **{option: True if option == "scale_grad_by_freq" else 0.5}), nn.Flatten())
    batch = il.Batch(torch.randint(20, (4, 6, 1)), torch.randint(4, (4, 6)))
    with pytest.raises(ValueError, match=f"an embedding with {option}="):
        il.maml(net, vectorize=vectorize).meta_gradient(il.Task(batch, batch))


@pytest.mark.parametrize("vectorize", [True, False])
def test_sparse_gradients_are_dense_ones(vectorize: bool) -> None:
    batch = il.Batch(torch.randint(20, (4, 6, 1)), torch.randint(4, (4, 6)))
    found = []
    for sparse in (True, False):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Embedding(20, 4, sparse=sparse), nn.Flatten())
        found.append(il.maml(net, 0.1, vectorize=vectorize).meta_gradient(il.Task(batch, batch))[0])
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("vectorize", [True, False])
def test_norms_that_torch_differentiates_wrongly_are_refused(
    vectorize: bool, regression: Callable[..., il.Task]
) -> None:
    class Norm(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = torch._native_batch_norm_legit(x, None, None, True, 0.1, 1e-5)[0]
            return out

    learner = il.maml(nn.Sequential(Norm(), nn.Linear(2, 1)), loss=F.mse_loss, vectorize=vectorize)
    with pytest.raises(ValueError, match="_native_batch_norm_legit has wrong second derivatives"):
        learner.meta_gradient(regression())


@pytest.mark.usefixtures("double")
def test_native_norms_give_what_torch_gives() -> None:
    x, w, b = torch.randn(3, 4, 2), torch.randn(4), torch.randn(4)
    for vectorized in (True, False):
        for call in (
            lambda: torch.native_layer_norm(x.mT, (4,), w, b, 1e-5),
            lambda: torch.native_batch_norm(x, w, b, None, None, True, 0.1, 1e-5),
        ):
            expected = call()
            with TaskOperations(vectorized):
                torch.testing.assert_close(call(), expected)


@pytest.mark.parametrize("shape", [(4, 3), (4, 1), (4,), (1, 3)])
def test_variances_fit_where_they_fit_in_torch(shape: tuple[int, ...]) -> None:
    x, y, var = torch.randn(4, 3), torch.randn(4, 3), torch.rand(shape)
    full = var[:, None] if var.ndim == 1 else var
    with TaskOperations(vectorized=True):
        found = F.gaussian_nll_loss(x, y, var)
    torch.testing.assert_close(found, (full.log() + (x - y) ** 2 / full).mean() / 2)
    if shape != (1, 3) or FITS_ROWS:
        torch.testing.assert_close(found, F.gaussian_nll_loss(x, y, var))


@pytest.mark.parametrize("shape", [(3,), (1, 1), (1,), (4, 3, 1)])
def test_other_variances_are_refused_as_in_torch(shape: tuple[int, ...]) -> None:
    x, y, var = torch.randn(4, 3), torch.randn(4, 3), torch.rand(shape)
    with pytest.raises(ValueError, match="var is of incorrect size"):
        F.gaussian_nll_loss(x, y, var)
    with pytest.raises(ValueError, match="does not fit"), TaskOperations(vectorized=True):
        F.gaussian_nll_loss(x, y, var)


LOW: dict[str, Callable[[], nn.Module]] = {
    "layer norm": lambda: nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 3)),
    "batch norm": lambda: nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 3)),
    "group norm": lambda: nn.Sequential(nn.Linear(8, 16), nn.GroupNorm(4, 16), nn.Linear(16, 3)),
    "images": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 2, 2)), nn.Conv2d(2, 4, 2), nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, 3, 1), nn.Flatten()
    ),
    "instance norm": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 4)), nn.Conv1d(2, 4, 2), nn.InstanceNorm1d(4, affine=True), nn.Flatten(), nn.Linear(12, 3)
    ),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", LOW)
def test_models_of_few_digits_run_at_once(name: str, dtype: torch.dtype) -> None:
    if (name, dtype) == ("instance norm", torch.float16):
        pytest.skip("torch's own gives NaN")
    model = LOW[name]().to(dtype)
    batch = il.Batch(torch.randn(4, 6, 8).to(dtype), torch.randint(3, (4, 6)))
    learner = il.maml(model, lr=0.1, compile=False)
    grads, outcome = learner.meta_gradient(il.Task(batch, batch))
    expected, looped = il.maml(model, lr=0.1, vectorize=False).meta_gradient(il.Task(batch, batch))
    assert learner.engine.vectorized
    assert outcome.output.dtype == looped.output.dtype == dtype
    for grad_name, grad in expected.items():
        assert grads[grad_name].dtype == dtype
        assert (grads[grad_name] - grad).norm() <= 0.1 * grad.norm() + 0.05, grad_name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_norms_give_the_type_that_torch_gives(dtype: torch.dtype, autocast: bool) -> None:
    x = torch.randn(4, 4, 2, 2, dtype=dtype)
    norms = (nn.BatchNorm2d(4), nn.InstanceNorm2d(4), nn.LayerNorm(2), nn.GroupNorm(2, 4))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for norm in norms:
            norm = norm.to(dtype)
            expected = norm(x)
            for options in ({"vectorized": True}, {"vectorized": True, "kernels": False}, {"vectorized": False}):
                with TaskOperations(**options):
                    assert norm(x).dtype == expected.dtype, norm


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
def test_binary_cross_entropy_is_right_to_any_order(weighted: bool, reduction: str) -> None:
    """Torch's own is off by 1e-4 relative in the second derivative at an output of 1e-8."""
    logits = torch.tensor([-18.0, -9.0, -2.0, 0.5, 3.0, 12.0]).requires_grad_()
    y, weight = torch.rand(6).requires_grad_(), torch.rand(6) + 0.5

    def ours(z: Tensor, y: Tensor) -> Tensor:
        with TaskOperations(vectorized=False):
            out = F.binary_cross_entropy(z.sigmoid(), y, weight if weighted else None, reduction=reduction)
        return out.sum()

    def exact(z: Tensor, y: Tensor) -> Tensor:
        losses = F.softplus(z) - y * z
        losses = losses * weight if weighted else losses
        return losses.mean() if reduction == "mean" else losses.sum()

    inputs = (logits, y)
    for _ in range(4):
        values = ours(*inputs), exact(*inputs)
        torch.testing.assert_close(*values, rtol=1e-8, atol=1e-14)
        ours, exact = (_derivative(f) for f in (ours, exact))


def _derivative(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """The sum of a function's gradients, weighted unevenly."""

    def derivative(z: Tensor, y: Tensor) -> Tensor:
        grads = torch.autograd.grad(function(z, y), (z, y), create_graph=True, materialize_grads=True)
        return sum((grad * torch.arange(1.0, 7.0)).sum() for grad in grads)  # type: ignore[return-value]

    return derivative


def test_binary_cross_entropy_answers_as_torch_does_where_there_is_nothing_to_mend() -> None:
    x, y = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.3]).requires_grad_(), torch.tensor([0.0, 1.0, 1.0, 0.0, 0.2])
    expected = F.binary_cross_entropy(x, y)
    with TaskOperations(vectorized=False):
        found = F.binary_cross_entropy(x, y)
        with pytest.raises(RuntimeError, match="between 0 and 1"):
            F.binary_cross_entropy(x + 1, y)
        with pytest.raises(ValueError, match="target size"):
            F.binary_cross_entropy(x, y[:, None])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, x), torch.autograd.grad(expected, x))


INDEXED: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], tuple[int, ...], tuple[int, ...]]] = {
    "embedding": (lambda w, i: F.embedding(i, w), (5, 3), (4,)),
    "embedding, padded": (lambda w, i: F.embedding(i, w, padding_idx=2), (5, 3), (4,)),
    "torch.embedding": (torch.embedding, (5, 3), (4,)),
    "embedding_bag": (lambda w, i: F.embedding_bag(i, w), (5, 3), (4, 2)),
    "one_hot": (lambda w, i: F.one_hot(i, 5) * w.sum(), (5, 3), (4,)),
    "index_fill": (lambda w, i: w.index_fill(0, i, 2.0), (5, 3), (4,)),
    "index_fill, last": (lambda w, i: torch.index_fill(w, -1, i, 2.0), (3, 5), (4,)),
    "index_fill_": (lambda w, i: w.clone().index_fill_(0, i, 2.0), (5, 3), (4,)),
    "index_select": (lambda w, i: w.index_select(0, i), (5, 3), (4,)),
    "index_add": (lambda w, i: w.index_add(0, i, torch.ones(4, 3)), (5, 3), (4,)),
    "index_copy": (lambda w, i: w.index_copy(0, i, torch.ones(4, 3)), (5, 3), (4,)),
    "gather": (lambda w, i: w.gather(0, i), (5, 3), (4, 3)),
    "scatter": (lambda w, i: w.scatter(0, i, torch.ones(4, 3)), (5, 3), (4, 3)),
    "take_along_dim": (lambda w, i: w.take_along_dim(i, 0), (5, 3), (4, 3)),
    "index": (lambda w, i: w[i], (5, 3), (4,)),
    "cross_entropy": (F.cross_entropy, (4, 5), (4,)),
    "multi_margin_loss": (F.multi_margin_loss, (4, 5), (4,)),
}


@pytest.mark.parametrize("index", [0, 4, 5, 7, -1, -3, -100])
@pytest.mark.parametrize("name", INDEXED)
def test_an_index_is_in_range_for_tasks_at_once_if_it_is_for_each(name: str, index: int) -> None:
    """A row of the next task is no answer."""
    function, shape, indices = INDEXED[name]
    w, i = torch.randn(3, *shape), torch.randint(5, (3, *indices))
    i[1].view(-1)[2] = index

    def looped() -> Tensor:
        with TaskOperations(vectorized=False):
            return torch.stack([function(*each) for each in zip(w, i, strict=True)])

    def at_once(kernels: bool) -> Tensor:
        with TaskOperations(vectorized=True, kernels=kernels):
            return torch.vmap(function)(w, i)

    try:
        expected = looped()
    except (IndexError, RuntimeError):
        for kernels in (True, False):
            with pytest.raises((IndexError, RuntimeError)):
                at_once(kernels)
    else:
        for kernels in (True, False):
            torch.testing.assert_close(at_once(kernels), expected, equal_nan=True)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("name", ["max", "min", "median", "nanmedian", "amax", "amin"])
@pytest.mark.parametrize("method", [True, False])
def test_ties_share_the_gradient_for_tasks_at_once_too(name: str, method: bool, order: int) -> None:
    class Scaled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            size = 1 + self.weight.abs()
            read = (
                getattr(size, name)()
                if method
                else getattr(torch, name)(*((size, (0, 1)) if name[0] == "a" else (size,)))
            )
            return F.linear(x, self.weight / read, self.bias)

    model = Scaled(3, 1)
    nn.init.constant_(model.weight, 0.5)
    x = torch.randn(4, 8, 3)
    tasks = il.Task(*(il.Batch(x, x.sum(-1, keepdim=True)) for _ in range(2)))
    looped, at_once = (
        il.maml(model, 0.1, order, loss=F.mse_loss, steps=2, vectorize=v).meta_gradient(tasks)[0] for v in (False, True)
    )
    torch.testing.assert_close(at_once, looped, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["max", "min", "median", "nanmedian"])
@pytest.mark.parametrize("special", [torch.nan, torch.inf, -torch.inf, 1.0])
def test_the_largest_and_the_median_are_torchs_own(name: str, special: float) -> None:
    x = torch.randn(3, 7)
    x[1, 2:5] = special
    for values in (x, (10 * x.nan_to_num(0, 0, 0)).long()):
        with TaskOperations(vectorized=True):
            found = torch.vmap(getattr(torch, name))(values)
            along = torch.vmap(lambda row: getattr(torch, name)(row, 0)[0])(values)
        expected = torch.stack([getattr(torch, name)(row) for row in values])
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(along, expected, rtol=0, atol=0, equal_nan=True)
    with TaskOperations(vectorized=True):
        pair = torch.vmap(torch.max)(x, -x)
    torch.testing.assert_close(pair, torch.maximum(x, -x), equal_nan=True)
