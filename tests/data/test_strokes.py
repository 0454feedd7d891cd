import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from innerloop.data.strokes import CLASSES_PER_SPLIT, Strokes, _draw, figures


def test_shapes_range_and_order(generator):
    task = Strokes(ways=3, shots=2, queries=4, size=20).sample(5, generator)
    assert task.support.x.shape == (5, 6, 1, 20, 20)
    assert task.query.x.shape == (5, 12, 1, 20, 20)
    assert task.support.x.dtype == torch.float32
    assert task.support.y.tolist() == [[0, 1, 2, 0, 1, 2]] * 5
    assert task.query.y.tolist() == [[0, 1, 2] * 4] * 5
    x = torch.cat([task.support.x, task.query.x], 1)
    assert x.min() >= 0
    assert x.max() <= 1
    assert (x.amax((-3, -2, -1)) > 0.8).all(), "every drawing has ink"
    assert x.mean() < 0.3, "most of a drawing is paper"


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 4))
def test_splits_share_no_class_even_from_one_state(seed, n):
    drawn = {
        split: Strokes(ways=20, split=split).identities(n, torch.Generator().manual_seed(seed))
        for split in ("train", "val", "test")
    }
    for residue, identities in enumerate(drawn.values()):
        assert (identities % 3 == residue).all()
        assert identities.min() >= 0
        assert identities.max() < 3 * CLASSES_PER_SPLIT < 2**32
    train, val = figures(drawn["train"])[0], figures(drawn["val"])[0]
    assert ((train - val).abs().amax((-3, -2, -1)) > 1e-3).all()


def test_a_class_is_its_integer_alone():
    one, several = figures(torch.tensor([7])), figures(torch.tensor([[3, 7], [7, 3]]))
    assert torch.equal(one[0][0], several[0][0, 1])
    assert torch.equal(several[0][0, 1], several[0][1, 0])
    assert torch.equal(one[1][0], several[1][0, 1])


def test_every_number_of_strokes_occurs():
    control, present = figures(torch.arange(2000))
    assert set(present.sum(-1).tolist()) == {1, 2, 3, 4}
    assert control[present].abs().max() <= 1


def test_sample_is_a_function_of_the_state_and_draws_identities_first():
    def state():
        return torch.Generator().manual_seed(5)

    source, other = Strokes(), Strokes(split="test")
    first, again = source.sample(4, state()), source.sample(4, state())
    assert torch.equal(first.support.x, again.support.x)
    assert torch.equal(first.query.x, again.query.x)
    used, also_used = state(), state()
    source.sample(4, used)
    other.sample(4, also_used)
    assert torch.equal(used.get_state(), also_used.get_state())


def test_random_numbers_do_not_depend_on_the_device():
    used, also_used = (torch.Generator().manual_seed(5) for _ in range(2))
    task = Strokes(device="meta").sample(4, used)
    Strokes().sample(4, also_used)
    assert task.query.x.device.type == task.query.y.device.type == "meta"
    assert torch.equal(used.get_state(), also_used.get_state())


def test_drawings_of_a_class_differ_but_resemble_each_other():
    task = Strokes(shots=1, queries=5).sample(150, torch.Generator().manual_seed(0))
    distance = torch.cdist(task.query.x.flatten(2), task.support.x.flatten(2))
    assert distance.min() > 1
    nearest = (distance.argmin(-1) == task.query.y).float().mean()
    assert 0.45 < nearest < 0.8, f"a nearest neighbour in pixel space is right {nearest:.0%} of the time"


def test_a_drawing_is_more_than_an_affine_map_of_the_figure(generator):
    control, _ = figures(torch.arange(200))
    drawn, width = _draw(control, generator)
    points = torch.cat([control.flatten(1, 2), torch.ones(200, 16, 1)], -1)
    affine = torch.linalg.lstsq(points, drawn.flatten(1, 2)).solution
    jitter = (points @ affine - drawn.flatten(1, 2)).square().mean().sqrt()
    assert 0.03 < jitter < 0.1
    assert 0 < width.min() < width.max() / 1.5
    assert (drawn - control).mean((1, 2)).std() > 0.05, "drawings are shifted as a whole, too"


@pytest.mark.parametrize("option", [{"ways": 1}, {"shots": 0}, {"queries": 0}, {"size": 7}, {"split": "trian"}])
def test_errors_name_the_value(option):
    (name, value), *_ = option.items()
    with pytest.raises(ValueError, match=f"{name}={value!r} must be"):
        Strokes(**option)
