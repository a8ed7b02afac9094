"""What goes to make room, and what does not, in virtual time; and that no schedule of requests breaks it."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.residency.world import Model, World
from tokenfleet.core.residency import Limits
from tokenfleet.core.residency.eviction import Candidate, CheapestToLose, LeastRecentlyUsed, clear

GB = 10**9
POLICIES = ("lru", "demand")


def model(name: str, size: int = 1, load_s: float = 1.0, **fields: object) -> Model:
    return Model(name, size * GB, load_s, **fields)  # type: ignore[arg-type]


def world(*models: Model, rooms: tuple[int, ...] = (2,), policy: str = "lru", **limits: float) -> World:
    fleet = World(
        list(models),
        [room * GB for room in rooms],
        policy=policy,
        limits=Limits(**{"min_residency_s": 5.0, **limits}),
    )
    fleet.run(1.0)
    return fleet


def ask(fleet: World, name: str, at: float, **fields: float) -> None:
    fleet.run(at)
    fleet.request(name, **{"runs_s": 0.5, **fields})


def evicted(fleet: World) -> list[str]:
    return [order.model for _, order in fleet.tally.evictions]


def test_the_longest_unused_goes_and_only_when_memory_is_needed() -> None:
    fleet = world(model("a"), model("b"), model("c"))
    for at, name in ((10, "a"), (20, "b"), (30, "a"), (40, "b"), (50, "a")):
        ask(fleet, name, at)
    assert not evicted(fleet)
    ask(fleet, "c", 60)
    ask(fleet, "b", 70)
    fleet.run(80)
    assert evicted(fleet) == ["b", "a"]
    assert [name for _, name, _ in fleet.tally.loads] == ["a", "b", "c", "b"]
    assert not fleet.tally.mistakes
    (order,) = [order for _, order in fleet.tally.evictions if order.model == "b"]
    assert (order.cause, order.for_model) == ("memory", "c")


def test_what_is_in_use_stays_and_who_needs_its_memory_waits_for_its_end() -> None:
    fleet = world(model("a"), model("b"), rooms=(1,))
    ask(fleet, "a", 10, runs_s=30)
    ask(fleet, "b", 25)
    fleet.run(40)
    assert not evicted(fleet)
    fleet.run(50)
    assert evicted(fleet) == ["a"]
    assert 16 < fleet.tally.requests[-1].waited_s < 19


def test_minimum_residency_makes_models_take_turns_instead_of_thrashing() -> None:
    fleet = world(model("a"), model("b"), rooms=(1,), min_residency_s=10.0)
    for n in range(200):
        ask(fleet, "ab"[n % 2], 10 + n * 0.5, runs_s=0.1)
    fleet.run(140)
    assert not fleet.tally.mistakes
    assert all(not math.isnan(request.started) for request in fleet.tally.requests)
    assert 8 <= len(fleet.tally.loads) <= 13, "a load a turn, for a hundred seconds and ten in between"


def test_who_cannot_wait_for_the_end_of_a_residency_is_told_when_it_is() -> None:
    fleet = world(model("a"), model("b"), rooms=(1,), min_residency_s=60.0)
    ask(fleet, "a", 10)
    ask(fleet, "b", 20, deadline_s=5)
    fleet.run(30)
    (settlement,) = [one for _, one in fleet.tally.settlements if one.reason]
    assert settlement.reason == "deadline_exceeded"
    assert "taken only just now" in settlement.message
    assert settlement.retry_after_s == pytest.approx(48, abs=2)  # a was ready at 11, and b loads for a few s
    assert fleet.residency.shortages(fleet.now)["b"].bytes == 1 * GB
    assert not evicted(fleet)


def test_a_model_for_which_there_will_never_be_memory_is_told_at_once() -> None:
    fleet = world(model("a", warm=True), model("big", size=2), rooms=(2, 1))
    fleet.run(9)
    ask(fleet, "big", 10)
    ((at, settlement),) = [(at, one) for at, one in fleet.tally.settlements if one.reason]
    assert at == 10
    assert settlement.reason == "out_of_memory"
    assert "pinned models keep" in settlement.message
    assert "add a worker" in settlement.message
    assert fleet.residency.shortages(11)["big"].bytes == 2 * GB
    assert not fleet.residency.shortages(200)


def test_pins_keep_and_unpinned_warm_models_go() -> None:
    fleet = world(model("a", warm=True), model("b"), rooms=(1,))
    fleet.run(10)
    fleet.residency.pin("a", False)
    ask(fleet, "b", 10)
    fleet.run(20)
    assert evicted(fleet) == ["a"]
    fleet.residency.pin("b", True)
    ask(fleet, "a", 30)
    assert [one.reason for _, one in fleet.tally.settlements][-1] == "out_of_memory"


def test_a_pinned_model_takes_the_memory_of_idle_ones_that_are_not() -> None:
    fleet = world(model("a"), model("b"), rooms=(1,))
    ask(fleet, "a", 10)
    fleet.run(20)
    fleet.residency.pin("b", True)
    fleet.run(30)
    assert evicted(fleet) == ["a"]
    assert "b" in fleet.workers["w0"].held


def test_a_worker_that_contradicts_is_believed_and_another_victim_found() -> None:
    fleet = world(model("a"), model("b"), model("c"), policy="lru")
    ask(fleet, "a", 10)
    ask(fleet, "b", 20)
    # between two samples: the policy still believes that a was used the longest ago
    fleet.run(29.99)
    ask(fleet, "a", 30.001, runs_s=0.001)
    ask(fleet, "c", 30.01)
    fleet.run(40)
    assert fleet.tally.refused == 1
    assert evicted(fleet) == ["b"]


def test_several_small_ones_make_room_for_a_large_one_and_no_more_than_needed() -> None:
    fleet = world(model("a"), model("b"), model("c"), model("big", size=2), rooms=(3,))
    for at, name in ((10, "a"), (20, "b"), (30, "c"), (40, "big")):
        ask(fleet, name, at)
    fleet.run(60)
    assert sorted(evicted(fleet)) == ["a", "b"]


def test_the_demand_policy_keeps_what_is_asked_for_often_and_takes_long_to_load() -> None:
    hot, slow, cold = model("hot"), model("slow", load_s=30.0), model("cold")
    fleet = world(hot, slow, cold, model("new"), rooms=(3,), policy="demand")
    for n in range(20):
        ask(fleet, "hot", 10 + n, runs_s=0.1)
    ask(fleet, "slow", 40)
    ask(fleet, "cold", 80)
    ask(fleet, "hot", 84)  # the longest unused is slow
    ask(fleet, "new", 100)
    fleet.run(120)
    assert evicted(fleet) == ["cold"]
    assert not fleet.tally.mistakes


def test_an_engine_that_can_sleep_sleeps_where_that_frees_enough() -> None:
    small = {"sleep_bytes": GB // 10, "wake_s": 0.2}
    fleet = world(model("a", 2, 20.0, **small), model("b", 1, 5.0), rooms=(2,))
    ask(fleet, "a", 10)
    ask(fleet, "b", 60)
    ask(fleet, "a", 80)
    fleet.run(100)
    (_, sleeping), (_, gone) = fleet.tally.evictions
    assert (sleeping.model, sleeping.sleep) == ("a", True)
    assert (gone.model, gone.sleep) == ("b", False)
    assert fleet.tally.requests[-1].waited_s < 2, "it woke up"
    assert fleet.tally.bytes_loaded == 3 * GB
    # where sleep would not free enough, it goes
    fleet = world(model("a", 2, 20.0, **small), model("b", 2, 5.0), rooms=(2,))
    ask(fleet, "a", 10)
    ask(fleet, "b", 60)
    fleet.run(100)
    assert [order.sleep for _, order in fleet.tally.evictions] == [False]
    assert not fleet.tally.mistakes


def test_further_copies_of_a_hot_model_take_free_memory_and_go_when_it_is_cold() -> None:
    fleet = world(model("hot"), model("b"), rooms=(1, 1, 1))
    ask(fleet, "hot", 10)
    ask(fleet, "b", 11)
    fleet.run(20)
    fleet.residency.want("hot", 3, frozenset(), fleet.now)
    fleet.run(30)
    places = [held for worker in fleet.workers.values() for held in worker.held]
    assert sorted(places) == ["b", "hot", "hot"], "b was used lately, and a third copy is not worth it"
    assert not fleet.residency.demands.open(), "and nobody waits for it"
    fleet.run(400)
    assert [order.cause for _, order in fleet.tally.evictions] == ["surplus"]
    assert sorted(held for worker in fleet.workers.values() for held in worker.held) == ["b", "hot"]


def test_idle_models_go_after_a_while_if_told_so() -> None:
    fleet = world(model("a"), model("w", warm=True), idle_s=20.0)
    ask(fleet, "a", 10)
    fleet.run(29)
    assert not evicted(fleet)
    fleet.run(40)
    assert evicted(fleet) == ["a"]


def test_a_model_that_left_the_catalog_goes_once_nobody_uses_it() -> None:
    fleet = world(model("a"), model("b"))
    ask(fleet, "a", 10, runs_s=10)
    fleet.run(15)
    fleet.residency.catalog([model("b").entry()])
    fleet.run(20)
    assert not evicted(fleet)
    fleet.run(30)
    assert [order.cause for _, order in fleet.tally.evictions] == ["removed"]


def test_victims_are_no_more_than_needed_and_the_cheapest() -> None:
    old, mid, new = (
        Candidate(name, 1, size, used) for name, size, used in (("o", 1, 1), ("m", 3, 2), ("n", 9, 3))
    )
    for policy in (LeastRecentlyUsed(), CheapestToLose()):
        assert clear(policy, 0, [old]) is not None
        assert clear(policy, 14, [old, mid, new]) is None
    clearance = clear(LeastRecentlyUsed(), 3, [new, mid, old])
    assert clearance is not None
    assert [victim.candidate for victim in clearance.victims] == [mid]
    assert clearance.cost == 2


@st.composite
def scenarios(draw: st.DrawFn) -> tuple[World, list[tuple[float, str, float, float]]]:
    sizes = draw(st.lists(st.integers(1, 4), min_size=2, max_size=6))
    models = [
        Model(
            f"m{n}",
            size * GB,
            draw(st.sampled_from([0.5, 2.0, 8.0])),
            warm=draw(st.integers(0, 5)) == 0,
            sleep_bytes=draw(st.sampled_from([-1, -1, GB // 4])),
            wake_s=0.3,
        )
        for n, size in enumerate(sizes)
    ]
    fleet = World(
        models,
        [room * GB for room in draw(st.lists(st.integers(2, 8), min_size=1, max_size=3))],
        policy=draw(st.sampled_from(POLICIES)),
        limits=Limits(
            min_residency_s=draw(st.sampled_from([1.0, 5.0])), idle_s=draw(st.sampled_from([0, 30]))
        ),
        seed=draw(st.integers(0, 1000)),
        load_fails=draw(st.sampled_from([0.0, 0.0, 0.2])),
    )
    asked = draw(
        st.lists(
            st.tuples(
                st.floats(0, 120),
                st.sampled_from([one.name for one in models]),
                st.sampled_from([0.01, 1.0, 10.0]),
                st.sampled_from([3.0, 30.0, 90.0]),
            ),
            max_size=60,
        )
    )
    return fleet, sorted(asked)


def play(fleet: World, asked: list[tuple[float, str, float, float]]) -> list[object]:
    for at, name, runs_s, deadline_s in asked:
        fleet.run(at)
        fleet.request(name, runs_s, deadline_s)
    fleet.run(120 + 90 + 1)
    return [
        *fleet.tally.loads,
        *fleet.tally.evictions,
        *((at, one.reason) for at, one in fleet.tally.settlements),
    ]


@settings(max_examples=150, deadline=None)
@given(scenarios())
def test_whatever_is_asked_nothing_is_over_budget_in_use_pinned_or_too_young_and_all_is_settled(
    scenario: tuple[World, list[tuple[float, str, float, float]]],
) -> None:
    fleet, asked = scenario
    play(fleet, asked)
    assert not fleet.tally.mistakes
    assert not fleet.waiting
    for request in fleet.tally.requests:
        assert request.failure or request.waited_s <= request.deadline - request.arrived
    assert not fleet.residency.demands.open()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(POLICIES))
def test_the_same_seed_gives_the_same_decisions(seed: int, policy: str) -> None:
    import random

    def once() -> list[object]:
        draw = random.Random(seed)
        models = [Model(f"m{n}", draw.randint(1, 3) * GB, 1.0) for n in range(5)]
        fleet = World(models, [4 * GB, 3 * GB], policy=policy, seed=seed, load_fails=0.1)
        asked = sorted((draw.uniform(0, 100), f"m{draw.randrange(5)}", 1.0, 60.0) for _ in range(40))
        return play(fleet, asked)

    assert once() == once()
