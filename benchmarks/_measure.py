"""Windows over a running load: the driver's counters and the processors' times, read at the same moments."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass, field
from time import monotonic

from benchmarks._cores import Cores
from benchmarks._proc import CoreTimes, CpuMeter, Usage, core_times, resident_mb, used_between
from loadtest.driver.control import DriverProcess
from loadtest.driver.stats import Snapshot

GENERATOR = "generator"
QUIET_S = 0.5


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long to look. Medians are taken over the windows."""

    warmup_s: float
    window_s: float
    windows: int


@dataclass(frozen=True, slots=True)
class Window:
    """What happened between two readings; processor seconds by group of processes."""

    seconds: float
    cpu_s: Mapping[str, float]
    measured_core_busy: float
    load_core_busy: float
    resident_mb: float
    requests: int
    answered_tokens: int  # of the answers finished in the window
    frames: int
    frames_per_token: float  # over all answers finished so far
    ttft_s: list[float] = field(repr=False)
    itl_s: list[float] = field(repr=False)
    worst_gap_s: list[float] = field(repr=False)
    latency_s: list[float] = field(repr=False)

    @property
    def tokens(self) -> float:
        """Tokens that arrived in the window, those of unfinished answers included."""
        return self.frames / self.frames_per_token if self.frames_per_token else float(self.answered_tokens)


async def measure_windows(
    driver: DriverProcess,
    groups: Mapping[str, Collection[int]],
    measured: str,
    cores: Cores,
    schedule: Schedule,
) -> AsyncIterator[Window]:
    """Warms up, then yields window after window; `measured` names the group whose memory is read."""
    meter = CpuMeter({**groups, GENERATOR: [driver.pid]})
    await asyncio.sleep(schedule.warmup_s)
    before = await _reading(driver, meter)
    for _ in range(schedule.windows):
        await asyncio.sleep(schedule.window_s)
        after = await _reading(driver, meter)
        yield _window(before, after, cores, resident_mb(groups[measured]))
        before = after


async def measure_idle(groups: Mapping[str, Collection[int]], seconds: float) -> dict[str, float]:
    """What share of a core each group uses while nobody asks for anything."""
    meter = CpuMeter(groups)
    before, since = meter.sample(), monotonic()
    await asyncio.sleep(seconds)
    used, passed = used_between(before, meter.sample()), monotonic() - since
    return {group: used_s / passed for group, used_s in used.items()}


async def until_quiet(groups: Mapping[str, Collection[int]], most: float, patience_s: float) -> bool:
    """Waits until all groups together use less than that share of a core; whether they came to rest."""
    deadline = monotonic() + patience_s
    while monotonic() < deadline:
        if sum((await measure_idle(groups, QUIET_S)).values()) < most:
            return True
    return False


@dataclass(frozen=True, slots=True)
class _Reading:
    snapshot: Snapshot
    cpu: Mapping[str, Usage]
    cores: Mapping[int, CoreTimes]


async def _reading(driver: DriverProcess, meter: CpuMeter) -> _Reading:
    return _Reading(await driver.snapshot(), meter.sample(), core_times())


def _window(before: _Reading, after: _Reading, cores: Cores, memory_mb: float) -> Window:
    then, now = before.snapshot, after.snapshot
    return Window(
        seconds=now.time_s - then.time_s,
        cpu_s=used_between(before.cpu, after.cpu),
        measured_core_busy=after.cores[cores.measured].share_since(before.cores[cores.measured]),
        load_core_busy=after.cores[cores.load].share_since(before.cores[cores.load]),
        resident_mb=memory_mb,
        requests=now.finished - then.finished,
        answered_tokens=now.finished_tokens - then.finished_tokens,
        frames=now.content_frames - then.content_frames,
        frames_per_token=now.finished_frames / now.finished_tokens if now.finished_tokens else 0.0,
        ttft_s=now.ttft_s,
        itl_s=now.itl_s,
        worst_gap_s=now.worst_gap_s,
        latency_s=now.latency_s,
    )
