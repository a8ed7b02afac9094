"""The workers as discovery names them, each with a watch of its own."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Coroutine

from tokenfleet.core.scheduling.sampling import sample_interval_ms
from tokenfleet.router.dispatcher import Dispatcher
from tokenfleet.router.worker_watch import WorkerWatch
from tokenfleet.runtime.discovery import Peer

# A watch that was opened in a fleet smaller by so much takes samples too often. To open it again costs both
# sides something, so it waits until the fleet has come together.
WIDEN_AT = 1.25
SETTLED_S = 1.0


class WorkerWatches:
    """Opens and closes watches as workers come and go.

    Readiness as the cluster sees it does not matter here: a worker that loads for minutes is not ready, and
    it is its watch that tells when that changes.
    """

    def __init__(self, dispatcher: Dispatcher, *, frames: bool = False) -> None:
        """`frames`: where workers offer them."""
        self._dispatcher = dispatcher
        self._frames = frames
        self._watcher_id = f"router-{socket.gethostname()}-{os.getpid()}"
        self._tasks: set[asyncio.Task[None]] = set()
        self._widening: asyncio.TimerHandle | None = None

    async def stop(self) -> None:
        if self._widening is not None:
            self._widening.cancel()
        await asyncio.gather(*(watch.stop() for watch in self._dispatcher.watches.values()), *self._tasks)

    def peer_came(self, peer: Peer) -> None:
        watches = self._dispatcher.watches
        interval_ms = sample_interval_ms(len(watches) + 1)
        watch = WorkerWatch(peer, self._watcher_id, interval_ms, self._dispatcher, frames=self._frames)
        self._dispatcher.watch(watch)
        watch.start()
        if self._widening is None:
            self._widening = asyncio.get_running_loop().call_later(SETTLED_S, self._widen)

    def peer_changed(self, peer: Peer) -> None:
        self._dispatcher.watches[peer.target].update(peer)

    def peer_left(self, target: str) -> None:
        watch = self._dispatcher.unwatch(target)
        watch.leave()
        self._run(watch.stop())

    def _widen(self) -> None:
        self._widening = None
        watches = self._dispatcher.watches
        interval_ms = sample_interval_ms(len(watches))
        for watch in watches.values():
            if interval_ms >= WIDEN_AT * watch.interval_ms:
                self._run(watch.widen(interval_ms))

    def _run(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
