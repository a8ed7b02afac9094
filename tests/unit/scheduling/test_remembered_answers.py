"""What the fleet remembers between two changes is what it would find out anew, whatever happened."""

import math
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.scheduling.world import ENGINES, MODEL, World
from tokenfleet.core.scheduling import Device, Outcome, Phase, ReplicaState

TARGETS = ("a", "b")
AWAY, LOADING = {"state": None}, {"state": ReplicaState.LOADING}
DRAINING, RESTARTED = {"phase": Phase.DRAINING}, {"new_life": True}
WHAT: list[Any] = [{}, AWAY, LOADING, DRAINING, RESTARTED, 0.3, 1.0, 4.0]
WHAT += [
    "sample",
    "old",
    "faulty",
    "lost",
    "leave",
    "expect",
    "widen",
    "narrow",
    "narrow",
    "unreachable",
    "not resident",
]
events = st.tuples(st.sampled_from(TARGETS), st.sampled_from(WHAT))


@given(st.lists(events, min_size=10, max_size=40))
@settings(max_examples=200)
def test_vetoes_and_lateness_are_those_of_the_moment(happening: list[tuple[str, Any]]) -> None:
    world = World("predicted")
    for target in TARGETS:
        world.up(target)
    for target, what in happening:
        _happen(world, target, what)
        fleet = world.scheduler.fleet
        for limit in (2, 16):
            assert fleet.vetoed(MODEL, ENGINES, limit) == tuple(fleet._vetoes(MODEL, ENGINES))[:limit]
        world.scheduler.tick(world.now)
        found, remembered = _lateness(world), fleet._nobody_late_before
        fleet._nobody_late_before = -math.inf
        fleet.find_stale(world.now)
        assert _lateness(world) == found
        fleet._nobody_late_before = remembered


def _lateness(world: World) -> list[tuple[str, bool, float]]:
    return [(worker.id, worker.stale, worker.late_s) for worker in world.scheduler.fleet.workers.values()]


def _happen(world: World, target: str, what: Any) -> None:
    scheduler = world.scheduler
    if isinstance(what, dict):
        world.up(target, **what)
    elif isinstance(what, float):
        world.now += what
    elif what in ("sample", "old", "faulty"):
        faults = ("XID 79",) if what == "faulty" else ()
        world.sample(target, age_s=1.5 if what == "old" else 0.0, device=Device(faults))
    elif what == "lost":
        world.lost(target)
    elif what == "leave":
        scheduler.fleet.leave(target, world.now)
    elif what == "expect":
        scheduler.fleet.expect(target, world.now)
    elif what in ("widen", "narrow"):
        scheduler.sampled_every(target, 2.0 if what == "widen" else 1.0)
    else:
        replica = scheduler.fleet.replica(target, MODEL)
        if replica is not None:
            reservation = scheduler.reservations.reserve(replica, world.now)
            outcome = Outcome.LOST if what == "unreachable" else Outcome.NOT_RESIDENT
            scheduler.release(reservation, outcome, world.now)
