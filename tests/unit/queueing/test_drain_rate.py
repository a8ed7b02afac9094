"""Retry-After comes from what was measured, in virtual time."""

import pytest

from tokenfleet.core.queueing import DrainRate


def test_a_steady_drain_is_predicted_exactly() -> None:
    drain = DrainRate()
    drain.occupied(0.0)
    for departure in range(1, 101):
        drain.departed(departure * 0.2, still_waiting=True)
    assert drain.seconds_to_drain(50, now=20.0) == pytest.approx(10.0)


def test_the_time_in_which_nobody_waits_does_not_count() -> None:
    drain = DrainRate()
    for burst in range(10):
        drain.occupied(burst * 1000.0)
        drain.departed(burst * 1000.0 + 0.5, still_waiting=False)
    assert drain.seconds_to_drain(4, now=9000.5) == pytest.approx(2.0)


def test_a_change_of_speed_is_followed_within_some_departures() -> None:
    drain = DrainRate()
    drain.occupied(0.0)
    now = 0.0
    for gap in [0.1] * 200 + [1.0] * 100:
        now += gap
        drain.departed(now, still_waiting=True)
    assert drain.seconds_to_drain(1, now) == pytest.approx(1.0, rel=0.05)


def test_departures_in_batches_count_with_the_pause_between_them() -> None:
    drain = DrainRate()
    drain.occupied(0.0)
    for batch in range(1, 21):
        for _ in range(8):
            drain.departed(batch * 0.4, still_waiting=True)
    assert drain.seconds_to_drain(80, now=8.0) == pytest.approx(4.0, rel=0.15)


def test_a_stalled_queue_looks_slower_the_longer_it_stands() -> None:
    drain = DrainRate()
    drain.occupied(0.0)
    drain.departed(0.01, still_waiting=True)
    assert drain.seconds_to_drain(100, now=0.02) == pytest.approx(1.0)
    assert drain.seconds_to_drain(100, now=60.0) > 100
    drain.emptied()
    assert drain.seconds_to_drain(100, now=600.0) == pytest.approx(1.0)


def test_nothing_measured_promises_nothing() -> None:
    assert DrainRate().seconds_to_drain(10, now=5.0) == 0.0
