"""Policies that see."""

from __future__ import annotations

import pytest
import torch

from innerloop.imitation import SpatialSoftmax, Visuomotor


def test_a_look_goes_to_the_brightest_place_and_tells_what_all_filters_find_there() -> None:
    maps = torch.zeros(1, 2, 9, 9)
    maps[0, 0, 2, 6], maps[0, 1, 2, 6], maps[0, 1, 8, 0] = 50.0, 3.0, 60.0
    points, seen = SpatialSoftmax()(maps)
    torch.testing.assert_close(points, torch.tensor([[0.5, -1.0, -0.5, 1.0]]), atol=1e-4, rtol=0)  # x, x, y, y
    torch.testing.assert_close(seen, torch.tensor([[50.0, 3.0, 0.0, 60.0]]), atol=1e-3, rtol=0)


def test_the_gradient_of_what_is_seen_is_what_is_there() -> None:
    """Of a filter on plain colours, it is the colour where the other filter looks."""
    colours = torch.rand(1, 3, 8, 8)
    weight = torch.randn(2, 3, requires_grad=True)
    there = torch.zeros(1, 1, 8, 8)
    there[..., 5, 1] = 100.0
    maps = torch.einsum("pc,nchw->nphw", weight, colours)
    _, seen = SpatialSoftmax()(torch.cat([there, maps[:, 1:]], 1))
    (grad,) = torch.autograd.grad(seen.view(2, 2)[0, 1], weight)
    torch.testing.assert_close(grad[1], colours[0, :, 5, 1], atol=1e-4, rtol=1e-4)


def test_a_state_that_is_not_told_is_zero() -> None:
    policy = Visuomotor(state=3, filters=4, hidden=(8,))
    images = torch.randint(0, 256, (2, 5, 3, 16, 16), dtype=torch.uint8)
    assert torch.equal(policy(images).actions, policy(images, torch.zeros(2, 5, 3)).actions)
    assert not torch.equal(policy(images).actions, policy(images, torch.ones(2, 5, 3)).actions)
    for name, size in policy.sizes.items():
        assert getattr(policy(images), name).shape == (2, 5, size)


def test_points_follow_what_they_look_at() -> None:
    """The same picture, shifted by four pixels of 32, is a quarter to the right."""
    policy = Visuomotor(filters=4, hidden=(8,))
    with torch.no_grad():
        policy.eye.look.sharpness.fill_(50.0)
    picture = torch.full((1, 1, 3, 32, 32), 60, dtype=torch.uint8)
    picture[..., 14:18, 10:14] = 250
    moved = picture.roll(4, -1)
    shift = policy(moved).points - policy(picture).points
    steps = 4 / 2 * 2 / 15  # of a map of 16 x 16 that reaches from -1 to 1
    followed = ((shift[..., :4] - steps).abs() < 1e-3) & (shift[..., 4:].abs() < 1e-3)
    assert followed.any()


def test_impossible_policies_are_refused() -> None:
    with pytest.raises(ValueError, match="hidden"):
        Visuomotor(hidden=())
    with pytest.raises(ValueError, match="filters"):
        Visuomotor(filters=0)
