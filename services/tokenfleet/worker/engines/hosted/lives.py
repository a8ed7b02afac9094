"""The lives of an engine, one after the other: a death is followed by a new start, later the more often."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from tokenfleet.runtime.errors import FleetError
from tokenfleet.runtime.telemetry import get_logger

FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 30.0
# An engine that lived so long starts anew with the first back-off.
HEALTHY_S = 60.0

log = get_logger(__name__)


class Lives:
    """`start` brings the engine up, or raises FleetError; after a death it is called until it can."""

    def __init__(
        self,
        start: Callable[[], Awaitable[None]],
        returned: Callable[[], None],
        *,
        first_backoff_s: float = FIRST_BACKOFF_S,
    ) -> None:
        self._start = start
        self._returned = returned
        self._first_backoff_s = first_backoff_s
        self._restarting: asyncio.Task[None] | None = None
        self._failures = 0
        self._up_since = 0.0
        self.up = False

    @property
    def lived(self) -> bool:
        """It was up at least once."""
        return self._up_since > 0

    async def begin(self) -> None:
        """The first life. Raises FleetError."""
        await self._start()
        self._is_up()

    def died(self) -> None:
        """The present life is over; the next one is on its way."""
        self.up = False
        self._restarting = asyncio.create_task(self._restart())

    async def end(self) -> None:
        """No further life."""
        self.up = False
        if self._restarting is not None:
            self._restarting.cancel()
            await asyncio.gather(self._restarting, return_exceptions=True)

    def _is_up(self) -> None:
        self.up = True
        self._up_since = time.monotonic()

    async def _restart(self) -> None:
        if time.monotonic() - self._up_since > HEALTHY_S:
            self._failures = 0
        while True:
            await asyncio.sleep(min(LONGEST_BACKOFF_S, self._first_backoff_s * 2**self._failures))
            self._failures += 1
            try:
                await self._start()
            except FleetError as error:
                log.warning("engine does not start again", detail=error.message, failures=self._failures)
            else:
                self._is_up()
                self._returned()
                return
