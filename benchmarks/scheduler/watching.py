"""What it costs a router to take in the load samples of a fleet: real messages, from their bytes on."""

from __future__ import annotations

import random
from time import process_time

from benchmarks.scheduler.decisions import MODEL, Bench
from tokenfleet.core.scheduling.sampling import sample_interval_ms
from tokenfleet.router.translate import model_loads
from tokenfleet.v1 import worker_pb2

RUNS = 3


def sample_cpu_us(workers: int, rounds: int = 3) -> list[float]:
    """Of one sample: parsing, translating, learning, and writing the board; gRPC's own share left out."""
    bench = Bench("predicted", workers)
    drawn = random.Random(2)
    found = []
    for _ in range(RUNS):
        samples = [_sample(drawn) for _ in range(rounds * workers)]
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


def _sample(drawn: random.Random) -> bytes:
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
