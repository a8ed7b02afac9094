"""What the scheduler makes of a whole fleet: modelled engines, real delays, a virtual clock, fixed seeds."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.scheduler.arrivals import Arrival, Drawn, conversations, own_prompts
from benchmarks.scheduler.scenarios import (
    POLICIES,
    at_home,
    fleet,
    goodput,
    hot_spot,
    slow_worker,
    zone_death,
    zone_spill,
    zoned,
)
from benchmarks.scheduler.sim_worker import MODEL, Machine
from benchmarks.scheduler.world import Served, World
from tokenfleet.core.queueing import Lane
from tokenfleet.core.scheduling import PredictionSettings, SchedulerLimits
from tokenfleet.core.scheduling.predicted import Predicted


def in_both_zones(rate: float, seconds: float) -> list[Arrival]:
    arrivals = [
        arrival
        for seed, zone in enumerate("ab")
        for arrival in own_prompts(rate, seconds, seed + 1, zone=zone)
    ]
    return sorted(arrivals, key=lambda arrival: arrival.at)


@pytest.mark.parametrize("tells_cache", [True, False], ids=["exact", "approximate"])
def test_a_prompt_that_most_share_makes_no_hot_spot(tells_cache: bool) -> None:
    seen = hot_spot("predicted", tells_cache=tells_cache)
    assert seen["requests"] <= 1.3
    assert seen["prefill_tokens"] <= 1.3


def test_a_slow_worker_is_found_out() -> None:
    unannounced, told = slow_worker(), slow_worker(told=True)
    assert unannounced <= 1.15 * told
    assert unannounced <= 0.55 * slow_worker("least_loaded"), "counting requests does not find it out"
    assert slow_worker("round_robin") > 2 * told, "otherwise a slow worker would not matter here"


def test_requests_stay_in_their_zone_while_it_has_room() -> None:
    assert at_home(zoned().run(in_both_zones(18.0, 20.0))) >= 0.95


def test_what_a_zone_has_no_room_for_spills_over_within_a_second() -> None:
    seconds, share = zone_spill()
    assert seconds < 1.0
    assert 0.2 < share < 0.6
    assert zone_spill(penalty_s=1e9)[0] > 1.5, "otherwise the zone would have had room"


def test_the_death_of_a_zone_moves_all_of_its_traffic() -> None:
    moved, longest_s = zone_death()
    assert moved == 1.0
    assert longest_s < 1.0


def test_knowing_what_is_cached_keeps_more_of_the_objectives_than_any_other_policy() -> None:
    kept = {policy: goodput(policy, rate=42.0, seconds=20.0) for policy in POLICIES}
    assert kept.pop("predicted") > max(kept.values())


def outcome(served: list[Served]) -> list[tuple[list[str], float, float]]:
    return [(one.workers, one.first_at, one.ended_at) for one in served]


def test_the_same_seed_gives_the_same_run_and_another_one_another() -> None:
    runs = [outcome(World(fleet(4), seed=seed).run(conversations(15.0, 5.0, 4))) for seed in (1, 1, 2)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def load_left(world: World) -> list[tuple[int, int, int]]:
    return [
        (one.reserved, one.reserved_prefill_tokens, one.reserved_context_tokens)
        for one in world.scheduler.fleet.placeable(MODEL)
    ]


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    policy=st.sampled_from(POLICIES),
    rate=st.floats(1.0, 120.0),
    slots_and_killed=st.tuples(st.integers(1, 16), st.integers(0, 2)),
    tells_cache=st.booleans(),
    index_bytes=st.sampled_from([320, 32_000, 2**28]),
)
def test_whatever_happens_nothing_leaks_and_nobody_is_forgotten(
    seed: int,
    policy: str,
    rate: float,
    slots_and_killed: tuple[int, int],
    tells_cache: bool,
    index_bytes: int,
) -> None:
    slots, killed = slots_and_killed
    machines = [
        Machine(f"w{number}", max_sequences=slots, kv_blocks=2048, tells_cache=tells_cache)
        for number in range(3)
    ]
    world = World(machines, policy, seed, prediction=PredictionSettings(index_bytes=index_bytes))
    for number in range(killed):
        world.at(0.5 + number, lambda number=number: world.kill(f"w{number}"))  # type: ignore[misc]
    arrivals = [replace(one, deadline_s=20.0) for one in own_prompts(rate, 2.0, seed, answer_tokens=20)]
    served = world.run(arrivals)
    assert all(one.complete or one.refused for one in served)
    assert not world.scheduler.waiting
    world.settle(3.0)
    assert len(world.scheduler.reservations) == 0
    assert set(load_left(world)) == {(0, 0, 0)}
    index = world.scheduler.policy.index if isinstance(world.scheduler.policy, Predicted) else None
    if index is not None and index_bytes < 2**20:
        assert len(index) * 160 <= index_bytes


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), policy=st.sampled_from(POLICIES))
def test_nobody_starves_within_a_class(seed: int, policy: str) -> None:
    """One small worker, asked for thrice what it can do: who came first of a tenant's is served first."""
    drawn = Drawn(seed)
    arrivals = [
        Arrival(at, 64, 16, drawn.blocks(64), f"t{drawn.random.randrange(3)}", lane=lane, deadline_s=600.0)
        for at in drawn.times(60.0, 2.0)
        for lane in (drawn.random.choice((Lane.INTERACTIVE, Lane.STANDARD)),)
    ]
    limits = SchedulerLimits(queue_limit=10_000, candidates_recorded=0)
    served = World([Machine("w", max_sequences=4)], policy, seed, limits=limits).run(arrivals)
    assert all(one.complete for one in served)
    for whose in {(one.arrival.lane, one.arrival.tenant) for one in served}:
        placed = [one.placed_at for one in served if (one.arrival.lane, one.arrival.tenant) == whose]
        assert placed == sorted(placed)
    assert max(one.placed_at - one.arrival.at for one in served) < 30.0
