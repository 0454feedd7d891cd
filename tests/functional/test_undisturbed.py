"""After a call that an error or an interrupt ends, at whatever moment, everything is as it was."""

from __future__ import annotations

import gc
import random
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as hooks

import innerloop as il
from innerloop.common import private
from innerloop.functional import attention, turns, twins
from innerloop.functional.attention import by_mathematics
from innerloop.task import select
from tests.interrupting import MODELS, Interrupt, prepared
from tests.locks import others_can_take


def source() -> Any:
    class Points:
        def sample(self, n: int, generator: torch.Generator) -> il.Task:
            x, y = torch.randn(n, 12, 3, generator=generator), torch.randint(0, 2, (n, 12), generator=generator)
            return il.Task(il.Batch(x[:, :6], y[:, :6]), il.Batch(x[:, 6:], y[:, 6:]))

    return Points()


TASKS = source().sample(4, torch.Generator().manual_seed(0))
CALLS: dict[str, Callable[[il.MetaLearner], Any]] = {
    "meta_gradient": lambda learner: learner.meta_gradient(TASKS),
    "forward": lambda learner: learner(TASKS),
    "predict": lambda learner: learner.predict(TASKS),
    "adapt": lambda learner: learner.adapt(select(TASKS, 0).support)(TASKS.query.x[0]),
    "adapt_all": lambda learner: learner.adapt_all(TASKS.support)(TASKS.query.x),
    "evaluate": lambda learner: il.evaluate(learner, source(), num_tasks=4),
}


def surroundings(learner: il.MetaLearner) -> dict[str, Any]:
    """Everything that a call must leave alone, as values to compare."""
    modules = dict(learner.named_modules())
    return {
        "tensors": {n: (id(t), t.clone(), t.grad) for n, t in (*learner.named_parameters(), *learner.named_buffers())},
        "modes": {name: module.training for name, module in modules.items()},
        "attributes": {name: sorted(vars(module)) for name, module in modules.items()},
        "hooks": {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in modules.items()},
        "global hooks": (len(hooks._global_forward_hooks), len(hooks._global_forward_pre_hooks)),
        "grad": torch.is_grad_enabled(),
        "function modes": torch._C._len_torch_function_stack(),
        "dispatch modes": torch._C._len_torch_dispatch_stack(),
        "transforms": private.transform_depth(),
        "random": torch.get_rng_state(),
        "attention": (torch.backends.cuda.flash_sdp_enabled(), by_mathematics.depth),
        "autocast": torch.is_autocast_enabled("cpu"),
        "collecting": gc.isenabled(),
        "profile": sys.getprofile(),
        "locks": [
            others_can_take(lock) for lock in (attention._lock, twins._making, turns._lock, learner._shared.lock)
        ],
        "turns": turns._working.copy(),
    }


def assert_equal(found: Any, expected: Any, where: str = "") -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key, value in expected.items():
            assert_equal(found[key], value, f"{where} {key}")
    elif isinstance(expected, tuple | list):
        assert len(found) == len(expected), where
        for a, b in zip(found, expected, strict=True):
            assert_equal(a, b, where)
    elif isinstance(expected, Tensor):
        assert torch.equal(found, expected), where
    else:
        assert found == expected or (found is expected), f"{where}: {found} != {expected}"


def interrupt(model: str, call: str, points: int, generator: random.Random) -> None:
    learner, run = prepared(model), CALLS[call]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fresh = bool(generator.getrandbits(1))
        if not fresh:
            run(learner)
        with Interrupt(None) as whole:
            run(prepared(model) if fresh else learner)
        learner = prepared(model)
        torch.manual_seed(1)
        expected = result(run, learner)
        for _ in range(points):
            learner = prepared(model)
            if not fresh:
                run(learner)
            torch.manual_seed(1)
            before = surroundings(learner)
            try:
                with Interrupt(generator.randrange(1, whole.count)):
                    run(learner)
            except KeyboardInterrupt:
                gc.collect()
                assert_equal(surroundings(learner), before, f"{model} {call}")
            torch.manual_seed(1)
            assert_equal(result(run, learner), expected, f"{model} {call}, afterwards")


def result(run: Callable[[il.MetaLearner], Any], learner: il.MetaLearner) -> list[Tensor]:
    found = run(learner)
    values = found if isinstance(found, Tensor | tuple) else vars(found)
    leaves = torch.utils._pytree.tree_leaves(values)
    return [leaf.detach() for leaf in leaves if isinstance(leaf, Tensor)]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("call", CALLS)
def test_interrupts_leave_everything_as_it_was(model: str, call: str) -> None:
    interrupt(model, call, 3, random.Random(f"{model} {call}"))


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_two_thousand_interrupts_leave_everything_as_it_was(model: str) -> None:
    generator = random.Random(0)
    for call in CALLS:
        for _ in range(8):
            interrupt(model, call, 2000 // (8 * len(CALLS) * len(MODELS)) + 1, generator)


@pytest.mark.parametrize("call", CALLS)
def test_errors_of_the_model_leave_everything_as_it_was(call: str) -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.left = nn.Linear(3, 2), 0

        def forward(self, x: Tensor) -> Tensor:
            if self.left == 0:
                torch.rand(3)
                raise ArithmeticError
            self.left -= 1
            output: Tensor = self.layer(x)
            return output

    learner = il.maml(model := Fails(), 0.1, steps=2, loss=F.cross_entropy)
    for number in range(12):
        model.left = number
        before = surroundings(learner)
        try:
            CALLS[call](learner)
        except ArithmeticError:
            after = surroundings(learner)
            assert_equal(after, before)


FIRST_ERROR = """
import torch, innerloop as il
from torch.nn import functional as F
model = torch.nn.Linear(3, 1)
model.weight.register_hook(lambda grad: grad)
batch = il.Batch(torch.randn(2, 4, 3), torch.randn(2, 4, 1))
il.maml(model, loss=F.mse_loss).{call}
"""


@pytest.mark.parametrize("call", ["meta_gradient(il.Task(batch, batch))", "adapt_all(batch)"])
def test_an_error_of_the_first_call_in_a_process_is_shown(call: str) -> None:
    done = subprocess.run([sys.executable, "-c", FIRST_ERROR.format(call=call)], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].startswith("ValueError: the parameter 'weight' has a hook")


@pytest.mark.parametrize("call", CALLS)
def test_an_error_leaves_the_switch_of_attention_as_it_was_set_after_earlier_calls(call: str) -> None:
    learner = prepared(next(iter(MODELS)))
    CALLS[call](learner)
    before = torch.backends.cuda.flash_sdp_enabled()
    try:
        torch.backends.cuda.enable_flash_sdp(not before)
        next(learner.model.parameters()).register_hook(lambda grad: grad)
        with pytest.raises(ValueError, match="has a hook"):  # before the call touches the switch
            CALLS[call](learner)
        assert torch.backends.cuda.flash_sdp_enabled() is not before
    finally:
        torch.backends.cuda.enable_flash_sdp(before)
