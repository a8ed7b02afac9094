"""One Service's endpoints on the event loop, followed by a thread.

The `kubernetes` client blocks, so each Service has a thread of its own that spends its life waiting for the
next change. What it learns crosses to the loop as one finished dictionary; nothing else is shared.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from tokenfleet.runtime.discovery.peers import Peer, ServiceRef
from tokenfleet.runtime.telemetry import get_logger

# Until a thread that was told to stop has ended; it is a daemon, so it never holds the process up.
STOP_PATIENCE_S = 5.0

log = get_logger(__name__)


class ServiceWatch:
    """`peers` is None until the Service has been listed once; after that the last known, come what may."""

    def __init__(self, service: ServiceRef, changed: Callable[[], None]) -> None:
        self.peers: dict[str, Peer] | None = None
        self._service = service
        self._changed = changed
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stop_following: Callable[[], None] = lambda: None

    def start(self) -> None:
        # the client costs a third of a second and 30 MB: only who is configured so pays
        from tokenfleet.runtime.discovery.slice_follower import SliceFollower

        self._loop = asyncio.get_running_loop()
        follower = SliceFollower(self._service, self._learnt)
        self._stop_following = follower.stop
        self._thread = threading.Thread(target=follower.run, name=f"watch {self._service}", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        self._stop_following()
        self._loop = None
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, STOP_PATIENCE_S)

    def _learnt(self, peers: dict[str, Peer]) -> None:
        """On the thread."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._take, peers)

    def _take(self, peers: dict[str, Peer]) -> None:
        if self._loop is None or peers == self.peers:
            return
        self.peers = peers
        self._changed()
