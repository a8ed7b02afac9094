"""The predicting policy: what each part of the cost does to the choice."""

from collections import Counter

import pytest

from tests.unit.scheduling.world import BLOCK_SIZE, MODEL, World
from tokenfleet.core.blocks import block_hashes
from tokenfleet.core.scheduling import Outcome, Placed, Step
from tokenfleet.core.scheduling.predicted import Predicted

SLOTS = 64
FAST = Step(0.01, 8, 0, 8000)


def world_of(*targets: str, **more: object) -> World:
    world = World("predicted")
    for target in targets:
        world.up(target, slots=SLOTS, **more)  # type: ignore[arg-type]
        world.sample(target, steps=[FAST] * 4)
    return world


def policy(world: World) -> Predicted:
    assert isinstance(world.scheduler.policy, Predicted)
    return world.scheduler.policy


def prompt(seed: int, tokens: int = 1024) -> dict[str, object]:
    ids = range(seed * 100_000, seed * 100_000 + tokens)
    return {"prompt_tokens": tokens, "block_hashes": block_hashes(list(ids), BLOCK_SIZE)}


def target(placed: Placed) -> str:
    return placed.reservation.replica.worker.target


def test_the_worker_with_fewer_prompt_tokens_to_compute_is_chosen() -> None:
    world = world_of("w1", "w2")
    world.sample("w1", running=4, queued_prefill_tokens=20_000)
    world.sample("w2", running=5, queued_prefill_tokens=0)
    assert target(world.place(**prompt(1))) == "w2"


def test_what_was_just_sent_counts_before_any_sample_shows_it() -> None:
    world = world_of("w1", "w2", "w3", "w4")
    chosen = Counter(target(world.place(**prompt(number))) for number in range(40))
    assert chosen == {"w1": 10, "w2": 10, "w3": 10, "w4": 10}


def test_a_slow_worker_gets_less_without_being_declared_slow() -> None:
    world = world_of("w1", "w2")
    world.sample("w2", steps=[Step(4 * FAST.seconds, 8, 0, 8000)] * 20)
    chosen = Counter(target(world.place(**prompt(number))) for number in range(30))
    assert chosen["w1"] > 2.5 * chosen["w2"]


@pytest.mark.parametrize("tells", [True, False], ids=["exact", "approximate"])
def test_a_prompt_goes_where_its_prefix_is(tells: bool) -> None:
    world = world_of("w1", "w2", "w3", features=["cache_events"] if tells else [])
    first = world.place(**prompt(1))
    if tells:
        number = policy(world).number(first.reservation.replica)
        policy(world).index.stored(number, prompt(1)["block_hashes"])  # type: ignore[arg-type]
    world.scheduler.release(first.reservation, Outcome.ENDED, world.now)
    for _ in range(5):
        again = world.place(**prompt(1, 1024 + 64))
        assert target(again) == target(first)
        assert again.forecast is not None
        assert again.forecast.cached_tokens == 1024 if tells else again.forecast.cached_tokens >= 1024
        world.scheduler.release(again.reservation, Outcome.ENDED, world.now)


def test_a_cached_prefix_is_worth_what_it_saves_and_no_more() -> None:
    world = world_of("w1", "w2", features=["cache_events"])
    first = world.place(**prompt(1))
    holder, other = target(first), {"w1": "w2", "w2": "w1"}[target(first)]
    policy(world).index.stored(policy(world).number(first.reservation.replica), prompt(1)["block_hashes"])  # type: ignore[arg-type]
    world.scheduler.release(first.reservation, Outcome.ENDED, world.now)
    world.sample(holder, queued_prefill_tokens=800)
    second = world.place(**prompt(1))
    assert target(second) == holder
    world.scheduler.release(second.reservation, Outcome.ENDED, world.now)
    world.sample(holder, queued_prefill_tokens=5000)
    assert target(world.place(**prompt(1))) == other


