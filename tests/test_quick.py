from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import innerloop as il
from innerloop.quick import identical, members_of, modules_of, unseen


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


def test_modes_do_not_see_plain_tensors() -> None:
    plain, named = torch.ones(2), torch.ones(2).as_subclass(Named)
    with Watched() as watched:
        with unseen([plain, nn.Parameter(plain)]):
            assert (plain + plain).shape == (2,)
        assert not watched.seen
        with unseen([plain, named]):
            assert type(named + plain) is Named
        assert watched.seen


def test_dictionaries_are_compared_by_identity() -> None:
    tensor = torch.ones(2)
    assert identical({"a": tensor}, {"a": tensor})
    assert not identical({"a": tensor}, {"a": tensor.clone()})
    assert not identical({"a": tensor}, {"b": tensor})
    assert not identical({"a": tensor}, {})
