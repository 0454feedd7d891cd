from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import copy_context
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import innerloop as il
from innerloop.common.interrupts import Lock, releasing
from innerloop.functional import turns
from innerloop.testing import check_rule
from tests.interrupting import Interrupt
from tests.locks import others_can_take


class Left:
    """A context manager that fails when it is left by an interrupt, as one does that was not wholly entered."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is KeyboardInterrupt:
            raise AssertionError("not entered")


class Interrupted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.after = nn.Linear(2, 1), 3

    def forward(self, x: Tensor) -> Tensor:
        self.after -= 1
        with Left():
            if not self.after:
                raise KeyboardInterrupt
            output: Tensor = self.layer(x)
            return output


CALLS: tuple[Callable[[il.MetaLearner, il.Task], Any], ...] = (
    lambda learner, tasks: learner.meta_gradient(tasks),
    lambda learner, tasks: learner.predict(tasks),
    lambda learner, tasks: learner.adapt_all(tasks.support)(tasks.query.x),
    lambda learner, tasks: learner.adapt(il.task.select(tasks, 0).support),
)


@pytest.mark.parametrize("call", CALLS)
def test_an_error_that_an_interrupt_led_to_is_no_error_of_the_model(
    call: Callable[..., Any], regression: Callable[..., il.Task]
) -> None:
    """It was taken for one, and the tasks ran once more one by one, from then on."""
    tasks = regression()
    for after in range(1, 30):
        learner = il.maml(model := Interrupted(), loss=F.mse_loss, steps=2)
        model.after = after
        try:
            call(learner, tasks)
        except KeyboardInterrupt:
            assert learner.engine.vectorized
        else:
            break
    assert 2 < after < 29


def test_a_call_from_where_an_interrupt_is_handled_has_errors_of_its_own(regression: Callable[..., il.Task]) -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 1)

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.layer(x)
            return output if float(x.mean()) > 0 else -output

    learner = il.maml(Reads(), loss=F.mse_loss)
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        with pytest.warns(UserWarning, match="one by one"):
            learner.meta_gradient(regression(8))
        with pytest.raises(RuntimeError, match="shape"):
            learner.predict(il.task.Task(*(il.Batch(torch.ones(2, 3, 9), b.y[:2, :3]) for b in regression())))


def test_an_error_while_a_generator_closes_is_no_interrupt(regression: Callable[..., il.Task]) -> None:
    class Closes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 1)

        def forward(self, x: Tensor) -> Tensor:
            def steps() -> Iterator[None]:
                try:
                    yield
                finally:
                    self.positive = float(x.mean()) > 0

            running = steps()
            next(running)
            running.close()
            output: Tensor = self.layer(x)
            return output

    with pytest.warns(UserWarning, match="one by one"):
        il.maml(Closes(), loss=F.mse_loss).meta_gradient(regression(8))


def test_a_rule_is_checked_where_an_interrupt_is_handled() -> None:
    class Reads(il.SGD):
        def forward(self, grads: Any, params: Any, state: Any, step: int) -> Any:
            size = sum(float(grad.norm()) for grad in grads.values())
            updates, state = super().forward(grads, params, state, step)
            return {name: update / (1 + size) for name, update in updates.items()}, state

    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        with pytest.warns(UserWarning, match="one by one"):
            check_rule(Reads(0.1))


def test_no_interrupt_leaves_a_lock_or_a_turn_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """At any instruction: also between acquiring a lock and entering its block, or at the end of the block."""
    lock = Lock()

    def work() -> None:
        with turns.Turn(), lock, lock:
            pass

    def call() -> None:
        copy_context().run(releasing, lambda: releasing(work))

    with Interrupt(None) as whole:
        call()
    assert whole.count > 100
    kept = 0
    for point in range(1, whole.count + 1):
        with contextlib.suppress(KeyboardInterrupt), Interrupt(point):
            call()
        assert others_can_take(lock), point
        assert others_can_take(turns._lock), point
        assert not turns._working, point
        with contextlib.suppress(KeyboardInterrupt), Interrupt(point):
            copy_context().run(work)
        kept += not (others_can_take(lock) and others_can_take(turns._lock))
        lock._release()
        turns._lock._release()
        turns._working.clear()
    assert kept, "the same without `releasing` keeps some"


def test_a_lock_is_kept_while_a_call_around_it_runs() -> None:
    lock = Lock()

    def around() -> None:
        with lock:
            releasing(lambda: None)
            assert not others_can_take(lock)

    copy_context().run(releasing, around)
    assert others_can_take(lock)


def test_a_lock_taken_outside_of_any_call_is_kept() -> None:
    lock = Lock()
    with lock:
        copy_context().run(releasing, lambda: None)
        assert not others_can_take(lock)
    assert others_can_take(lock)
