"""The driver as a child process: a parent starts it, reads its counters when it likes, and stops it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Collection
from contextlib import suppress
from types import TracebackType
from typing import Self

from loadtest.driver.load import Load
from loadtest.driver.stats import Snapshot

LINE_LIMIT_BYTES = 64 * 1024 * 1024


class DriverError(Exception):
    """The driver process ended before it was told to; the message has its own words."""


class DriverProcess:
    """`async with DriverProcess(load, cpus) as driver: await driver.snapshot()`."""

    def __init__(self, load: Load, cpus: Collection[int] = ()) -> None:
        self._load = load
        self._cpus = cpus
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        return self._running().pid

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "loadtest.driver", "--controlled", "--load", self._load.to_json()),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=LINE_LIMIT_BYTES,
            start_new_session=True,  # Ctrl-C is the parent's to handle
        )
        if self._cpus:
            os.sched_setaffinity(self._process.pid, self._cpus)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process = self._running()
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
        await process.communicate()

    async def snapshot(self) -> Snapshot:
        return await self._ask("snapshot")

    async def stop(self) -> Snapshot:
        """Waits until the running answers are finished; the last counters."""
        return await self._ask("stop")

    def _running(self) -> asyncio.subprocess.Process:
        assert self._process is not None, "not entered"
        return self._process

    async def _ask(self, command: str) -> Snapshot:
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        line = b""
        with suppress(BrokenPipeError, ConnectionResetError):
            process.stdin.write(f"{command}\n".encode())
            await process.stdin.drain()
            line = await process.stdout.readline()
        if not line:
            said = (await process.stderr.read()).decode(errors="replace").strip()
            raise DriverError(said[-2000:] or f"the load driver ended with {await process.wait()}")
        return Snapshot(**json.loads(line))
