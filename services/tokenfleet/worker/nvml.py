"""What NVIDIA's devices say of themselves, through NVML.

A driver that is asked about a sick device may take its time, so it is asked by a thread of its own, and what
it said last is what is told. That it says nothing any more is a fault as well. XID errors come as events and
are kept until the process ends, because a device that had one is not healthy before it was reset, which
nobody can do while an engine holds it; those that a program causes by its own mistakes are not the device's.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

from tokenfleet.runtime.telemetry import get_logger
from tokenfleet.v1 import worker_pb2

POLL_S = 1.0
# A driver that has not answered for so long is taken to be as good as dead.
SILENT_S = 10.0
# What programs do wrong, by NVIDIA's table of XIDs: the engine dies of it, the device does not.
XIDS_OF_PROGRAMS = frozenset({13, 31, 43, 45, 68, 109})
MOST_FAULTS = 8

log = get_logger(__name__)


class Nvml:
    """The devices that this process may use. `library` is the module `pynvml`."""

    def __init__(self, library: Any, visible: str | None = None) -> None:
        """`visible`: as in CUDA_VISIBLE_DEVICES; None: all. Raises the library's NVMLError."""
        self._library = library
        library.nvmlInit()
        self._handles = [self._handle(name) for name in self._names(visible)]
        self.kind = _text(library.nvmlDeviceGetName(self._handles[0])) if self._handles else ""
        self._xids: dict[str, None] = {}
        self._events = self._subscribe()
        slowed = ("HwSlowdown", "HwThermalSlowdown", "HwPowerBrakeSlowdown", "SwThermalSlowdown")
        self._slowed = sum(getattr(library, f"nvmlClocksThrottleReason{name}") for name in slowed)

    def __len__(self) -> int:
        return len(self._handles)

    def read(self) -> worker_pb2.Accelerator:
        """All devices as one: sums, the mean utilisation, and what is wrong with any of them."""
        reading = worker_pb2.Accelerator(kind=self.kind, count=len(self))
        self._take_events()
        faults = list(self._xids)
        for number, handle in enumerate(self._handles):
            try:
                self._add(handle, reading)
            except self._library.NVMLError as error:
                faults.append(f"device {number}: {error}")
        reading.utilization_ratio /= len(self) or 1
        reading.faults.extend(faults[:MOST_FAULTS])
        return reading

    def _add(self, handle: Any, reading: worker_pb2.Accelerator) -> None:
        library = self._library
        memory = library.nvmlDeviceGetMemoryInfo(handle)
        reading.memory_total_bytes += memory.total
        reading.memory_used_bytes += memory.used
        # Partitions of a device (MIG), and some products, know neither of these.
        percent = self._known(lambda: library.nvmlDeviceGetUtilizationRates(handle).gpu)
        reading.utilization_ratio += percent / 100
        reasons = self._known(lambda: library.nvmlDeviceGetCurrentClocksThrottleReasons(handle))
        reading.throttled |= bool(reasons & self._slowed)

    def _known(self, ask: Callable[[], int]) -> int:
        try:
            return ask()
        except self._library.NVMLError_NotSupported:
            return 0

    def _names(self, visible: str | None) -> list[str]:
        if visible is None:
            return [str(number) for number in range(self._library.nvmlDeviceGetCount())]
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]

    def _handle(self, name: str) -> Any:
        if name.isdigit():
            return self._library.nvmlDeviceGetHandleByIndex(int(name))
        return self._library.nvmlDeviceGetHandleByUUID(name)

    def _subscribe(self) -> Any:
        """Events of the devices that have them; None where no device does."""
        library = self._library
        events = library.nvmlEventSetCreate()
        subscribed = 0
        for handle in self._handles:
            try:
                library.nvmlDeviceRegisterEvents(handle, library.nvmlEventTypeXidCriticalError, events)
                subscribed += 1
            except library.NVMLError as error:
                log.warning("the device tells no XID errors", error=str(error))
        return events if subscribed else None

    def _take_events(self) -> None:
        while self._events is not None:
            try:
                event = self._library.nvmlEventSetWait_v2(self._events, 0)
            except self._library.NVMLError_Timeout:
                return
            except self._library.NVMLError as error:
                log.error("XID errors are not followed any more", error=str(error))
                self._events = None
                return
            if event.eventType == self._library.nvmlEventTypeXidCriticalError:
                xid = int(event.eventData)
                log.error("the device had an XID error", xid=xid)
                if xid not in XIDS_OF_PROGRAMS:
                    self._xids[f"XID {xid}"] = None


class NvmlPoll:
    """What `Nvml` read last, and whether it still answers."""

    def __init__(self, nvml: Nvml, clock: Callable[[], float] = time.monotonic) -> None:
        self._nvml = nvml
        self._clock = clock
        self._last = worker_pb2.Accelerator(kind=nvml.kind, count=len(nvml)), clock()

    def start(self) -> None:
        """For as long as the process lives."""
        threading.Thread(target=self._poll_on, name="nvml", daemon=True).start()

    def poll(self) -> None:
        self._last = self._nvml.read(), self._clock()

    def reading(self) -> worker_pb2.Accelerator:
        last, read_at = self._last
        silent_s = self._clock() - read_at
        if silent_s <= SILENT_S:
            return last
        told = worker_pb2.Accelerator()
        told.CopyFrom(last)
        told.faults.append(f"the driver has not answered for {silent_s:.0f} s")
        return told

    def _poll_on(self) -> None:
        while True:
            try:
                self.poll()
            except Exception:
                log.exception("NVML cannot be read")
            time.sleep(POLL_S)


def open_devices() -> Nvml | None:
    """Those that this process may use; None where there is no driver, or no way to ask it."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        return Nvml(pynvml, os.environ.get("CUDA_VISIBLE_DEVICES"))
    except pynvml.NVMLError as error:
        log.debug("no NVML", error=str(error))
        return None


def open_nvml() -> NvmlPoll | None:
    """None also where there is no device of NVIDIA's."""
    nvml = open_devices()
    if not nvml:
        return None
    poll = NvmlPoll(nvml)
    poll.poll()
    poll.start()
    return poll


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name
