"""Downloading checkpoints: from a server on this machine, well and badly behaved."""

import contextlib
import hashlib
import http.server
import io
import socket
import stat
import threading
import time
import zipfile

import pytest

from igam_tf.common import archives
from igam_tf.common.errors import UserError
from madry_models import fetch as module
from madry_models.fetch import SOURCES, Source, fetch

FILES = {
    "checkpoint": b'model_checkpoint_path: "checkpoint-9"\n',
    "checkpoint-9.index": b"index",
    "checkpoint-9.data-00000-of-00001": b"data" * 1000,
}


def make_zip(files, folder="models/adv_trained/"):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, data in files.items():
            bundle.writestr(name if isinstance(name, zipfile.ZipInfo) else folder + name, data)
    return buffer.getvalue()


GOOD = make_zip(FILES)


@pytest.fixture
def serve(monkeypatch):
    """serve(body, status=200, length=None, **digests): fetch("mnist", "adv_trained") gets `body`.

    Returns the list of requested paths, one per download.
    """
    with contextlib.ExitStack() as stack:

        def start(body, *, status=200, length=None, **digests):
            requests = []

            class Handler(http.server.BaseHTTPRequestHandler):
                def do_GET(self):
                    requests.append(self.path)
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(body) if length is None else length))
                    self.end_headers()
                    self.wfile.write(body)

                def log_message(self, *args):
                    pass

            server = stack.enter_context(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler))
            stack.callback(server.shutdown)
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            source = Source(f"http://127.0.0.1:{server.server_port}/adv_trained.zip", **digests)
            monkeypatch.setitem(SOURCES, ("mnist", "adv_trained"), source)
            return requests

        yield start


@pytest.fixture
def refused(tmp_path):
    """Checks that fetch ends with one sentence that matches and with nothing left behind."""

    def check(message):
        with pytest.raises(UserError, match=message) as error:
            fetch("mnist", "adv_trained", dest=tmp_path / "models")
        assert "\n" not in str(error.value)
        assert "by hand" in str(error.value)
        assert "--teacher_checkpoint" in str(error.value)
        assert not any((tmp_path / "models").iterdir())
        assert [p.name for p in tmp_path.iterdir()] == ["models"]

    return check


def test_fetch_and_no_second_download(serve, tmp_path, capsys):
    blob = b"blob %d\0" % len(GOOD) + GOOD
    sha1, sha256 = hashlib.sha1(blob).hexdigest(), hashlib.sha256(GOOD).hexdigest()
    requests = serve(GOOD, git_blob_sha1=sha1, sha256=sha256)
    folder = fetch("mnist", "adv_trained", dest=tmp_path)
    assert folder == tmp_path / "adv_trained"
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == FILES
    assert list(tmp_path.iterdir()) == [folder]
    assert "git blob SHA-1 and SHA-256 as published" in capsys.readouterr().out
    assert fetch("mnist", "adv_trained", dest=tmp_path) == folder
    assert len(requests) == 1
    assert "already there" in capsys.readouterr().out


def test_default_folder(serve, tmp_path, monkeypatch):
    serve(GOOD)
    monkeypatch.chdir(tmp_path)
    assert str(fetch("mnist", "adv_trained")) == "models/mnist/adv_trained"


def test_a_file_without_published_digest_says_so(serve, tmp_path, capsys):
    serve(GOOD)
    fetch("mnist", "adv_trained", dest=tmp_path)
    assert "no digest is published" in capsys.readouterr().out


def test_published_digests():
    for (model, name), source in SOURCES.items():
        assert source.url.removesuffix("?dl=1").endswith(f"/{name}.zip")
        assert (source.git_blob_sha1 is not None) == (model == "mnist")
        assert (source.sha256 is not None) == (name == "secret")
        assert all(len(d) == n for d, n in ((source.git_blob_sha1, 40), (source.sha256, 64)) if d)


@pytest.mark.parametrize("digest", ["git_blob_sha1", "sha256"])
def test_wrong_digest(serve, refused, digest):
    serve(GOOD, **{digest: "0" * 40})
    refused("expected .* 0000000000.*; received ")


