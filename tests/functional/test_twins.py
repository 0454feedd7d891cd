"""One learner, used from several threads."""

from __future__ import annotations

import copy
import pickle
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import innerloop as il
from innerloop.functional import turns, twins
from innerloop.functional.attention import by_mathematics
from innerloop.task import select
from tests.functional.test_undisturbed import assert_equal, surroundings
from tests.interrupting import Attending, Looping, Recurring
from tests.locks import Noting


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(-1, (1, 3)),
        nn.Conv1d(1, 4, 3, padding=1),
        nn.BatchNorm1d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12, 2),
    )


class Sharing(nn.Module):
    """The loss uses a layer of the model; a list keeps tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop, self.second = nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(hidden := self.drop(torch.tanh(self.first(x))))
        output: Tensor = self.second(hidden + 0 * self.seen[-1])
        return output


MODELS: dict[str, Callable[[], nn.Module]] = {
    "convolutions": convolutions,
    "attention": Attending,
    "recurrent": Recurring,
    "by a list": Looping,
    "keeps tensors": Sharing,
}
NUMBER = 6


def tasks() -> il.Task:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(NUMBER, 12, 3, generator=generator), torch.randint(0, 2, (NUMBER, 12), generator=generator)
    return il.Task(il.Batch(x[:, :8], y[:, :8]), il.Batch(x[:, 8:], y[:, 8:]))


def learner(model: str, vectorize: Any = "auto") -> il.MetaLearner:
    torch.manual_seed(0)
    order = il.fomaml if model == "attention" else il.maml
    return order(MODELS[model](), 0.1, steps=2, loss=nn.CrossEntropyLoss(weight=torch.ones(2)), vectorize=vectorize)


def answers(maml: il.MetaLearner) -> list[Callable[[], Any]]:
    every = tasks()
    one = lambda i: maml.adapt(select(every, i).support)(every.query.x[i])  # noqa: E731
    return [
        *(lambda i=i: one(i) for i in range(NUMBER)),
        lambda: maml.predict(every),
        lambda: maml.adapt_all(every.support)(every.query.x),
    ]


def used_from_threads(maml: il.MetaLearner, threads: int, seconds: float, least: int) -> list[str]:
    """Ask one learner from several threads at the same time; what was wrong."""
    asked = answers(maml)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected, wrong, stop = [ask() for ask in asked], list[str](), time.monotonic() + seconds

        def work(start: int) -> None:
            number = start
            try:
                while number < start + least or time.monotonic() < stop:
                    index = number % len(asked)
                    if not torch.allclose(found := asked[index](), expected[index], atol=1e-5):
                        wrong.append(f"{index}: off by {float((found - expected[index]).abs().max())}")
                    number += 1
            except Exception as error:
                wrong.append(repr(error))

        workers = [threading.Thread(target=work, args=(index,)) for index in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        for ask, value in zip(asked, expected, strict=True):
            torch.testing.assert_close(ask(), value, atol=1e-5, rtol=1e-5)
    return wrong


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("vectorize", ["auto", True, False, (2, 2)])
@pytest.mark.parametrize("model", MODELS)
def test_answers_are_right_from_any_number_of_threads(model: str, vectorize: Any) -> None:
    if model in ("recurrent", "by a list") and vectorize not in ("auto", False):
        pytest.skip("cannot be vectorized")
    maml = learner(model, vectorize)
    before = surroundings(maml)
    assert used_from_threads(maml, 4, 0, 2 * NUMBER) == []
    after = surroundings(maml)
    after["random"] = before["random"]  # which dropout off does not touch, but looking at a first task in threads may
    assert_equal(after, before)


class Meeting(nn.Module):
    """Keeps tensors in a list, or does not, and counts how many threads are in its code at the same time."""

    def __init__(self, keeps: bool) -> None:
        super().__init__()
        self.layer, self.keeps = nn.Linear(3, 2), keeps
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        with COUNTING:
            INSIDE.append(threading.get_ident())
            MOST.append(len(set(INSIDE)))
        output: Tensor = self.layer(x)
        if self.keeps:
            self.seen.append(output)
        time.sleep(0.01)  # others come here meanwhile, if they may
        with COUNTING:
            INSIDE.remove(threading.get_ident())
        return self.seen[-1] if self.keeps else output


COUNTING, INSIDE, MOST = threading.Lock(), list[int](), list[int]()


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("keeps", [True, False])
def test_calls_wait_for_each_other_if_a_model_keeps_tensors_in_a_list(
    monkeypatch: pytest.MonkeyPatch, keeps: bool, steps: int
) -> None:
    monkeypatch.setattr(turns, "CORES", 4)
    torch.manual_seed(0)
    maml, every = il.maml(Meeting(keeps), 0.1, steps=steps, vectorize=False), tasks()
    maml.predict(every)
    assert maml._shared.separable != keeps
    MOST.clear()
    workers = [threading.Thread(target=maml.predict, args=(every,)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert max(MOST) == 1 or not keeps


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("vectorize", ["auto", True, False, (2, 2)])
def test_a_minute_of_eight_threads(vectorize: Any) -> None:
    models = [model for model in MODELS if model not in ("recurrent", "by a list") or vectorize in ("auto", False)]
    for model in models:
        maml = learner(model, vectorize)
        before = surroundings(maml)
        assert used_from_threads(maml, 8, 60 / len(models), 8) == []
        after = surroundings(maml)
        after["random"] = before["random"]
        assert_equal(after, before)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model", ["convolutions", "keeps tensors"])
def test_threads_that_meet_at_a_fresh_learner_examine_a_task_once(monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    threads, maml, one = 4, learner(model), select(tasks(), 0)
    expected = learner(model).adapt(one.support)(one.query.x)
    monkeypatch.setattr(turns, "CORES", threads)
    lock, examined, found = Noting(threads), list[int](), list[Tensor]()
    monkeypatch.setitem(twins._locks, maml.model, lock)
    examine_first = il.MetaLearner._examine_first

    def examine(self: il.MetaLearner, *args: Any) -> None:
        lock.note()
        examined.append(threading.get_ident())
        assert lock.complete.wait(600)  # all threads wait for this one, or have come here, too
        examine_first(self, *args)

    monkeypatch.setattr(il.MetaLearner, "_examine_first", examine)
    workers = [
        threading.Thread(target=lambda: found.append(maml.adapt(one.support)(one.query.x))) for _ in range(threads)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(examined) == 1
    assert len(found) == threads
    for answer in found:
        torch.testing.assert_close(answer, expected)
    maml.adapt(il.Batch(one.support.x[:-1], one.support.y[:-1]))
    assert len(examined) == 2  # a task of another shape


def test_training_and_predicting_at_the_same_time() -> None:
    maml, every = learner("convolutions"), tasks()
    expected, gradients = maml.predict(every), maml.meta_gradient(every)[0]
    wrong, done = list[bool](), threading.Event()

    def predict() -> None:
        while not done.is_set():
            wrong.append(not torch.allclose(maml.predict(every), expected, atol=1e-5))

    worker = threading.Thread(target=predict)
    worker.start()
    for _ in range(20):
        found = maml.meta_gradient(every)[0]
        wrong.append(any(not torch.allclose(found[n], g, atol=1e-5) for n, g in gradients.items()))
    done.set()
    worker.join()
    assert not any(wrong)


def test_what_a_call_sets_of_plain_attributes_stays() -> None:
    class Counting(nn.Linear):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.last = super().forward(x)
            return self.last

    maml = il.maml(model := Counting(3, 1), loss=F.mse_loss)
    support = il.Batch(torch.randn(4, 3), torch.randn(4, 1))
    adapted = maml.adapt(support)
    calls = model.calls
    adapted(support.x)
    assert model.calls == calls + 1
    assert "last" not in vars(model)


def test_changes_of_the_model_between_calls_are_seen() -> None:
    maml, every = learner("convolutions"), tasks()
    one = select(every, 0)
    before = maml.adapt(one.support)(one.query.x)
    maml.model[3] = nn.Tanh()
    changed = maml.adapt(one.support)(one.query.x)
    assert not torch.allclose(before, changed)
    handle = maml.model[0].register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))
    assert not torch.allclose(changed, maml.adapt(one.support)(one.query.x))
    handle.remove()
    torch.testing.assert_close(maml.adapt(one.support)(one.query.x), changed)
    maml.model[5].weight = nn.Parameter(torch.zeros(2, 12))
    assert not torch.allclose(changed, maml.adapt(one.support)(one.query.x))


def test_copies_and_pickles_have_locks_of_their_own() -> None:
    maml, every = learner("convolutions"), tasks()
    expected = maml.predict(every)
    for other in (copy.deepcopy(maml), pickle.loads(pickle.dumps(maml))):
        torch.testing.assert_close(other.predict(every), expected)
        assert other._shared.model is other.model
        assert other._shared.lock is not maml._shared.lock


class ByName(nn.Module):
    """Its code reaches its layers through a global variable."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = BY_NAME["model"].second(torch.tanh(BY_NAME["model"].first(x)))
        return output


