import pytest
import torch

from innerloop.data import FewShot, mini_imagenet

from .stand_ins import png, write_tree, write_zip


def small(images=3, **lists):
    """Two classes a split, ``images`` of each; class k is of grey level 10 * k."""
    files = {}
    for s, split in enumerate(("train", "val", "test")):
        rows = []
        for label in (2 * s, 2 * s + 1):
            for i in range(images):
                rows.append(f"n{label}_{i}.jpg,n{label}")
                files[f"images/n{label}_{i}.jpg"] = png(10 * label)
        files[f"{split}.csv"] = "\n".join(["filename,label", *rows]).encode()
    for split, text in lists.items():
        files[f"{split}.csv"] = text.encode()
    return files


def test_real_splits(mini_imagenet_root, generator):
    splits = mini_imagenet(mini_imagenet_root, size=32)
    assert [len(part.names) for part in splits] == [64, 16, 20]
    assert len({name for part in splits for name in part.names}) == 100
    fewest, most = splits.train.images_per_class
    assert splits.train.image_shape == (3, 32, 32)
    if most < 600:
        assert f"subset, {fewest} images a class" in splits.train.name
    query = FewShot(splits.test, 5, 1, 15).sample(2, generator).query
    assert query.x.shape == (2, 75, 3, 32, 32)
    assert 0.3 < query.x.mean() < 0.6
    assert query.x.std() > 0.15


def test_zips_and_folders_read_alike(tmp_path):
    write_tree(tmp_path / "tree", small())
    wrapped = {f"mini_imagenet/{name}": content for name, content in small().items()}
    write_zip(tmp_path / "zip" / "mini-imagenet" / "my-mini_imagenet.zip", wrapped)
    write_zip(tmp_path / "anything.zip", small())
    for root in (tmp_path / "tree", tmp_path / "zip", tmp_path / "anything.zip"):
        splits = mini_imagenet(root, size=6)
        assert [part.names for part in splits] == [("n0", "n1"), ("n2", "n3"), ("n4", "n5")]
        assert splits.train.name == "mini-ImageNet (subset, 3 images a class)"
        for part in splits:
            for name, offset in zip(part.names, part.offsets.tolist(), strict=True):
                assert part.images[offset : offset + 3].unique().tolist() == [10 * int(name[1])]


def test_a_full_copy_has_no_label(tmp_path, monkeypatch):
    monkeypatch.setattr("innerloop.data.vision.MINI_IMAGENET_IMAGES", 3)
    assert mini_imagenet(write_tree(tmp_path, small()), size=6).test.name == "mini-ImageNet"


def test_moving_a_split_takes_its_own_images(tmp_path):
    val = mini_imagenet(write_tree(tmp_path, small()), size=6, device="meta").val
    assert val.images.shape == (6, 3, 6, 6)
    assert torch.equal(val.counts, torch.tensor([3, 3]))


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"val": "filename,label\nn0_0.jpg,n0"}, "more than one split: n0"),
        ({"val": "filename,label\nnone.jpg,n9"}, "1 files that are missing: images/none.jpg"),
        ({"val": "filename,label\n../val.csv,n9"}, "missing"),
        ({"val": "filename,label\nn2_0.jpg,n2\nn2_0.jpg,n2"}, "files twice: images/n2_0.jpg"),
        ({"val": "file,class\nn2_0.jpg,n2"}, "expected filename and label"),
        ({"val": "filename,label\n"}, "lists no images"),
        ({"val": ""}, "expected filename and label"),
    ],
)
def test_bad_lists_are_refused(tmp_path, lists, message):
    with pytest.raises(ValueError, match=message):
        mini_imagenet(write_tree(tmp_path, small(**lists)))


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no mini-ImageNet in"):
        mini_imagenet(tmp_path)
    files = small()
    files.pop("test.csv")
    with pytest.raises(FileNotFoundError, match=r"has no test\.csv"):
        mini_imagenet(write_tree(tmp_path, files))
    with pytest.raises(ValueError, match=r"has no train\.csv"):
        mini_imagenet(write_zip(tmp_path / "other" / "mini-imagenet.zip", {"a": b""}).parent)
    with pytest.raises(ValueError, match="size=0"):
        mini_imagenet(tmp_path, size=0)
