"""Where requests go, and that nobody is sent to a worker that cannot take them."""

from collections import Counter

import pytest

from tests.unit.scheduling.world import World, fingerprint
from tokenfleet.core.scheduling import POLICIES, Outcome, Phase, Placed, ReplicaState


def test_a_burst_between_two_samples_spreads_instead_of_herding() -> None:
    world = World()
    for target in ("a", "b", "c", "d"):
        world.up(target, slots=100)
    placed = Counter(world.place().reservation.replica.worker.target for _ in range(80))
    assert set(placed.values()) == {20}


def test_a_stale_low_figure_does_not_attract_everybody() -> None:
    world = World()
    world.up("idle", slots=100)
    world.up("busy", slots=100)
    world.sample("busy", running=10)
    placed = Counter(world.place().reservation.replica.worker.target for _ in range(20))
    assert placed == {"idle": 15, "busy": 5}


def test_heterogeneous_workers_fill_in_proportion() -> None:
    world = World()
    world.up("small", slots=11)
    world.up("large", slots=31)
    placed = Counter(world.place().reservation.replica.worker.target for _ in range(40))
    assert placed == {"small": 10, "large": 30}


def test_equals_are_drawn_with_the_seed_and_the_clients_zone_comes_first() -> None:
    def draws(seed: int) -> list[str]:
        chosen: list[str] = []
        for _ in range(30):
            world = World(seed=seed + len(chosen))
            for target in ("a", "b", "c"):
                world.up(target, zone="z1" if target == "c" else "z2")
            chosen.append(world.place().reservation.replica.worker.target)
        return chosen

    assert draws(1) == draws(1)
    assert set(draws(1)) == {"a", "b", "c"}
    world = World()
    for target in ("a", "b", "c"):
        world.up(target, slots=100, zone="z1" if target == "c" else "z2")
    decision = world.place(zone="z1")
    assert decision.reservation.replica.worker.target == "c"
    assert "zone" in decision.why
    # load counts before the zone
    assert world.place(zone="z1").reservation.replica.worker.target != "c"


def test_admitted_ids_retire_reservations_so_that_nothing_counts_twice() -> None:
    world = World()
    world.up("a", slots=100)
    reservations = [world.place().reservation for _ in range(10)]
    replica = reservations[0].replica
    assert replica.load == 10
    world.sample("a", running=6, admitted=[r.id for r in reservations[:6]])
    assert (replica.running, replica.reserved, replica.load) == (6, 4, 10)
    world.sample("a", running=5, admitted=[r.id for r in reservations[6:8]])
    assert replica.load == 7
    # the end of a request whose sample contains it changes nothing until the next sample
    world.scheduler.release(reservations[0], Outcome.ENDED, world.now)
    assert replica.load == 7
    # the end of one that no sample has shown yet does
    world.scheduler.release(reservations[9], Outcome.ENDED, world.now)
    assert replica.load == 6
    world.scheduler.release(reservations[9], Outcome.ENDED, world.now)
    assert replica.load == 6


def test_an_unconfirmed_reservation_expires_after_two_seconds() -> None:
    world = World()
    world.up("a", slots=2)
    world.place()
    world.place()
    waiting = world.ask()
    world.pass_time(1.95, living="a")
    assert not world.where(waiting)
    world.pass_time(0.1, living="a")
    assert world.where(waiting) == "a"
    assert len(world.scheduler.reservations) == 1


def large_fleet(*targets: str, interval_s: float) -> World:
    world = World()
    for target in targets:
        world.scheduler.fleet.expect(target, world.now)
        world.scheduler.sampled_every(target, interval_s)
        world.up(target)
    return world


def test_a_worker_that_was_asked_to_speak_seldom_is_not_stale_for_that() -> None:
    world = large_fleet("a", interval_s=2.0)

    def seen() -> tuple[float, str]:
        worker = world.scheduler.fleet.workers["a"]
        return round(worker.late_s, 2), worker.veto

    world.pass_time(2.45)
    assert seen() == (0.0, "")
    world.pass_time(0.5)
    assert seen() == (0.45, "")
    world.pass_time(2.0)
    assert seen() == (2.45, "")
    world.pass_time(0.1)
    assert seen()[1] == "its load sample is stale"
    world.sample("a")
    assert seen() == (0.0, "")
    world.up("a", new_life=True)
    world.pass_time(4.9)
    assert seen()[1] == "", "its successor was asked no more often"


def test_a_reservation_lives_until_a_seldom_sample_can_confirm_it() -> None:
    world = large_fleet("a", interval_s=2.0)
    world.place()
    world.pass_time(2.9)
    assert len(world.scheduler.reservations) == 1
    world.pass_time(0.2)
    assert len(world.scheduler.reservations) == 0


def test_a_broken_watch_takes_the_worker_out_at_once() -> None:
    world = World()
    world.up("a")
    world.up("b")
    world.lost("a")
    assert {world.place().reservation.replica.worker.target for _ in range(4)} == {"b"}


