import numpy as np
import pytest
import torch

from innerloop.data import ClassImages
from innerloop.data.images import check_disjoint

from .stand_ins import numbered_images


def gray(labels):
    return np.arange(len(labels), dtype=np.uint8)[:, None, None] * np.ones((2, 3), np.uint8)


def test_from_arrays_sorts_by_class_and_keeps_the_order_within():
    data = ClassImages.from_arrays(gray([2, 0, 2, 0, 0]), [2, 0, 2, 0, 0], "NHW")
    assert data.names == ("0", "2")
    assert data.counts.tolist() == [3, 2]
    assert data.offsets.tolist() == [0, 3]
    assert data.images[:, 0, 0, 0].tolist() == [1, 3, 4, 0, 2]
    assert data.image_shape == (1, 2, 3)
    assert data.images_per_class == (2, 3)


@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
def test_layouts_are_read_as_named(convert):
    nchw = np.random.default_rng(0).integers(0, 256, (4, 3, 5, 6), dtype=np.uint8)
    labels = convert(np.arange(4))
    one = ClassImages.from_arrays(convert(nchw), labels, "NCHW")
    other = ClassImages.from_arrays(convert(nchw.transpose(0, 2, 3, 1).copy()), labels, "NHWC")
    assert one.image_shape == (3, 5, 6)
    assert torch.equal(one.images, other.images)
    assert torch.equal(one.images, torch.as_tensor(nchw))


def test_floats_become_256_levels():
    images = torch.tensor([0.0, 0.5, 1.0])[:, None, None].expand(3, 2, 2)
    assert ClassImages.from_arrays(images, [0, 1, 2], "NHW").images[:, 0, 0, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    ("images", "labels", "layout", "names", "message"),
    [
        (gray("ab"), [0, 1], "NWH", None, "layout='NWH' must be one of NHW, NHWC, NCHW"),
        (gray("ab"), [0, 1], "NCHW", None, r"4 axes, got shape \[2, 2, 3\]"),
        (np.zeros((2, 8, 8, 3), np.uint8), [0, 1], "NCHW", None, "8 channels"),
        (np.full((2, 4, 4), 255.0), [0, 1], "NHW", None, r"in \[0, 1\]"),
        (np.full((2, 4, 4), np.nan), [0, 1], "NHW", None, r"in \[0, 1\]"),
        (np.zeros((2, 4, 4), np.int64), [0, 1], "NHW", None, "torch.int64"),
        (gray("ab"), [0, 1, 2], "NHW", None, "2 integers"),
        (gray("ab"), [0.0, 1.0], "NHW", None, "float"),
        (gray("ab"), [0, 2], "NHW", ["a", "b"], r"range\(2\)"),
        (gray("ab"), [0, 1], "NHW", ["a", "b", "c"], "without images: c"),
    ],
)
def test_from_arrays_refuses(images, labels, layout, names, message):
    with pytest.raises(ValueError, match=message):
        ClassImages.from_arrays(images, labels, layout, names)


def test_rotations_are_quarter_turns_of_the_same_class():
    images = torch.randint(0, 256, (6, 3, 5, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = ClassImages(images, torch.tensor([0, 2]), torch.tensor([2, 4]), ("a", "b"), rotations=True)
    assert data.num_classes == 8
    for turns in range(4):
        classes, members = torch.tensor([[0, 1], [1, 1]]) + 2 * turns, torch.tensor([[1, 0], [3, 2]])
        expected = torch.rot90(images[torch.tensor([[1, 2], [5, 4]])], turns, (-2, -1)) / 255
        assert torch.equal(data.gather(classes, members), expected)


def test_rotations_of_oblong_images_are_refused():
    with pytest.raises(ValueError, match=r"square images, got \[2, 3\]"):
        ClassImages(
            torch.zeros(1, 1, 2, 3, dtype=torch.uint8), torch.tensor([0]), torch.tensor([1]), ("a",), rotations=True
        )


def test_subset_shares_pixels_and_moving_takes_only_its_own():
    data = numbered_images([3, 2, 4], groups=torch.tensor([5, 6, 7]))
    part = data.subset([2, 0], name="part")
    assert part.images is data.images
    assert (part.names, part.counts.tolist(), part.groups.tolist()) == (("2", "0"), [4, 3], [7, 5])
    assert part.to("cpu") is part
    moved = part.to("meta")
    assert moved.images.shape == (7, 1, 2, 2)
    assert moved.offsets.tolist() == [0, 4]
    assert moved.offsets.device.type == "cpu"


def test_repr_says_what_there_is():
    assert "numbers" in repr(numbered_images([3, 5], rotations=True))
    assert "8 classes (2 x 4 rotations), 3 to 5 images each, 1x2x2" in repr(numbered_images([3, 5], rotations=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(2, 1, 2, 2)}, "uint8"),
        ({"counts": torch.tensor([1])}, r"counts must be \[2\]"),
        ({"groups": torch.tensor([1, 2, 3])}, r"groups must be \[2\]"),
        ({"counts": torch.tensor([2, 0])}, "without images: b"),
        ({"counts": torch.tensor([1, 2])}, "past the 2 images"),
    ],
)
def test_what_does_not_fit_together_is_refused(change, message):
    fields = {
        "images": torch.zeros(2, 1, 2, 2, dtype=torch.uint8),
        "offsets": torch.tensor([0, 1]),
        "counts": torch.tensor([1, 1]),
        "names": ("a", "b"),
    }
    ClassImages(**fields)
    with pytest.raises(ValueError, match=message):
        ClassImages(**{**fields, **change})


def test_check_disjoint_names_the_class():
    check_disjoint("here", [["a", "b"], ["c"]])
    with pytest.raises(ValueError, match="here: classes in more than one split: b"):
        check_disjoint("here", [["a", "b"], ["b"]])
