"""Tasks of different sizes in one meta-batch give what each of them gives alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

import innerloop as il
from innerloop import unequal
from innerloop.padding import averaged, ignores_padding, terms_of
from innerloop.task import Padded, Tasks, joined, singles, stack

from .torches import compiles_scatter

pytestmark = pytest.mark.usefixtures("double")

SIZES = [(5, 4), (8, 4), (5, 7), (11, 9), (8, 4), (6, 10)]
"""Support and query examples of each task."""


def classification(sizes: Sequence[tuple[int, int]] = SIZES, ways: int = 3, features: int = 4) -> list[il.Task]:
    """Tasks with every class in every support set."""
    centers = torch.randn(len(sizes), ways, features)

    def examples(task: int, number: int) -> il.Batch:
        y = torch.arange(number) % ways
        return il.Batch(centers[task][y] + torch.randn(number, features), y)

    return [il.Task(examples(task, s), examples(task, q)) for task, (s, q) in enumerate(sizes)]


def padded(tasks: Sequence[il.Task]) -> il.Task:
    """The same tasks, filled up with numbers that would be noticed."""

    def noise(part: Padded) -> Padded:
        x = torch.where(part.mask[..., None], part.x, torch.full_like(part.x, 1e6))
        return Padded(x, torch.where(part.mask, part.y, 0), part.mask)

    return il.Task(*(noise(unequal.filled([task[k] for task in tasks])) for k in (0, 1)))


def net(norms: bool = False) -> nn.Module:
    """A network without a bias in front of a norm: its gradient would be rounding alone, which Adam divides by 1e-8."""
    torch.manual_seed(3)
    norm = [nn.BatchNorm1d(8)] if norms else []
    return nn.Sequential(nn.Linear(4, 8, bias=not norms), *norm, nn.Tanh(), nn.Linear(8, 3))


class Contextual(nn.Module):
    """A network with a context, as CAVIA adapts it."""

    def __init__(self, norms: bool) -> None:
        super().__init__()
        self.context, self.net = nn.Parameter(torch.zeros(2)), net(norms)
        self.first = nn.Linear(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + self.first(self.context))  # type: ignore[no-any-return]


def learner(preset: str, norms: bool, **options: Any) -> il.MetaLearner:
    model = Contextual(norms) if preset == "cavia" else net(norms)
    return il.presets.PRESETS[preset](model, **options)


def alone(learner: il.MetaLearner, tasks: Sequence[il.Task]) -> tuple[il.Params, list[il.Outcome]]:
    """The mean of the meta-gradients of the tasks, each by itself, and their outcomes."""
    grads, outcomes = zip(*(learner.meta_gradient(stack([task])) for task in tasks), strict=True)
    return {name: sum(each[name] for each in grads) / len(tasks) for name in grads[0]}, list(outcomes)


def compare(found: tuple[il.Params, il.Outcome], expected: tuple[il.Params, list[il.Outcome]]) -> None:
    close = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(found[0], expected[0], **close)
    for name in ("objective", "loss", "steps"):
        own = torch.cat([getattr(outcome, name) for outcome in expected[1]])
        torch.testing.assert_close(getattr(found[1], name), own, **close)
    for output, outcome in zip(found[1].output, expected[1], strict=True):
        torch.testing.assert_close(output, outcome.output[0], **close)


PRESETS = sorted(il.presets.PRESETS)


@pytest.mark.parametrize("given", [list, padded])
@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_gives_what_each_task_gives_alone(preset: str, norms: bool, given: Callable[..., Tasks]) -> None:
    tasks = classification()
    expected = alone(learner(preset, norms, vectorize=False), tasks)
    for vectorize in ("auto", True, False):
        own = learner(preset, norms, vectorize=vectorize)
        compare(own.meta_gradient(given(tasks)), expected)
    outcome = own(given(tasks))
    torch.testing.assert_close(outcome.loss, torch.cat([each.loss for each in expected[1]]), rtol=1e-12, atol=1e-12)
    for output, task in zip(own.predict(given(tasks)), tasks, strict=True):
        torch.testing.assert_close(output, own.predict(stack([task]))[0], rtol=1e-12, atol=1e-12)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("fomaml", "meta-sgd", "reptile", "maml-plus-plus")]


@compiles_scatter
@pytest.mark.parametrize("preset", ["maml", *SLOW])
def test_compiled_steps_give_the_same(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = classification([(5, 4), (7, 5), (5, 4)])
    expected = alone(learner(preset, False, vectorize=False), tasks)
    own = learner(preset, False, vectorize=True, compile=True)
    monkeypatch.setattr(own.engine, "groups", lambda *_: 1)  # to compile one group alone, which is filled up
    for _ in range(2):  # compiled, and run again
        compare(own.meta_gradient(tasks), expected)
    assert own.compiler.reasons


def test_tasks_of_equal_sizes_are_one_meta_batch() -> None:
    tasks = classification([(5, 4)] * 4)
    own = learner("maml", False)
    torch.testing.assert_close(own.meta_gradient(tasks)[0], own.meta_gradient(stack(tasks))[0], rtol=0, atol=0)
    assert isinstance(joined(tasks), il.Task)
    outputs = own.predict(tasks)
    assert isinstance(outputs, list)
    torch.testing.assert_close(torch.stack(outputs), own.predict(stack(tasks)), rtol=0, atol=0)


def test_many_tasks_adapt_at_once() -> None:
    tasks = classification()
    own = learner("maml", False)
    x = torch.randn(6, 5, 4)
    for support in ([task.support for task in tasks], padded(tasks).support):
        found = own.adapt_all(support)(x)
        for index, task in enumerate(tasks):
            torch.testing.assert_close(found[index], own.adapt(task.support)(x[index]), rtol=1e-12, atol=1e-12)
    single = padded(tasks).support
    one = Padded(single.x[0], single.y[0], single.mask[0])
    torch.testing.assert_close(own.adapt(one)(x[0]), own.adapt(tasks[0].support)(x[0]), rtol=0, atol=0)


# -- padding ----------------------------------------------------------------------------------------------------------


def layers(*names: str) -> nn.Module:
    made = {
        "batch norm": lambda: nn.BatchNorm1d(4),
        "layer norm": lambda: nn.LayerNorm(4),
        "attention": lambda: nn.TransformerEncoderLayer(4, 1, 4, dropout=0.0),
        "centered": Centered,
        "counting": Counting,
        "scaled": Scaled,
        "dropout": lambda: nn.Dropout(0.5),
    }
    torch.manual_seed(3)
    return nn.Sequential(*(made[name]() for name in names), nn.Linear(4, 3))


class Centered(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class Scaled(nn.Module):
    """Its outputs depend on the number of examples, not on the others."""

    def forward(self, x: Tensor) -> Tensor:
        return x / len(x)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += x.sum()
        return x + self.seen


def weighted(output: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(output, y, weight=torch.tensor([1.0, 2.0, 3.0]).double())


@pytest.mark.parametrize(
    ("names", "options", "pads"),
    [
        ((), {}, True),
        (("layer norm",), {}, True),
        (("batch norm",), {}, False),
        (("attention",), {}, False),  # which takes the first axis for time
        (("centered",), {}, False),
        (("counting",), {}, False),
        (("scaled",), {}, False),
        (("dropout",), {}, False),
        ((), {"loss": weighted}, False),
        ((), {"loss": nn.CrossEntropyLoss()}, True),
        ((), {"loss": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]).double())}, False),
        ((), {"inner_loss": weighted}, False),
        ((), {"batch_size": 3}, False),
        ((), {"vectorize": False}, False),
        ((), {"memory": "constant"}, True),
        ((), {"rule": il.Adam(0.01)}, True),
    ],
)
def test_padding_is_for_models_and_losses_that_go_example_by_example(
    names: Sequence[str], options: dict[str, Any], pads: bool
) -> None:
    tasks, model = classification(), layers(*names)
    options = {"steps": 2, **({} if "rule" in options else {"lr": 0.1}), **options}
    own, compare_with = il.maml(model, **options), il.maml(model, **{**options, "vectorize": False})
    found = own.meta_gradient(tasks)
    if "dropout" not in names:
        compare(found, alone(compare_with, tasks))
    assert any(name.startswith("groups unequal") for name in own.engine.plans.made) == pads


def test_targets_that_are_ignored_do_not_count_with_padding_either() -> None:
    tasks = classification()
    for task in tasks:
        task.support.y[-1] = task.query.y[0] = -100
    own = learner("maml", False)
    compare(own.meta_gradient(tasks), alone(learner("maml", False, vectorize=False), tasks))
    assert any(name.startswith("groups unequal") for name in own.engine.plans.made)


LOSSES: list[tuple[Any, str]] = [
    (F.mse_loss, "numbers"), (F.l1_loss, "numbers"), (F.smooth_l1_loss, "numbers"), (F.huber_loss, "numbers"),
    (F.binary_cross_entropy_with_logits, "shares"), (F.cross_entropy, "classes"), (F.cross_entropy, "shares"),
    (nn.MSELoss(), "numbers"), (nn.SmoothL1Loss(beta=0.3), "numbers"), (nn.HuberLoss(delta=0.3), "numbers"),
    (nn.BCEWithLogitsLoss(), "shares"), (nn.CrossEntropyLoss(ignore_index=1), "classes"),
]  # fmt: skip


@pytest.mark.parametrize(("loss", "kind"), LOSSES)
def test_losses_leave_out_what_fills_up(loss: Any, kind: str) -> None:
    output, mask = torch.randn(5, 3), torch.tensor([True, True, True, False, False])
    y = {"numbers": torch.randn(5, 3), "shares": torch.randn(5, 3).softmax(1), "classes": torch.tensor([0, 1, 2, 0, 1])}
    output[3] = float("inf")
    found = averaged(loss, output, Padded(None, y[kind], mask))
    torch.testing.assert_close(found, loss(output[:3], y[kind][:3]), rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    "loss",
    [
        nn.MSELoss(reduction="sum"), nn.BCEWithLogitsLoss(pos_weight=torch.ones(3)), nn.NLLLoss(), weighted,
        nn.CrossEntropyLoss(label_smoothing=0.1), lambda output, y: F.mse_loss(output, y),
        type("Own", (nn.MSELoss,), {})(),
    ],
)  # fmt: skip
def test_no_other_loss_is_known(loss: Any) -> None:
    assert terms_of(loss) is None


def test_a_model_is_asked_whether_it_ignores_what_fills_up() -> None:
    tasks = classification()
    for model, expected in ((net(), True), (Centered(), False), (nn.Flatten(0), False), (Scaled(), False)):
        assert ignores_padding(lambda x, model=model: (model(x), {}), tasks) == expected


# -- which tasks run together -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 2, 3, 5, 9])
def test_groups_fill_up_as_little_as_possible(number: int) -> None:
    """Compared with every way to cut the sorted tasks."""
    from itertools import combinations

    sizes = [(int(s), int(q)) for s, q in torch.randint(1, 20, (7, 2), generator=torch.Generator().manual_seed(number))]
    tasks = [il.Task(*(il.Batch(torch.zeros(n, 2), torch.zeros(n)) for n in pair)) for pair in sizes]
    groups = unequal.padded_groups(tasks, number)
    assert sorted(place for group in groups for place in group.places) == list(range(7))

    def cost(parts: Sequence[Sequence[tuple[int, int]]]) -> int:
        return sum(len(part) * (max(s for s, _ in part) + max(q for _, q in part)) for part in parts)

    order = sorted(range(7), key=lambda place: (sum(sizes[place]), place))
    ways = [
        [order[a:b] for a, b in zip((0, *cuts), (*cuts, 7), strict=True)]
        for few in range(min(number, 7))
        for cuts in combinations(range(1, 7), few)
    ]
    best = min(cost([[sizes[place] for place in part] for part in way]) for way in ways)
    assert cost([[sizes[place] for place in group.places] for group in groups]) == best


def test_examples_of_other_shapes_are_other_groups() -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(1, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(x.mean(1, keepdim=True))  # type: ignore[no-any-return]

    tasks = [*classification(SIZES[:3], features=4), *classification(SIZES[3:], features=2)]
    own, plain = (il.maml(Mean(), vectorize=vectorize) for vectorize in ("auto", False))
    plain.load_state_dict(own.state_dict())
    compare(own.meta_gradient(tasks), alone(plain, tasks))


def test_the_number_of_groups_is_measured_once(own_plans: None) -> None:
    own = learner("maml", False)
    own.meta_gradient(classification())
    (decision,) = [plan for name, plan in own.engine.plans.made.items() if name.startswith("groups")]
    again = learner("maml", False)
    again.meta_gradient(classification([(3, 4), (4, 9), (17, 2)]))
    assert [plan for name, plan in again.engine.plans.made.items() if name.startswith("groups")] == [decision]


# -- what is refused --------------------------------------------------------------------------------------------------


def test_lists_and_masks_that_are_none_are_refused() -> None:
    own, tasks = learner("maml", False), classification()
    with pytest.raises(ValueError, match="at least one task, got an empty list"):
        own.meta_gradient([])
    with pytest.raises(TypeError, match=r"list of tasks holds Task\(Batch\(x, y\), Batch\(x, y\)\).* got a tuple"):
        own.meta_gradient([tuple(tasks[0])])  # type: ignore[list-item]
    given = padded(tasks)
    for mask in (given.support.mask.long(), given.support.mask[:, 1:], torch.zeros_like(given.support.mask)):
        with pytest.raises(ValueError, match="mask of a padded set has a boolean for each example"):
            own.meta_gradient(il.Task(given.support._replace(mask=mask), given.query))


def test_masks_take_out_of_every_leaf() -> None:
    x = {"a": torch.arange(6.0).view(1, 6, 1), "b": torch.arange(6).view(1, 6)}
    part = Padded(x, None, torch.tensor([[True, False, True, True, False, False]]))
    (task,) = singles(il.Task(part, part))
    assert pytree.tree_map(Tensor.tolist, task.query.x) == {"a": [[0.0], [2.0], [3.0]], "b": [0, 2, 3]}
    assert task.query.y is None


class OneAnswer(nn.Module):
    """It gives five numbers for a whole set, however many examples that has."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.mean(0))  # type: ignore[no-any-return]


