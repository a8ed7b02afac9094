"""A flame graph of the gateway under a row's load, when py-spy is installed."""

from __future__ import annotations

import asyncio
import shutil
import sys
from pathlib import Path

from benchmarks._cores import Cores
from benchmarks.gateway.plan import Row
from benchmarks.gateway.systems import GATEWAY, System
from loadtest.driver.control import DriverProcess

PROFILE_S = 10


class NoProfiler(Exception):
    """py-spy is not there."""


def profiler() -> str:
    """The path of py-spy. Raises NoProfiler with the remedy."""
    found = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
    if found is None:
        raise NoProfiler(f"--profile needs py-spy: {sys.executable} -m pip install py-spy")
    return found


async def profile_row(row: Row, system: System, cores: Cores, folder: Path) -> Path:
    """Loads the gateway as in the row and samples its stack; never during a measured window."""
    (pid,) = system.groups[GATEWAY]
    path = folder / f"gateway-{row.name}.svg"
    async with DriverProcess(row.load(system.host, system.port), [cores.load]) as driver:
        await asyncio.sleep(row.stream_s + 0.5)
        process = await asyncio.create_subprocess_exec(
            *(profiler(), "record", "--pid", str(pid), "--duration", str(PROFILE_S), "--rate", "500"),
            *("--output", str(path)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await process.communicate()
        await driver.stop()
    if process.returncode:
        raise NoProfiler(f"py-spy: {said.decode(errors='replace').strip()}")
    return path
