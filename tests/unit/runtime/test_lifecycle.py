import os

import pytest

from tokenfleet.runtime.lifecycle import Lifecycle


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    return codes


async def test_a_signal_stops_in_order_and_a_second_one_at_once(exits: list[int]) -> None:
    lifecycle = Lifecycle(1)
    lifecycle.signalled("SIGINT")
    assert lifecycle.stopping.is_set()
    assert not exits
    lifecycle.signalled("SIGINT")
    assert exits == [130]


async def test_a_signal_to_a_process_that_stops_with_its_parent_is_the_first(exits: list[int]) -> None:
    """A terminal sends Ctrl-C to parent and children; the parent's word may be heard before the signal."""
    lifecycle = Lifecycle(1)
    lifecycle.stop("parent stops")
    lifecycle.signalled("SIGINT")
    lifecycle.stop("parent stops")
    assert lifecycle.stopping.is_set()
    assert not exits
