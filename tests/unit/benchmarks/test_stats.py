"""Percentiles agree with the standard library's, and snapshots neither lose nor repeat a sample."""

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.driver.stats import ERRORS_KEPT, Tally, percentile

VALUES = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=60)


@given(VALUES, st.integers(1, 99))
def test_percentiles_agree_with_statistics(values: list[float], q: int) -> None:
    expected = statistics.quantiles(values, n=100, method="inclusive")[q - 1]
    assert percentile(values, q) == pytest.approx(expected, abs=1e-6)


@given(VALUES)
def test_the_ends_are_the_least_and_the_greatest(values: list[float]) -> None:
    assert percentile(values, 0) == min(values)
    assert percentile(values, 100) == max(values)


def test_one_value_is_every_percentile() -> None:
    assert percentile([3.0], 99) == 3.0


@pytest.mark.parametrize(("values", "q"), [([], 50), ([1.0], 101), ([1.0], -1)])
def test_what_has_no_percentile(values: list[float], q: float) -> None:
    with pytest.raises(ValueError, match="percentile"):
        percentile(values, q)


def test_samples_appear_in_one_snapshot_and_counters_in_all() -> None:
    tally = Tally()
    tally.succeed(tokens=4, frames=3, latency_s=0.5)
    tally.pace(ttft_s=0.1, itl_s=0.01, worst_gap_s=0.02)
    first = tally.snapshot(1.0)
    tally.succeed(tokens=4, frames=4, latency_s=0.7)
    tally.pace(ttft_s=None, itl_s=0.01, worst_gap_s=0.02)
    second = tally.snapshot(2.0)
    assert (first.finished, first.latency_s, first.ttft_s) == (1, [0.5], [0.1])
    assert (second.finished, second.latency_s, second.ttft_s) == (2, [0.7], [])
    assert (second.finished_tokens, second.finished_frames) == (8, 7)


def test_a_flood_of_different_errors_stays_small() -> None:
    tally = Tally()
    for number in range(100):
        tally.fail(f"error {number}")
    assert tally.failed == 100
    assert len(tally.errors) == ERRORS_KEPT + 1
    assert tally.errors["others"] == 100 - ERRORS_KEPT
