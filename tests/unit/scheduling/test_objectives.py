"""What a request wants of its first token and of the time between two: where it goes, and when it waits."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.scheduling.test_predicted import FAST, SLOTS, target, world_of
from tests.unit.scheduling.test_predicted import prompt as prompt_of
from tests.unit.scheduling.world import World
from tokenfleet.core.queueing import Lane
from tokenfleet.core.scheduling import Device, Placed, Queued, Step


def prompt(seed: int, tokens: int) -> dict[str, Any]:
    return prompt_of(seed, tokens)


def busy(seconds: float, *targets: str) -> World:
    """Workers whose queues take so long; all have places left."""
    world = world_of(*targets)
    replica = next(iter(world.scheduler.fleet.placeable("m")))
    tokens = round(seconds / replica.speed.price.per_prefill_token_s)
    for name in targets:
        world.sample(name, running=4, waiting=4, queued_prefill_tokens=tokens)
    return world


def test_what_would_wait_longer_than_its_objective_waits_in_the_router() -> None:
    world = busy(3.0, "w1", "w2")
    waiting = world.ask(ttft_objective_s=2.0, **prompt(1, 64))
    assert world.last(waiting) == Queued(0)
    assert isinstance(world.last(world.ask(**prompt(2, 64), lane=Lane.INTERACTIVE)), Placed), (
        "it wants nothing"
    )
    world.sample("w2", running=4, queued_prefill_tokens=10)
    assert world.where(waiting) == "w2"


def test_those_behind_do_not_overtake_one_whose_objective_keeps_it_waiting() -> None:
    """Otherwise they would keep the workers' queues as long as they are, and it would wait for ever."""
    world = busy(3.0, "w1")
    first = world.ask(ttft_objective_s=2.0, **prompt(1, 64))
    patient = world.ask(**prompt(2, 64))
    batch = world.ask(lane=Lane.BATCH, **prompt(3, 64))
    assert [world.last(request) for request in (first, patient, batch)] == [Queued(0), Queued(1), Queued(2)]
    urgent = world.ask(lane=Lane.INTERACTIVE, **prompt(4, 64))
    assert world.where(urgent) == "w1"
    world.sample("w1", running=4, queued_prefill_tokens=10)
    assert [world.where(request) for request in (first, patient, batch)] == ["w1"] * 3


def test_a_prompt_that_takes_longer_than_its_objective_by_itself_is_served() -> None:
    world = world_of("w1", "w2")
    replica = next(iter(world.scheduler.fleet.placeable("m")))
    own_s = 20_000 * replica.speed.price.per_prefill_token_s
    world.sample("w1", running=1, queued_prefill_tokens=100)
    world.sample("w2", running=1, queued_prefill_tokens=100_000)
    assert target(world.place(ttft_objective_s=own_s / 2, **prompt(1, 20_000))) == "w1"


def test_a_worker_too_busy_for_the_itl_objective_is_left_alone_while_another_is_not() -> None:
    world = world_of("w1", "w2")
    slow = [Step(0.05, 32, 0, 64_000), Step(0.01, 1, 0, 1000)] * 20
    world.sample("w1", running=32, context_tokens=64_000, steps=slow)
    world.sample("w2", running=2, context_tokens=1000, queued_prefill_tokens=3000, steps=slow)
    placed = world.place(itl_objective_s=0.03, **prompt(1, 64))
    assert target(placed) == "w2"
    vetoes = {seen.worker_id: seen.veto for seen in placed.scene.candidates((), frozenset())}
    assert vetoes["w1.1"] == "its fingerprint or the objectives rule it out"
    world.sample("w2", running=32, context_tokens=64_000)
    waiting = world.ask(itl_objective_s=0.03, **prompt(2, 64))
    assert world.last(waiting) == Queued(0), "each could do it with less to do"
    world.sample("w1", running=1, context_tokens=1000)
    assert world.where(waiting) == "w1"


def test_an_objective_that_no_worker_could_ever_meet_is_no_reason_to_wait() -> None:
    world = world_of("w1")
    assert target(world.place(itl_objective_s=1e-6, **prompt(1, 64))) == "w1"


@pytest.mark.parametrize("objective", [math.inf, 1e9])
def test_without_a_tight_objective_everything_is_as_before(objective: float) -> None:
    world = busy(30.0, "w1")
    assert target(world.place(ttft_objective_s=objective, itl_objective_s=objective, **prompt(1, 64))) == "w1"


@given(
    zone=st.sampled_from(["", "a", "b"]),
    tokens=st.integers(1, 5000),
    known=st.booleans(),
    running=st.integers(0, SLOTS + 4),
    queued=st.integers(0, 20_000),
    blocks_used=st.integers(0, 400),
    waited_s=st.floats(0.0, 2.2),
    throttled=st.booleans(),
)
def test_the_parts_of_a_cost_add_up_to_it(  # noqa: PLR0917 (each is drawn)
    zone: str,
    tokens: int,
    known: bool,
    running: int,
    queued: int,
    blocks_used: int,
    waited_s: float,
    throttled: bool,
) -> None:
    world = World("predicted", engine_queue_ratio=1.0)
    for name in ("w1", "w2"):
        world.up(name, slots=SLOTS, zone="a", kv_blocks=400, features=["cache_events"])
        world.sample(
            name,
            running=min(running, SLOTS),
            waiting=max(0, running - SLOTS),
            queued_prefill_tokens=queued,
            context_tokens=16 * blocks_used,
            kv_blocks_used=blocks_used,
            steps=[FAST, Step(0.3, 8, 2000, 8000)] * 4,
            device=Device(throttled=throttled),
        )
    if known:
        world.scheduler.cache_changed("w1", "m", prompt(1, tokens)["block_hashes"], ())
    world.now += waited_s
    world.scheduler.tick(world.now)
    placed = world.place(zone=zone, max_tokens=200, **prompt(1, tokens))
    forecasts = [seen.forecast for seen in placed.scene.candidates((), frozenset()) if seen.forecast]
    assert forecasts
    for forecast in forecasts:
        assert sum(forecast.parts_s.values()) == pytest.approx(forecast.cost_s)
        assert all(seconds > 0 for seconds in forecast.parts_s.values())
        assert ("zone" in forecast.parts_s) == (zone == "b")
        assert ("strain" in forecast.parts_s) == throttled
