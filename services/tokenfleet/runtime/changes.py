"""A condition that many can wait for and that nobody misses: a version that grows."""

from __future__ import annotations

import asyncio


class Changes:
    """Waiters say which version they have seen, so a change between two waits is never lost."""

    def __init__(self) -> None:
        self.version = 0
        self._waiters: set[asyncio.Future[None]] = set()

    def notify(self) -> None:
        self.version += 1
        if self._waiters:
            waiters, self._waiters = self._waiters, set()
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    async def after(self, seen: int, timeout_s: float | None = None) -> bool:
        """Waits for a version above `seen`; False when none came within the time."""
        if self.version > seen:
            return True
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            async with asyncio.timeout(timeout_s):
                await waiter
        except TimeoutError:
            return False
        finally:
            self._waiters.discard(waiter)
        return True