@pytest.mark.parametrize(("busy", "goes_to_holder"), [(False, False), (True, True)])
def test_in_a_fleet_that_is_busy_for_long_a_prefix_is_waited_for_longer(
    busy: bool, goes_to_holder: bool
) -> None:
    world = world_of("w1", "w2", features=["cache_events"])
    for target_name in ("w1", "w2"):
        world.sample(target_name, queued_prefill_tokens=5000 if busy else 0)
    for number in range(400):
        world.scheduler.release(world.place(**prompt(number + 10)).reservation, Outcome.ENDED, world.now)
    holder = next(each for each in world.scheduler.fleet.placeable(MODEL) if each.worker.target == "w1")
    policy(world).index.stored(policy(world).number(holder), prompt(1)["block_hashes"])  # type: ignore[arg-type]
    world.sample("w1", queued_prefill_tokens=6500)
    world.sample("w2", queued_prefill_tokens=5000)
    placed = world.place(**prompt(1))
    assert (target(placed) == "w1") is goes_to_holder
    assert placed.forecast is not None
    assert ("others" in placed.forecast.parts_s) is busy
    assert placed.forecast.cost_s == pytest.approx(sum(placed.forecast.parts_s.values()))


def test_one_shared_prompt_does_not_overload_one_worker() -> None:
    world = world_of(*(f"w{number}" for number in range(8)))
    chosen = Counter(target(world.place(**prompt(1))) for _ in range(400))
    assert max(chosen.values()) <= 1.3 * 400 / 8
    assert len(chosen) == 8


def test_the_cache_of_an_engine_that_was_restarted_is_forgotten() -> None:
    world = world_of("w1")
    world.place(**prompt(1))
    assert policy(world).index.match(prompt(1)["block_hashes"])  # type: ignore[arg-type]
    world.up("w1", slots=SLOTS, epoch=2)
    assert not policy(world).index.match(prompt(1)["block_hashes"])  # type: ignore[arg-type]


def test_a_client_is_served_in_its_zone_until_that_is_too_slow() -> None:
    world = World("predicted")
    for worker, zone in (("a1", "a"), ("a2", "a"), ("b1", "b"), ("b2", "b")):
        world.up(worker, slots=SLOTS, zone=zone)
        world.sample(worker, steps=[FAST] * 4)
    chosen = Counter(target(world.place(zone="a", **prompt(number, 64)))[0] for number in range(20))
    assert chosen == {"a": 20}
    for worker in ("a1", "a2"):
        world.sample(worker, running=SLOTS, queued_prefill_tokens=0)
    assert target(world.place(zone="a", **prompt(99, 64)))[0] == "b", "at home nothing is free"


def test_a_prompt_that_would_push_others_out_of_the_cache_goes_elsewhere() -> None:
    world = World("predicted")
    for worker, blocks in (("w1", 100), ("w2", 1000)):
        world.up(worker, slots=SLOTS, kv_blocks=blocks)
        world.sample(worker, steps=[FAST] * 4)
    world.sample("w1", context_tokens=1000)
    world.sample("w2", running=3, context_tokens=1500)
    assert target(world.place(**prompt(1))) == "w2"


def test_answers_are_expected_as_long_as_they_were() -> None:
    lengths = policy(world_of("w1")).lengths
    assert lengths.expect(MODEL, "t", 0) == 128
    for tokens in (10, 20, 30):
        lengths.learn(MODEL, "t", tokens)
    assert lengths.expect(MODEL, "t", 0) == 20
    assert lengths.expect(MODEL, "t", 8) == 8, "no answer is longer than its limit"
    assert lengths.expect(MODEL, "other", 64) == 64


def test_the_forecast_tells_its_parts_for_the_best_candidates() -> None:
    world = world_of(*(f"w{number}" for number in range(40)))
    placed = world.place(**prompt(1))
    seen = placed.scene.candidates((), frozenset())
    assert len(seen) == 16
    assert seen[0].worker_id == placed.reservation.replica.worker.id
    assert all(candidate.forecast is not None for candidate in seen)
    assert placed.forecast is not None
    assert 0 < placed.forecast.step_s < placed.forecast.ttft_s < placed.forecast.cost_s


def test_the_same_seed_gives_the_same_choices() -> None:
    runs = []
    for _ in range(2):
        world = world_of("w1", "w2", "w3")
        runs.append([target(world.place(**prompt(number % 5))) for number in range(50)])
    assert runs[0] == runs[1]


def test_no_reservation_is_left_when_all_requests_have_ended() -> None:
    world = world_of("w1", "w2")
    placed = [world.place(**prompt(number)) for number in range(20)]
    for one in placed[:10]:
        world.scheduler.release(one.reservation, Outcome.ENDED, world.now)
    world.pass_time(3.0, living=["w1", "w2"])
    for replica in world.scheduler.fleet.placeable(MODEL):
        assert (replica.reserved, replica.reserved_prefill_tokens, replica.reserved_context_tokens) == (
            0,
            0,
            0,
        )


