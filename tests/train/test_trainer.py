from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import re
import shutil
import signal
import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

import innerloop as il
from innerloop.engine import compiling
from innerloop.train import Interrupted, NonFiniteError, Trainer
from innerloop.train.progress import Progress
from innerloop.train.record import MACHINE_FIELDS
from innerloop.train.trainer import derive_seed
from tests.interrupting import MODELS, Interrupt, prepared


class WithDropout(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Dropout(0.2)), nn.Linear(8, 1)

    def forward(self, x):
        return self.head(self.body(x))


LEARNERS = {
    "maml": lambda: il.maml(WithDropout(), lr=0.01, steps=2, loss=F.mse_loss),
    "meta-sgd": lambda: il.meta_sgd(WithDropout(), lr=0.01, loss=F.mse_loss, vectorize=False),
    "reptile": lambda: il.reptile(WithDropout(), steps=3, loss=F.mse_loss),
}
OUTER = {
    "maml": {"clip": 1.0, "lr": il.schedules.cosine(1e-2, 1e-3, 30)},
    "meta-sgd": {"clip_norm": 1.0},
    "reptile": {"optimizer": "sgd", "lr": il.schedules.linear(1.0, 0.0, 30), "momentum": 0.5},
}


class Disturbed:
    """Sinusoids that do something at the n-th draw of a meta-batch."""

    def __init__(self, at=None, action=None):
        self.source, self.at, self.action, self.draws = il.Sinusoid(5), at, action, 0

    def sample(self, n, generator):
        self.draws += 1
        tasks = self.source.sample(n, generator)
        return self.action(tasks) if self.draws == self.at else tasks


def trainer(run, name="maml", source=None, **options):
    torch.manual_seed(0)
    options = {
        "iterations": 30, "tasks": 4, "validate_every": 7, "val_tasks": 5, "checkpoint_every": 5, "log_every": 3,
        "progress": False, **OUTER[name], **options,
    }  # fmt: skip
    return Trainer(LEARNERS[name](), source or il.Sinusoid(5), il.Sinusoid(5), run, **options)


def records(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{key: v for key, v in json.loads(line).items() if key not in MACHINE_FIELDS} for line in lines]


def final(run):
    """Everything in the last state but the time."""
    state = torch.load(sorted((run / "checkpoints").glob("state-*"))[-1], weights_only=True)
    del state["phases"]
    return state


def assert_equal(one, other):
    """Bit for bit."""
    (leaves, shape), (others, other_shape) = pytree.tree_flatten(one), pytree.tree_flatten(other)
    assert shape == other_shape
    for leaf, other_leaf in zip(leaves, others, strict=True):
        assert torch.equal(leaf, other_leaf) if isinstance(leaf, torch.Tensor) else leaf == other_leaf


def crash(tasks):
    raise MemoryError("killed")


def interrupt(tasks):
    os.kill(os.getpid(), signal.SIGINT)
    return tasks


class Points:
    """Tasks of `tests.interrupting`'s learners."""

    def sample(self, n, generator):
        x, y = torch.randn(n, 12, 3, generator=generator), torch.randint(0, 2, (n, 12), generator=generator)
        return il.Task(il.Batch(x[:, :6], y[:, :6]), il.Batch(x[:, 6:], y[:, 6:]))


def interrupt_training(model, points, folder):
    """Interrupt a training before any instruction of Python, then go on with it."""

    def begin(run):
        options = {"iterations": 4, "tasks": 3, "validate_every": 2, "val_tasks": 3, "checkpoint_every": 2}
        return Trainer(prepared(model), Points(), Points(), run, log_every=1, trace_every=0, progress=False, **options)

    def around():
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
        modes = torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack(), torch.is_grad_enabled()
        return torch.get_rng_state(), *modes, *handlers

    def files(run):
        return {str(path.relative_to(run)) for path in run.rglob("*")}

    generator = random.Random(model)
    begin(folder / "whole").fit()
    with Interrupt(None) as counted:
        begin(folder / "counted").fit()
    for point in range(points):
        first, before = begin(run := folder / str(point)), around()
        with contextlib.suppress(KeyboardInterrupt), Interrupt(generator.randrange(1, counted.count)):
            first.fit()
        del first
        gc.collect()
        assert_equal(around(), before)
        begin(run).fit(resume=True)
        assert_equal(final(run), final(folder / "whole"))
        assert records(run) == records(folder / "whole")
        assert files(run) == files(folder / "whole")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model", ["norms", "recurrent"])
