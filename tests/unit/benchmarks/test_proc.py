"""Processor time is read as the process itself knows it."""

import asyncio
import os
import subprocess
import sys
import time

import pytest

from benchmarks._cores import TooFewCores, choose_cores
from benchmarks._measure import until_quiet
from benchmarks._proc import CoreTimes, CpuMeter, core_times, resident_mb, used_between


def test_own_time_agrees_with_the_clock_of_the_process() -> None:
    meter = CpuMeter({"me": [os.getpid()]})
    before, clock = meter.sample(), time.process_time()
    while time.process_time() - clock < 0.2:
        pass
    used = used_between(before, meter.sample())["me"]
    assert used == pytest.approx(time.process_time() - clock, abs=0.05)


def test_children_count_with_their_parent() -> None:
    burn = "import time\nwhile time.process_time() < 0.2: pass\nprint(flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}])"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as parent:
        meter = CpuMeter({"family": [parent.pid], "nobody": []})
        assert parent.stdout is not None
        parent.stdout.readline()
        used = used_between({"family": {}, "nobody": {}}, meter.sample())
        memory = resident_mb([parent.pid])
        parent.communicate(b"\n")
    assert used["family"] >= 0.2
    assert used["nobody"] == 0
    assert memory > 2


def test_a_process_that_is_gone_has_used_nothing() -> None:
    with subprocess.Popen([sys.executable, "-c", "pass"]) as child:
        child.wait()
        assert CpuMeter({"gone": [child.pid]}).sample() == {"gone": {}}
        assert resident_mb([child.pid]) == 0


def test_busy_shares() -> None:
    assert CoreTimes(busy=60, total=300).share_since(CoreTimes(busy=10, total=200)) == 0.5
    assert CoreTimes(busy=10, total=200).share_since(CoreTimes(busy=10, total=200)) == 0
    assert set(os.sched_getaffinity(0)) <= set(core_times())


def test_the_two_cores_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    cores = choose_cores()
    assert cores.measured != cores.load
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3})
    with pytest.raises(TooFewCores, match="two cores"):
        choose_cores()


def test_a_busy_process_is_not_quiet_and_a_waiting_one_is() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            assert not asyncio.run(until_quiet({"busy": [busy.pid]}, most=0.05, patience_s=0.6))
        finally:
            busy.kill()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as waiting:
        assert asyncio.run(until_quiet({"waiting": [waiting.pid]}, most=0.05, patience_s=20))
        waiting.communicate(b"\n")
