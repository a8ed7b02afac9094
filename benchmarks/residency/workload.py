"""Twenty models of very different sizes, asked for as things are: a few all the time, most of them rarely."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.residency.world import Model, World
from tokenfleet.core.residency import Limits

MODELS = 20
WORKERS = 4
GB = 10**9
SMALLEST_GB, LARGEST_GB = 1.0, 16.0
START_S, READ_BYTES_PER_S = 2.0, 1e9  # a load: an engine's start, and its weights from the node's disk
REQUESTS_PER_S = 0.5
RUNS_S = 2.0  # how long an answer takes
DEADLINE_S = 120.0
HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class Load:
    """`skew` is Zipf's exponent, `room` the part of all models that fits. `shifts`: halfway, others are in
    demand."""

    skew: float
    room: float
    shifts: bool = False

    @property
    def name(self) -> str:
        return f"zipf={self.skew}@room={self.room}" + ("/shifting" if self.shifts else "")


@dataclass(frozen=True, slots=True)
class Outcome:
    hit_rate: float
    wait_p95_s: float
    wait_mean_s: float
    gb_loaded: float
    loads: int
    failed: int
    requests: int


def run(load: Load, policy: str, seed: int, seconds: float = HOUR_S) -> Outcome:
    """One run; the same seed gives the same models and requests to every policy."""
    draw = random.Random(seed)
    models = [_model(number, draw) for number in range(MODELS)]
    total = sum(model.memory_bytes for model in models)
    # a worker holds the largest model at least
    budget = max(int(total * load.room / WORKERS), *(model.memory_bytes for model in models))
    world = World(models, [budget] * WORKERS, policy=policy, limits=Limits(min_residency_s=10.0), seed=seed)
    for at, name in _arrivals(load, models, draw, seconds):
        world.run(at)
        world.request(name, RUNS_S, DEADLINE_S)
    world.run(seconds + DEADLINE_S)
    if world.tally.mistakes:
        raise AssertionError(world.tally.mistakes[0])
    return _outcome(world)


def _model(number: int, draw: random.Random) -> Model:
    size_gb = SMALLEST_GB * (LARGEST_GB / SMALLEST_GB) ** draw.random()
    size = int(size_gb * GB)
    return Model(f"m{number:02}", size, START_S + size / READ_BYTES_PER_S)


def _arrivals(
    load: Load, models: list[Model], draw: random.Random, seconds: float
) -> Iterator[tuple[float, str]]:
    names = [model.name for model in models]
    weights = [rank**-load.skew for rank in range(1, len(names) + 1)]
    draw.shuffle(names)
    now, shifted = 0.0, not load.shifts
    while (now := now + draw.expovariate(REQUESTS_PER_S)) < seconds:
        if not shifted and now >= seconds / 2:
            draw.shuffle(names)
            shifted = True
        yield now, draw.choices(names, weights)[0]


def _outcome(world: World) -> Outcome:
    requests = world.tally.requests
    waits = sorted(DEADLINE_S if request.failure else request.waited_s for request in requests)
    return Outcome(
        hit_rate=world.tally.hits / len(requests),
        wait_p95_s=waits[int(0.95 * len(waits))],
        wait_mean_s=sum(waits) / len(waits),
        gb_loaded=world.tally.bytes_loaded / GB,
        loads=len(world.tally.loads),
        failed=sum(bool(request.failure) for request in requests),
        requests=len(requests),
    )
