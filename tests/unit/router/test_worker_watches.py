"""A fleet that comes together: each worker is watched at once, and as seldom as the whole of it asks for."""

import asyncio
from typing import Any

import pytest

from tokenfleet.core.scheduling.sampling import sample_interval_ms
from tokenfleet.router import worker_watches
from tokenfleet.router.worker_watches import WIDEN_AT, WorkerWatches
from tokenfleet.runtime.discovery import Peer


class Watch:
    """Counts how often it was opened."""

    def __init__(
        self, peer: Peer, watcher_id: str, interval_ms: int, dispatcher: Any, *, frames: bool
    ) -> None:
        self.target = peer.target
        self.interval_ms = interval_ms
        self.opened = 0

    def start(self) -> None:
        self.opened += 1

    async def widen(self, interval_ms: int) -> None:
        self.interval_ms = interval_ms
        self.opened += 1

    def leave(self) -> None: ...

    async def stop(self) -> None: ...


class Dispatcher:
    def __init__(self) -> None:
        self.watches: dict[str, Watch] = {}

    def watch(self, watch: Watch) -> None:
        self.watches[watch.target] = watch

    def unwatch(self, target: str) -> Watch:
        return self.watches.pop(target)


@pytest.fixture
def dispatcher(monkeypatch: pytest.MonkeyPatch) -> Dispatcher:
    monkeypatch.setattr(worker_watches, "WorkerWatch", Watch)
    monkeypatch.setattr(worker_watches, "SETTLED_S", 0.01)
    return Dispatcher()


async def widened(dispatcher: Dispatcher) -> None:
    interval_ms = sample_interval_ms(len(dispatcher.watches))
    async with asyncio.timeout(10):
        while any(watch.interval_ms * WIDEN_AT <= interval_ms for watch in dispatcher.watches.values()):
            await asyncio.sleep(0.005)


async def test_a_watch_is_opened_at_once_and_once_more_when_the_fleet_is_there(
    dispatcher: Dispatcher,
) -> None:
    watches = WorkerWatches(dispatcher)  # type: ignore[arg-type]
    for number in range(400):
        watches.peer_came(Peer(f"w{number}"))
    assert {watch.opened for watch in dispatcher.watches.values()} == {1}
    await widened(dispatcher)
    assert {watch.opened for watch in dispatcher.watches.values()} == {1, 2}
    rate = sum(1000 / watch.interval_ms for watch in dispatcher.watches.values())
    assert rate <= WIDEN_AT * 1000 * 400 / sample_interval_ms(400), "samples a second, of all"
    for number in range(400, 800):
        watches.peer_came(Peer(f"w{number}"))
    await widened(dispatcher)
    await watches.stop()


async def test_a_small_fleet_is_watched_as_closely_as_can_be(dispatcher: Dispatcher) -> None:
    watches = WorkerWatches(dispatcher)  # type: ignore[arg-type]
    for number in range(8):
        watches.peer_came(Peer(f"w{number}"))
    watches.peer_left("w0")
    await asyncio.sleep(0.05)
    assert {(watch.interval_ms, watch.opened) for watch in dispatcher.watches.values()} == {(50, 1)}
    await watches.stop()
