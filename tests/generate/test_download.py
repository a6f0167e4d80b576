"""Getting a model: from a server on this computer that speaks as the hub does."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from rtevo.errors import ConfigError, ModelError
from rtevo.generate.__main__ import main
from rtevo.generate.download import KNOWN, LOCK, Known, Source, download
from rtevo.generate.hashes import hash_files

COMMIT, REPOSITORY = "1f3a" * 10, "acme/unclip"


class Hub(ThreadingHTTPServer):
    """Files of one repository at one commit, as the hub serves them (https://huggingface.co/docs/hub/api)."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.files = files
        self.cut: dict[str, int] = {}  # the first answer to this file ends after so many bytes, and there is no other
        self.lie: set[str] = set()  # these have other contents than the hub says
        self.asked: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Answers(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        paths = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())["paths"]
        assert self.path == f"/api/models/{REPOSITORY}/paths-info/{COMMIT}"
        found = []
        for path in paths:
            if path not in self.server.files:
                continue
            data = self.server.files[path]
            git = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
            entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": git}
            if path.endswith(".safetensors"):
                entry |= {"oid": "0" * 40, "lfs": {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}}
            found.append(entry)
        self._json(found)

    def do_GET(self) -> None:
        if self.path == f"/api/models/{REPOSITORY}":
            self._json({"id": REPOSITORY, "sha": COMMIT, "siblings": []})
        else:
            self._file(body=True)

    def do_HEAD(self) -> None:
        self._file(body=False)

    def _json(self, found: Any) -> None:
        data = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _file(self, body: bool) -> None:
        prefix = f"/{REPOSITORY}/resolve/{COMMIT}/"
        name = self.path.removeprefix(prefix)
        data = self.server.files.get(name)
        if not self.path.startswith(prefix) or data is None:
            self.send_error(404)
            return
        if self.server.cut.get(name) == 0 and body:
            self.send_error(404)
            return
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.server.asked.append(f"{self.command} {name} {start}")
        etag = hashlib.sha256(data).hexdigest()
        if name in self.server.lie:
            data = bytes(len(data) - 1) + b"x"
        self.send_response(206 if start else 200)
        for header, value in (("X-Repo-Commit", COMMIT), ("ETag", f'"{etag}"'), ("Content-Length", str(len(data) - start))):
            self.send_header(header, value)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if body:
            stop = self.server.cut.get(name, len(data))
            self.wfile.write(data[start:stop])
            if name in self.server.cut:
                self.server.cut[name] = 0
                self.close_connection = True


@pytest.fixture
def hub(model_folder: Callable[..., Path]) -> Iterator[Hub]:
    made = model_folder()
    files = {file.relative_to(made).as_posix(): file.read_bytes() for file in made.rglob("*") if file.is_file()}
    with Hub(files) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def known(hub: Hub) -> Known:
    return Known("a model", (Source(REPOSITORY, COMMIT, "Apache-2.0", {name: name for name in hub.files}),))


WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def test_a_model_is_got_checked_and_written_down(hub: Hub, known: Known, tmp_path: Path) -> None:
    folder, said = tmp_path / "own", []
    download(known, folder, said.append, hub.endpoint)
    assert {file.name for file in hash_files(folder) if not file.published} == {LOCK}
    lock = json.loads((folder / LOCK).read_text())["files"]
    assert lock[WEIGHTS] == {
        "repository": REPOSITORY, "commit": COMMIT, "file": WEIGHTS, "size": len(hub.files[WEIGHTS]),
        "sha256": hashlib.sha256(hub.files[WEIGHTS]).hexdigest(),
    }  # fmt: skip
    assert said[-1].startswith("complete: ")
    asked = len(hub.asked)
    download(known, folder, said.append, hub.endpoint)
    assert len(hub.asked) == asked
    assert said[-2] == f"{REPOSITORY}: have all {len(hub.files)} files"


def test_a_download_that_was_interrupted_goes_on(hub: Hub, known: Known, tmp_path: Path) -> None:
    hub.files[WEIGHTS] = grown()
    hub.cut[WEIGHTS] = 11_000_000
    with pytest.raises(ModelError, match="downloaded files are kept: repeat the command to continue"):
        download(known, tmp_path / "own", endpoint=hub.endpoint)
    hub.cut.clear()
    hub.asked.clear()
    download(known, tmp_path / "own", endpoint=hub.endpoint)
    assert f"GET {WEIGHTS} {10 << 20}" in hub.asked  # the client writes ten megabytes at a time
    assert not any(line.startswith("GET model_index.json") for line in hub.asked)
    assert (tmp_path / "own" / WEIGHTS).read_bytes() == hub.files[WEIGHTS]
    assert not (tmp_path / "own" / ".get").exists()


def grown(size: int = 12_000_000) -> bytes:
    """Weights that do not come in one piece."""
    header = json.dumps({"x": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(size)


@pytest.mark.parametrize("name", [WEIGHTS, "vae/config.json"])
def test_a_file_that_is_not_what_was_published(name: str, hub: Hub, known: Known, tmp_path: Path) -> None:
    hub.lie.add(name)
    with pytest.raises(ModelError, match=rf"{name}: expected a file with hash .* got .*: deleted"):
        download(known, tmp_path / "own", endpoint=hub.endpoint)
    assert not (tmp_path / "own" / name).exists()
    hub.lie.clear()
    download(known, tmp_path / "own", endpoint=hub.endpoint)
    assert (tmp_path / "own" / name).read_bytes() == hub.files[name]


def test_without_a_pinned_commit_the_first_one_is_kept_to(hub: Hub, known: Known, tmp_path: Path) -> None:
    loose = Known("a model", (Source(REPOSITORY, "", "Apache-2.0", known.sources[0].files),))
    folder = tmp_path / "own"
    download(loose, folder, endpoint=hub.endpoint)
    (folder / "vae" / "config.json").unlink()
    hub.files["vae/config.json"] += b" "  # as if history had been rewritten
    with pytest.raises(ModelError, match="expected a file with hash"):
        download(loose, folder, endpoint=hub.endpoint)


def test_what_is_missing_on_the_hub_and_what_is_in_the_way(hub: Hub, known: Known, tmp_path: Path) -> None:
    other = Known("a model", (Source(REPOSITORY, COMMIT, "MIT", {"nothing.json": "nothing.json"}),))
    with pytest.raises(ModelError, match=f"at {COMMIT}: expected nothing.json, found none"):
        download(other, tmp_path / "own", endpoint=hub.endpoint)
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "beach.jpg").touch()
    with pytest.raises(ConfigError, match="expected a new folder"):
        download(known, tmp_path / "holiday", endpoint=hub.endpoint)


def test_every_known_model_says_what_it_would_do(no_network: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["get"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(KNOWN)
    for name in KNOWN:
        assert main(["get", name, "--dry-run", "--into", str(tmp_path / name)]) == 0
        said = capsys.readouterr().out
        assert "licence: " in said
        assert "[generator]" in said
        assert not (tmp_path / name).exists()


def test_a_licence_that_must_be_agreed_to(no_network: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["get", "sdxl-turbo", "--into", str(tmp_path / "turbo")]) == 2
    out, err = capsys.readouterr()
    assert "Non-Commercial" in out
    assert "add --accept-licence" in err
    assert not (tmp_path / "turbo").exists()
