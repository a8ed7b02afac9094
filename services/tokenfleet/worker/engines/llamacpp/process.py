"""The child process that llama.cpp runs in: an HTTP server on a Unix socket of its own."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenfleet.worker.engines.hosted.process import EngineProcess


class LlamaProcess(EngineProcess):
    """One child, and the folder with its socket."""

    def __init__(self, exited: Callable[[], None]) -> None:
        super().__init__("llamacpp", f"{__package__}.child", exited)
        self._folder = Path(tempfile.mkdtemp(prefix="tokenfleet-"))
        self.socket = str(self._folder / "llama.sock")

    def gone(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def model_facts(self) -> dict[str, Any]:
        """What the server says of its model. Blocking; for load time."""
        connection = _UnixConnection(self.socket)
        try:
            connection.request("GET", "/v1/models")
            answer = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        meta: dict[str, Any] = answer["data"][0]["meta"]
        return meta


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
