import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from tests.unit.cli import child
from tokenfleet.cli.local_fleet import FleetEvent, ManagedProcess, ProcessSpec
from tokenfleet.cli.local_fleet.probes import Probe, StorePing


def child_spec(
    folder: Path,
    name: str = "child",
    *flags: str,
    role: str = "worker",
    cpus: tuple[int, ...] = (),
    probe: Probe | None = None,
) -> ProcessSpec:
    """A tiny process under the supervisor's rules."""
    path = folder / f"{name}.sock"
    return ProcessSpec(
        name=name,
        role=role,
        command=(sys.executable, "-I", "-S", child.__file__, str(path), *flags),
        probe=probe or StorePing(path),
        address=str(path),
        cpus=cpus,
    )


class Supervised:
    """Starts processes for a test and ends them after it; keeps their events."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.events: list[FleetEvent] = []
        self.processes: list[ManagedProcess] = []

    def start(
        self, *flags: str, restart: bool = True, cpus: tuple[int, ...] = (), probe: Probe | None = None
    ) -> ManagedProcess:
        process = ManagedProcess(
            child_spec(self.folder, "child", *flags, cpus=cpus, probe=probe),
            self.folder / "child.log",
            os.environ,
            self.events.append,
            restart=restart,
        )
        process.start()
        self.processes.append(process)
        return process

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]


@pytest.fixture
async def supervised(tmp_path: Path) -> AsyncIterator[Supervised]:
    tested = Supervised(tmp_path)
    yield tested
    for process in tested.processes:
        process.kill_now()
        await process.stop(0)


async def gone(pid: int) -> bool:
    """Whether a process ended, or ends within the time that a kernel needs for it (reaped or not)."""
    deadline = time.monotonic() + 5
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.01)
    return True


def grandchild_of(process: ManagedProcess) -> int:
    """The pid that the child printed for the process it started."""
    lines = process.log.read_text().splitlines()
    return int(next(line.split()[1] for line in reversed(lines) if line.startswith("grandchild ")))