def test_a_worker_whose_sample_is_late_is_trusted_less_before_it_is_out() -> None:
    world = world_of("w1", "w2")
    world.sample("w2", running=20, context_tokens=20_000)
    assert target(world.place(**prompt(1, 64))) == "w1"
    world.pass_time(1.1, living=["w2"], running=20)
    assert target(world.place(**prompt(2, 64))) == "w1", "a sample a second is all that is asked for"
    world.pass_time(0.95, living=["w2"], running=20)
    silent = world.scheduler.fleet.workers["w1"]
    assert not silent.veto
    assert target(world.place(**prompt(3, 64))) == "w2"
    world.sample("w1")
    assert target(world.place(**prompt(4, 64))) == "w1"


def test_workers_that_left_are_not_remembered() -> None:
    world = world_of("w1")
    for number in range(20):
        world.up(f"pod-{number}", slots=SLOTS)
        world.sample(f"pod-{number}", steps=[FAST])
        world.place(**prompt(number))
        world.scheduler.fleet.leave(f"pod-{number}", world.now)
    assert policy(world).number(world.place(**prompt(99)).reservation.replica) == 0
    world.up("w2", slots=SLOTS)
    world.up("w3", slots=SLOTS)
    numbers = {policy(world).number(replica) for replica in world.scheduler.fleet.placeable(MODEL)}
    assert numbers == {0, 1, 2}


def test_a_prefix_that_another_models_replica_holds_does_not_count() -> None:
    world = world_of("w1")
    chains: list[int] = prompt(1)["block_hashes"]  # type: ignore[assignment]
    policy(world).index.stored(500, chains)
    placed = world.place(**prompt(1))
    assert placed.forecast is not None
    assert placed.forecast.cached_tokens == 0


def test_what_was_predicted_for_the_chosen_one_adds_up() -> None:
    world = world_of("w1")
    world.sample("w1", running=3, queued_prefill_tokens=500, context_tokens=3000)
    replica = next(iter(world.scheduler.fleet.placeable(MODEL)))
    price = replica.speed.price
    forecast = world.place(**prompt(1), max_tokens=100).forecast
    assert forecast is not None
    step_s = price.step_s(4, 0, 3000 + 1024)
    assert forecast.step_s == pytest.approx(step_s)
    assert forecast.ttft_s == pytest.approx(price.per_prefill_token_s * (500 + 1024) + step_s)
    assert forecast.cost_s == pytest.approx(forecast.ttft_s + 100 * step_s)


def test_a_worker_that_has_not_shown_a_step_is_taken_to_be_like_the_others() -> None:
    """Otherwise what is believed beforehand, when slower than what is seen, keeps everybody away from it."""
    world = World("predicted")
    for name in ("w1", "w2", "w3"):
        world.up(name, slots=SLOTS)
    world.sample("w1", running=6, steps=[Step(0.002, 8, 0, 8000)] * 4)
    chosen = Counter(target(world.place(**prompt(number, 64))) for number in range(12))
    assert chosen["w2"] >= 5
    assert chosen["w3"] >= 5


def test_sharing_a_prefix_does_not_look_like_a_full_cache() -> None:
    world = world_of("w1", "w2", kv_blocks=400)
    # Ten sequences of 1,024 tokens hold 64 blocks together and some of their own.
    world.sample("w1", running=10, context_tokens=10_400, kv_blocks_used=90)
    world.sample("w2", running=12, context_tokens=2_000, kv_blocks_used=390)
    assert target(world.place(**prompt(1))) == "w1"


def test_a_cache_that_was_cleared_and_filled_anew_is_found_again() -> None:
    world = world_of("w1", "w2", features=["cache_events"])
    chain: list[int] = prompt(1)["block_hashes"]  # type: ignore[assignment]
    for _ in range(3):
        world.scheduler.cache_cleared("w2", MODEL)
        first = world.place(**prompt(1))
        assert first.forecast is not None
        assert first.forecast.cached_tokens == 0
        world.scheduler.release(first.reservation, Outcome.ENDED, world.now)
        world.scheduler.cache_changed("w2", MODEL, chain, ())
        placed = world.place(**prompt(1))
        assert target(placed) == "w2"
        assert placed.forecast is not None
        assert placed.forecast.cached_tokens == 1023
        world.scheduler.release(placed.reservation, Outcome.ENDED, world.now)
