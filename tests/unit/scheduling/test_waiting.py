"""Who waits, for what, until when, and what the others are told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.scheduling.world import MODEL, World
from tokenfleet.core.queueing import Lane
from tokenfleet.core.scheduling import (
    Decision,
    Loading,
    LoadWish,
    Outcome,
    Phase,
    Placed,
    Queued,
    Refused,
    ReplicaState,
    Request,
)


def full_world(**limits: object) -> World:
    world = World(**limits)  # type: ignore[arg-type]
    world.up("a", slots=2)
    world.sample("a", running=2)
    return world


def test_a_full_fleet_queues_and_room_is_used_at_once() -> None:
    world = full_world()
    first, second = world.ask(), world.ask()
    assert world.last(first) == Queued(0)
    assert world.last(second) == Queued(1)
    world.now = 0.7
    world.sample("a", running=1)
    decision = world.last(first)
    assert isinstance(decision, Placed)
    assert decision.waited_s == 0.7
    assert world.last(second) == Queued(1)
    world.scheduler.release(decision.reservation, Outcome.ENDED, world.now)
    assert world.where(second) == "a"


def test_the_worker_is_chosen_on_leaving_the_queue() -> None:
    world = full_world()
    waiting = world.ask()
    world.up("b")
    assert world.where(waiting) == "b"


def test_one_who_can_go_nowhere_else_does_not_block_those_behind() -> None:
    world = full_world()
    world.up("b", slots=2)
    world.sample("b", running=2)
    picky = world.ask(excluded=frozenset({"b.1"}))
    other = world.ask()
    world.sample("b", running=1)
    assert world.where(other) == "b"
    assert world.last(picky) == Queued(0)


def test_a_queue_bound_is_per_model_and_retry_after_is_the_measured_drain() -> None:
    world = full_world(queue_limit=10)
    for _ in range(10):
        world.ask()
    for step in range(1, 41):
        world.now = step * 0.5
        world.sample("a", running=1)  # one ended: there is room for the next
        placed = next(d for _, d in reversed(world.decisions) if isinstance(d, Placed))
        world.sample("a", running=2, admitted=[placed.reservation.id])
        world.ask()
    refusal = world.last(world.ask())
    assert isinstance(refusal, Refused)
    assert refusal.reason == "queue_full"
    assert abs(refusal.retry_after_s - 5.0) < 0.5
    # another model's line is its own
    assert world.refused(world.ask(model="other", engines=frozenset())) == "no_worker"


def test_a_higher_class_displaces_and_the_displaced_is_told() -> None:
    world = full_world(queue_limit=1)
    batch = world.ask(lane=Lane.BATCH)
    interactive = world.ask(lane=Lane.INTERACTIVE)
    assert world.refused(batch) == "queue_full"
    assert world.last(interactive) == Queued(0)


def test_the_deadline_ends_the_wait() -> None:
    world = full_world()
    waiting = world.ask(deadline_s=3.0)
    world.pass_time(2.95, living="a", running=2)
    assert world.last(waiting) == Queued(0)
    world.pass_time(0.1, living="a", running=2)
    assert world.refused(waiting) == "deadline_exceeded"
    assert world.scheduler.waiting == 0


def test_a_deadline_that_comes_before_any_worker_does_is_told_as_such() -> None:
    world = World()
    world.scheduler.fleet.expect("a", 0.0)
    waiting = world.ask(deadline_s=3.0)
    world.pass_time(3.1)
    assert world.refused(waiting) == "no_worker"


def test_a_cancelled_request_is_not_placed() -> None:
    world = full_world()
    first, second = world.ask(), world.ask()
    world.scheduler.cancel(first)
    world.scheduler.cancel(first)
    world.sample("a", running=1)
    assert world.last(first) == Queued(0)
    assert world.where(second) == "a"


def test_a_fleet_that_died_holds_requests_while_it_is_expected_back() -> None:
    world = World(patience_s=30.0)
    world.up("a")
    world.up("b")
    world.lost("a")
    world.lost("b")
    waiting = [world.ask(excluded=frozenset({"a.1"})), world.ask()]
    world.pass_time(20)
    assert all(world.last(request) == Queued(number) for number, request in enumerate(waiting))
    world.up("a", new_life=True)
    assert [world.where(request) for request in waiting] == ["a", "a"]


def test_a_fleet_that_stays_away_is_given_up_with_a_retry_after() -> None:
    world = World(patience_s=30.0)
    world.up("a")
    world.lost("a")
    waiting = world.ask()
    world.pass_time(29.9)
    assert world.last(waiting) == Queued(0)
    world.pass_time(0.5)
    decision = world.last(waiting)
    assert isinstance(decision, Refused)
    assert decision.reason == "no_worker"
    assert decision.retry_after_s > 0
    # whoever comes now need not wait to hear it
    assert world.refused(world.ask()) == "no_worker"


def test_targets_that_never_answered_are_expected_from_the_start_on() -> None:
    world = World(patience_s=30.0)
    world.scheduler.fleet.expect("a", 0.0)
    waiting = world.ask()
    assert world.last(waiting) == Queued(0)
    world.pass_time(5)
    world.up("a")
    assert world.where(waiting) == "a"


def test_no_worker_at_all_is_refused_at_once() -> None:
    world = World()
    assert world.refused(world.ask()) == "no_worker"


def test_a_draining_fleet_is_expected_to_be_replaced() -> None:
    world = World(patience_s=30.0)
    world.up("a", phase=Phase.DRAINING)
    waiting = world.ask()
    world.pass_time(5, living="a")
    world.lost("a")
    world.pass_time(5)
    world.up("a", new_life=True)
    assert world.where(waiting) == "a"


@pytest.mark.parametrize("epoch", [1, 2], ids=["engine restarted", "model loaded again"])
def test_an_engine_restarted_on_the_excluded_worker_may_be_used_again(epoch: int) -> None:
    world = World()
    world.up("a")
    world.now = 1.0
    waiting = world.ask(excluded=frozenset({"a.1"}))
    assert world.last(waiting) == Queued(0)
    world.pass_time(1, living="a")
    world.up("a", state=ReplicaState.LOADING, epoch=epoch)
    world.pass_time(60, living="a")
    world.up("a", epoch=epoch)
    assert world.where(waiting) == "a"


def test_an_excluded_worker_that_changes_nothing_is_waited_for_briefly() -> None:
    world = World()
    world.up("a")
    world.now = 1.0
    waiting = world.ask(excluded=frozenset({"a.1"}))
    world.pass_time(6, living="a")
    assert world.refused(waiting) == "no_worker"


class TestLoads:
    def cold(self, **limits: object) -> World:
        world = World(**limits)  # type: ignore[arg-type]
        world.up("a", state=None)
        return world

    def test_a_cold_model_is_loaded_once_for_all_and_its_progress_relayed(self) -> None:
        world = self.cold()
        requests = [world.ask() for _ in range(50)]
        world.pass_time(5, living="a")
        assert world.wishes == [LoadWish(MODEL)]
        world.scheduler.load_progressed(LoadWish(MODEL), "half")
        assert [world.last(request) for request in requests[:2]] == [
            Loading(0, "half"),
            Loading(1, "half"),
        ]
        world.up("a", state=ReplicaState.LOADING)
        world.pass_time(100, living="a")
        world.up("a", slots=60)
        world.scheduler.load_succeeded(LoadWish(MODEL), world.now)
        assert {world.where(request) for request in requests} == {"a"}

    def test_success_reported_before_the_worker_says_so_does_not_load_again(self) -> None:
        world = self.cold()
        request = world.ask()
        world.scheduler.load_succeeded(LoadWish(MODEL), world.now)
        world.pass_time(0.9, living="a")
        assert len(world.wishes) == 1
        world.up("a")
        assert world.where(request) == "a"

    def test_a_failed_load_refuses_all_who_wait_for_it_with_its_reason(self) -> None:
        world = self.cold()
        requests = [world.ask(), world.ask(excluded=frozenset({"gone.1"}))]
        assert world.wishes == [LoadWish(MODEL)], "a worker that is gone makes no wish of its own"
        world.scheduler.load_failed(LoadWish(MODEL), "load_failed", "no such tensor", 7.0, world.now)
        for request in requests:
            decision = world.last(request)
            assert isinstance(decision, Refused)
            assert (decision.reason, decision.message, decision.retry_after_s) == (
                "load_failed",
                "no such tensor",
                7.0,
            )
        world.ask()
        assert len(world.wishes) == 2

    def test_an_absent_loader_is_asked_again_with_pauses_until_patience_ends(self) -> None:
        world = self.cold(patience_s=10.0)
        request = world.ask()
        failed = 0
        while not world.refused(request) and world.now < 60:
            if len(world.wishes) > failed:
                failed += 1
                world.scheduler.load_failed_for_now(LoadWish(MODEL), world.now)
            world.pass_time(0.05, living="a")
        assert world.refused(request) == "no_worker"
        assert 10 <= world.now <= 13
        assert 5 <= len(world.wishes) <= 10

    def test_no_load_is_asked_of_workers_that_cannot_host_the_engine(self) -> None:
        world = self.cold()
        assert world.refused(world.ask(engines=frozenset({"vllm"}))) == "no_worker"
        assert not world.wishes

    def test_a_load_that_nobody_waits_for_any_longer_is_abandoned(self) -> None:
        world = self.cold()
        requests = [world.ask(), world.ask()]
        world.scheduler.cancel(requests[0])
        world.pass_time(5, living="a")
        assert not world.abandoned
        world.scheduler.cancel(requests[1])
        world.pass_time(2, living="a")
        assert world.abandoned == world.wishes == [LoadWish(MODEL)]
        world.ask()
        assert world.wishes == [LoadWish(MODEL)] * 2

    def test_a_model_whose_workers_are_all_full_is_wished_on_one_more(self) -> None:
        world = self.cold()
        world.up("b", slots=2)
        first, _, second = world.ask(), world.ask(), world.ask()
        assert world.where(first) == "b"
        world.pass_time(2.9, living="ab", running=2)
        assert not world.wishes
        world.pass_time(1, living="ab", running=2)
        assert world.wishes == [LoadWish(MODEL, replicas=2)]
        # nobody depends on it: what becomes of it refuses nobody
        world.scheduler.load_failed(world.wishes[0], "out_of_memory", "no room", 5.0, world.now)
        assert not world.refused(second)
        world.pass_time(5, living="ab", running=2)
        assert len(world.wishes) == 1, "nor is it asked for all the time"
        world.pass_time(10, living="ab", running=2)
        assert len(world.wishes) == 2
        world.up("a")
        assert world.where(second) == "a"

    def test_those_who_waited_for_a_load_do_not_make_the_model_hot(self) -> None:
        world = self.cold()
        requests = [world.ask() for _ in range(3)]
        world.up("b", state=ReplicaState.LOADING)
        world.pass_time(20, living="ab")
        world.up("b", slots=2)
        world.pass_time(2, living="ab", running=2)
        assert world.where(requests[0]) == "b"
        assert not world.where(requests[2])
        assert all(wish.replicas == 1 for wish in world.wishes)

    def test_a_model_whose_only_holder_failed_the_request_is_wished_elsewhere(self) -> None:
        world = self.cold()
        world.up("b")
        world.now = 1.0
        world.ask(excluded=frozenset({"b.1"}))
        assert world.wishes == [LoadWish(MODEL, frozenset({"b.1"}))]


steps = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.sampled_from(list(Lane))),
        st.tuples(st.just("cancel"), st.integers(0, 99)),
        st.tuples(st.just("release"), st.integers(0, 99)),
        st.tuples(st.just("lost"), st.sampled_from("abc")),
        st.tuples(st.just("up"), st.sampled_from("abc")),
        st.tuples(st.just("sample"), st.sampled_from("abc")),
        st.tuples(st.just("time"), st.integers(1, 40)),
    ),
    max_size=80,
)


@given(steps)
def test_each_request_gets_exactly_one_end_and_no_room_is_left_while_somebody_waits(
    script: list[tuple[str, object]],
) -> None:
    world = World(queue_limit=4, patience_s=20.0)
    asked: list[Request] = []
    cancelled: set[Request] = set()
    for step, what in script:
        placed = [d.reservation for _, d in world.decisions if isinstance(d, Placed)]
        match step, what:
            case "ask", Lane():
                asked.append(world.ask(lane=what, deadline_s=15))
            case "cancel", int() if asked:
                request = asked[what % len(asked)]
                if not ends(world, request):
                    cancelled.add(request)
                world.scheduler.cancel(request)
            case "release", int() if placed:
                world.scheduler.release(placed[what % len(placed)], Outcome.ENDED, world.now)
            case "lost", str():
                world.lost(what)
            case "up", str():
                world.up(what, slots=2, new_life=True)
            case "sample", str():
                world.sample(what, admitted=[r.id for r in placed])
            case "time", int():
                world.pass_time(what * 0.05)
        waiting = world.scheduler.waiting_requests()
        room = any(r.load < r.capacity for r in world.scheduler.fleet.placeable(MODEL))
        assert not (waiting and room)
        assert all(
            r.reserved >= 0 for w in world.scheduler.fleet.workers.values() for r in w.replicas.values()
        )
    world.pass_time(40)
    assert world.scheduler.waiting == 0
    assert len(world.scheduler.reservations) == 0
    for request in asked:
        assert len(ends(world, request)) == (0 if request in cancelled else 1)


def ends(world: World, request: Request) -> list[Decision]:
    return [d for asked, d in world.decisions if asked is request and isinstance(d, Placed | Refused)]


def test_who_wants_a_model_that_no_engine_there_is_can_serve_is_told_what_would_help() -> None:
    world = World()
    world.up("a")
    world.up("b", engine="other")
    hopeless = world.last(world.ask(model="big", engines=frozenset({"vllm", "trtllm"})))
    assert isinstance(hopeless, Refused)
    assert hopeless.reason == "no_worker"
    assert "it needs trtllm or vllm, and the workers that are up have other and sim" in hopeless.message
    assert hopeless.retry_after_s == 0, "it would be as bad later"
    assert world.last(world.ask(model="big", engines=frozenset({"vllm", "sim"}))) == Queued(0)


def test_a_worker_that_is_expected_may_bring_the_engine_that_a_model_needs() -> None:
    world = World(patience_s=5.0)
    world.up("a")
    world.up("b", engine="vllm")
    world.lost("b")
    waiting = world.ask(model="big", engines=frozenset({"vllm"}))
    assert world.last(waiting) == Queued(0)
    world.pass_time(6.0, living="a")
    refused = world.last(waiting)
    assert isinstance(refused, Refused)
    assert "it needs vllm" in refused.message
