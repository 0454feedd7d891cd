from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import innerloop as il
from innerloop.data import Oscillator

G = torch.Generator


def test_the_contract_of_sources():
    il.testing.check_source(Oscillator())


def test_courses_are_those_of_the_equation():
    """A single push, without damping, is answered by a sine."""
    source = Oscillator(horizon=200)
    pushes = torch.zeros(1, 1, 200)
    pushes[..., 0] = 1
    course = source._courses(pushes, torch.tensor([[0.8]]), torch.tensor([[0.0]]))[0, 0]
    time = source.STEP * (torch.arange(200) + 1)
    expected = torch.sin(0.8 * time) / 0.8 * source.STEP / source.UNIT
    assert (course - expected).abs().max() < 0.08 * expected.abs().max()
    damped = source._courses(pushes, torch.tensor([[0.8]]), torch.tensor([[0.5]]))[0, 0]
    assert damped[-50:].abs().max() < 0.01 * damped.abs().max()


def test_a_course_does_not_depend_on_what_comes_later():
    tasks = Oscillator(horizon=10).sample(2, G().manual_seed(0))
    pushes, frequency, damping = tasks.support.x[..., 0], torch.ones(2, 1), torch.ones(2, 1) * 0.1
    changed = pushes.clone()
    changed[..., 6:] = 0
    one, other = (Oscillator(horizon=10)._courses(p, frequency, damping) for p in (pushes, changed))
    assert torch.equal(one[..., :6], other[..., :6])
    assert not torch.equal(one[..., 6:], other[..., 6:])


@pytest.mark.parametrize("options", [{"horizon": 0}, {"shots": 0}, {"frequency": (0.5, 6.0)}, {"damping": (-1.0, 0.0)}])
def test_what_makes_no_sense_is_refused(options):
    with pytest.raises(ValueError, match=r"got|at least one|must be"):
        Oscillator(**options)


def test_sequences_are_learned_by_the_same_learner():
    """A horizon changes nothing: the same inner loop, trainer and evaluation."""
    torch.manual_seed(0)
    learner = il.maml(il.models.Recurrent(hidden=16), lr=0.05, steps=2, loss=F.mse_loss, vectorize=True, compile=False)
    source = Oscillator(horizon=8)
    before = il.evaluate(learner, source, 50).mean
    il.Trainer(learner, source, iterations=120, tasks=8, lr=1e-2, progress=False).fit()
    found = il.evaluate(learner, source, 50)
    assert found.steps[-1] < 0.8 * found.steps[0]
    assert found.mean < 0.4 * before