def test_interrupted_anywhere_a_training_goes_on(model, tmp_path):
    interrupt_training(model, 2, tmp_path)


def test_a_run_that_ended_before_it_dropped_old_states_drops_them_later(tmp_path):
    trainer(tmp_path).fit()
    kept = sorted((tmp_path / "checkpoints").iterdir())
    shutil.copy(kept[-1], kept[-1].with_name("state-00000000.pt"))
    trainer(tmp_path).fit(resume=True)
    assert sorted((tmp_path / "checkpoints").iterdir()) == kept


@pytest.mark.filterwarnings("ignore:.*falling back")
def test_a_state_to_fall_back_to_is_kept(tmp_path):
    trainer(tmp_path, iterations=10).fit()
    readable, newest = sorted((tmp_path / "checkpoints").glob("state-*"))
    damaged = [newest, newest.with_name("state-00000011.pt")]
    for path in damaged:
        path.write_bytes(b"damaged")
    with pytest.raises(ValueError, match="was started with another"):
        trainer(tmp_path, iterations=12, config={"other": 1}).fit(resume=True)
    assert readable.exists()
    assert trainer(tmp_path, iterations=12).fit(resume=True).iterations == 12


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model", MODELS)
def test_interrupted_at_sixty_points_each_a_training_goes_on(model, tmp_path):
    interrupt_training(model, 60, tmp_path)


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize(("action", "error"), [(crash, MemoryError), (interrupt, Interrupted)])
def test_interrupted_then_resumed_equals_undisturbed(tmp_path, name, action, error):
    whole = trainer(tmp_path / "whole", name)
    result = whole.fit()
    run = tmp_path / "disturbed"
    for at in (4, 9, 3, 12):
        with pytest.raises(error):
            trainer(run, name, Disturbed(at, action)).fit(resume=True)
    again = trainer(run, name)
    assert again.fit(resume=True).best == result.best
    assert_equal(final(run), final(tmp_path / "whole"))
    assert_equal(again.learner.state_dict(), whole.learner.state_dict())
    assert records(run) == records(tmp_path / "whole")
    assert not list(run.rglob(".innerloop-*"))


def test_resuming_after_the_newest_checkpoint_is_damaged(tmp_path):
    whole, run = tmp_path / "whole", tmp_path / "run"
    trainer(whole).fit()
    with pytest.raises(MemoryError):
        trainer(run, source=Disturbed(23, crash)).fit()
    newest = sorted((run / "checkpoints").glob("state-*"))[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "iter')
    with pytest.warns(UserWarning, match="falling back"):
        trainer(run).fit(resume=True)
    assert_equal(final(run), final(whole))
    assert records(run) == records(whole)


def test_a_finished_run_resumes_to_itself(tmp_path):
    result = trainer(tmp_path).fit()
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.pt")} | {0: records(tmp_path)}
    assert trainer(tmp_path).fit(resume=True).best == result.best
    assert {p: p.read_bytes() for p in tmp_path.rglob("*.pt")} | {0: records(tmp_path)} == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_iteration_and_saves(tmp_path, number):
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]

    def send(tasks):
        os.kill(os.getpid(), number)
        return tasks

    with pytest.raises(Interrupted, match=r"after iteration 4; resume from .* with fit\(resume=True\)") as caught:
        trainer(tmp_path, source=Disturbed(4, send)).fit()
    assert caught.value.signal == number
    assert final(tmp_path)["iteration"] == 4
    assert handlers == [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]


def test_a_second_signal_stops_at_once(tmp_path):
    def twice(tasks):
        for _ in range(2):  # raised in this thread: two that come from outside may be taken for one
            signal.raise_signal(signal.SIGINT)
        return tasks

    # What is begun in the background of a shell ignores Ctrl-C, and then so does Python.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt) as caught:
            trainer(tmp_path, source=Disturbed(4, twice)).fit()
    finally:
        signal.signal(signal.SIGINT, before)
    assert not isinstance(caught.value, Interrupted)


