"""What the fleet remembers between two changes is what it would find out anew, whatever happened."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.scheduling.world import ENGINES, MODEL, World
from tokenfleet.core.scheduling import Device, Outcome, Phase, ReplicaState
from tokenfleet.core.scheduling.fleet import LATE, STALE

TARGETS = ("a", "b", "c")
events = st.tuples(
    st.sampled_from(TARGETS),
    st.one_of(
        st.fixed_dictionaries({"state": st.sampled_from([None, *ReplicaState])}),
        st.fixed_dictionaries({"phase": st.sampled_from(Phase), "new_life": st.booleans()}),
        st.sampled_from(["sample", "old", "faulty", "lost", "leave", "expect", "widen", "place", "deny"]),
        st.sampled_from([0.05, 0.3, 1.0, 4.0]),
    ),
)


@given(st.lists(events, max_size=40))
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
        for worker in fleet.workers.values():
            age_s = world.now - worker.measured_at
            if worker.connected:
                assert worker.stale == (age_s > STALE * worker.interval_s)
                late_s = max(0.0, age_s - LATE * worker.interval_s)
                assert abs(worker.late_s - late_s) < 1e-9 or worker.stale


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
    elif what == "widen":
        scheduler.sampled_every(target, 2.0)
    else:
        replica = scheduler.fleet.replica(target, MODEL)
        if replica is not None:
            reservation = scheduler.reservations.reserve(replica, world.now)
            outcome = Outcome.LOST if what == "place" else Outcome.NOT_RESIDENT
            scheduler.release(reservation, outcome, world.now)
