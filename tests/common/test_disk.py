"""Files are whole under their names, and nothing is written through a link."""

from __future__ import annotations

import os
import stat
import sys
import threading
from contextlib import nullcontext
from pathlib import Path

import pytest

from innerloop.common.disk import (
    expanded,
    leftovers,
    opened,
    read_bytes,
    read_text,
    refuse_linked_database,
    refuse_linked_folder,
    replacing,
    subfolder,
    write_text,
    writing,
)

posix = pytest.mark.skipif(os.name != "posix", reason="links and modes of POSIX")


def write(path, content=b"ours"):
    with writing(path) as file:
        file.write(content)


@posix
@pytest.mark.parametrize("target", ["file", "nothing"])
@pytest.mark.parametrize("by_name", [False, True])
def test_a_link_is_replaced_and_what_it_points_to_is_left_alone(tmp_path, target, by_name):
    precious, path = tmp_path / "precious", tmp_path / "run" / "config.toml"
    path.parent.mkdir()
    if target == "file":
        precious.write_text("mine")
    path.symlink_to(precious)
    if by_name:
        with replacing(path) as temporary:
            assert temporary.suffix == ".toml"
            temporary.write_bytes(b"ours")
    else:
        write(path)
    assert not path.is_symlink()
    assert path.read_bytes() == b"ours"
    assert (precious.read_text() == "mine") if target == "file" else not precious.exists()
    assert [entry.name for entry in path.parent.iterdir()] == ["config.toml"]


@posix
def test_temporary_names_differ_and_exist_once(tmp_path, monkeypatch):
    names = set()
    for _ in range(20):
        with writing(tmp_path / "file"):
            (found,) = leftovers(tmp_path)
            names.add(found.name)
    assert len(names) == 20
    monkeypatch.setattr("secrets.token_hex", lambda size: "0" * 2 * size)  # as if somebody had guessed it
    (tmp_path / "precious").write_text("mine")
    planted = tmp_path / f".innerloop-{'0' * 32}.tmp"
    planted.symlink_to(tmp_path / "precious")
    with pytest.raises(FileExistsError, match="it was not written and is unchanged"):
        write(tmp_path / "file")
    assert (tmp_path / "precious").read_text() == "mine"


@posix
def test_the_mode_is_that_of_any_new_file(tmp_path):
    before = os.umask(0o027)
    try:
        write(tmp_path / "file")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_many_writers_of_one_file_do_not_meet(tmp_path):
    failed = []

    def again(number):
        for _ in range(50):
            try:
                write(tmp_path / "file", bytes([number]) * 1_000)
            except OSError as error:
                failed.append(error)

    threads = [threading.Thread(target=again, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    content = (tmp_path / "file").read_bytes()
    assert len(content) == 1_000
    assert len(set(content)) == 1
    assert leftovers(tmp_path) == []


def test_an_error_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "file"
    write(path, b"before")
    with pytest.raises(TypeError), writing(path) as file:
        file.writelines([b"half", "no bytes"])
    assert path.read_bytes() == b"before"
    assert leftovers(tmp_path) == []


@posix
def test_what_is_appended_to_is_never_opened_through_a_link(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    (tmp_path / "dangling").symlink_to(tmp_path / "new")
    os.mkfifo(tmp_path / "pipe")
    for name, reason in (("link", "symbolic link"), ("dangling", "symbolic link"), ("pipe", "not a regular file")):
        with pytest.raises(OSError, match=rf"{name} is (a )?{reason}"):
            opened(tmp_path / name, os.O_RDWR | os.O_CREAT)
    assert (tmp_path / "precious").read_text() == "mine"
    assert not (tmp_path / "new").exists()


@posix
def test_linked_folders_inside_a_run_directory_are_refused_and_others_are_not(tmp_path):
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    run.mkdir()
    elsewhere.mkdir()
    (run / "metrics.jsonl").touch()
    for name in ("figures", "mine"):
        (run / name).symlink_to(elsewhere)
    with pytest.raises(OSError, match="run/figures is a symbolic link"):
        subfolder(run, "figures")
    (elsewhere / "deeper").mkdir()
    for path in (run / "mine" / "film.gif", run / "mine" / "deeper" / "film.gif"):
        with pytest.raises(OSError, match="run/mine is a symbolic link"):
            write(path)
    assert [path.name for path in elsewhere.iterdir()] == ["deeper"]
    (tmp_path / "given").symlink_to(run)  # a run directory that is a link is the user's own
    write(tmp_path / "given" / "config.toml")
    assert (run / "config.toml").exists()
    refuse_linked_folder(tmp_path / "given" / "config.toml")


@posix
@pytest.mark.parametrize("url", ["sqlite:///{}", "sqlite+pysqlite:///{}?timeout=3", "journal:{}"])
@pytest.mark.parametrize("suffix", ["", "-wal"])
def test_linked_databases_are_refused(tmp_path, url, suffix):
    refuse_linked_database(url.format(tmp_path / "sweep.db"))
    (tmp_path / f"sweep.db{suffix}").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match=f"sweep.db{suffix} is a symbolic link"):
        refuse_linked_database(url.format(tmp_path / "sweep.db"))
    refuse_linked_database("postgresql+psycopg://user@host/sweeps")


@posix
def test_only_regular_files_are_read_and_only_as_far_as_they_are_wanted(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    for name in ("pipe", "device", "."):
        with pytest.raises(ValueError, match="is not a regular file"):
            read_bytes(tmp_path / name)
    (tmp_path / "huge").touch()
    os.truncate(tmp_path / "huge", 2**40)
    with pytest.raises(ValueError, match="huge has 1,099,511,627,776 bytes, more than the limit of 67,108,864"):
        read_bytes(tmp_path / "huge")
    (tmp_path / "memory").symlink_to("/proc/self/mem")
    with pytest.raises(OSError, match="memory") if sys.platform == "linux" else nullcontext():
        read_bytes(tmp_path / "memory")


def test_a_home_that_is_not_there_is_left_as_it_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert expanded("~/x") == tmp_path / "x"
    assert expanded("~nobody-of-this-name/x") == Path("~nobody-of-this-name/x")


def test_text_is_written_whole(tmp_path):
    write_text(tmp_path / "page.md", "é")
    assert (tmp_path / "page.md").read_bytes() == "é".encode()
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "page.md", "\ud800")
    assert (tmp_path / "page.md").read_bytes() == "é".encode()


def test_text_that_is_none_is_named(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"ab\xff")
    with pytest.raises(ValueError, match=r"file is not UTF-8 text: .* at byte 2"):
        read_text(path)
    path.write_text("abc")
    assert read_text(path) == "abc"
    with pytest.raises(ValueError, match="file has 3 bytes, more than the limit of 2"):
        read_text(path, limit=2)
    with pytest.raises(ValueError, match="is not a regular file"):
        read_text(tmp_path)
