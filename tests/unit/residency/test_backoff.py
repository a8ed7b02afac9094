"""Pauses double up to a bound, keep the engine's own words, and end."""

from functools import partial

import pytest

from tokenfleet.core.residency import Backoff


def test_pauses_double_up_to_a_bound() -> None:
    backoff = Backoff(lambda: 0.5)
    now, pauses = 0.0, []
    for _ in range(9):
        quarantine = backoff.failed("m", "w", "load_failed", "no such tensor", now)
        pauses.append(quarantine.until - now)
        now = quarantine.until
    assert pauses == pytest.approx([1, 2, 4, 8, 16, 32, 60, 60, 60])


def test_jitter_stays_within_a_quarter() -> None:
    for draw, pause in ((0.0, 0.75), (0.999999, 1.25)):
        quarantine = Backoff(partial(float, draw)).failed("m", "w", "load_failed", "", 0.0)
        assert quarantine.until == pytest.approx(pause, abs=1e-5)


def test_a_quarantine_holds_for_its_model_and_life_only_and_keeps_the_error() -> None:
    backoff = Backoff(lambda: 0.5)
    backoff.failed("m", "w-1", "load_failed", "no such tensor", 0.0)
    held = backoff.holds("m", "w-1", 0.9)
    assert held is not None
    assert held.message == "no such tensor"
    assert backoff.holds("m", "w-1", 1.0) is None
    assert backoff.holds("m", "w-2", 0.5) is None
    assert backoff.holds("other", "w-1", 0.5) is None
    assert backoff.lasting("m", 0.5) == [held]


def test_old_failures_are_forgiven() -> None:
    backoff = Backoff(lambda: 0.5)
    for _ in range(4):
        backoff.failed("m", "w", "load_failed", "", 0.0)
    assert backoff.failed("m", "w", "load_failed", "", 1000.0).until == pytest.approx(1001.0)
    backoff.forgive("m")
    assert backoff.holds("m", "w", 1000.0) is None
