"""A worker that is there no more: out at once, and waited for elsewhere as long as one that crashed."""

from tokenfleet.core.scheduling import Phase, ReplicaFacts, ReplicaState, WorkerFacts
from tokenfleet.core.scheduling.fleet import Fleet

PATIENCE_S = 30.0


def fleet_with(target: str) -> Fleet:
    fleet = Fleet(patience_s=PATIENCE_S)
    replica = ReplicaFacts("m", ReplicaState.READY, epoch=1, max_sequences=4)
    fleet.expect(target, 0.0)
    fleet.describe(target, WorkerFacts("w-1", "w", "z", Phase.READY, frozenset({"sim"}), (replica,)), now=0.0)
    assert len(fleet.placeable("m")) == 1
    return fleet


def test_it_is_out_of_the_choice_at_once() -> None:
    fleet = fleet_with("a:1")
    fleet.leave("a:1", now=100.0)
    assert not fleet.placeable("m")
    assert not fleet.workers
    assert not fleet.could_load("m", frozenset({"sim"}))


def test_its_successor_is_waited_for() -> None:
    fleet = fleet_with("a:1")
    fleet.leave("a:1", now=100.0)
    assert fleet.expected_until("m", (), asked_at=101.0, now=101.0) == 100.0 + PATIENCE_S
    assert fleet.expected_until("m", (), asked_at=101.0, now=131.0) == 0.0


def test_what_comes_late_about_it_does_not_bring_it_back() -> None:
    fleet = fleet_with("a:1")
    worker = fleet.workers["a:1"]
    fleet.leave("a:1", now=100.0)
    fleet.doubt_worker(worker, now=100.1)
    fleet.lost("a:1", now=100.1)
    fleet.sample("a:1", (), 0.0, now=100.1)
    fleet.leave("a:1", now=200.0)
    assert not fleet.workers
    assert not fleet.placeable("m")
    assert fleet.expected_until("m", (), asked_at=201.0, now=201.0) == 0.0, "it left once only"


def test_while_workers_are_being_discovered_nobody_is_told_that_there_is_none() -> None:
    fleet = Fleet(patience_s=PATIENCE_S)
    assert fleet.expected_until("m", (), asked_at=5.0, now=5.0) == 0.0
    fleet.await_workers(5.0)
    assert fleet.expected_until("m", (), asked_at=5.0, now=5.0) == 5.0 + PATIENCE_S
