"""A small server on this machine that speaks as much of the Hugging Face hub's protocol as a
download needs: what a repository holds, the headers of a file, and its bytes from any offset on.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from huggingface_hub import constants, file_download

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pytest

_INFO = re.compile(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?")
_FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass
class Repository:
    """What a repository holds, and how it treats strangers."""

    files: dict[str, bytes]
    commit: str = "c0ffee" * 6 + "c0ff"
    gated: bool = False
    token: str | None = None
    """The token without which it does not exist."""
    lies: bool = False
    """Whether it lists other digests than its files have."""

    def siblings(self) -> list[dict[str, Any]]:
        """Return its files as the hub lists them."""
        return [
            {
                "rfilename": name,
                "size": len(content),
                "blobId": "0" * 40,
                "lfs": {
                    "sha256": "0" * 64 if self.lies else _digest(content),
                    "size": len(content),
                    "pointerSize": 134,
                },
            }
            for name, content in self.files.items()
        ]


@dataclass
class Hub:
    """The state of the server, and every request that came in as ``METHOD path [range]``."""

    endpoint: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    drop_after: int | None = None
    """Bytes after which the next transfer of a file breaks off."""
    status: int | None = None
    """What it answers to everything, if not what it should."""

    def transfers(self) -> list[str]:
        """Return the requests for the bytes of files."""
        return [line for line in self.requests if line.startswith("GET") and "/resolve/" in line]


def point_hub_at(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``huggingface_hub``, which has read its variables already, use another hub."""
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    files = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    for module in (constants, file_download):  # releases before 1.0 read it from the latter
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", files, raising=False)


@contextmanager
def hub_with_empty_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Run the server, let it be the hub, and keep what comes under ``cache``."""
    with serve() as hub:
        point_hub_at(hub.endpoint, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
        yield hub


@contextmanager
def serve() -> Iterator[Hub]:
    """Run the server until the context ends."""
    hub = Hub()

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, *_: object) -> None:
        """Keep quiet."""

    def _answer(self, *, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        span = self.headers.get("Range", "")
        self.state.requests.append(f"{self.command} {path} {span}".rstrip())
        if self.state.status is not None:
            self._refuse(self.state.status, None)
        elif match := _INFO.fullmatch(path):
            self._info(match[1], match[2] or "main")
        elif match := _FILE.fullmatch(path):
            self._file(match[1], match[2], match[3], with_body)
        else:
            self._refuse(404, None)

    def _open(self, name: str, revision: str) -> Repository | None:
        """Return a repository that this client may read, or refuse it."""
        repository = self.state.repositories.get(name)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if repository is None or repository.token not in {None, token}:
            self._refuse(401, "RepoNotFound")
        elif repository.gated:
            self._refuse(403, "GatedRepo")
        elif revision not in {"main", repository.commit}:
            self._refuse(404, "RevisionNotFound")
        else:
            return repository
        return None

    def _info(self, name: str, revision: str) -> None:
        repository = self._open(name, revision)
        if repository is None:
            return
        info = {"id": name, "sha": repository.commit, "siblings": repository.siblings()}
        body = json.dumps(info).encode()
        self._send(200, {"Content-Type": "application/json"}, body)

    def _file(self, name: str, revision: str, path: str, with_body: bool) -> None:
        repository = self._open(name, revision)
        if repository is None:
            return
        if path not in repository.files:
            self._refuse(404, "EntryNotFound")
            return
        content = repository.files[path]
        headers = {"ETag": f'"{_digest(content)}"', "X-Repo-Commit": repository.commit}
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(found[1]) if found else 0
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send(206 if start else 200, headers, content[start:], with_body=with_body)

    def _refuse(self, status: int, code: str | None) -> None:
        self._send(status, {} if code is None else {"X-Error-Code": code}, b"{}")

    def _send(
        self, status: int, headers: dict[str, str], body: bytes, *, with_body: bool = True
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if not with_body or self.command == "HEAD":
            return
        if "ETag" in headers and self.state.drop_after is not None:
            body, self.state.drop_after = body[: self.state.drop_after], None
            self.close_connection = True
        self.wfile.write(body)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
