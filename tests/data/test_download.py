import hashlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from innerloop.data import omniglot, vision
from innerloop.data.download import download

from .stand_ins import small_omniglot, write_zip


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    """The folder that a server on this machine serves, and its address."""
    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_the_right_file_arrives(server, tmp_path):
    folder, address = server
    (folder / "x.bin").write_bytes(content := bytes(range(256)) * 9000)
    path = download(f"{address}/x.bin", tmp_path / "new" / "x.bin", hashlib.sha256(content).hexdigest())
    assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


def test_another_file_is_removed_and_both_hashes_named(server, tmp_path):
    folder, address = server
    (folder / "x.bin").write_bytes(b"changed")
    expected, found = (hashlib.sha256(content).hexdigest() for content in (b"original", b"changed"))
    with pytest.raises(ValueError, match=f"has SHA-256 {found}, expected {expected}"):
        download(f"{address}/x.bin", tmp_path / "new" / "x.bin", expected)
    assert list((tmp_path / "new").iterdir()) == []


def test_what_cannot_be_fetched_names_url_and_place(server, tmp_path):
    url, path = f"{server[1]}/missing.bin", tmp_path / "new" / "x.bin"
    with pytest.raises(OSError, match=f"could not download {url} .*404.*put it at {path}"):
        download(url, path, "0" * 64)
    assert list(path.parent.iterdir()) == []


def serve_omniglot(server, monkeypatch, hashes=None):
    folder, address = server
    archives = {}
    for part, files in small_omniglot().items():
        content = write_zip(folder / f"{part}.zip", files).read_bytes()
        archives[part] = (f"{address}/{part}.zip", hashes or hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(vision, "OMNIGLOT", archives)


@pytest.mark.usefixtures("small_sizes")
def test_omniglot_is_fetched_once_and_only_when_asked(server, tmp_path, monkeypatch):
    serve_omniglot(server, monkeypatch)
    root = tmp_path / "data"
    with pytest.raises(FileNotFoundError, match="download=True"):
        omniglot(root, "background")
    first = omniglot(root, "background", download=True)
    assert [len(split.names) for split in first] == [10, 2, 6]
    for path in server[0].iterdir():
        path.unlink()
    assert omniglot(root, "background", download=True).test.names == first.test.names


@pytest.mark.usefixtures("small_sizes")
def test_an_omniglot_that_has_changed_is_not_kept(server, tmp_path, monkeypatch):
    serve_omniglot(server, monkeypatch, hashes="0" * 64)
    with pytest.raises(ValueError, match=f"expected {'0' * 64}"):
        omniglot(tmp_path / "data", "background", download=True)
    assert list((tmp_path / "data" / "omniglot").iterdir()) == []


def test_the_published_hashes_are_whole():
    for part, (url, sha256) in vision.OMNIGLOT.items():
        assert url == f"https://github.com/brendenlake/omniglot/raw/master/python/{part}.zip"
        assert len(bytes.fromhex(sha256)) == 32
