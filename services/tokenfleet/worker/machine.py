"""What the machine below the worker has to offer."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from tokenfleet.v1 import worker_pb2
from tokenfleet.worker.nvml import NvmlPoll, open_nvml

PROCESSOR = "cpu"
# Engines that have their weights and their cache on the accelerator, where there is one.
_ON_DEVICES = frozenset({"transformers", "trtllm", "vllm"})
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_OOM_COUNTERS = (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat"))


def memory_limit_bytes(cgroup_limit: Path = _CGROUP_LIMIT) -> int:
    """The container's memory limit, or all of the machine's memory where there is none."""
    total = int(psutil.virtual_memory().total)
    try:
        limit = cgroup_limit.read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


def oom_kills(counters: Sequence[Path] = _OOM_COUNTERS) -> int:
    """Processes that the kernel has killed for want of memory, in this container or else on this machine."""
    for counter in counters:
        with suppress(OSError):
            for line in counter.read_text().splitlines():
                name, _, count = line.partition(" ")
                if name == "oom_kill":
                    return int(count)
    return 0


def model_memory_bytes(engines: Sequence[str], device: worker_pb2.Accelerator) -> int:
    """What models may take where nobody says: the devices' memory, if they live there, or this process's."""
    if device.kind != PROCESSOR and not _ON_DEVICES.isdisjoint(engines):
        return device.memory_total_bytes
    return memory_limit_bytes()


class Device:
    """The device that engines of this worker run on: NVIDIA's where there is one, otherwise the processor."""

    LIFE_S = 1.0  # a reading of the processor serves for so long: it costs system calls

    def __init__(self, nvml: NvmlPoll | None = None) -> None:
        self._nvml = nvml or open_nvml()
        self._reading = worker_pb2.Accelerator()
        self._read_at = float("-inf")

    def accelerator(self, now: float) -> worker_pb2.Accelerator:
        if self._nvml is not None:
            return self._nvml.reading()
        if now - self._read_at >= self.LIFE_S:
            self._read_at = now
            self._reading = _processor()
        return self._reading


def _processor() -> worker_pb2.Accelerator:
    memory = psutil.virtual_memory()
    return worker_pb2.Accelerator(
        kind=PROCESSOR,
        count=psutil.cpu_count() or 1,
        memory_total_bytes=memory.total,
        memory_used_bytes=memory.total - memory.available,
        utilization_ratio=psutil.cpu_percent() / 100,
    )