def test_a_stale_sample_takes_the_worker_out_until_it_speaks_again() -> None:
    world = World()
    world.up("a", slots=100)
    world.up("b", slots=100)
    world.pass_time(2.6, living="b", running=50)
    assert world.place().reservation.replica.worker.target == "b"
    world.sample("a")
    assert world.place().reservation.replica.worker.target == "a"
    world.sample("b", running=0)
    world.sample("a", age_s=2.6)
    world.scheduler.tick(world.now)
    assert world.place().reservation.replica.worker.target == "b"


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.DRAINING, Phase.FAILED])
def test_only_ready_workers_take_new_requests(phase: Phase) -> None:
    world = World()
    world.up("a")
    world.up("b", phase=phase)
    assert {world.place().reservation.replica.worker.target for _ in range(4)} == {"a"}


@pytest.mark.parametrize("state", [ReplicaState.LOADING, ReplicaState.AWAY, None])
def test_only_ready_replicas_take_requests(state: ReplicaState | None) -> None:
    world = World()
    world.up("a")
    world.up("b", state=state)
    assert {world.place().reservation.replica.worker.target for _ in range(4)} == {"a"}


def test_excluded_workers_are_not_chosen_again() -> None:
    world = World()
    world.up("a", slots=100)
    world.up("b", slots=100)
    world.sample("b", running=90)
    decision = world.place(excluded=frozenset({"a.1"}))
    assert decision.reservation.replica.worker.target == "b"
    seen = decision.scene.candidates({"a.1"}, frozenset())
    assert [c.veto for c in seen if c.worker_id == "a.1"] == ["it just failed this request"]


def test_an_equal_fingerprint_is_preferred_and_no_more_than_that() -> None:
    world = World()
    world.up("a", slots=3, engine="sim")
    world.up("b", slots=3, engine="llamacpp")
    world.sample("b", running=1)
    placed = [world.where(world.ask(preferred=fingerprint("llamacpp"))) for _ in range(4)]
    assert placed == ["b", "b", "a", "a"]


def test_a_lost_worker_is_skipped_until_a_later_sample_contradicts() -> None:
    world = World()
    world.up("a", slots=100)
    world.up("b", slots=100)
    world.sample("b", running=90)
    reservation = world.place().reservation
    assert reservation.replica.worker.target == "a"
    world.now = 1.0
    world.scheduler.release(reservation, Outcome.LOST, world.now)
    world.now = 1.1
    world.sample("a", age_s=0.2)  # measured before the failure: proves nothing
    assert world.place().reservation.replica.worker.target == "b"
    world.sample("a", age_s=0.05)
    assert world.place().reservation.replica.worker.target == "a"


def test_a_model_refused_as_not_resident_is_skipped_until_the_worker_speaks() -> None:
    world = World()
    world.up("a", slots=100)
    world.up("b", slots=100)
    world.sample("b", running=90)
    world.scheduler.release(world.place().reservation, Outcome.NOT_RESIDENT, world.now)
    assert world.place().reservation.replica.worker.target == "b"
    world.up("a", slots=100, epoch=2)
    assert world.place().reservation.replica.worker.target == "a"


def test_reports_about_a_former_life_do_not_harm_the_present_one() -> None:
    world = World()
    world.up("a")
    old = world.place().reservation
    world.lost("a")
    world.up("a", new_life=True)
    world.scheduler.release(old, Outcome.LOST, world.now)
    decision = world.place()
    assert decision.reservation.replica.worker.id == "a.2"
    assert decision.reservation.replica.load == 1


def test_features_are_required_where_asked() -> None:
    world = World()
    world.up("a", features=["seed"])
    world.up("b", features=["seed", "json_schema"])
    assert {world.where(world.ask(features=frozenset({"json_schema"}))) for _ in range(3)} == {"b"}
    assert world.refused(world.ask(features=frozenset({"logprobs"}))) == "unsupported"


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_every_policy_respects_room_and_uses_all_of_it(policy: str) -> None:
    world = World(policy)
    for target, slots in (("a", 3), ("b", 5), ("c", 2)):
        world.up(target, slots=slots)
    placed = Counter(world.where(world.ask()) for _ in range(12))
    assert placed == {"a": 3, "b": 5, "c": 2, "": 2}


def test_round_robin_takes_turns_and_power_of_two_beats_random() -> None:
    def spread(policy: str) -> int:
        world = World(policy)
        for number in range(10):
            world.up(f"w{number}", slots=1000)
        loads = Counter(world.place().reservation.replica.worker.target for _ in range(1000))
        return max(loads.values()) - min(loads.values())

    assert spread("round_robin") == 0
    assert spread("least_loaded") == 0
    assert spread("power_of_two") < spread("random")


def test_a_decision_names_all_candidates_and_why_the_others_were_out() -> None:
    world = World()
    world.up("a", slots=4)
    world.up("full", slots=2)
    world.sample("full", running=2)
    world.up("draining", phase=Phase.DRAINING)
    world.scheduler.fleet.expect("away", world.now)
    decision = world.place()
    assert isinstance(decision, Placed)
    seen = decision.scene.candidates((), frozenset())
    assert {candidate.worker_id: candidate.veto for candidate in seen} == {
        "a.1": "",
        "full.1": "full",
        "draining.1": "draining",
        "away": "not connected",
    }