BY_NAME: dict[str, Any] = {}


@pytest.mark.parametrize("call", ["adapt", "predict", "adapt_all"])
def test_code_that_leads_to_the_originals_still_sees_what_is_adapted(call: str) -> None:
    torch.manual_seed(0)
    model, x, y = ByName(), torch.randn(2, 6, 3), torch.randn(2, 6, 1)
    BY_NAME["model"] = model
    maml = il.maml(model, 0.1, steps=3, loss=F.mse_loss)
    params = dict(model.named_parameters())
    for _ in range(3):
        loss = F.mse_loss(torch.func.functional_call(model, params, (x[0],)), y[0])
        grads = torch.autograd.grad(loss, list(params.values()))
        params = {n: p - 0.1 * g for (n, p), g in zip(params.items(), grads, strict=True)}
    expected = torch.func.functional_call(model, params, (x[0],))
    batch = il.Batch(x, y)
    found = {
        "adapt": lambda: maml.adapt(il.Batch(x[0], y[0]))(x[0]),
        "predict": lambda: maml.predict(il.Task(batch, batch))[0, -1],
        "adapt_all": lambda: maml.adapt_all(batch)(x)[0],
    }[call]()
    torch.testing.assert_close(found, expected)


def test_a_loss_that_uses_a_layer_of_the_model_sees_its_mode() -> None:
    """In predictions, dropout is off there, too."""
    model = nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5)), nn.Linear(4, 1))
    model[0].requires_grad_(False)
    x, y = torch.randn(6, 3), torch.randn(6, 1)
    loss = lambda output, y: F.mse_loss(output, y) + output.mean() * model[0](x).square().mean()  # noqa: E731
    maml = il.MetaLearner(model, il.SGD(0.1), il.head, loss=loss, steps=2)
    first, again = (maml.adapt(il.Batch(x, y)).losses for _ in range(2))
    assert torch.equal(first, again)


def test_the_switch_of_attention_is_restored_by_the_last_thread() -> None:
    inside, leave = threading.Barrier(3), threading.Event()

    def stay() -> None:
        with by_mathematics, by_mathematics:
            inside.wait()
            leave.wait()

    before = torch.backends.cuda.flash_sdp_enabled()
    assert before
    workers = [threading.Thread(target=stay) for _ in range(2)]
    for worker in workers:
        worker.start()
    inside.wait()
    with by_mathematics:
        assert not torch.backends.cuda.flash_sdp_enabled()
    assert not torch.backends.cuda.flash_sdp_enabled()
    leave.set()
    for worker in workers:
        worker.join()
    assert torch.backends.cuda.flash_sdp_enabled()
