"""Names: every entry can be used, and what happens over a network that works, lies, fails or is not there."""

import hashlib
import http.server
import pathlib
import socket
import threading

import numpy as np
import pytest

from jaxseg.core.errors import JaxsegError, UnknownNameError
from jaxseg.core.names import resolve
from jaxseg.weights import catalog
from jaxseg.weights.catalog import CATALOG, Entry, cache_folder, fetch, locate
from jaxseg.weights.readers import read_arrays
from tests.weights.torch_files import tensor, write_zip

NAME = "torchvision/tiny.TEST"


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """A small PyTorch file's bytes."""
    values = np.arange(6, dtype=np.float32)
    path = tmp_path_factory.mktemp("published") / "tiny.pth"
    return write_zip(path, {"x": tensor("0", values)}, {"0": values.tobytes()}).read_bytes()


@pytest.fixture
def server(content, monkeypatch, tmp_path):
    """A server on this machine whose answers the tests choose, and a cache of our own."""

    class Handler(http.server.BaseHTTPRequestHandler):
        requests = []

        def do_GET(self):
            self.requests.append(self.path)
            if "missing" in self.path:
                return self.send_error(404, "Not Found")
            body = content if "changed" not in self.path else content[:-1] + b"x"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if "broken" in self.path else body)

        def log_message(self, *arguments):
            """Says nothing."""

    monkeypatch.setenv("JAXSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "*")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        running.base = f"http://127.0.0.1:{running.server_address[1]}"
        yield running
        running.shutdown()


@pytest.fixture
def publish(server, content, monkeypatch):
    """Puts an entry into the catalog whose file the server gives; `digits` of the hash stand in its name."""

    def publish(folder="", *, base=None, digits=8):
        digest = hashlib.sha256(content).hexdigest()[:digits]
        entry = Entry(f"{base or server.base}/{folder}tiny-{digest}.pth", "torchvision_resnet", "none")
        monkeypatch.setitem(CATALOG, NAME, entry)
        return entry

    return publish


@pytest.mark.parametrize("name", CATALOG)
def test_every_entry_has_its_table_its_hash_and_a_name_of_its_own(name):
    entry = CATALOG[name]
    assert callable(resolve("weights.tables", entry.table, "TABLE"))
    assert len(entry.digest) >= 8 and set(entry.digest) <= set("0123456789abcdef")
    assert entry.url.startswith("https://") and entry.licence
    assert [other.file for other in CATALOG.values()].count(entry.file) == 1
    network = name.split("/")[1].split(".")[0]
    assert entry.file.startswith(network.removesuffix("_coco"))


@pytest.mark.parametrize("digits", [8, 64])
def test_fetched_once_and_then_from_the_cache(publish, server, digits, tmp_path):
    entry = publish(digits=digits)
    path, table = locate(NAME)
    assert path == tmp_path / "cache" / "weights" / entry.file and table == "torchvision_resnet"
    np.testing.assert_array_equal(read_arrays(path)["x"], np.arange(6))
    asked = len(server.RequestHandlerClass.requests)
    assert locate(NAME, "other")[1] == "other"
    assert len(server.RequestHandlerClass.requests) == asked


def test_a_changed_file_is_refused_and_not_kept(publish):
    publish("changed/")
    with pytest.raises(JaxsegError, match=r"changed/tiny-.*SHA-256 is [0-9a-f]{16}\.\.\., which should begin.*thrown"):
        fetch(NAME)
    assert not list(cache_folder().glob("*")) if cache_folder().exists() else True


def test_a_damaged_file_in_the_cache_is_refused(publish, content):
    entry = publish()
    path = fetch(NAME)
    path.write_bytes(content[:-3])
    with pytest.raises(JaxsegError, match=f"{entry.file} is damaged.*Remove it"):
        fetch(NAME)


@pytest.mark.parametrize(
    "folder, reason",
    [("missing/", "the server answered 404 Not Found"), ("broken/", "(ChunkedEncoding|Connection)Error")],
)
def test_a_server_that_fails(publish, folder, reason):
    entry = publish(folder)
    with pytest.raises(JaxsegError, match=reason) as error:
        fetch(NAME)
    assert f"put it at {cache_folder() / entry.file}" in str(error.value)
    assert "config.weights.table=torchvision_resnet" in str(error.value)
    assert not cache_folder().exists() or not list(cache_folder().iterdir())


def test_without_a_network(publish, content):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        entry = publish(base=f"http://127.0.0.1:{free.getsockname()[1]}")
        with pytest.raises(JaxsegError, match="could not be fetched: ConnectionError") as error:
            fetch(NAME)
    # What the message says helps: the file put there by hand is taken, and checked.
    place = pathlib.Path(str(error.value).partition("put it at ")[2].partition(", and start")[0])
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content)
    assert fetch(NAME) == place and place.name == entry.file


def test_a_file_without_end(publish, monkeypatch):
    publish()
    monkeypatch.setattr(catalog, "MAX_BYTES", 100)
    with pytest.raises(JaxsegError, match="gives more than"):
        fetch(NAME)


def test_names_and_files(tmp_path, monkeypatch):
    with pytest.raises(UnknownNameError, match=r"torchvision/resnet50.IMAGENET1K_V1"):
        locate("torchvision/resnet50.IMAGENET_V1")
    assert locate(tmp_path / "w.pth", "t") == (tmp_path / "w.pth", "t")
    # A file of that name comes before the catalog.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "w.pth").touch()
    assert locate("torchvision/w.pth", "t")[0] == pathlib.Path("torchvision/w.pth")
    monkeypatch.delenv("JAXSEG_CACHE", raising=False)
    assert cache_folder() == pathlib.Path.home() / ".cache" / "jaxseg" / "weights"
