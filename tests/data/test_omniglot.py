import shutil
from dataclasses import replace

import pytest
import torch

from innerloop.data import FewShot, decode, omniglot
from innerloop.data.decode import decoded_once
from innerloop.data.files import Files

from .stand_ins import folders, small_omniglot, write_tree, write_zip

SIZES = {"random": (1100, 100, 423), "vinyals": (1028, 172, 423), "background": (864, 100, 659)}


@pytest.fixture
def small(tmp_path, small_sizes):
    """A folder with both archives of the stand-in, as zips."""
    for part, files in small_omniglot().items():
        write_zip(tmp_path / f"{part}.zip", files)
    return tmp_path


@pytest.mark.parametrize("split", ["random", "vinyals", "background", "alphabets"])
def test_real_splits_are_disjoint_and_complete(omniglot_root, split):
    splits = omniglot(omniglot_root, split)
    names = [set(part.names) for part in splits]
    assert sum(map(len, names)) == len(set.union(*names)) == 1623
    assert all(part.images_per_class == (20, 20) and part.image_shape == (1, 28, 28) for part in splits)
    assert [part.num_classes for part in splits] == [4 * len(part) for part in names]
    if split in SIZES:
        assert tuple(map(len, names)) == SIZES[split]
    else:
        alphabets = [{name.split("/")[0] for name in part} for part in names]
        assert sum(map(len, alphabets)) == len(set.union(*alphabets)) == 50
        for part, share in zip(names, (0.7, 0.15, 0.15), strict=True):
            assert len(part) / 1623 == pytest.approx(share, abs=0.02)


def test_real_drawings_are_ink_on_nothing(omniglot_root, generator):
    train = omniglot(omniglot_root).train
    x = train.gather(torch.arange(400), torch.zeros(400, dtype=torch.int64))
    assert (x.amax((-3, -2, -1)) > 0.5).all()
    assert 0.02 < x.mean() < 0.25
    assert x[..., 0, 0].median() == 0
    support = FewShot(train, 5, 1).sample(3, generator).support
    assert support.x.shape == (3, 5, 1, 28, 28)


def test_real_background_split_keeps_the_two_archives_apart(omniglot_root):
    splits = omniglot(omniglot_root, "background")
    background = {name.split("/")[0] for part in splits[:2] for name in part.names}
    evaluation = {name.split("/")[0] for name in splits.test.names}
    assert (len(background), len(evaluation), background & evaluation) == (30, 20, set())


def test_real_vinyals_split_is_the_published_one(omniglot_root):
    splits = omniglot(omniglot_root, "vinyals")
    assert "Gurmukhi/character42" in splits.test.names
    assert "Hebrew/character01" in splits.val.names
    assert splits.train.names[0] == "Angelic/character01"


def test_real_tasks_within_an_alphabet(omniglot_root, generator):
    train = omniglot(omniglot_root, "alphabets").train
    classes = FewShot(train, 20, 1, within_groups=True)._classes(50, generator)
    alphabets = [{train.names[i % len(train.names)].split("/")[0] for i in task} for task in classes.tolist()]
    assert all(len(task) == 1 for task in alphabets)
    assert len(set.union(*alphabets)) > 10


def test_the_seed_changes_the_split_and_nothing_else(omniglot_root):
    one, again, two = (omniglot(omniglot_root, seed=seed) for seed in (1, 1, 2))
    assert one.test.names == again.test.names
    assert one.test.names != two.test.names
    name = next(name for name in one.test.names if name in two.test.names)
    i, j = one.test.names.index(name), two.test.names.index(name)
    assert torch.equal(one.test.images[one.test.offsets[i]], two.test.images[two.test.offsets[j]])


def test_zips_and_folders_read_alike_and_ink_is_one(small, tmp_path):
    zips = omniglot(small, "background", size=5)
    tree = tmp_path / "tree" / "omniglot"
    for files in small_omniglot().values():
        write_tree(tree, files)
    folders = omniglot(tree.parent, "background", size=5)
    for one, other in zip(zips, folders, strict=True):
        assert one.names == other.names
        assert torch.equal(one.images, other.images)
    for part in zips:
        for name, offset in zip(part.names, part.offsets.tolist(), strict=True):
            archive = "images_background" if name.startswith("bac") else "images_evaluation"
            alphabet, letter = int(name[3]), int(name[-2:])
            character = 4 * alphabet + letter - 1 if "bac" in name else 12 + 3 * alphabet + letter - 1
            assert part.images[offset : offset + 20].unique().tolist() == [255 - 10 * character], archive


