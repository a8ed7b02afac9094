"""Starts, watches and ends the child process that an engine runs in.

The child gets its configuration as one line of standard input and answers on standard output, a JSON object a
line: `{"progress": "what it does"}` any number of times, then `{"ready": {…}}` with what is known of the
engine, or `{"failed": {"reason": "LOAD_FAILED", "message": "…"}}`. What it logs on standard error is kept for
its last words. It leads a session of its own, so that whatever it starts can be ended with it.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import psutil

from tokenfleet.runtime.errors import FleetError
from tokenfleet.runtime.telemetry import get_logger
from tokenfleet.v1 import common_pb2
from tokenfleet.worker.engines.base import load_failed
from tokenfleet.worker.machine import oom_kills

# Lines of the child's log kept to explain its death.
_KEPT_LINES = 12
_LONGEST_LINE = 1 << 20
_EXIT_S = 5.0

log = get_logger(__name__)


class EngineProcess:
    """One child. `exited` is called once when it ends after its start without having been asked to."""

    def __init__(
        self,
        engine: str,
        module: str,
        exited: Callable[[], None],
        progress: Callable[[str], None] = lambda doing: None,
    ) -> None:
        """`module` is the child's main program."""
        self._engine = engine
        self._module = module
        self._exited = exited
        self._progress = progress
        self._process: asyncio.subprocess.Process | None = None
        self._watching: asyncio.Task[None] | None = None
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._ending = False
        self._oom_kills = oom_kills()
        self.kill_cause = ""

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    async def start(
        self,
        config: Mapping[str, Any],
        timeout_s: float,
        *,
        environment: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> dict[str, Any]:
        """Returns when the child is ready, with what it says of the engine.

        Raises FleetError: as the child typed it, or LOAD_FAILED with its last words.
        """
        self._process = process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", self._module),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_LONGEST_LINE,
            env={**os.environ, **(environment or {})},
            pass_fds=pass_fds,
            start_new_session=True,
        )
        assert process.stdin is not None
        logging = asyncio.create_task(self._keep_log())
        process.stdin.write(json.dumps(config).encode() + b"\n")
        try:
            async with asyncio.timeout(timeout_s):
                facts = await self._until_ready()
        except TimeoutError:
            await self.stop()
            raise load_failed(
                f"engine {self._engine}: not ready within {timeout_s:g} s; {self.last_words()}"
            ) from None
        except BaseException:
            await self.stop()
            raise
        if facts is None:
            await logging
            await self.stop()
            raise load_failed(
                f"engine {self._engine}: its process ended while it started; {self.last_words()}"
            )
        self._watching = asyncio.create_task(self._watch(logging))
        return facts

    def kill(self, cause: str) -> None:
        """Ends the child as if it had died, of this cause."""
        self.kill_cause = cause
        if self._process is not None and self._process.returncode is None:
            self._kill_all()

    async def stop(self) -> None:
        """Ends the child, and waits until it and all that it started are gone."""
        self._ending = True
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            try:
                async with asyncio.timeout(_EXIT_S):
                    await self._process.wait()
            except TimeoutError:
                log.warning("engine does not stop, killed", engine=self._engine, pid=self.pid)
            self._kill_all()
            await self._process.wait()
        if self._watching is not None:
            await self._watching
        self.gone()

    def gone(self) -> None:
        """The child is: for what a kind of child leaves behind."""

    def memory_bytes(self) -> int:
        """What the child and its descendants occupy now; 0 when it is gone."""
        try:
            process = psutil.Process(self.pid)
            total = int(process.memory_info().rss)
            descendants = process.children(recursive=True)
        except psutil.Error:
            return 0
        for descendant in descendants:
            with suppress(psutil.Error):
                total += int(descendant.memory_full_info().uss)
        return total

    @property
    def killed_for_memory(self) -> bool:
        """The kernel killed it, and others perhaps, since there was no memory left."""
        killed = self._process is not None and self._process.returncode == -signal.SIGKILL
        return killed and not self.kill_cause and oom_kills() > self._oom_kills

    def last_words(self) -> str:
        code = self._process.returncode if self._process is not None else None
        how = "" if code is None else f"signal {-code}; " if code < 0 else f"exit code {code}; "
        return how + (f"its log ended: {' | '.join(self._lines)}" if self._lines else "it logged nothing")

    async def _until_ready(self) -> dict[str, Any] | None:
        assert self._process is not None
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            said = json.loads(line)
            if "ready" in said:
                ready: dict[str, Any] = said["ready"]
                return ready
            if "failed" in said:
                raise typed_failure(self._engine, said["failed"])
            self._progress(said["progress"])
        return None

    async def _watch(self, logging: asyncio.Task[None]) -> None:
        assert self._process is not None
        await self._process.wait()
        self._kill_all()
        await logging
        if not self._ending:
            self.gone()
            self._exited()

    def _kill_all(self) -> None:
        """The child's whole process group: what outlives its leader would hold the device's memory."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    async def _keep_log(self) -> None:
        assert self._process is not None
        assert self._process.stderr is not None
        while line := await self._process.stderr.readline():
            text = line.decode(errors="replace").rstrip()
            if text:
                self._lines.append(text)
                log.debug("engine says", engine=self._engine, line=text)


def typed_failure(engine: str, said: Mapping[str, str]) -> FleetError:
    """What a child said of its failure, as the worker's error."""
    reason = common_pb2.Reason.Value(f"REASON_{said['reason']}")
    return FleetError(reason, f"engine {engine}: {said['message']}")
