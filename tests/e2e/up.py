"""`tokenfleet up` as a person runs it: a process of its own whose output is read line by line."""

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil

from tokenfleet.cli.local_fleet import launch, leftovers
from tokenfleet.cli.local_fleet.ports import PortReservation
from tokenfleet.cli.local_fleet.state import read_record

COMMAND = (sys.executable, "-m", "tokenfleet.cli")
PATIENCE_S = 90.0


class Up:
    """A running `tokenfleet up`."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, root: Path) -> None:
        self.process = process
        self.port = port
        self.root = root
        self.lines: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def record(self) -> dict[str, Any]:
        return read_record(self.root / str(self.port))

    def recorded(self, name: str) -> dict[str, Any]:
        return next(each for each in self.record()["processes"] if each["name"] == name)

    async def line(self, pattern: str) -> str:
        """The next line that matches; fails with all lines so far when the output ends before."""
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            while line := (await self.process.stdout.readline()).decode():
                self.lines.append(line)
                if re.search(pattern, line):
                    return line
        raise AssertionError(f"no line matched {pattern!r} in:\n{''.join(self.lines)}")

    async def ended(self) -> int:
        """The exit code; keeps the rest of the output."""
        async with asyncio.timeout(PATIENCE_S):
            output, _ = await self.process.communicate()
        self.lines += output.decode().splitlines(keepends=True)
        assert self.process.returncode is not None
        return self.process.returncode

    def ctrl_c(self) -> None:
        """What a terminal does: it signals the whole foreground process group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def family(self) -> list[psutil.Process]:
        """Every process of the fleet, `up` itself included."""
        found = [psutil.Process(self.process.pid)]
        return found + found[0].children(recursive=True) + leftovers.members(self.record()["fleet_id"])


@asynccontextmanager
async def tokenfleet_up(root: Path, *flags: str) -> AsyncIterator[Up]:
    """Starts the command on free ports with its state below `root`; kills what is left at the end."""
    reservation = PortReservation()
    port, grpc_port = reservation.take(2)
    reservation.release()
    process = await asyncio.create_subprocess_exec(
        # tied to the tests like a fleet's processes to their supervisor: none outlives a killed test run
        *(sys.executable, "-I", "-S", launch.__file__, str(os.getpid()), ""),
        *(*COMMAND, "up", "--port", str(port), "--grpc-port", str(grpc_port), *flags),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "TOKENFLEET_STATE": str(root)},
        start_new_session=True,
    )
    up = Up(process, port, root)
    try:
        yield up
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def run(*arguments: str, root: Path) -> tuple[int, str]:
    """Another `tokenfleet` command beside it: exit code and everything it printed."""
    process = await asyncio.create_subprocess_exec(
        *(*COMMAND, *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "TOKENFLEET_STATE": str(root), "COLUMNS": "200"},
    )
    async with asyncio.timeout(PATIENCE_S):
        output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


async def all_gone(processes: list[psutil.Process], within_s: float = 10.0) -> bool:
    """Whether all ended, or do so in time (a zombie that nobody reaped has ended)."""
    try:
        async with asyncio.timeout(within_s):
            while any(_runs(process) for process in processes):
                await asyncio.sleep(0.02)
    except TimeoutError:
        return False
    return True


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
