"""What is to be seen in a fleet under a virtual clock. Each answers figures; seeds make them repeatable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from benchmarks.scheduler.arrivals import conversations, own_prompts, shared_prompt
from benchmarks.scheduler.sim_worker import Machine
from benchmarks.scheduler.world import Served, World
from loadtest.driver.stats import percentile
from tokenfleet.core.scheduling import PredictionSettings, SchedulerLimits

POLICIES = ("predicted", "prefix_approx", "least_loaded", "power_of_two", "round_robin", "random")
TTFT_OBJECTIVE_S, ITL_OBJECTIVE_S = 0.5, 0.05  # what people who read along notice


def fleet(workers: int = 8, tells_cache: bool = False) -> list[Machine]:
    return [Machine(f"w{number}", tells_cache=tells_cache) for number in range(workers)]


def worst_over_mean(served: Sequence[Served], workers: int) -> tuple[float, float]:
    """Of requests, and of prompt tokens computed, on the worker that had most."""
    requests: Counter[str] = Counter()
    computed: Counter[str] = Counter()
    for one in served:
        requests[one.workers[-1]] += 1
        computed[one.workers[-1]] += one.computed_tokens
    return tuple(max(each.values()) * workers / each.total() for each in (requests, computed))  # type: ignore[return-value]


def hot_spot(policy: str, seed: int = 1, rate: float = 80.0, tells_cache: bool = False) -> dict[str, float]:
    """80 % of requests share one long system prompt."""
    served = World(fleet(tells_cache=tells_cache), policy, seed).run(shared_prompt(rate, 30.0, seed))
    requests, computed = worst_over_mean(served, 8)
    return {
        "requests": requests,
        "prefill_tokens": computed,
        "ttft_p95_s": percentile([one.ttft_s for one in served], 95),
    }


def slow_worker(policy: str = "predicted", told: bool = False, seed: int = 1) -> float:
    """p95 TTFT with a worker four times as slow as the other seven, which nobody says, or somebody does."""
    machines = [*fleet(7), Machine("slow", slowness=4.0)]
    world = World(machines, policy, seed)
    if told:
        for worker in world.workers.values():
            worker.teach_speed()
    return percentile([one.ttft_s for one in world.run(own_prompts(45.0, 40.0, seed))], 95)


def zoned(policy: str = "predicted", penalty_s: float = PredictionSettings().zone_penalty_s) -> World:
    machines = [Machine(f"{zone}{number}", zone) for zone in "ab" for number in range(4)]
    return World(machines, policy, prediction=PredictionSettings(zone_penalty_s=penalty_s))


def at_home(served: Sequence[Served]) -> float:
    """Which share of the requests stayed in their zone."""
    return sum(one.workers[0][0] == one.arrival.zone for one in served) / len(served)


def zone_spill(penalty_s: float = PredictionSettings().zone_penalty_s) -> tuple[float, float]:
    """Zone a is asked for twice what it can do, and b for nothing: the p99 time to a first token, the moments
    before and while a fills up included, and the share that went to b."""
    served = zoned(penalty_s=penalty_s).run(own_prompts(70.0, 15.0, seed=3, zone="a"))
    return percentile([one.ttft_s for one in served], 99), 1 - at_home(served)


def zone_death(at: float = 5.0) -> tuple[float, float]:
    """Zone a dies: which share of its traffic, what ran there included, was completed in b, and the longest
    that it took from then on to a first token."""
    world = zoned()
    for number in range(4):
        world.at(at, lambda number=number: world.kill(f"a{number}"))  # type: ignore[misc]
    arrivals = [*own_prompts(18.0, 2 * at, 1, zone="a"), *own_prompts(18.0, 2 * at, 2, zone="b")]
    served = world.run(arrivals)
    concerned = [one for one in served if one.arrival.zone == "a" and (one.ended_at >= at or one.refused)]
    moved = sum(one.complete and one.workers[-1][0] == "b" for one in concerned) / len(concerned)
    return moved, max(one.ttft_s for one in concerned if one.arrival.at > at)


def capacity(seed: int = 1, seconds: float = 30.0) -> float:
    """Requests per second that round robin gets through of conversations when there are always more."""
    limits = SchedulerLimits(queue_limit=100_000, candidates_recorded=0)
    served = World(fleet(), "round_robin", seed, limits=limits).run(conversations(80.0, seconds, seed))
    middle = [one for one in served if seconds / 3 <= one.ended_at < seconds]
    return len(middle) / (seconds * 2 / 3)


def goodput(policy: str, rate: float, seed: int = 2, seconds: float = 40.0) -> float:
    """Which share of all offered met both objectives."""
    served = World(fleet(), policy, seed).run(conversations(rate, seconds, seed))
    good = sum(
        one.complete and one.ttft_s <= TTFT_OBJECTIVE_S and one.itl_s <= ITL_OBJECTIVE_S for one in served
    )
    return good / len(served)
