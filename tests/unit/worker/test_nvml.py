"""NVIDIA's devices, in a machine that has none: NVML is a fake, with the real one's names and constants."""

from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from tokenfleet.v1 import worker_pb2
from tokenfleet.worker import nvml
from tokenfleet.worker.machine import Device, memory_limit_bytes, model_memory_bytes
from tokenfleet.worker.nvml import Nvml, NvmlPoll, open_nvml

GIB = 2**30
NOT_SUPPORTED = pynvml.NVML_ERROR_NOT_SUPPORTED


class Gpu:
    """One device; `broken` is the error with which it answers everything, `unknown` what it cannot tell."""

    def __init__(self, uuid: str = "GPU-0") -> None:
        self.uuid = uuid
        self.used = 10 * GIB
        self.percent = 50
        self.reasons = 0
        self.broken: int | None = None
        self.unknown: set[str] = set()

    def tell(self, what: str, value: Any) -> Any:
        if self.broken is not None:
            raise pynvml.NVMLError(self.broken)
        if what in self.unknown:
            raise pynvml.NVMLError(NOT_SUPPORTED)
        return value


class FakeNvml:
    """Answers as the library does; what it does not define is the real module's, which must have it."""

    def __init__(self, *gpus: Gpu) -> None:
        self.gpus = gpus or (Gpu(),)
        self.xids: deque[int] = deque()

    def __getattr__(self, name: str) -> Any:
        value = getattr(pynvml, name)
        assert not name.startswith("nvml") or isinstance(value, int), f"{name} would ask a real driver"
        return value

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Gpu:
        return self.gpus[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Gpu:
        return next(gpu for gpu in self.gpus if gpu.uuid == uuid)

    def nvmlDeviceGetName(self, gpu: Gpu) -> str:
        return "NVIDIA H200"

    def nvmlDeviceGetMemoryInfo(self, gpu: Gpu) -> Any:
        return gpu.tell("memory", SimpleNamespace(total=100 * GIB, used=gpu.used, free=100 * GIB - gpu.used))

    def nvmlDeviceGetUtilizationRates(self, gpu: Gpu) -> Any:
        return gpu.tell("utilization", SimpleNamespace(gpu=gpu.percent, memory=0))

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, gpu: Gpu) -> int:
        return int(gpu.tell("reasons", gpu.reasons))

    def nvmlEventSetCreate(self) -> object:
        return object()

    def nvmlDeviceRegisterEvents(self, gpu: Gpu, kinds: int, events: object) -> None:
        assert kinds == pynvml.nvmlEventTypeXidCriticalError
        gpu.tell("events", None)

    def nvmlEventSetWait_v2(self, events: object, timeout_ms: int) -> Any:
        assert timeout_ms == 0, "would keep the thread"
        if not self.xids:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_TIMEOUT)
        return SimpleNamespace(eventType=pynvml.nvmlEventTypeXidCriticalError, eventData=self.xids.popleft())


def test_the_fake_has_only_what_the_library_has() -> None:
    assert [name for name in vars(FakeNvml) if name.startswith("nvml") and not hasattr(pynvml, name)] == []


def test_all_devices_are_told_as_one() -> None:
    first, second = Gpu(), Gpu("GPU-1")
    second.used, second.percent = 30 * GIB, 100
    reading = Nvml(FakeNvml(first, second)).read()
    assert (reading.kind, reading.count) == ("NVIDIA H200", 2)
    assert (reading.memory_used_bytes, reading.memory_total_bytes) == (40 * GIB, 200 * GIB)
    assert reading.utilization_ratio == pytest.approx(0.75)
    assert not reading.throttled
    assert list(reading.faults) == []


@pytest.mark.parametrize(
    ("visible", "used"), [("1", 20), ("GPU-2", 30), ("0, 2", 40), (None, 60), ("-1", 0), ("", 0)]
)
def test_only_devices_that_this_process_may_use_count(visible: str | None, used: int) -> None:
    gpus = [Gpu(f"GPU-{number}") for number in range(3)]
    for number, gpu in enumerate(gpus):
        gpu.used = 10 * GIB * (number + 1)
    assert Nvml(FakeNvml(*gpus), visible).read().memory_used_bytes == used * GIB


