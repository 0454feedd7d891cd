import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from innerloop.data import Linear, Sinusoid
from innerloop.task import TaskSource

SOURCES = [Sinusoid(), Sinusoid.two_phase(), Linear()]


@pytest.mark.parametrize("source", SOURCES, ids=["sinusoid", "two-phase", "linear"])
@given(n=st.integers(1, 5), seed=st.integers(0, 2**32 - 1))
def test_points_lie_on_the_functions_drawn_from_an_equal_state(source, n, seed):
    task = source.sample(n, torch.Generator().manual_seed(seed))
    functions = source.functions(n, torch.Generator().manual_seed(seed))
    for x, y in task:
        assert x.shape == y.shape == (n, source.shots, 1)
        assert x.dtype == y.dtype == torch.float32
        assert (x >= source.x[0]).all()
        assert (x <= source.x[1]).all()
        assert torch.equal(y, functions(x))


@pytest.mark.parametrize("source", SOURCES, ids=["sinusoid", "two-phase", "linear"])
def test_sampling_is_a_function_of_the_state(source, generator):
    assert isinstance(source, TaskSource)
    state = generator.get_state()
    first, second = source.sample(3, generator), source.sample(3, generator)
    generator.set_state(state)
    again = source.sample(3, generator)
    assert torch.equal(first.query.y, again.query.y)
    assert not torch.equal(first.query.y, second.query.y)


def test_queries_are_as_many_as_shots_unless_given(generator):
    assert Sinusoid(shots=3).sample(2, generator).query.x.shape == (2, 3, 1)
    assert Linear(shots=3, queries=7).sample(2, generator).query.x.shape == (2, 7, 1)


def test_sinusoid_fills_its_ranges(generator):
    functions = Sinusoid().functions(4000, generator)
    assert 0.1 <= functions.amplitude.min() < 0.2
    assert 4.9 < functions.amplitude.max() <= 5.0
    assert 0 <= functions.phase.min() < 0.05
    assert math.pi - 0.05 < functions.phase.max() <= math.pi
    grid = torch.tensor([[0.5], [2.0]])
    curve = functions(grid)
    expected = functions.amplitude[7, 0, 0] * math.sin(2.0 - functions.phase[7, 0, 0])
    assert curve.shape == (4000, 2, 1)
    assert curve[7, 1, 0] == pytest.approx(float(expected), abs=1e-5)


def test_two_phase_is_plus_or_minus_sine(generator):
    source = Sinusoid.two_phase()
    x, y = source.sample(4000, generator).support
    assert x.shape == (4000, 4, 1)
    assert x.abs().max() <= 2 * math.pi
    assert x.abs().max() > 6.2
    same = torch.isclose(y, x.sin(), atol=1e-5).all(1)
    opposite = torch.isclose(y, -x.sin(), atol=1e-5).all(1)
    assert (same | opposite).all()
    assert same.float().mean().item() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Sinusoid(shots=0), "shots=0"),
        (lambda: Linear(queries=0), "queries=0"),
        (lambda: Sinusoid(amplitude=(5.0, 0.1)), r"amplitude=\(5.0, 0.1\)"),
        (lambda: Linear(slope=(0.0, math.inf)), "slope="),
        (lambda: Sinusoid(phases=()), "phases="),
    ],
)
def test_errors_name_the_value(build, message):
    with pytest.raises(ValueError, match=message):
        build()
