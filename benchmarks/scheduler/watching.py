"""What it costs a router to follow a fleet: the work on a sample by itself, and a router over real gRPC."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import process_time
from urllib.request import urlopen

from benchmarks._proc import CpuMeter, used_between
from benchmarks.scheduler.decisions import MODEL, Bench
from tokenfleet.core.scheduling.sampling import sample_interval_ms
from tokenfleet.router.translate import model_loads
from tokenfleet.v1 import worker_pb2

RUNS = 3
READY_WITHIN_S = 120
SETTLE_S = 10.0  # until each is watched at the interval of the whole fleet
NOBODY = "127.0.0.1:9"  # listens there


def sample_cpu_us(workers: int, rounds: int = 3) -> list[float]:
    """Of one sample: parsing, translating, learning, and writing the board; gRPC's own share left out."""
    bench = Bench("predicted", workers)
    drawn = random.Random(2)
    found = []
    for _ in range(RUNS):
        samples = [packed_sample(drawn) for _ in range(rounds * workers)]
        began = process_time()
        for number, packed in enumerate(samples):
            load = worker_pb2.WatchResponse.FromString(packed).load
            bench.scheduler.sample(
                f"w{number % workers}", model_loads(load), load.admitted_ids, load.age_ms / 1000, 0.0
            )
        found.append((process_time() - began) / len(samples) * 1e6)
    return found


def core_share(cpu_us: float, workers: int) -> float:
    """Of a core, at the interval that the router asks a fleet of this size for."""
    return workers / (sample_interval_ms(workers) / 1000) * cpu_us / 1e6


def followed_core_share(workers: int, windows: int = 3, window_s: float = 10.0) -> list[float]:
    """Of a core, in each window: all that a router process uses that follows so many workers and does nothing
    else, each over a connection of its own, with a sample at the interval that it asks for."""
    with _publisher(workers) as addresses, _router(addresses) as (pid, metrics):
        _until_ready(metrics, workers)
        time.sleep(SETTLE_S)
        meter, found = CpuMeter({"router": [pid]}), []
        for _ in range(windows):
            before, began = meter.sample(), time.monotonic()
            time.sleep(window_s)
            used = used_between(before, meter.sample())["router"]
            found.append(used / (time.monotonic() - began))
        _until_ready(metrics, workers)
        return found


@contextmanager
def _publisher(workers: int) -> Iterator[str]:
    command = [sys.executable, "-m", "benchmarks.scheduler.publisher", str(workers)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.communicate("")


@contextmanager
def _router(addresses: str) -> Iterator[tuple[int, str]]:
    """The process, and where its metrics are; no model-loader answers it."""
    with tempfile.TemporaryDirectory() as folder:
        config, log = Path(folder, "router.yaml"), Path(folder, "log")
        config.write_text(f"workers: [{addresses}]\n", encoding="utf-8")
        command = [sys.executable, "-m", "tokenfleet.router", "--config", str(config), "--log-format", "json"]
        command += ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--loader", NOBODY]
        with log.open("wb") as output, subprocess.Popen(command, stderr=output) as process:
            try:
                yield process.pid, f"http://127.0.0.1:{_metrics_port(log)}/metrics"
            finally:
                process.terminate()


def _metrics_port(log: Path) -> int:
    for _ in range(READY_WITHIN_S):
        for line in log.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            if record["event"] == "serving":
                return int(record["metrics"])
        time.sleep(1.0)
    raise TimeoutError(f"the router does not serve: {log.read_text(encoding='utf-8')}")


def _until_ready(metrics: str, workers: int) -> None:
    """Raises TimeoutError unless the router comes to know all workers, and that none is late."""
    wanted, page = f'tokenfleet_router_workers{{state="ready"}} {workers:.1f}', ""
    for _ in range(READY_WITHIN_S):
        try:
            with urlopen(metrics) as answer:
                page = answer.read().decode()
        except OSError:
            page = ""
        if wanted in page:
            return
        time.sleep(1.0)
    ready = [line for line in page.splitlines() if line.startswith("tokenfleet_router_workers")]
    raise TimeoutError(f"the router never had {workers} workers ready: {ready}")


def packed_sample(drawn: random.Random) -> bytes:
    """As of a busy worker: two ids admitted, some 25 steps since the last time."""
    response = worker_pb2.WatchResponse()
    load = response.load
    load.admitted_ids.extend(f"{drawn.getrandbits(32):x}-{drawn.getrandbits(16):x}" for _ in range(2))
    model = load.models.add(
        model=MODEL,
        running=drawn.randint(1, 200),
        queued_prefill_tokens=drawn.randint(0, 20_000),
        context_tokens=drawn.randint(1000, 300_000),
        kv_blocks_used=drawn.randint(100, 20_000),
    )
    for _ in range(25):
        batch, prefill, context = (
            drawn.randint(1, 200),
            drawn.choice((0, 0, 512)),
            drawn.randint(1000, 300_000),
        )
        model.step_us.append(10_000 + 100 * batch + 125 * prefill + context // 50)
        model.step_batch.append(batch)
        model.step_prefill_tokens.append(prefill)
        model.step_context_tokens.append(context)
    return response.SerializeToString()
