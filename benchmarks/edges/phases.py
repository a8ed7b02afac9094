"""What the ordinary streams and the gateway are like, second by second, while others come and go."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from benchmarks._cores import Cores
from benchmarks._proc import CoreTimes, CpuMeter, core_times, resident_mb, used_between
from loadtest.driver.control import DriverProcess

WINDOW_S = 2.5
_PAGE_MB = 4096 / 1e6


@dataclass(slots=True)
class Window:
    """A few seconds."""

    at_s: float  # since the ordinary streams began
    gap_s: list[float] = field(repr=False)
    resident_mb: float
    kernel_tcp_mb: float  # of the whole machine
    gateway_share: float  # of a core
    load_core_busy: float
    failed: int


@dataclass(slots=True)
class Run:
    """What one life of the fleet showed."""

    crowd: str
    alone: list[Window]
    beside: list[Window]
    after: list[Window]
    idle_mb: float
    ends: dict[str, Any] = field(default_factory=dict)
    codes: dict[str, int] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)


class Watch:
    """Reads the driver, /proc and the cores until told to stop."""

    def __init__(self, driver: DriverProcess, gateway: Collection[int], cores: Cores) -> None:
        self._driver = driver
        self._gateway = gateway
        self._cores = cores
        self._meter = CpuMeter({"gateway": gateway})
        self._begin = monotonic()

    async def during(self, seconds: float) -> list[Window]:
        """All windows of that time."""
        return await self.until(asyncio.ensure_future(asyncio.sleep(seconds)))

    async def until(self, over: asyncio.Future[None]) -> list[Window]:
        """Windows until the future is done; raises what it raises."""
        windows: list[Window] = []
        await self._driver.snapshot()
        while not over.done():
            windows.append(await self._window())
        over.result()
        return windows

    async def _window(self) -> Window:
        cpu, core, begin = self._meter.sample(), self._load_core(), monotonic()
        await asyncio.sleep(WINDOW_S)
        snapshot = await self._driver.snapshot()
        seconds = monotonic() - begin
        return Window(
            at_s=monotonic() - self._begin,
            gap_s=snapshot.gap_s,
            resident_mb=resident_mb(self._gateway),
            kernel_tcp_mb=kernel_tcp_mb(),
            gateway_share=used_between(cpu, self._meter.sample())["gateway"] / seconds,
            load_core_busy=self._load_core().share_since(core),
            failed=snapshot.failed,
        )

    def _load_core(self) -> CoreTimes:
        return core_times()[self._cores.load]


def kernel_tcp_mb() -> float:
    """What the kernel holds in sockets' buffers, all of the machine's."""
    for line in Path("/proc/net/sockstat").read_text(encoding="ascii").splitlines():
        if line.startswith("TCP:"):
            fields = line.split()
            return int(fields[fields.index("mem") + 1]) * _PAGE_MB
    return 0.0
