"""A worker that is there no more: ordered nothing, and waited for elsewhere as long as one that crashed."""

from tokenfleet.core.residency import EngineNeed, Entry, HostFacts, Limits, Residency

PATIENCE_S = 30.0


def residency_with(target: str) -> Residency:
    residency = Residency(lambda: 0.5, Limits(PATIENCE_S))
    residency.catalog([Entry("m", (EngineNeed("sim"),))])
    residency.expect(target, 0.0)
    residency.describe(target, HostFacts("w-1", engines=frozenset({"sim"})), 0.0)
    return residency


def test_who_asks_when_the_last_one_left_waits_for_its_successor_and_not_for_ever() -> None:
    residency = residency_with("a:1")
    residency.leave("a:1", 100.0)
    residency.want("m", 1, frozenset(), 101.0)
    assert residency.plan(101.0) == ([], [], [])
    orders, _, settled = residency.plan(131.0)
    assert not orders
    assert [settlement.reason for settlement in settled] == ["no_worker"]


def test_a_load_that_it_was_at_ends_with_it() -> None:
    residency = residency_with("a:1")
    residency.want("m", 1, frozenset(), 1.0)
    ((order,), _, _) = residency.plan(1.0)
    residency.leave("a:1", 2.0)
    residency.broken_off(order, 2.1)
    residency.describe("b:1", HostFacts("w-2", engines=frozenset({"sim"})), 3.0)
    ((order,), _, _) = residency.plan(3.0)
    assert order.target == "b:1"


def test_while_workers_are_being_discovered_nobody_is_told_that_there_is_none() -> None:
    residency = Residency(lambda: 0.5, Limits(PATIENCE_S))
    residency.catalog([Entry("m", (EngineNeed("sim"),))])
    residency.await_workers(100.0)
    residency.want("m", 1, frozenset(), 101.0)
    assert residency.plan(101.0) == ([], [], [])