@pytest.mark.parametrize(
    ("reasons", "throttled"),
    [
        (0, False),
        (pynvml.nvmlClocksThrottleReasonGpuIdle, False),
        (pynvml.nvmlClocksThrottleReasonSwPowerCap, False),
        (pynvml.nvmlClocksThrottleReasonHwThermalSlowdown, True),
        (pynvml.nvmlClocksThrottleReasonSwThermalSlowdown | pynvml.nvmlClocksThrottleReasonGpuIdle, True),
        (pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown, True),
    ],
)
def test_throttling_is_what_heat_and_failing_power_do(reasons: int, throttled: bool) -> None:
    gpu = Gpu()
    gpu.reasons = reasons
    assert Nvml(FakeNvml(Gpu(), gpu)).read().throttled is throttled


def test_an_xid_stays_and_those_of_programs_do_not_count() -> None:
    library = FakeNvml()
    read = Nvml(library).read
    library.xids.extend([31, 79, 48, 79])
    assert list(read().faults) == ["XID 79", "XID 48"]
    assert list(read().faults) == ["XID 79", "XID 48"]


def test_a_device_that_is_lost_is_a_fault_as_long_as_it_is() -> None:
    gpu = Gpu("GPU-1")
    read = Nvml(FakeNvml(Gpu(), gpu)).read
    gpu.broken = pynvml.NVML_ERROR_GPU_IS_LOST
    assert list(read().faults) == ["device 1: GPU is lost"]
    gpu.broken = None
    assert list(read().faults) == []


def test_a_partition_of_a_device_tells_what_it_knows() -> None:
    gpu = Gpu()
    gpu.unknown = {"utilization", "reasons", "events"}
    reading = Nvml(FakeNvml(gpu)).read()
    assert reading.memory_total_bytes == 100 * GIB
    assert (reading.utilization_ratio, reading.throttled, list(reading.faults)) == (0.0, False, [])


def test_a_driver_that_says_nothing_any_more_is_a_fault() -> None:
    now = [0.0]
    poll = NvmlPoll(Nvml(FakeNvml()), lambda: now[0])
    poll.poll()
    now[0] = nvml.SILENT_S
    assert list(poll.reading().faults) == []
    now[0] = nvml.SILENT_S + 2
    assert list(poll.reading().faults) == ["the driver has not answered for 12 s"]
    assert poll.reading().memory_used_bytes == 10 * GIB
    poll.poll()
    assert list(poll.reading().faults) == []


def test_a_worker_tells_of_the_device_where_there_is_one() -> None:
    poll = NvmlPoll(Nvml(FakeNvml()))
    poll.poll()
    assert Device(poll).accelerator(0.0).kind == "NVIDIA H200"


@pytest.mark.parametrize(
    ("engines", "on_devices"), [(["sim", "vllm"], True), (["trtllm"], True), (["llamacpp", "sim"], False)]
)
def test_models_may_take_the_devices_memory_where_their_engines_live_there(
    engines: list[str], on_devices: bool
) -> None:
    reading = Nvml(FakeNvml(Gpu(), Gpu("GPU-1"))).read()
    assert model_memory_bytes(engines, reading) == (200 * GIB if on_devices else memory_limit_bytes())
    assert model_memory_bytes(engines, worker_pb2.Accelerator(kind="cpu", memory_total_bytes=1)) > 1


def refusing(code: int) -> Callable[[], None]:
    def init() -> None:
        raise pynvml.NVMLError(code)

    return init


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED])
def test_without_a_driver_the_processor_is_told(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pynvml, "nvmlInit", refusing(code))
    assert open_nvml() is None
    assert Device().accelerator(0.0).kind == "cpu"
