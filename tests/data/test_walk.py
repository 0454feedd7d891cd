import os

import pytest

from innerloop.data import image_folder
from innerloop.data.files import Files

from .stand_ins import folders, png, write_tree


def counted(root, **options):
    """Class -> how many images it has, and their gray levels."""
    found = {}
    for part in image_folder(root, size=4, channels=1, **options):
        for name, start, count in zip(part.names, part.offsets.tolist(), part.counts.tolist(), strict=True):
            found[name] = (count, part.images[start : start + count].unique().tolist())
    return found


THREE = {"a": (2, [0]), "b": (2, [10]), "c": (2, [20])}


@pytest.fixture
def root(tmp_path):
    return write_tree(tmp_path / "root", folders("a", "b", "c"))


def link(path, target):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def test_class_folders_that_link_to_each_other_keep_their_own_images(root):
    link(root / "a" / "more", "../b")
    link(root / "b" / "more", "../a")
    assert counted(root) == THREE


def test_many_class_folders_that_link_to_each_other_are_read_at_once(tmp_path):
    names = [f"c{i:02}" for i in range(24)]  # there are 24! ways through them
    root = write_tree(tmp_path, folders(*names, images=1))
    for one in names:
        for other in names:
            link(root / one / "deep" / other, f"../../{other}")
    assert counted(root) == {name: (1, [10 * i]) for i, name in enumerate(names)}


@pytest.mark.parametrize("target", [".", "..", "../../root/b/..", "../b", "deep", "../a"])
def test_a_link_to_itself_or_above_or_to_another_class_adds_nothing(root, target):
    write_tree(root, {"a/deep/0.png": png(0)})
    (root / "a" / "1.png").unlink()
    link(root / "a" / "deep" / "deeper" / "back", "..")
    link(root / "a" / "more", target)
    assert counted(root) == THREE


def test_linked_class_folders_that_link_to_each_other_keep_their_own_images(tmp_path):
    store = write_tree(tmp_path / "store", folders("a", "b", "c"))
    link(store / "a" / "more", "../b")
    link(store / "b" / "all", "..")
    for name in "abc":
        link(tmp_path / "root" / name, store / name)
    assert counted(tmp_path / "root") == THREE


def test_linked_folders_outside_that_link_to_each_other_are_read_once(root, tmp_path):
    write_tree(tmp_path, {"one/2.png": png(1), "two/3.png": png(2)})
    link(tmp_path / "one" / "next", tmp_path / "two")
    link(tmp_path / "two" / "next", tmp_path / "one")
    link(root / "a" / "more", tmp_path / "one")
    link(root / "a" / "again", tmp_path / "two")
    assert counted(root) == {**THREE, "a": (4, [0, 1, 2])}


def test_a_file_with_several_names_in_a_class_counts_once(root):
    link(root / "a" / "symbolic.png", "0.png")
    (root / "a" / "hard.png").hardlink_to(root / "a" / "1.png")
    (root / "b" / ".pool").mkdir()
    for i in range(2):
        (root / "b" / f"{i}.png").rename(root / "b" / ".pool" / f"{i}.png")
        link(root / "b" / f"{i}.png", f".pool/{i}.png")
    link(root / "b" / "more", ".pool")
    assert counted(root) == THREE


@pytest.mark.parametrize("target", ["a", "../outside", "../root/a/"])
def test_two_class_folders_that_are_one_are_refused(root, tmp_path, target):
    write_tree(tmp_path, {"outside/0.png": png(50)})
    link(root / "d", target)
    link(root / "e", target)
    with pytest.raises(
        ValueError, match=r"the class folders (a and d|d and e) are one folder, .*: remove one of the two"
    ):
        image_folder(root, size=4)


@pytest.mark.parametrize("target", ["..", ".", "b/deep"])
def test_class_folders_that_lie_in_each_other_are_refused(root, target):
    write_tree(root, {"b/deep/2.png": png(10)})
    link(root / "d", target)
    with pytest.raises(
        ValueError,
        match=r"the class folder \w is .*, which lies in .*, the class folder \w \("
        r"|the class folder \w is .*, which lies in .*, the class folder \w, but",
    ):
        image_folder(root, size=4)


