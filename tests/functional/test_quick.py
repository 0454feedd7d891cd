from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import innerloop as il
from innerloop.functional.quick import hidden_from_modes, identical, members_of, modules_of


class Nested(nn.Module):
    """With a part under two names, one that is missing, shared parameters and a cycle."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        self.again, self.missing = self.first[1], None
        self.last = nn.Linear(2, 2)
        self.last.weight = self.first[0].weight
        self.register_buffer("empty", None)
        self.last.whole = self


def test_modules_and_tensors_are_those_that_torch_lists() -> None:
    for model in (Nested(), il.models.conv4(), nn.LSTM(2, 3), torch.jit.script(nn.Sequential(nn.Linear(2, 2)))):
        modules = modules_of(model)
        assert modules == list(model.modules())
        for found, expected in zip(members_of(modules), (model.parameters(), model.buffers()), strict=True):
            assert [id(tensor) for tensor in found] == [id(tensor) for tensor in expected]
    one, other = Nested(), nn.Linear(1, 1)
    assert modules_of(one, other, one.last) == [*one.modules(), other]


class Watched(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.seen += 1
        return func(*args, **(kwargs or {}))


class Named(Tensor):
    pass


class Own(Watched):
    pass


Own.__module__ = "innerloop.of.its.own"


def test_the_librarys_modes_do_not_see_plain_tensors() -> None:
    plain, named = torch.ones(2), torch.ones(2).as_subclass(Named)
    with Own() as watched, torch.device("cpu"):
        watched.seen = 0
        with hidden_from_modes([plain, nn.Parameter(plain)]):
            assert (plain + plain).shape == (2,)
        assert not watched.seen
        with hidden_from_modes([plain, named]):
            assert type(named + plain) is Named
        assert watched.seen


def test_modes_of_the_users_see_updates(regression: Callable[..., il.Task]) -> None:
    class Rounds(TorchFunctionMode):
        """Sums in bfloat16."""

        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = func(*args, **(kwargs or {}))
            return result.bfloat16().float() if func is Tensor.add else result

    learner = il.maml(nn.Linear(2, 1), loss=nn.functional.mse_loss, steps=2)
    with Rounds():
        adapted = learner.adapt(il.task.select(regression(), 0).support)
    for tensor in adapted.parameters.values():
        assert torch.equal(tensor, tensor.bfloat16().float())


def test_dictionaries_are_compared_by_identity() -> None:
    tensor = torch.ones(2)
    assert identical({"a": tensor}, {"a": tensor})
    assert not identical({"a": tensor}, {"a": tensor.clone()})
    assert not identical({"a": tensor}, {"b": tensor})
    assert not identical({"a": tensor}, {})
