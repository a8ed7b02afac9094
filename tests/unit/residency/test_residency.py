"""Which worker loads what, under a virtual clock: warm, lazy, failing, full, absent."""

from itertools import pairwise

import pytest

from tokenfleet.core.residency import (
    Demand,
    EngineNeed,
    Entry,
    Failure,
    HostFacts,
    Limits,
    LoadOrder,
    Place,
    PlaceState,
    Residency,
    Settlement,
)

READY, LOADING, FAILED = PlaceState.READY, PlaceState.LOADING, PlaceState.FAILED
GB = 10**9


class World:
    """Workers that do what they are ordered when the test lets them."""

    def __init__(self, *entries: Entry, patience_s: float = 30.0) -> None:
        self.now = 0.0
        self.residency = Residency(lambda: 0.5, Limits(patience_s))
        self.residency.catalog(entries)
        self.orders: list[LoadOrder] = []
        self.settled: list[Settlement] = []
        self.lives: dict[str, int] = {}

    def up(
        self,
        target: str,
        *places: Place,
        zone: str = "",
        engines: str = "sim",
        budget: int = 0,
        accepts: bool = True,
        new_life: bool = False,
    ) -> None:
        self.lives[target] = self.lives.get(target, 1) + new_life
        facts = HostFacts(
            self.id(target), target, zone, accepts, frozenset(engines.split(",")), budget, tuple(places)
        )
        self.residency.describe(target, facts, self.now)

    def id(self, target: str) -> str:
        return f"{target}.{self.lives.get(target, 1)}"

    def plan(self) -> list[str]:
        """Plans; answers the new orders as `model@target`."""
        plan = self.residency.plan(self.now)
        assert not plan.unloads
        self.orders += plan.loads
        self.settled += plan.settlements
        return [f"{order.model}@{order.target}" for order in plan.loads]

    def done(self, name: str) -> None:
        """The named order is carried out, and the worker says so."""
        self.residency.loaded(self.take(name), 1, self.now)

    def fail(self, name: str, message: str = "no such tensor") -> None:
        self.residency.failed(self.take(name), "load_failed", message, self.now)

    def take(self, name: str) -> LoadOrder:
        order = next(order for order in self.orders if f"{order.model}@{order.target}" == name)
        self.orders.remove(order)
        return order

    def want(self, model: str, replicas: int = 1, excluded: frozenset[str] = frozenset()) -> Demand:
        return self.residency.want(model, replicas, excluded, self.now)


def warm(name: str = "m", replicas: int = 0, memory: int = 0, engines: str = "sim") -> Entry:
    needs = tuple(EngineNeed(engine, memory) for engine in engines.split(","))
    return Entry(name, needs, warm=True, replicas=replicas)


def lazy(name: str = "m", memory: int = 0, engines: str = "sim") -> Entry:
    return Entry(name, tuple(EngineNeed(engine, memory) for engine in engines.split(",")))


def test_warm_models_are_loaded_on_every_worker_that_can() -> None:
    world = World(warm())
    world.up("a")
    world.up("b")
    world.up("c", engines="vllm")
    assert world.plan() == ["m@a", "m@b"]
    assert world.plan() == []
    world.done("m@a")
    world.done("m@b")
    assert world.plan() == []


def test_warm_replicas_are_spread_over_zones() -> None:
    world = World(warm(replicas=2))
    for target, zone in (("a", "z1"), ("b", "z1"), ("c", "z2")):
        world.up(target, zone=zone)
    assert world.plan() == ["m@a", "m@c"]
    # one that holds it already counts
    world = World(warm(replicas=2))
    world.up("a", Place("m", READY), zone="z1")
    world.up("b", zone="z1")
    world.up("c", zone="z2")
    assert world.plan() == ["m@c"]


def test_a_worker_that_comes_back_is_loaded_again_at_once() -> None:
    world = World(warm())
    world.up("a")
    world.plan()
    world.done("m@a")
    world.residency.lost("a", world.now)
    assert world.plan() == []
    world.up("a", new_life=True)
    assert world.plan() == ["m@a"]
    # it dies in the middle of the load: that is not held against its next life
    world.residency.broken_off(world.take("m@a"), world.now)
    world.residency.lost("a", world.now)
    world.up("a", new_life=True)
    assert world.plan() == ["m@a"]


