"""An alarm rings once, when it was last set for, whatever the loop's timer did meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from tokenfleet.gateway.http.alarm import Alarm


class Handle:
    def __init__(self, at: float, call: Callable[[], None]) -> None:
        self.at = at
        self.call = call
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Loop:
    """Virtual time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.handles: list[Handle] = []

    def time(self) -> float:
        return self.now

    def call_at(self, at: float, call: Callable[[], None]) -> Handle:
        self.handles.append(Handle(at, call))
        return self.handles[-1]

    @property
    def pending(self) -> list[Handle]:
        return [handle for handle in self.handles if not handle.cancelled]

    def run_until(self, now: float) -> None:
        while due := [handle for handle in self.pending if handle.at <= now]:
            first = min(due, key=lambda handle: handle.at)
            self.handles.remove(first)
            self.now = max(self.now, first.at)
            first.call()
        self.now = now


class Bench:
    def __init__(self) -> None:
        self.loop = Loop()
        self.alarm = Alarm(cast(asyncio.AbstractEventLoop, cast(Any, self.loop)))
        self.rung: list[tuple[str, float]] = []

    def set(self, at: float, name: str = "ring") -> None:
        self.alarm.set(at, lambda: self.rung.append((name, self.loop.now)))


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_it_rings_once(bench: Bench) -> None:
    bench.set(5)
    bench.loop.run_until(100)
    assert bench.rung == [("ring", 5)]
    assert not bench.loop.pending


def test_putting_it_off_makes_no_timer(bench: Bench) -> None:
    for at in range(10, 60):
        bench.set(at, f"for {at}")
    assert len(bench.loop.handles) == 1
    bench.loop.run_until(58)
    assert bench.rung == []
    bench.loop.run_until(100)
    assert bench.rung == [("for 59", 59)]


def test_it_can_be_brought_forward(bench: Bench) -> None:
    bench.set(50, "late")
    bench.set(10, "soon")
    assert len(bench.loop.pending) == 1
    bench.loop.run_until(100)
    assert bench.rung == [("soon", 10)]


def test_unset_it_is_silent_and_can_be_set_again(bench: Bench) -> None:
    bench.set(10)
    bench.alarm.unset()
    bench.loop.run_until(20)
    assert bench.rung == []
    bench.set(30)
    bench.loop.run_until(100)
    assert bench.rung == [("ring", 30)]


def test_what_rings_may_set_it(bench: Bench) -> None:
    bench.alarm.set(10, lambda: bench.set(20))
    bench.loop.run_until(100)
    assert bench.rung == [("ring", 20)]


def test_stopped_it_leaves_nothing_in_the_loop(bench: Bench) -> None:
    bench.set(10)
    bench.alarm.stop()
    assert not bench.loop.pending
    bench.set(5)
    bench.loop.run_until(100)
    assert bench.rung == [("ring", 5)]