def test_training_in_a_thread(tmp_path):
    thread = threading.Thread(target=trainer(tmp_path).fit)
    thread.start()
    thread.join()
    assert final(tmp_path)["iteration"] == 30


def test_an_existing_run_is_refused_untouched(tmp_path):
    trainer(tmp_path).fit()
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(FileExistsError, match=r"already holds a run: resume it \(fit\(resume=True\)\) or use another"):
        trainer(tmp_path, iterations=40).fit()
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_metrics_without_a_checkpoint_are_not_overwritten(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "iteration": 1}\n')
    with pytest.raises(FileNotFoundError, match="metrics but no checkpoint"):
        trainer(tmp_path).fit(resume=True)
    assert (tmp_path / "metrics.jsonl").read_text()


def poison(*indices):
    def action(tasks):
        for index in indices:
            tasks.query.y[index, 0] = float("nan")
        return tasks

    return action


@pytest.mark.parametrize(("indices", "names"), [((2,), "task 2"), ((1, 3), "tasks 1, 3")])
def test_a_non_finite_loss_stops_before_the_update(tmp_path, indices, names):
    spoilt = trainer(tmp_path / "run", source=Disturbed(8, poison(*indices)))
    with pytest.raises(NonFiniteError, match=rf"iteration 8: the loss of {names} \(.*that of iteration 5") as caught:
        spoilt.fit()
    assert "failed_task.pt" in str(caught.value)
    failed = torch.load(tmp_path / "run" / "failed_task.pt", weights_only=True)
    assert failed["iteration"] == 8
    assert failed["tasks"]["support"]["x"].shape == (len(indices), 5, 1)
    assert failed["tasks"]["query"]["y"].isnan().any(1).all()
    good = trainer(tmp_path / "good", iterations=7)
    good.fit()
    assert_equal(failed["learner"], final(tmp_path / "good")["learner"])
    assert_equal(spoilt.learner.state_dict(), failed["learner"])
    assert final(tmp_path / "run")["iteration"] == 5
    assert trainer(tmp_path / "run").fit(resume=True).iterations == 30


class RootLoss(nn.Module):
    """Finite, without a finite gradient where a target says so."""

    def forward(self, output, y):
        return (output - output.detach()).abs().sqrt().mean() if y.max() > 99 else (output - y).square().mean()


def test_a_non_finite_gradient_names_its_task():
    def action(tasks):
        tasks.query.y[1] = 100.0
        return tasks

    learner = il.fomaml(il.models.mlp(1, 4, 1), loss=RootLoss(), vectorize=False)
    before = {name: tensor.clone() for name, tensor in learner.state_dict().items()}
    with pytest.raises(NonFiniteError, match="iteration 1: the gradient of task 1 "):
        Trainer(learner, Disturbed(1, action), iterations=3, tasks=4, progress=False).fit()
    assert_equal(before, dict(learner.state_dict()))


def test_without_a_run_directory_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = trainer(None).fit()
    assert (result.iterations, result.best) == (30, ())
    assert list(tmp_path.iterdir()) == []


def test_the_records(tmp_path):
    result = trainer(tmp_path).fit()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["kind"] == "train"]
    validations = [line for line in lines if line["kind"] == "validation"]
    assert [line["iteration"] for line in train] == list(range(3, 31, 3))
    assert [line["iteration"] for line in validations] == [7, 14, 21, 28, 30]
    for key in ("objective", "loss", "steps", "grad_norm", "tasks_per_second", "lr", "seconds"):
        assert key in train[0]
    assert len(train[0]["steps"]) == 2
    assert train[0]["lr"] == pytest.approx(il.schedules.cosine(1e-2, 1e-3, 30)(2))
    assert {"metric", "mean", "ci95", "num_tasks", "steps", "transductive"} <= set(validations[0])
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["iterations"] == 30
    assert results["validation"] == list(result.best)
    assert results["environment"]["torch"] == torch.__version__


