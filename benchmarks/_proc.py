"""What processes and cores have used, read from /proc.

Processor time comes from each thread's `schedstat`, in nanoseconds: the ticks of `stat` are ten milliseconds,
which is too coarse for a window in which a process works for a tenth of a second. Where the kernel keeps no
`schedstat`, `stat` it is.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_GONE = (FileNotFoundError, ProcessLookupError)
HAS_SCHEDSTAT = Path("/proc/self/schedstat").exists()

# Processor seconds by thread, or by process where there is no schedstat.
Usage = dict[tuple[int, int], float]


class CpuMeter:
    """Processor time of groups of processes, their children included."""

    def __init__(self, groups: Mapping[str, Collection[int]]) -> None:
        self._groups = {name: tuple(pids) for name, pids in groups.items()}

    def sample(self) -> dict[str, Usage]:
        return {name: _usage(_family(pids)) for name, pids in self._groups.items()}


def used_between(before: Mapping[str, Usage], after: Mapping[str, Usage]) -> dict[str, float]:
    """Seconds by group; a thread that began in between counts from its start."""
    return {
        name: sum(seconds - before[name].get(key, 0.0) for key, seconds in usage.items())
        for name, usage in after.items()
    }


@dataclass(frozen=True, slots=True)
class CoreTimes:
    """Ticks of one core since boot."""

    busy: int
    total: int

    def share_since(self, before: CoreTimes) -> float:
        """How much of the time in between the core was not idle, 0 to 1."""
        total = self.total - before.total
        return (self.busy - before.busy) / total if total else 0.0


def core_times() -> dict[int, CoreTimes]:
    cores: dict[int, CoreTimes] = {}
    for line in Path("/proc/stat").read_text(encoding="ascii").splitlines():
        name, *fields = line.split()
        if name.startswith("cpu") and name != "cpu":
            # user nice system idle iowait irq softirq steal; guest time is part of user time
            ticks = [int(field) for field in fields[:8]]
            cores[int(name[3:])] = CoreTimes(busy=sum(ticks) - ticks[3] - ticks[4], total=sum(ticks))
    return cores


def resident_mb(pids: Iterable[int]) -> float:
    """Resident memory of the processes and their children, in MB (10⁶ bytes)."""
    return sum(_status_kib(pid, "VmRSS") for pid in _family(pids)) * 1024 / 1e6


def peak_resident_mb(pids: Iterable[int]) -> float:
    """The sum of the most that each of them ever had resident, in MB (10⁶ bytes)."""
    return sum(_status_kib(pid, "VmHWM") for pid in _family(pids)) * 1024 / 1e6


def _family(pids: Iterable[int]) -> list[int]:
    found: list[int] = []
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            found += [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    return found


def _usage(pids: Iterable[int]) -> Usage:
    usage: Usage = {}
    for pid in pids:
        with suppress(*_GONE):
            usage |= _threads(pid) if HAS_SCHEDSTAT else {(pid, pid): _stat_seconds(pid)}
    return usage


def _threads(pid: int) -> Usage:
    usage: Usage = {}
    for name in os.listdir(f"/proc/{pid}/task"):
        with suppress(*_GONE):
            text = Path(f"/proc/{pid}/task/{name}/schedstat").read_text(encoding="ascii")
            usage[pid, int(name)] = int(text.split()[0]) / 1e9
    return usage


def _stat_seconds(pid: int) -> float:
    # the command's name may contain blanks and parentheses
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def _status_kib(pid: int, field: str) -> int:
    with suppress(*_GONE):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1])
    return 0