def test_outputs_that_are_not_of_examples_stay_whole() -> None:
    def loss(output: Tensor, y: Tensor) -> Tensor:
        return (output - y.double().mean()).square().mean()

    tasks = classification([(3, 2), (5, 3), (3, 2), (9, 8)])
    own, plain = (il.maml(OneAnswer(), 0.1, loss=loss, vectorize=vectorize) for vectorize in ("auto", False))
    plain.load_state_dict(own.state_dict())
    compare(own.meta_gradient(tasks), alone(plain, tasks))
    assert [output.shape for output in own.predict(tasks)] == [(2, 5)] * 4


def test_every_kind_of_example_is_examined_and_tried() -> None:
    """A model that centers images of one shape alone, and one that refuses these."""

    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(1, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = x - x.mean(0) if x.shape[1] == 2 else x
            return self.last(x.square().mean(1, keepdim=True))  # type: ignore[no-any-return]

    first, second = classification(SIZES[:4], features=4), classification(SIZES[:4], features=2)
    own, plain = (il.maml(Sometimes(), vectorize=vectorize) for vectorize in ("auto", False))
    plain.load_state_dict(own.state_dict())
    for tasks in (first, [*first, *second], second):
        compare(own.meta_gradient(tasks), alone(plain, tasks))


def test_inputs_that_are_all_the_same_do_not_tell() -> None:
    """A later meta-batch does."""
    tasks = classification()
    same = [il.Task(*(il.Batch(torch.ones_like(part.x), part.y) for part in task)) for task in tasks]
    for model, expected in ((Centered(), False), (nn.Identity(), True)):
        torch.manual_seed(0)
        whole = nn.Sequential(model, nn.Linear(4, 3))
        own, plain = (il.maml(whole, 0.1, vectorize=vectorize) for vectorize in ("auto", False))
        for given in (same, tasks):
            compare(own.meta_gradient(given), alone(plain, given))
        assert any(name.startswith("groups unequal") for name in own.engine.plans.made) == expected