def test_the_cache_holds_what_decoding_gives_with_ink_as_one(small, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    anew = omniglot(small, "background", size=5)
    held = torch.cat([torch.load(path)[0] for path in (tmp_path / "cache" / "innerloop").iterdir()])
    ink = [255 - 10 * character for character in range(18)]  # the first is black in its files
    assert torch.cat([part.images for part in anew]).unique().tolist() == ink[::-1]
    assert held.unique().tolist() == ink[::-1]
    monkeypatch.setattr(decode, "decode_classes", lambda *_: pytest.fail("decoded twice"))
    for one, other in zip(anew, omniglot(small, "background", size=5), strict=True):
        assert one.names == other.names
        assert torch.equal(one.images, other.images)


def test_inverted_images_are_not_kept_under_the_name_of_others(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files = Files(write_tree(tmp_path / "files", folders("a", "b", images=1)))
    for inverted in (True, False, True, False):
        images = decoded_once(files, {"a": ["a/0.png"], "b": ["b/0.png"]}, "x", 2, 1, inverted=inverted).images
        assert images.flatten(1).unique(dim=1).flatten().tolist() == ([255, 245] if inverted else [0, 10])


def test_rotations_can_be_taken_back_for_one_split(small):
    splits = omniglot(small, "background")
    assert splits.train.num_classes == 40
    assert replace(splits.test, rotations=False).num_classes == 6
    assert omniglot(small, "background", rotations=False).train.num_classes == 10


def test_the_environment_names_the_folder(small, monkeypatch):
    monkeypatch.setenv("INNERLOOP_DATA", str(small))
    assert len(omniglot(split="background").train.names) == 10


@pytest.mark.parametrize(("option", "message"), [({"split": "vinyal"}, "split='vinyal'"), ({"size": 0}, "size=0")])
def test_options_are_checked_before_anything_is_read(tmp_path, option, message):
    with pytest.raises(ValueError, match=message):
        omniglot(tmp_path, **option)


def test_a_half_copy_is_not_found(small):
    (small / "images_evaluation.zip").unlink()
    with pytest.raises(FileNotFoundError, match="needs both images_background and images_evaluation"):
        omniglot(small)


def test_a_zip_of_something_else_is_named_with_what_it_holds(small):
    path = write_zip(small / "images_evaluation.zip", {"readme.txt": b"hello"})
    with pytest.raises(ValueError, match=rf"{path} is not Omniglot's.*got 0 alphabets and 0 characters"):
        omniglot(small)


def test_a_missing_drawing_is_named(small):
    files = small_omniglot()["images_background"]
    files.pop("images_background/bac1/character02/0005_07.png")
    write_zip(small / "images_background.zip", files)
    with pytest.raises(ValueError, match="got 3 alphabets and 12 characters: bac1/character02 has 19"):
        omniglot(small)


def test_a_damaged_drawing_is_named(small):
    files = small_omniglot()["images_background"]
    files["images_background/bac1/character02/0005_07.png"] = b"nothing"
    write_zip(small / "images_background.zip", files)
    with pytest.raises(ValueError, match=r"1 of 240 files are not readable images: .*0005_07\.png"):
        omniglot(small)


@pytest.fixture
def own_lists(omniglot_root, tmp_path):
    """A folder with the real archives and a copy of the lists that a test may change."""
    for part in ("images_background.zip", "images_evaluation.zip"):
        (tmp_path / part).symlink_to(omniglot_root / "omniglot" / part)
    shutil.copytree(omniglot_root / "omniglot" / "splits_vinyals", tmp_path / "splits_vinyals")
    for path in (tmp_path / "splits_vinyals", *(tmp_path / "splits_vinyals").iterdir()):
        path.chmod(0o755)
    return tmp_path


def test_missing_vinyals_lists_say_where_to_get_them(own_lists):
    (own_lists / "splits_vinyals" / "val.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"published list .*val\.txt.*prototypical-networks"):
        omniglot(own_lists, "vinyals")


def test_changed_vinyals_lists_are_refused(own_lists):
    path = own_lists / "splits_vinyals" / "val.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-4]))
    with pytest.raises(ValueError, match="lists 171 characters, but the published list has 172"):
        omniglot(own_lists, "vinyals")
    path.write_text("\n".join([*lines[:-4], "Klingon/character01/rot000"]))
    with pytest.raises(ValueError, match="does not have: Klingon/character01"):
        omniglot(own_lists, "vinyals")
    path.write_text("\n".join([*lines[:-4], "Angelic/character01/rot000"]))
    with pytest.raises(ValueError, match="more than one split: Angelic/character01"):
        omniglot(own_lists, "vinyals")
