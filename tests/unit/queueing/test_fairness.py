"""Tenants share by tokens, whatever they send and however much."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenfleet.core.queueing import Entry, Lane, Overflow, WaitingQueue
from tokenfleet.core.queueing.fair_lane import QUANTUM_TOKENS

Queue = WaitingQueue[int]


def queue_of(*arrivals: tuple[str, int], limit: int = 10_000, deadline: float = 100.0) -> Queue:
    """Arrivals are a tenant and its tokens."""
    queue: Queue = WaitingQueue(limit)
    for number, (tenant, tokens) in enumerate(arrivals):
        queue.put(number, Lane.STANDARD, 0.0, deadline, tenant, tokens)
    return queue


def serve(queue: Queue, count: int) -> list[Entry[int]]:
    served: list[Entry[int]] = []
    for entry in queue.serving():
        if len(served) == count:
            break
        queue.remove(entry, served=True)
        served.append(entry)
    return served


def test_long_requests_get_as_many_tokens_as_short_ones() -> None:
    queue = queue_of(*[("long", 4000)] * 100, *[("short", 100)] * 4000)
    tokens: Counter[str] = Counter()
    for entry in serve(queue, 1000):
        tokens[entry.tenant] += entry.tokens
    assert abs(tokens["long"] - tokens["short"]) <= 4000 + QUANTUM_TOKENS


def test_a_flood_of_one_tenant_delays_another_by_no_more_than_its_turn() -> None:
    queue = queue_of(*[("flood", 200)] * 500, ("quiet", 200))
    served = [entry.tenant for entry in serve(queue, 10)]
    assert "quiet" in served[: 1 + QUANTUM_TOKENS // 200 + 1]


def test_the_order_survives_that_room_comes_a_place_at_a_time() -> None:
    arrivals = [("a", 300)] * 40 + [("b", 100)] * 40 + [("c", 900)] * 40
    at_once = [entry.tenant for entry in serve(queue_of(*arrivals), 60)]
    queue = queue_of(*arrivals)
    piecemeal = [serve(queue, 1)[0].tenant for _ in range(60)]
    assert piecemeal == at_once


def test_who_was_idle_has_saved_nothing_up() -> None:
    queue = queue_of(*[("a", 500)] * 50, ("b", 500))
    serve(queue, 20)
    for _ in range(30):
        queue.put(0, Lane.STANDARD, 0.0, 100.0, "b", 500)
    served = Counter(entry.tenant for entry in serve(queue, 20))
    assert abs(served["a"] - served["b"]) <= 2


def test_within_a_tenant_the_earliest_deadline_goes_first() -> None:
    queue: Queue = WaitingQueue(10)
    for number, deadline in enumerate((30.0, 10.0, 20.0)):
        queue.put(number, Lane.STANDARD, 0.0, deadline, "t", 10)
    assert [entry.item for entry in serve(queue, 3)] == [1, 2, 0]


def test_a_full_queue_makes_the_greediest_give_way_to_one_who_waits_for_less() -> None:
    queue = queue_of(*[("flood", 100)] * 10, limit=10)
    _, evicted = queue.put(99, Lane.STANDARD, 0.0, 100.0, "quiet", 100)
    assert evicted is not None
    assert (evicted.tenant, evicted.item) == ("flood", 9)
    with pytest.raises(Overflow):
        queue.put(100, Lane.STANDARD, 0.0, 100.0, "flood", 100)
    with pytest.raises(Overflow):
        queue.put(101, Lane.STANDARD, 0.0, 100.0, "greedy", 5000)


def test_those_who_cannot_be_served_now_hold_nobody_up() -> None:
    queue = queue_of(("stuck", 10), ("stuck", 10), ("other", 10))
    looked_at = []
    for entry in queue.serving():
        looked_at.append(entry.item)
        if entry.tenant == "other":
            queue.remove(entry, served=True)
    assert sorted(looked_at) == [0, 1, 2]
    assert len(queue) == 2


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 3000)), min_size=1, max_size=60),
    st.integers(1, 60),
)
def test_everybody_is_served_and_no_tenant_gets_ahead_while_others_wait(
    arrivals: list[tuple[str, int]], turns: int
) -> None:
    queue = queue_of(*arrivals)
    greatest = max(tokens for _, tokens in arrivals)
    got: Counter[str] = Counter()
    for entry in serve(queue, turns):
        got[entry.tenant] += entry.tokens
        still_waiting = {other.tenant for other in queue}
        for one in still_waiting:
            for other in still_waiting:
                assert abs(got[one] - got[other]) <= 2 * (greatest + QUANTUM_TOKENS)
    rest = serve(queue, len(arrivals))
    assert len(rest) + min(turns, len(arrivals)) == len(arrivals)