def test_a_load_that_broke_off_on_a_living_worker_is_repeated_after_a_rest() -> None:
    world = World(warm())
    world.up("a")
    world.plan()
    world.residency.broken_off(world.take("m@a"), world.now)
    assert world.plan() == []
    world.now = 0.5
    assert world.plan() == ["m@a"]


def test_a_worker_loads_one_model_at_a_time_and_those_waited_for_first() -> None:
    world = World(warm("w1"), warm("w2"), lazy("x"))
    world.up("a")
    world.want("x")
    assert world.plan() == ["x@a"]
    assert world.plan() == []
    world.done("x@a")
    assert world.plan() == ["w1@a"]
    world.done("w1@a")
    assert world.plan() == ["w2@a"]


def test_lazy_models_wait_to_be_wanted_and_equal_wishes_are_one() -> None:
    world = World(lazy())
    world.up("a")
    world.up("b")
    assert world.plan() == []
    demands = {id(world.want("m")) for _ in range(50)}
    assert len(demands) == 1
    assert len(world.plan()) == 1
    assert not world.settled
    world.done(f"m@{world.orders[0].target}")
    world.plan()
    (settlement,) = world.settled
    assert settlement.worker_id in {"a.1", "b.1"}
    assert not settlement.reason


def test_what_is_there_already_meets_a_wish_at_once() -> None:
    world = World(lazy())
    world.up("a", Place("m", READY))
    world.want("m")
    assert world.plan() == []
    assert world.settled[0].worker_id == "a.1"


def test_an_engine_on_its_way_is_waited_for() -> None:
    world = World(lazy())
    world.up("a", Place("m", LOADING))
    world.want("m")
    assert world.plan() == []
    assert not world.settled
    world.up("a", Place("m", READY))
    world.plan()
    assert world.settled[0].worker_id == "a.1"


def test_excluded_workers_neither_meet_a_wish_nor_load_for_it() -> None:
    world = World(lazy())
    world.up("a", Place("m", READY))
    world.up("b")
    world.want("m", excluded=frozenset({"a.1"}))
    assert world.plan() == ["m@b"]


def test_the_emptiest_of_the_capable_workers_loads() -> None:
    world = World(lazy(memory=2 * GB, engines="vllm,sim"))
    world.up("small", budget=3 * GB, engines="sim")
    world.up("large", Place("other", READY, memory_bytes=1 * GB), budget=8 * GB, engines="sim,vllm")
    world.up("foreign", budget=99 * GB, engines="trtllm")
    world.want("m")
    assert world.plan() == ["m@large"]
    assert world.orders[0].engine == "vllm", "the entry's order of preference decides"


def test_a_model_that_fits_nowhere_says_how_much_is_missing() -> None:
    world = World(lazy(memory=4 * GB), warm("other", memory=3 * GB))
    world.up("a", Place("other", READY, memory_bytes=3 * GB), budget=6 * GB)
    world.want("m")
    assert world.plan() == []
    (settlement,) = world.settled
    assert (settlement.reason, settlement.missing_bytes) == ("out_of_memory", 1 * GB)
    assert str(4 * GB) in settlement.message
    assert str(3 * GB) in settlement.message


def test_memory_of_a_load_under_way_and_of_failures_is_counted_right() -> None:
    world = World(warm("m", memory=2 * GB), lazy("n", memory=2 * GB))
    world.up("a", Place("old", FAILED, memory_bytes=9 * GB), budget=3 * GB)
    world.want("m")
    assert world.plan() == ["m@a"]
    world.up("a", Place("m", LOADING, memory_bytes=2 * GB), budget=3 * GB)
    world.want("n")
    world.plan()
    assert [settlement.reason for settlement in world.settled] == ["out_of_memory"]


def test_another_worker_is_tried_when_one_fails_and_then_the_engines_error_is_told() -> None:
    world = World(lazy())
    world.up("a")
    world.up("b")
    world.want("m")
    assert world.plan() == ["m@a"]
    world.fail("m@a")
    assert world.plan() == ["m@b"]
    world.fail("m@b", "out of luck")
    assert world.plan() == []
    (settlement,) = world.settled
    assert (settlement.reason, settlement.message) == ("load_failed", "no such tensor")
    assert 0 < settlement.retry_after_s <= 1.25
    # whoever asks during the pause hears it at once; afterwards it is tried again
    world.want("m")
    assert world.plan() == []
    assert len(world.settled) == 2
    world.now = 1.3
    world.want("m")
    assert world.plan() == ["m@a"]