def test_the_learner_ends_with_the_best_validated_weights(tmp_path):
    run = trainer(tmp_path)
    result = run.fit()
    best = result.best[0]
    assert best["score"] == min(r["mean"] for r in records(tmp_path) if r["kind"] == "validation")
    assert result.validation.mean == best["score"]
    again = il.evaluate(run.learner, il.Sinusoid(5), num_tasks=5, seed=derive_seed("validation", 0))
    assert again.mean == best["score"]


def test_a_validation_that_is_not_finite_is_commented_on(capsys):
    learner = il.maml(il.models.mlp(1, 8, 1), lr=5.0, loss=F.mse_loss)
    Trainer(learner, il.Sinusoid(5), il.Sinusoid(5), iterations=2, val_tasks=2, val_steps=300).fit()
    assert "the validation score is not finite, so these weights are not among the best" in capsys.readouterr().err


def test_validation_does_not_change_what_is_learned(tmp_path):
    trainer(tmp_path / "a").fit()
    trainer(tmp_path / "b", validate_every=30).fit()
    assert_equal(final(tmp_path / "a")["learner"], final(tmp_path / "b")["learner"])


def test_global_random_state_is_left_alone(tmp_path):
    one = trainer(tmp_path)
    before = torch.get_rng_state()
    one.fit()
    assert torch.equal(before, torch.get_rng_state())


def test_seeds_of_different_purposes_differ():
    seeds = {derive_seed(purpose, seed) for purpose in ("tasks", "validation", "learner") for seed in range(10)}
    assert len(seeds) == 30


def test_reptile_moves_to_the_adapted_parameters():
    torch.manual_seed(0)
    learner = il.reptile(il.models.mlp(1, 1), rule=il.SGD(0.1), loss=F.mse_loss)
    source = il.Sinusoid(5)
    tasks = source.sample(1, torch.Generator().manual_seed(derive_seed("tasks", 0)))
    adapted = learner.adapt(il.Batch(tasks.support.x[0], tasks.support.y[0])).parameters
    Trainer(learner, source, iterations=1, tasks=1, optimizer="sgd", lr=1.0, progress=False).fit()
    for name, parameter in learner.model.named_parameters():
        torch.testing.assert_close(parameter.detach(), adapted[name])


def test_clipping_limits_the_step():
    learner = il.maml(il.models.mlp(1, 8, 1), loss=F.mse_loss)
    before = {name: tensor.clone() for name, tensor in learner.state_dict().items()}
    options = {"iterations": 1, "tasks": 4, "optimizer": "sgd", "lr": 1.0, "progress": False}
    Trainer(learner, il.Sinusoid(5), clip=0.01, **options).fit()
    moves = [(tensor - before[name]).abs().max() for name, tensor in learner.model.state_dict(prefix="model.").items()]
    assert max(moves) == pytest.approx(0.01, rel=1e-3)
    Trainer(learner, il.Sinusoid(5), clip_norm=0.1, **options).fit()


