import struct
import sys
import zlib

import pytest
import torch

from innerloop.data import decode
from innerloop.data.decode import Decoded, cached, decode_classes
from innerloop.data.files import Files

from .stand_ins import png, write_tree


def made(value=3):
    return Decoded(torch.full((3, 1, 2, 2), value, dtype=torch.uint8), torch.tensor([1, 2]), ("a", "b"))


@pytest.fixture
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "innerloop"


def test_a_second_call_reads_what_the_first_kept(own_cache):
    cached("x", made)
    again = cached("x", lambda: pytest.fail("decoded twice"))
    assert torch.equal(again.images, made().images)
    assert torch.equal(again.counts, made().counts)
    assert again.names == ("a", "b")
    assert [path.suffix for path in own_cache.iterdir()] == [".pt"], "no temporary file is left"


def damage_nothing(path):
    path.write_bytes(b"")


def damage_end(path):
    path.write_bytes(path.read_bytes()[:-50])


def damage_kind(path):
    path.write_bytes(b"not a tensor" * 100)


def damage_form(path):
    torch.save({"images": 1}, path)


def damage_count(path):
    torch.save(tuple(made()._replace(counts=torch.tensor([1, 3]))), path)


def damage_pixels(path):
    content = path.read_bytes()
    assert content.count(bytes([3] * 12)) == 1
    path.write_bytes(content.replace(bytes([3] * 12), bytes([3] * 7 + [4] + [3] * 4)))


def damage_name(path):
    """Put the decoded images of other files in its place."""
    cached("y", lambda: made(5))
    (path.parent / path.name.replace("x", "y")).rename(path)


def damage_trust(path):
    """Keep what an earlier version of this library wrote."""
    torch.save(tuple(made(5)), path)


DAMAGES = [
    damage_nothing,
    damage_end,
    damage_kind,
    damage_form,
    damage_count,
    damage_pixels,
    damage_name,
    damage_trust,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_built_anew(own_cache, damage):
    cached("x", made)
    (path,) = own_cache.iterdir()
    damage(path)
    assert cached("x", lambda: made(7)).images.unique().tolist() == [7]
    assert cached("x", lambda: pytest.fail("not repaired")).images.unique().tolist() == [7]


def test_an_unwritable_cache_only_warns(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="cannot save the decoded images"):
        assert torch.equal(cached("x", made).images, made().images)


def test_a_failed_write_leaves_nothing_behind(own_cache, monkeypatch):
    def full(_, path):
        path.write_bytes(b"half")
        raise RuntimeError("disk full")

    monkeypatch.setattr(torch, "save", full)
    with pytest.warns(UserWarning, match="disk full"):
        cached("x", made)
    assert list(own_cache.iterdir()) == []


def test_decoding_resizes_and_counts(tmp_path):
    files = Files(write_tree(tmp_path, {"a.png": png(10, (9, 6)), "b.png": png(20), "c.png": png(30)}))
    decoded = decode_classes(files, {"one": ["a.png"], "two": ["b.png", "c.png"]}, size=4, channels=3)
    assert decoded.images.shape == (3, 3, 4, 4)
    assert decoded.images[:, 2, 1, 3].tolist() == [10, 20, 30]
    assert decoded.counts.tolist() == [1, 2]
    assert decoded.names == ("one", "two")


def test_unreadable_files_are_named_or_skipped(tmp_path):
    bad = {f"bad{i:02}.png": b"not an image" for i in range(12)}
    deep = {"deep.png": png(1000, mode="I;16")}
    files = Files(write_tree(tmp_path, {"good.png": png(10), **bad, **deep}))
    classes = {"one": ["deep.png", *bad, "good.png"]}
    with pytest.raises(ValueError, match=r"13 of 14 files are not readable images: deep\.png") as caught:
        decode_classes(files, classes, size=4, channels=1)
    assert "more than 8 bits per channel" in str(caught.value)
    assert "bad08.png" in str(caught.value)
    assert "bad09.png" not in str(caught.value)
    assert "3 more" in str(caught.value)
    with pytest.warns(UserWarning, match="skipped 13 unreadable files"):
        decoded = decode_classes(files, classes, size=4, channels=1, skip_unreadable=True)
    assert decoded.images.unique().tolist() == [10]
    assert decoded.counts.tolist() == [1]


def test_without_pillow_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"pip install 'innerloop\[vision\]'"):
        decode.require_pillow()


def test_a_picture_that_unpacks_to_more_than_memory_holds_is_named(tmp_path):
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)  # 30 GB of pixels in some hundred bytes

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    (tmp_path / "a").mkdir()
    content = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )
    (tmp_path / "a" / "bomb.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"1 of 1 files are not readable images: a/bomb.png \(.*decompression bomb"):
        decode_classes(Files(tmp_path), {"a": ["a/bomb.png"]}, 8, 3)