def test_a_failing_warm_model_is_tried_with_growing_pauses() -> None:
    world = World(warm())
    world.up("a")
    tries = []
    for step in range(2400):
        world.now = step * 0.05
        if world.plan():
            tries.append(world.now)
            world.fail("m@a")
    gaps = [later - earlier for earlier, later in pairwise(tries)]
    assert gaps[:5] == pytest.approx([1, 2, 4, 8, 16], abs=0.11)


def test_a_mended_entry_is_tried_at_once() -> None:
    world = World(warm())
    world.up("a")
    world.plan()
    world.fail("m@a")
    assert world.plan() == []
    world.residency.catalog([warm(memory=1)])
    assert world.plan() == ["m@a"]


def test_a_model_that_broke_down_by_itself_is_loaded_again_after_a_pause() -> None:
    world = World(warm())
    world.up("a", Place("m", READY))
    world.up("a", Place("m", FAILED))
    assert world.plan() == []
    world.now = 1.1
    assert world.plan() == ["m@a"]


def test_a_failed_order_is_counted_once_in_whichever_order_stream_and_watch_tell_it() -> None:
    for watch_first in (True, False):
        world = World(warm())
        world.up("a")
        world.plan()
        world.up("a", Place("m", LOADING))
        failed = Place("m", FAILED, failure=Failure("load_failed", "no such tensor"))
        if watch_first:
            world.up("a", failed)
        world.fail("m@a")
        world.up("a", failed)
        (quarantine,) = world.residency.backoff.lasting("m", world.now)
        assert (quarantine.failures, quarantine.message) == (1, "no such tensor")


def test_a_failure_of_a_former_loaders_time_is_told_in_the_engines_words() -> None:
    world = World(lazy())
    world.up("a", Place("m", FAILED, failure=Failure("load_failed", "no such tensor")))
    world.want("m")
    assert world.plan() == []
    assert world.settled[0].message == "no such tensor"


def test_a_wish_waits_for_workers_that_are_expected_and_no_longer() -> None:
    world = World(lazy(), patience_s=30.0)
    world.residency.expect("a", 0.0)
    world.want("m")
    world.now = 29.9
    assert world.plan() == []
    assert not world.settled
    world.up("a")
    assert world.plan() == ["m@a"]

    world = World(lazy(), patience_s=30.0)
    world.residency.expect("a", 0.0)
    world.want("m")
    world.now = 30.1
    world.plan()
    assert world.settled[0].reason == "no_worker"


def test_draining_workers_get_no_orders_and_meet_no_wish() -> None:
    world = World(warm(), patience_s=0.0)
    world.up("a", Place("m", READY), accepts=False)
    world.up("b", accepts=False)
    world.want("m")
    assert world.plan() == []
    assert world.settled[0].reason == "no_worker"


def test_more_replicas_than_workers_is_met_by_all_of_them() -> None:
    world = World(lazy())
    world.up("a")
    world.up("b")
    world.want("m", replicas=3)
    assert world.plan() == ["m@a", "m@b"]
    world.done("m@a")
    world.plan()
    assert not world.settled
    world.done("m@b")
    world.plan()
    assert not world.settled[0].reason


def test_what_was_unloaded_stays_away_until_it_is_wanted_again() -> None:
    world = World(warm())
    world.up("a", Place("m", READY))
    world.residency.withhold("m", "a.1")
    world.up("a")
    assert world.plan() == []
    world.want("m")
    assert world.plan() == ["m@a"]


def test_a_wish_for_a_model_that_left_the_catalog_ends() -> None:
    world = World(lazy())
    world.up("a", Place("m", LOADING))
    world.want("m")
    world.residency.catalog([])
    world.plan()
    assert world.settled[0].reason == "model_not_found"


def test_an_unload_under_way_is_waited_for() -> None:
    world = World(lazy())
    world.up("a", Place("m", PlaceState.UNLOADING))
    world.want("m")
    assert world.plan() == []
    assert not world.settled
    world.up("a")
    assert world.plan() == ["m@a"]
