import os
import zipfile
import zlib
from pathlib import Path

import pytest

from innerloop.data.files import LARGEST, ChangedError, Files, candidates, some

from .stand_ins import write_tree, write_zip

FILES = {"a/1.txt": b"one", "b/2.txt": b"two"}


def test_a_folder_and_a_zip_read_alike(tmp_path):
    for path in (write_zip(tmp_path / "x.zip", FILES), write_tree(tmp_path / "x", FILES)):
        files = Files(path)
        assert {name: files.read(name) for name in files.identities} == FILES


def test_names_that_lead_out_of_the_archive_are_left_out(tmp_path):
    hostile = {"../a.txt": b"", "/etc/b.txt": b"", "a/../../c.txt": b"", "__MACOSX/a/1.txt": b""}
    assert set(Files(write_zip(tmp_path / "x.zip", {**FILES, **hostile})).identities) == set(FILES)


def test_linked_folders_are_read(tmp_path):
    real = write_tree(tmp_path / "real", FILES)
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "c").symlink_to(real / "a")
    assert set(Files(tmp_path / "links").identities) == {"c/1.txt"}


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"<html>404</html>"])
def test_what_is_no_zip_is_named_with_its_size(tmp_path, content):
    path = tmp_path / "x.zip"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"x\.zip \({len(content)} bytes\) is not a readable zip"):
        Files(path)


def test_a_zip_cut_short_is_refused(tmp_path):
    path = write_zip(tmp_path / "x.zip", FILES)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match="not a readable zip"):
        Files(path)


def test_a_damaged_member_is_named(tmp_path):
    path = write_zip(tmp_path / "x.zip", FILES)
    path.write_bytes(path.read_bytes().replace(b"one", b"0ne", 1))
    with pytest.raises(ValueError, match=r"x\.zip: a/1\.txt cannot be read"):
        Files(path).read("a/1.txt")


def test_nothing_there_is_a_file_not_found_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        Files(tmp_path / "x.zip")


@pytest.mark.parametrize("write", [write_zip, write_tree])
def test_the_fingerprint_changes_with_the_content_and_the_settings(tmp_path, write):
    files = Files(write(tmp_path / "1", FILES))
    assert files.fingerprint(28) == Files(tmp_path / "1").fingerprint(28)
    assert files.fingerprint(28) != files.fingerprint(84)
    changed = Files(write(tmp_path / "2", {**FILES, "a/1.txt": b"longer"}))
    assert files.fingerprint(28) != changed.fingerprint(28)


def test_a_copied_zip_keeps_its_fingerprint(tmp_path):
    one, two = write_zip(tmp_path / "1.zip", FILES), tmp_path / "2.zip"
    two.write_bytes(one.read_bytes())
    os.utime(two, (0, 0))
    assert Files(one).fingerprint() == Files(two).fingerprint()


def test_equal_names_sizes_and_times_are_no_equal_contents(tmp_path):
    one, two = (
        write_tree(tmp_path / str(i), {**FILES, "a/1.txt": content}) for i, content in enumerate((b"one", b"1ne"))
    )
    for root in (one, two):
        os.utime(root / "a" / "1.txt", (10, 10))
        os.utime(root / "b" / "2.txt", (10, 10))
    assert Files(one).fingerprint() != Files(two).fingerprint()
    (two / "a" / "1.txt").write_bytes(b"one")
    assert Files(one).fingerprint() == Files(two).fingerprint(), "the same files elsewhere, of another time"


def test_names_do_not_run_into_each_other(tmp_path):
    one = write_tree(tmp_path / "1", {"a": b"x", "b": b""})
    two = write_tree(tmp_path / "2", {"a": b"", "b": b"x"})
    assert Files(one).fingerprint() != Files(two).fingerprint()
    stamp = "1 10000000000"
    three, four = (
        write_tree(tmp_path / "3", {"a": b"x", "b": b"y"}),
        write_tree(tmp_path / "4", {f"a\t{stamp}\nb": b"y"}),
    )
    for path in (*three.iterdir(), *four.iterdir()):
        os.utime(path, (10, 10))
    assert Files(three).fingerprint() != Files(four).fingerprint()


def test_a_zip_whose_checksums_are_those_of_another_has_a_fingerprint_of_its_own(tmp_path):
    one, two = write_zip(tmp_path / "1.zip", FILES), write_zip(tmp_path / "2.zip", {**FILES, "a/1.txt": b"0ne"})
    checksums = (zlib.crc32(content).to_bytes(4, "little") for content in (b"0ne", b"one"))
    two.write_bytes(two.read_bytes().replace(*checksums))
    assert Files(one).fingerprint() != Files(two).fingerprint()


@pytest.mark.parametrize("change", [lambda path: path.write_bytes(b"0ne"), lambda path: path.unlink()])
def test_a_file_that_changes_after_its_fingerprint_was_taken_is_refused(tmp_path, change):
    files = Files(write_tree(tmp_path, FILES))
    files.fingerprint()
    assert files.read("a/1.txt") == b"one"
    change(tmp_path / "a" / "1.txt")
    with pytest.raises(ChangedError, match=r"a/1\.txt changed while the files were read: try again"):
        files.read("a/1.txt")


def test_a_huge_file_is_not_read_for_its_fingerprint(tmp_path):
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(2**40)
    files = Files(tmp_path)
    files.fingerprint()
    with pytest.raises(ValueError, match=r"large\.png has 1,099,511,627,776 bytes"):
        files.read("large.png")


def test_where_data_is_looked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("INNERLOOP_DATA", str(tmp_path / "data"))
    cache, data = tmp_path / "cache" / "innerloop", tmp_path / "data"
    assert candidates(None, "omniglot") == [data, data / "omniglot", cache, cache / "omniglot"]
    assert candidates("~/x", "omniglot") == [Path.home() / "x", Path.home() / "x" / "omniglot"]
    monkeypatch.delenv("INNERLOOP_DATA")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert candidates(None, "omniglot")[0] == Path.home() / ".cache" / "innerloop"


def test_long_lists_are_cut():
    assert some(["a", "b"]) == "a, b"
    assert some(map(str, range(12))) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"


def test_a_link_to_above_is_not_followed_for_ever(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "picture.png").touch()
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "self").symlink_to(tmp_path / "a")
    assert set(Files(tmp_path).identities) == {"a/b/picture.png"}


def test_what_unpacks_to_more_than_any_picture_is_refused(tmp_path):
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a/b.png", "w") as member:
        for _ in range(LARGEST // 2**20 + 1):
            member.write(bytes(2**20))
    assert path.stat().st_size < 2**20
    with pytest.raises(ValueError, match=r"a/b.png has 269,484,032 bytes, more than the limit of 268,435,456"):
        Files(path).read("a/b.png")
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(LARGEST + 1)
    with pytest.raises(ValueError, match=r"large.png has 268,435,457 bytes"):
        Files(tmp_path).read("large.png")