def test_html_instead_of_a_zip(serve, refused):
    serve(b"<!DOCTYPE html><html>please sign in</html>", sha256="0" * 64)
    refused("expected a zip archive; received data that begin with .*DOCTYPE")


def test_not_found(serve, refused):
    serve(b"", status=404)
    refused("HTTP Error 404")


def test_broken_connection(serve, refused):
    serve(GOOD[:100], length=len(GOOD))
    refused(f"the connection broke after 100 of {len(GOOD)} bytes")


def test_refused_connection(monkeypatch, refused):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    monkeypatch.setitem(SOURCES, ("mnist", "adv_trained"), Source(f"http://127.0.0.1:{port}/a.zip"))
    refused("Connection refused")


def test_silent_server(monkeypatch, refused):
    monkeypatch.setattr(module, "TIMEOUT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/a.zip"
        monkeypatch.setitem(SOURCES, ("mnist", "adv_trained"), Source(url))
        start = time.monotonic()
        refused("timed out")
        assert time.monotonic() - start < 5


def test_a_killed_download_is_restarted(serve, tmp_path):
    partial = tmp_path / ".adv_trained.partial"
    partial.mkdir()
    (partial / "archive.zip").write_bytes(GOOD[:50])
    serve(GOOD)
    assert (fetch("mnist", "adv_trained", dest=tmp_path) / "checkpoint-9.index").is_file()
    assert not partial.exists()


def test_something_else_in_the_way_is_kept(serve, tmp_path):
    requests = serve(GOOD)
    (tmp_path / "adv_trained").mkdir()
    (tmp_path / "adv_trained" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="in the way"):
        fetch("mnist", "adv_trained", dest=tmp_path)
    assert (tmp_path / "adv_trained" / "notes.txt").read_text() == "mine"
    assert not requests


def link(name, target_mode=stat.S_IFLNK | 0o777):
    info = zipfile.ZipInfo(name)
    info.external_attr = target_mode << 16
    return info


@pytest.mark.parametrize(
    "entry",
    [
        zipfile.ZipInfo("../evil.txt"),
        zipfile.ZipInfo("models/../../evil.txt"),
        zipfile.ZipInfo("/tmp/evil.txt"),
        zipfile.ZipInfo("C:/evil.txt"),
        zipfile.ZipInfo("models\\..\\..\\evil.txt"),
        link("models/adv_trained/link"),
    ],
    ids=lambda e: e.filename,
)
def test_unsafe_entries(serve, refused, entry):
    serve(make_zip({**FILES, entry: b"/etc"}))
    refused("unsafe archive: .* is a link or leaves its folder")


def test_archive_bomb(serve, refused, monkeypatch):
    monkeypatch.setattr(archives, "MAX_UNPACKED", 1_000_000)
    serve(make_zip({**FILES, "zeros": bytes(2_000_000)}))
    refused("unsafe archive: expected at most 1000000 bytes; received 20040")


def test_an_archive_that_lies_about_its_size_writes_no_more_than_it_says(serve, refused):
    data = make_zip({"checkpoint-9.index": bytes(1_000_000)})
    lie = data.replace((1_000_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    assert lie != data
    serve(lie)
    refused("damaged or unsupported archive")


def test_damaged_archive(serve, refused):
    position = GOOD.index(b"checkpoint-9.data") + 40
    serve(GOOD[:position] + b"\xff\xff\xff\xff" + GOOD[position + 4 :])
    refused("damaged or unsupported archive")


def test_archive_without_a_checkpoint(serve, refused):
    serve(make_zip({"readme": b""}))
    refused("expected one checkpoint in the archive; received 0")


def test_archive_with_another_folder_name_and_a_finder_s_shadow_files(serve, tmp_path):
    shadow = zipfile.ZipInfo("__MACOSX/models/naturally_trained/._checkpoint-9.index")
    serve(make_zip({**FILES, shadow: b""}, folder="models/naturally_trained/"))
    folder = fetch("mnist", "adv_trained", dest=tmp_path)
    assert {p.name for p in folder.iterdir()} == set(FILES)


def test_unknown_names(tmp_path):
    with pytest.raises(UserError, match="unknown checkpoint mnist/best: expected one of mnist/nat"):
        fetch("mnist", "best", dest=tmp_path)
