"""Starts, watches and ends the child process that llama.cpp runs in."""

from __future__ import annotations

import asyncio
import http.client
import json
import shutil
import socket
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from tokenfleet.runtime.telemetry import get_logger
from tokenfleet.worker.engines.base import load_failed

# Lines of the child's log kept to explain its death.
_KEPT_LINES = 12
_EXIT_S = 5.0

log = get_logger(__name__)


class LlamaProcess:
    """One child. `exited` is called once when it ends without having been asked to."""

    def __init__(self, exited: Callable[[LlamaProcess], None]) -> None:
        self._exited = exited
        self._folder = Path(tempfile.mkdtemp(prefix="tokenfleet-"))
        self._process: asyncio.subprocess.Process | None = None
        self._watching: asyncio.Task[None] | None = None
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._ending = False
        self.socket = str(self._folder / "llama.sock")
        self.kill_cause = ""

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    async def start(self, config: Mapping[str, Any], timeout_s: float) -> None:
        """Returns when the server listens. Raises FleetError with the child's last words."""
        module = f"{__package__}.child"
        self._process = process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", module),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        logging = asyncio.create_task(self._keep_log())
        process.stdin.write(json.dumps({**config, "socket": self.socket}).encode() + b"\n")
        try:
            async with asyncio.timeout(timeout_s):
                ready = await process.stdout.readline()
        except TimeoutError:
            await self.stop()
            raise load_failed(
                f"engine llamacpp: not ready within {timeout_s:g} s; {self.last_words()}"
            ) from None
        except BaseException:
            await self.stop()
            raise
        if not ready:
            await logging
            await self.stop()
            raise load_failed(f"engine llamacpp: its process ended while it started; {self.last_words()}")
        self._watching = asyncio.create_task(self._watch(logging))

    def kill(self, cause: str) -> None:
        """Ends the child as if it had died, of this cause."""
        self.kill_cause = cause
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def stop(self) -> None:
        """Ends the child, and waits until it is gone."""
        self._ending = True
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            try:
                async with asyncio.timeout(_EXIT_S):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
        if self._watching is not None:
            await self._watching
        shutil.rmtree(self._folder, ignore_errors=True)

    def memory_bytes(self) -> int:
        """What the child occupies now; 0 when it is gone."""
        try:
            return int(psutil.Process(self.pid).memory_info().rss)
        except psutil.Error:
            return 0

    def last_words(self) -> str:
        code = self._process.returncode if self._process is not None else None
        how = "" if code is None else f"signal {-code}; " if code < 0 else f"exit code {code}; "
        return how + (f"its log ended: {' | '.join(self._lines)}" if self._lines else "it logged nothing")

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

    async def _watch(self, logging: asyncio.Task[None]) -> None:
        assert self._process is not None
        await self._process.wait()
        await logging
        if not self._ending:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._exited(self)

    async def _keep_log(self) -> None:
        assert self._process is not None
        assert self._process.stderr is not None
        while line := await self._process.stderr.readline():
            text = line.decode(errors="replace").rstrip()
            if text:
                self._lines.append(text)
                log.debug("llama.cpp says", line=text)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
