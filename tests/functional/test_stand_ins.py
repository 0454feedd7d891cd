"""Copies of modules that stand in for them."""

from __future__ import annotations

import torch
from torch import nn

from innerloop.functional import stand_ins


def test_a_copy_shares_parameters_and_buffers() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    copy = stand_ins.replica(model)
    assert copy[0] is not model[0]
    assert copy[0].weight is model[0].weight
    assert copy[1].running_mean is model[1].running_mean


def test_looking_whether_copies_will_do_leaves_the_original_alone() -> None:
    norm = nn.BatchNorm1d(2)
    model = nn.Sequential(nn.Linear(2, 2))
    model.register_forward_hook(lambda module, args, output: norm(output))
    model.norm = norm  # the hook's copy holds on to the original
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    stand_ins.independent(model, lambda: stand_ins.mine(model)(torch.randn(5, 2)))
    torch.testing.assert_close(dict(model.named_buffers()), before, rtol=0, atol=0)
