import os

import pytest

from innerloop.data import FewShot, decode, image_folder

from .stand_ins import folders, png, write_tree


def test_classes_are_split_by_share_and_seed(tmp_path):
    root = write_tree(tmp_path, folders(*(f"c{i:02}" for i in range(20))))
    splits = image_folder(root, size=4, split=(0.6, 0.15, 0.25))
    assert [len(part.names) for part in splits] == [12, 3, 5]
    assert sorted(name for part in splits for name in part.names) == [f"c{i:02}" for i in range(20)]
    assert splits.train.name == tmp_path.name
    for part in splits:
        for name, offset in zip(part.names, part.offsets.tolist(), strict=True):
            assert part.images[offset : offset + 2].unique().tolist() == [10 * int(name[1:])]
    assert image_folder(root, size=4, seed=0).train.names == image_folder(root, size=4).train.names
    assert image_folder(root, size=4, seed=1).train.names != image_folder(root, size=4).train.names


def test_folders_of_splits_are_taken_as_they_are(tmp_path, generator):
    root = write_tree(tmp_path, folders("train/a", "train/b", "val/c", "test/d", "test/e", "test/f"))
    splits = image_folder(root, size=4, channels=1)
    assert [part.names for part in splits] == [("a", "b"), ("c",), ("d", "e", "f")]
    assert splits.test.image_shape == (1, 4, 4)
    assert FewShot(splits.test, 3, 1).sample(2, generator).support.x.shape == (2, 3, 1, 4, 4)


def test_nested_and_upper_case_files_are_read_and_others_are_not(tmp_path):
    files = folders("a", "b", "c", images=1) | {"a/deep/x.JPeG": png(), "b/notes.txt": b"", "c/.hidden.png": b""}
    splits = image_folder(write_tree(tmp_path, files | {".git/x.png": b"", "top.png": b""}), size=4)
    counts = {name: count for part in splits for name, count in zip(part.names, part.counts.tolist(), strict=True)}
    assert counts == {"a": 2, "b": 1, "c": 1}


def test_unreadable_files_are_an_error_unless_skipped(tmp_path):
    root = write_tree(tmp_path, folders("a", "b", "c") | {"b/bad.png": b"no"})
    for _ in range(2):
        with pytest.raises(ValueError, match=r"1 of 7 files are not readable images: b/bad\.png"):
            image_folder(root, size=4)
    with pytest.warns(UserWarning, match="skipped 1 unreadable"):
        splits = image_folder(root, size=4, skip_unreadable=True)
    assert all(part.images_per_class == (2, 2) for part in splits)
    with pytest.raises(ValueError, match="not readable"):
        image_folder(root, size=4)


def test_a_class_with_only_unreadable_files_is_an_error_even_when_skipping(tmp_path):
    root = write_tree(tmp_path, folders("a", "b") | {"c/bad.png": b"no"})
    with pytest.raises(ValueError, match="classes without images: c"), pytest.warns(UserWarning, match="skipped"):
        image_folder(root, size=4, skip_unreadable=True)


def test_a_changed_file_is_decoded_again(tmp_path):
    root = write_tree(tmp_path, folders("a", "b", "c"))
    before = image_folder(root, size=4)
    write_tree(tmp_path, {"a/0.png": png(200, size=(7, 7))})
    after = image_folder(root, size=4)
    assert int(before.train.images.max()) < 200 <= int(after.train.images.max())


def levels(root):
    """The gray levels of all images; the splits share them."""
    return set(image_folder(root, size=4).train.images.unique().tolist())


def test_folders_of_equal_names_sizes_and_times_do_not_share_images(tmp_path):
    roots = [write_tree(tmp_path / name, folders("a", "b", "c")) for name in ("one", "two")]
    (roots[1] / "b" / "0.png").write_bytes(png(200))
    assert (roots[1] / "b" / "0.png").stat().st_size == (roots[0] / "b" / "0.png").stat().st_size
    for root in roots:
        for path in root.rglob("*.png"):
            os.utime(path, (10, 10))
    assert levels(roots[0]) == {0, 10, 20}
    assert levels(roots[1]) == {0, 10, 20, 200}


def test_a_file_replaced_by_one_of_equal_size_and_time_is_decoded_again(tmp_path):
    root = write_tree(tmp_path, folders("a", "b", "c"))
    assert levels(root) == {0, 10, 20}
    before = (root / "b" / "0.png").stat()
    (root / "b" / "0.png").write_bytes(png(200))
    os.utime(root / "b" / "0.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (root / "b" / "0.png").stat().st_size == before.st_size
    assert levels(root) == {0, 10, 20, 200}


def test_a_copy_in_another_folder_is_not_decoded_again(tmp_path, monkeypatch):
    one = write_tree(tmp_path / "one", folders("a", "b", "c"))
    assert levels(one) == {0, 10, 20}
    two = write_tree(tmp_path / "two", folders("a", "b", "c") | {"a/notes.txt": b"not an image"})
    monkeypatch.setattr(decode, "decode_classes", lambda *_: pytest.fail("decoded twice"))
    assert levels(two) == {0, 10, 20}


@pytest.mark.parametrize("skip", [False, True])
def test_a_file_that_changes_between_digest_and_decoding_is_never_kept(tmp_path, monkeypatch, skip):
    root, decoding = write_tree(tmp_path, folders("a", "b", "c")), decode.decode_classes

    def changed(*arguments):
        (root / "a" / "0.png").write_bytes(b"no image")
        return decoding(*arguments)

    monkeypatch.setattr(decode, "decode_classes", changed)
    with pytest.raises(ValueError, match=r": a/0\.png changed while the files were read"):
        image_folder(root, size=13, skip_unreadable=skip)
    monkeypatch.setattr(decode, "decode_classes", decoding)
    write_tree(root, folders("a"))
    assert all(part.images_per_class == (2, 2) for part in image_folder(root, size=13, skip_unreadable=skip))


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ({}, {}, "0 class folders"),
        (folders("a", "b"), {}, "a, b.*three splits need at least 3"),
        (folders("train/a", "val/b"), {}, "train and val, but not all"),
        (folders("train/a", "val/b", "test/a"), {}, "more than one split: a"),
        (folders("train/a", "val/b") | {"test/x.png": png()}, {}, "no class folders in test"),
        (folders("a", "b") | {"c/x.txt": b""}, {}, "folders without images: c"),
        (folders("a", "b", "c"), {"channels": 2}, "channels=2"),
        (folders("a", "b", "c"), {"size": 0}, "size=0"),
        (folders("a", "b", "c"), {"split": (0.5, 0.5, 0.5)}, "split="),
        (folders("a", "b", "c"), {"split": (1.0, 0.0, 0.0)}, "split="),
        (folders("a", "b", "c"), {"split": (0.01, 0.01, 0.98)}, "leaves none for train"),
    ],
)
def test_errors(tmp_path, files, options, message):
    with pytest.raises(ValueError, match=message):
        image_folder(write_tree(tmp_path, files), **options)


def test_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder at"):
        image_folder(tmp_path / "none")