def test_an_optimizer_of_ones_own():
    made = []

    def optimizer(parameters):
        made.append(torch.optim.AdamW(parameters, weight_decay=0.1))
        return made[0]

    Trainer(LEARNERS["maml"](), il.Sinusoid(5), iterations=2, optimizer=optimizer, progress=False).fit()
    assert len(made[0].state) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": -1}, "iterations must be at least 0, got -1"),
        ({"tasks": 0}, "tasks must be at least 1"),
        ({"val_tasks": 1}, "val_tasks must be at least 2"),
        ({"clip": -1.0}, "clip must be"),
        ({"optimizer": "adamw"}, '"adam", "sgd" or a function'),
        ({"optimizer": "adam", "momentum": 0.9}, "momentum"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        trainer(None, **options)


def test_resuming_as_another_learner_is_refused(tmp_path):
    trainer(tmp_path).fit()
    other = Trainer(il.maml(il.models.mlp(1, 9, 1), loss=F.mse_loss), il.Sinusoid(5), run=tmp_path, progress=False)
    with pytest.raises(ValueError, match="from another learner or optimizer"):
        other.fit(resume=True)


def test_going_on_elsewhere_is_said(tmp_path, monkeypatch):
    trainer(tmp_path, iterations=10).fit()
    real = il.train.trainer.environment
    monkeypatch.setattr(il.train.trainer, "environment", lambda device: {**real(device), "torch": "9.9"})
    with pytest.warns(UserWarning, match=r"was computed with torch .*, now 9.9: results will be the same only"):
        trainer(tmp_path, iterations=12).fit(resume=True)


def test_plain_lines_of_progress(tmp_path, capsys):
    trainer(tmp_path, progress=True).fit()
    out, err = capsys.readouterr()
    assert out == ""
    assert "iteration 30/30" in err
    assert "tasks/s" in err
    assert "validation: mse" in err
    assert "inductive" in err


@pytest.mark.parametrize("vectorize", ["auto", True, False, 2])
def test_the_time_to_come_is_told_once_it_is_known(vectorize, capsys, monkeypatch):
    monkeypatch.setattr("innerloop.train.progress.WORTH", 0.0)
    learner = il.maml(il.models.mlp(1, 8, 1), lr=0.01, loss=F.mse_loss, vectorize=vectorize, compile=False)
    Trainer(learner, il.Sinusoid(5), iterations=60, tasks=4).fit()
    told = [line for line in capsys.readouterr().err.splitlines() if "s per iteration" in line]
    assert len(told) == 1
    (left,) = re.match(
        r"\S+ s per iteration, ETA \d+:\d\d:\d\d for (\d+) iterations, without validations$", told[0]
    ).groups()
    assert int(left) == 49  # after ten iterations, without the first one, which finds the plan


@pytest.mark.parametrize(("seconds", "told"), [(1.5, True), (1.0, False)])
def test_the_time_to_come_is_that_of_ten_iterations_if_it_is_more_than_a_minute(seconds, told, capsys):
    progress = Progress(60)
    for iteration in range(1, 61):
        progress.timed(iteration, seconds if iteration <= 10 else 9.0)
    expected = f"{seconds:g} s per iteration, ETA 0:01:15 for 50 iterations, without validations\n"
    assert capsys.readouterr().err == (expected if told else "")


class Weighted(nn.Module):
    """A loss with a tensor of its own."""

    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.tensor(2.0))

    def forward(self, output, y):
        return (self.weight * (output - y).square()).mean()


class Twice(nn.Module):
    """A layer under two names, and a temperature that is no tensor."""

    def __init__(self):
        super().__init__()
        self.first, self.head, self.temperature = nn.Linear(1, 8), nn.Linear(8, 1), 2.0
        self.middle = self.again = nn.Linear(8, 8)

    def forward(self, x):
        return self.head(self.again(self.middle(self.first(x).tanh()).tanh()).tanh()) / self.temperature


class Cooler:
    """Changes a number that the model reads, as a schedule does."""

    def __init__(self, model):
        self.model = model

    def begin(self, run, config, iteration):
        pass

    def log(self, iteration, values):
        if iteration == 40:
            self.model.temperature = 1.5

    def close(self):
        pass


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="TorchInductor needs a C++ compiler")
@pytest.mark.usefixtures("double")
def test_a_trainer_compiles_by_itself_and_trains_as_it_does_eagerly(monkeypatch):
    monkeypatch.setattr(compiling, "SECONDS_PER_OPERATION", 1e-6)  # so that few steps are enough to make up for it
    monkeypatch.setattr(compiling, "_eagerly", lambda step: 0.01)  # seconds, whatever else the machine does
    monkeypatch.setattr(compiling, "OTHERS", 0.0)
    monkeypatch.setattr(compiling, "_seconds", lambda call: 0.0)
    found = {}
    for compile in ("auto", False):
        torch.manual_seed(0)
        model = Twice()
        learner = il.maml(model, 0.01, loss=Weighted(), steps=5, vectorize=True, compile=compile)
        Trainer(
            learner, il.data.Sinusoid(), tasks=4, iterations=500, log_every=1, loggers=[Cooler(model)], progress=False
        ).fit()
        assert model.middle is model.again
        assert type(learner.loss.weight) is torch.Tensor
        found[compile] = [p.detach().clone() for p in learner.parameters()], learner.choices
    assert sum("compiled in" in choice for choice in found["auto"][1]) == 2  # and again after the temperature changed
    torch.testing.assert_close(found["auto"][0], found[False][0], rtol=1e-7, atol=1e-9)
