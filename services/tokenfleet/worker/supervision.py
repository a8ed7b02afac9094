"""An engine's voice in the worker: its steps go to the dispatcher, its deaths and returns to the world."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from tokenfleet.runtime.errors import FleetError
from tokenfleet.runtime.telemetry import get_logger
from tokenfleet.worker.cache_log import CacheLog
from tokenfleet.worker.dispatcher import Dispatcher
from tokenfleet.worker.engines.base import EngineFacts
from tokenfleet.worker.resident import Resident, State

log = get_logger(__name__)


class EngineSink:
    """The `Sink` of one resident model. A restarted engine proves itself by a canary before it is used."""

    def __init__(
        self,
        resident: Resident,
        dispatcher: Dispatcher,
        cache: CacheLog,
        canary_timeout_s: float,
        changed: Callable[[], None],
        restarted: Callable[[str], None],
    ) -> None:
        self.step = dispatcher.step
        self._resident = resident
        self._dispatcher = dispatcher
        self._cache = cache
        self._canary_timeout_s = canary_timeout_s
        self._changed = changed
        self._restarted = restarted
        self._proving: asyncio.Task[None] | None = None

    def engine_down(self, cause: str, failure: FleetError) -> None:
        log.warning("engine died", model=self._resident.name, cause=cause, detail=failure.message)
        self._restarted(cause)
        self._cache.cleared(self._resident.name)
        self._resident.down = True
        if self._resident.state == State.STATE_READY:
            self._resident.state = State.STATE_LOADING
            self._resident.failure = failure
            self._changed()

    def engine_up(self, facts: EngineFacts | None = None) -> None:
        if facts is not None:
            self._resident.facts = facts
        self._proving = asyncio.create_task(self._prove())

    def cache_stored(self, hashes: Sequence[int], parent: int) -> None:
        self._cache.stored(self._resident.name, hashes, parent)

    def cache_removed(self, hashes: Sequence[int]) -> None:
        self._cache.removed(self._resident.name, hashes)

    async def _prove(self) -> None:
        resident = self._resident
        try:
            await self._dispatcher.canary(resident, self._canary_timeout_s)
        except FleetError as error:
            log.warning("restarted engine failed its canary", model=resident.name, detail=error.message)
            if resident.engine is not None:
                resident.engine.restart("canary")
            return
        resident.down = False
        if resident.state == State.STATE_LOADING:
            resident.state, resident.failure = State.STATE_READY, None
            log.info("engine restarted", model=resident.name)
            self._changed()
