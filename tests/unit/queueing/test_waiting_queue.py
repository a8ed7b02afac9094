"""The order of service, the bound, and what happens at it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenfleet.core.queueing import Lane, Overflow, WaitingQueue


def names(queue: WaitingQueue[str]) -> list[str]:
    """In the order of service; serves everybody."""
    served = []
    for entry in queue.serving():
        queue.remove(entry, served=True)
        served.append(entry.item)
    return served


def test_classes_go_first_and_each_is_first_come_first_served() -> None:
    queue: WaitingQueue[str] = WaitingQueue(10)
    arrivals = [("b1", Lane.BATCH), ("s1", Lane.STANDARD), ("i1", Lane.INTERACTIVE), ("s2", Lane.STANDARD)]
    for now, (item, lane) in enumerate(arrivals):
        queue.put(item, lane, now, 100)
    assert names(queue) == ["i1", "s1", "s2", "b1"]


def test_a_resumed_stream_waits_before_new_requests_of_its_class_only() -> None:
    queue: WaitingQueue[str] = WaitingQueue(10)
    queue.put("new", Lane.STANDARD, 0, 100)
    queue.put("resumed", Lane.STANDARD_RESUMED, 1, 100)
    queue.put("interactive", Lane.INTERACTIVE, 2, 100)
    assert names(queue) == ["interactive", "resumed", "new"]


def test_a_full_queue_refuses_equals_but_takes_resumed_streams() -> None:
    queue: WaitingQueue[str] = WaitingQueue(1)
    queue.put("first", Lane.STANDARD, 0, 100)
    with pytest.raises(Overflow):
        queue.put("second", Lane.STANDARD, 0, 100)
    _, evicted = queue.put("resumed", Lane.BATCH_RESUMED, 0, 100)
    assert evicted is None
    assert names(queue) == ["first", "resumed"]


def test_a_higher_class_takes_the_newest_place_of_the_lowest() -> None:
    queue: WaitingQueue[str] = WaitingQueue(3)
    for item, lane in [("s", Lane.STANDARD), ("b1", Lane.BATCH), ("b2", Lane.BATCH)]:
        queue.put(item, lane, 0, 100)
    _, evicted = queue.put("i", Lane.INTERACTIVE, 0, 100)
    assert evicted is not None
    assert evicted.item == "b2"
    assert not evicted.waiting
    assert names(queue) == ["i", "s", "b1"]


def test_deadlines_expire_in_their_own_order_and_only_for_those_who_wait() -> None:
    queue: WaitingQueue[str] = WaitingQueue(10)
    late, _ = queue.put("late", Lane.INTERACTIVE, 0, 9)
    queue.put("soon", Lane.BATCH, 0, 3)
    gone, _ = queue.put("gone", Lane.BATCH, 0, 2)
    queue.remove(gone)
    assert [entry.item for entry in queue.expire(2.9)] == []
    assert [entry.item for entry in queue.expire(3)] == ["soon"]
    assert late.waiting
    assert names(queue) == ["late"]


def test_position_counts_those_who_are_served_before() -> None:
    queue: WaitingQueue[str] = WaitingQueue(10)
    assert queue.position(queue.put("a", Lane.STANDARD, 0, 9)[0]) == 0
    queue.put("z", Lane.BATCH, 0, 9)
    assert queue.position(queue.put("b", Lane.STANDARD, 0, 9)[0]) == 1
    assert queue.position(queue.put("y", Lane.BATCH, 0, 9)[0]) == 3


actions = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from(list(Lane)), st.integers(0, 50)),
        st.tuples(st.just("remove"), st.integers(0, 300), st.just(0)),
        st.tuples(st.just("expire"), st.integers(0, 60), st.just(0)),
    ),
    max_size=300,
)


@given(actions, st.integers(1, 8))
def test_nobody_is_lost_or_served_twice_and_the_bound_holds(
    steps: list[tuple[str, int, int]], limit: int
) -> None:
    queue: WaitingQueue[int] = WaitingQueue(limit)
    waiting: dict[int, object] = {}
    for number, (action, value, deadline) in enumerate(steps):
        if action == "put":
            try:
                entry, evicted = queue.put(number, Lane(value), 0, deadline)
            except Overflow:
                assert len(waiting) >= limit
                continue
            waiting[number] = entry
            if evicted is not None:
                del waiting[evicted.item]
        elif action == "remove" and waiting:
            item = list(waiting)[value % len(waiting)]
            queue.remove(waiting.pop(item))  # type: ignore[arg-type]
        elif action == "expire":
            for entry in queue.expire(value):
                assert entry.deadline <= value
                del waiting[entry.item]
        assert sorted(entry.item for entry in queue) == sorted(waiting)
        lanes = [entry.lane for entry in queue]
        assert lanes == sorted(lanes)
        assert len(queue) == len(waiting)
        assert sum(not lane.resumed for lane in lanes) <= limit
