"""A model hub of one's own: what `huggingface_hub` asks for, over real HTTP, with the faults of networks."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34
LARGE = 1024  # from here on files are kept as LFS objects, with a sha256 in their description


class Hub:
    """One repository. `requests` has what was asked, as (method, path, Range header)."""

    def __init__(self, files: dict[str, bytes], repository: str = "org/model") -> None:
        self.files = files
        self.repository = repository
        self.commits = {"main": COMMIT, COMMIT: COMMIT}
        self.requests: list[tuple[str, str, str]] = []
        self.token = ""  # wanted of everybody, if there is one
        self.gated = False
        self.breaks_after: list[int] = []  # bytes after which the next downloads break off
        self.halts_at = 0  # bytes at which a download stays until `goes_on`; 0: none does
        self.goes_on = threading.Event()
        self.spoilt: set[str] = set()  # files that arrive with a wrong byte
        self.url = ""

    def ranges(self) -> list[str]:
        """Of the downloads so far."""
        return [bytes_ for method, path, bytes_ in self.requests if method == "GET" and "/resolve/" in path]

    def description(self, commit: str) -> dict[str, Any]:
        siblings = []
        for name, content in self.files.items():
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": blob}
            if len(content) >= LARGE:
                sha256 = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 130}
            siblings.append(entry)
        return {
            "id": self.repository,
            "modelId": self.repository,
            "sha": commit,
            "siblings": siblings,
            "tags": [],
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        hub = self.hub
        path = unquote(urlsplit(self.path).path)
        hub.requests.append((self.command, path, self.headers.get("Range", "")))
        if not self._admitted():
            return
        if found := re.fullmatch(rf"/api/models/{hub.repository}(?:/revision/(.+))?", path):
            self._describe(found[1] or "main")
        elif found := re.fullmatch(rf"/{hub.repository}/resolve/([^/]+)/(.+)", path):
            self._send(found[2])
        else:
            self._refuse(404, "RepoNotFound", "Repository not found")

    def _admitted(self) -> bool:
        hub = self.hub
        given = self.headers.get("Authorization", "")
        if hub.gated and given != f"Bearer {hub.token}":
            self._refuse(401 if not given else 403, "GatedRepo", "Access to model is restricted")
        elif hub.token and not given:
            self._refuse(401, "RepoNotFound", "Repository not found")
        elif hub.token and given != f"Bearer {hub.token}":
            self._refuse(401, "", "Invalid credentials in Authorization header")
        else:
            return True
        return False

    def _describe(self, revision: str) -> None:
        commit = self.hub.commits.get(revision)
        if commit is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        assert parse_qs(urlsplit(self.path).query).get("blobs"), "sizes and digests are wanted"
        self._answer(
            200, json.dumps(self.hub.description(commit)).encode(), {"Content-Type": "application/json"}
        )

    def _send(self, name: str) -> None:
        hub = self.hub
        content = hub.files.get(name)
        if content is None:
            self._refuse(404, "EntryNotFound", "Entry not found")
            return
        whole = len(content)
        if name in hub.spoilt:
            content = content[:-1] + bytes([content[-1] ^ 1])
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        status, begin = 200, 0
        if wanted := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            status, begin = 206, int(wanted[1])
            headers["Content-Range"] = f"bytes {begin}-{whole - 1}/{whole}"
        self._answer(status, content[begin:], headers)

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        hub = self.hub
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if "ETag" in headers and hub.breaks_after:
            self.wfile.write(body[: hub.breaks_after.pop(0)])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
        elif "ETag" in headers and hub.halts_at and not hub.goes_on.is_set():
            self._halt(body)
        else:
            self.wfile.write(body)

    def _halt(self, body: bytes) -> None:
        """Half-way, until it may go on, or is wanted no longer."""
        try:
            self.wfile.write(body[: self.hub.halts_at])
            self.wfile.flush()
            self.hub.goes_on.wait()
            self.wfile.write(body[self.hub.halts_at :])
        except OSError:
            self.close_connection = True

    def _refuse(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self._answer(status, json.dumps({"error": message}).encode(), headers)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        hub.goes_on.set()
        server.shutdown()
        thread.join()
        server.server_close()
