"""A timer that is set and unset with every request, and hardly ever rings.

Timers of the event loop that are made and cancelled for nothing cost a request some eight per cent of its
time: memory is taken and given back, and the heap of all timers put in order twice. An alarm leaves its timer
where it was; when that fires, it looks at what holds by then.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable


class Alarm:
    """Rings once, at the time for which it was last set. Times are the loop's."""

    __slots__ = ("_at", "_handle", "_loop", "_ring", "_wakes_at")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._at = 0.0
        self._ring: Callable[[], None] | None = None
        self._handle: asyncio.TimerHandle | None = None
        self._wakes_at = math.inf

    def set(self, at: float, ring: Callable[[], None]) -> None:
        self._at, self._ring = at, ring
        if at < self._wakes_at:
            self._wake(at)

    def unset(self) -> None:
        self._ring = None

    def stop(self) -> None:
        """Unset for good: nothing of it is left in the loop."""
        self._ring = None
        if self._handle is not None:
            self._handle.cancel()
            self._handle, self._wakes_at = None, math.inf

    def _wake(self, at: float) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._handle, self._wakes_at = self._loop.call_at(at, self._woken), at

    def _woken(self) -> None:
        self._handle, self._wakes_at = None, math.inf
        if self._ring is None:
            return
        if self._loop.time() < self._at:
            self._wake(self._at)
            return
        ring, self._ring = self._ring, None
        ring()