def by_symbolic_link(root):
    link(root / "b" / "x.png", "../a/0.png")


def by_hard_link(root):
    (root / "b" / "x.png").hardlink_to(root / "a" / "0.png")


def by_linked_folder(root):
    write_tree(root, {"a/deep/x.png": png(0)})
    link(root / "b" / "more", "../a/deep")


def by_links_to_one_outside(root):
    write_tree(root.parent, {"outside/x.png": png(0)})
    link(root / "a" / "x.png", root.parent / "outside" / "x.png")
    link(root / "b" / "more", root.parent / "outside")


@pytest.mark.parametrize("share", [by_symbolic_link, by_hard_link, by_linked_folder, by_links_to_one_outside])
@pytest.mark.parametrize("skip", [False, True])
def test_a_file_of_two_classes_is_refused_by_both_names(root, share, skip):
    share(root)
    named = r"a/(deep/)?[0x]\.png \(class a\) and b/(more/)?x\.png \(class b\) are one file, but an image must"
    with pytest.raises(ValueError, match=named):
        image_folder(root, size=4, skip_unreadable=skip)


def test_a_file_of_two_splits_is_refused(tmp_path):
    root = write_tree(tmp_path, folders("train/a", "val/b", "test/c"))
    link(root / "test" / "c" / "x.png", "../../train/a/0.png")
    with pytest.raises(ValueError, match=r"train/a/0\.png \(class train/a\) and test/c/x\.png \(class test/c\)"):
        image_folder(root, size=4)


@pytest.mark.parametrize("name", ["a/x.png", "a/more", "d"])
@pytest.mark.parametrize("target", ["nowhere", "../b/0.png/x", None], ids=["nothing", "no folder", "itself"])
def test_a_link_that_leads_nowhere_is_named_or_skipped(root, name, target):
    link(root / name, target or (root / name).name)
    link(root / "b" / ".lock", "nowhere")
    with pytest.raises(ValueError, match=rf"(not readable images|broken links.*): {name}"):
        image_folder(root, size=4)
    with pytest.warns(UserWarning, match=rf"skipped .*: {name}") as caught:
        assert counted(root, skip_unreadable=True) == THREE
    assert {warning.filename for warning in caught} == {__file__}


def test_a_link_that_leads_nowhere_and_is_no_folders_does_not_matter(root):
    expected = counted(root)
    link(root / "notes.txt", root / "nowhere.txt")
    link(next(path for path in root.iterdir() if path.is_dir()) / "notes.txt", root / "nowhere.txt")
    assert counted(root) == expected


def test_a_folder_that_cannot_be_read_is_named_or_skipped(root, monkeypatch):
    write_tree(root, {"a/deep/x.png": png()})
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(ValueError, match=r"folders that cannot be read: a/deep; repair or remove them"):
        image_folder(root, size=4)
    with pytest.warns(UserWarning, match=r"folders that cannot be read: a/deep"):
        assert counted(root, skip_unreadable=True) == THREE


def test_links_work_with_names_that_are_not_utf8(tmp_path):
    strange = os.fsdecode(b"\xff\xfe")
    root = write_tree(tmp_path, folders("a", "b", f"c{strange}"))
    link(root / "a" / strange, f"../c{strange}")
    link(root / f"c{strange}" / "more", "../a")
    assert counted(root) == {"a": (2, [0]), "b": (2, [10]), f"c{strange}": (2, [20])}
    link(root / "a" / f"{strange}.png", f"../c{strange}/0.png")
    with pytest.raises(ValueError, match=r"a/\\xff\\xfe\.png \(class a\) and c\\xff\\xfe/0\.png"):
        image_folder(root, size=4)


def test_a_folder_without_classes_is_read_once(tmp_path):
    write_tree(tmp_path, {"a/0.png": b"", "b/1.png": b""})
    link(tmp_path / "a" / "more", "../b")
    link(tmp_path / "b" / "more", "../a")
    assert set(Files(tmp_path).identities) == {"a/0.png", "b/1.png"}
