"""Who is there beside the ordinary streams: nobody, readers that keep up, or slow ones."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from benchmarks._cores import Cores
from benchmarks.edges.plan import ARRIVAL_S, CROWD, CROWD_TOKENS, SlowCrowd, shares
from benchmarks.gateway.systems import System
from loadtest.driver.control import DriverProcess
from loadtest.driver.load import Load

START_S, END_S = 60.0, 60.0


class CrowdError(Exception):
    """The slow readers' process did not do its part; the message has its own words."""


class SlowReaders:
    """The child process that does not read."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.pid = process.pid
        self.result: dict[str, Any] = {}

    async def until_open(self) -> None:
        """Every stream was asked for."""
        if await self._line(ARRIVAL_S + START_S) != b"open\n":
            raise CrowdError("the slow readers said something else than that they are open")

    async def release(self) -> None:
        """Lets them read what is to be had; `result` says what it was."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"release\n")
        self.result = json.loads(await self._line(END_S))

    async def _line(self, patience_s: float) -> bytes:
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        async with asyncio.timeout(patience_s):
            line = await self._process.stdout.readline()
            if not line:
                raise CrowdError((await self._process.stderr.read()).decode(errors="replace")[-2000:])
        return line


@asynccontextmanager
async def slow_readers(system: System, model: str, cores: Cores) -> AsyncIterator[SlowReaders]:
    """A thousand of them, arriving."""
    crowd = SlowCrowd(system.host, system.port, model, shares(CROWD))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.edges.slow_readers", crowd.to_json()),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is the parent's to handle
    )
    os.sched_setaffinity(process.pid, [cores.load])
    try:
        yield SlowReaders(process)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


def keeping_up(system: System, model: str, cores: Cores) -> DriverProcess:
    """As many streams of the same length whose readers take everything at once."""
    load = Load(
        host=system.host,
        port=system.port,
        model=model,
        concurrency=CROWD,
        max_tokens=CROWD_TOKENS,
        stagger_s=ARRIVAL_S,
        seed=2,
    )
    return DriverProcess(load, [cores.load])
