"""What a model sees of a drawing is what it saw in training, wherever, how large and how quickly one draws."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from innerloop.data import Strokes
from innerloop.data.strokes import _render, figures
from innerloop.demo.drawing import EXTENT, WIDTH, render

from .figures import FIGURES, drawn


def moved(drawing, scale, x0, y0):
    return [[(x0 + scale * x, y0 + scale * y) for x, y in stroke] for stroke in drawing]


@pytest.mark.parametrize("identity", range(0, 60, 3))
def test_a_figure_of_training_drawn_by_hand_is_the_image_of_training(identity):
    control, present = figures(torch.tensor(identity))
    t = (torch.arange(60)[:, None] + 0.5) / 60
    ends = torch.arange(4)
    curves = (torch.tensor([1.0, 3.0, 3.0, 1.0]) * t**ends * (1 - t) ** (3 - ends)) @ control[present]
    low, high = curves.amin((0, 1)), curves.amax((0, 1))
    placed = (control - (low + high) / 2) * EXTENT / ((high - low).max() / 2)
    trained = _render(placed, present, torch.tensor(WIDTH), 28)
    by_hand = render((0.5 + 0.2 * curves).tolist(), 28)
    # Curves are sampled evenly in their parameter there and along their length here.
    assert (trained - by_hand).abs().mean() < 0.004
    assert (trained - by_hand).abs().max() < 0.25


def test_as_much_ink_as_in_training():
    rng = random.Random(0)
    names = FIGURES.keys() - {"spiral"}  # which is longer than four strokes
    by_hand = torch.stack([render(drawn(name, rng), 28).mean() for name in sorted(names) for _ in range(4)])
    trained = Strokes().sample(100, torch.Generator().manual_seed(0)).support.x.mean((-3, -2, -1)).flatten()
    low, high = trained.quantile(torch.tensor([0.05, 0.95]))
    assert low < by_hand.median() < high
    assert trained.min() < by_hand.min()
    assert by_hand.max() < 1.2 * trained.max()
    assert render([[(0.2, 0.5), (0.8, 0.5)]], 28).max() > 0.9


@pytest.mark.parametrize("name", FIGURES)
def test_place_and_size_do_not_matter(name):
    drawing = drawn(name, random.Random(1))
    assert torch.allclose(render(drawing, 28), render(moved(drawing, 0.3, 0.6, 0.1), 28), atol=2e-3)


def test_x_is_to_the_right_and_y_downwards():
    image = render([[(0.0, 0.0), (0.5, 0.0), (0.5, 1.0)]], 28)[0]
    assert image[:6].sum() > 5 * image[-6:].sum() > 0  # the bar of a 7 is on top
    assert image[:, -14:].sum() > 2 * image[:, :14].sum()  # and its stem on the right


def test_how_many_points_a_line_came_in_does_not_matter():
    few = [[(0.1, 0.2), (0.9, 0.8)]]
    shares = [0, 0.01, 0.011, 0.3, 0.3, 0.9, 0.95, 1]
    many = [[(0.1 + 0.8 * s, 0.2 + 0.6 * s) for s in shares]]
    assert torch.allclose(render(few, 28), render(many, 28), atol=1e-3)


@pytest.mark.parametrize(
    "dot", [[(0.3, 0.7)], [(0.3, 0.7)] * 9, [(0.3, 0.7), (0.3, 0.7 + 1e-7)], [(0.0, 0.0), (0.001, 0.001)]]
)
def test_a_dot_is_a_dot_in_the_middle(dot):
    image = render([dot], 28)[0]
    assert image.max() > 0.8
    assert image.mean() < 0.02
    rows, columns = torch.nonzero(image > 0.4, as_tuple=True)
    assert {*rows.tolist(), *columns.tolist()} <= {12, 13, 14, 15}


def test_a_dot_beside_a_line_keeps_its_place():
    image = render([[(0.5, 0.3), (0.5, 0.9)], [(0.5, 0.1)]], 28)[0]
    dot = render([[(0.5, 0.1)]], 28)[0]
    assert image[:6].sum() == pytest.approx(float(dot.sum()), rel=0.1)
    assert image[6:8].sum() < 0.1 * image[12:14].sum()


@settings(max_examples=60)
@given(
    st.lists(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30), min_size=1, max_size=8),
    st.sampled_from([8, 28, 84]),
)
def test_any_drawing_has_an_image(drawing, size):
    image = render(drawing, size)
    assert image.shape == (1, size, size)
    assert 0 <= image.min() <= image.max() <= 1
    assert math.isfinite(image.sum())
    assert image.sum() > 0


def test_a_scribble_without_end_takes_little():
    rng = random.Random(0)
    image = render([[(rng.random(), rng.random()) for _ in range(1_000)] for _ in range(32)], 28)
    assert image.mean() > 0.5
