"""An engine in a child that can sleep, where its facts say what that costs.

Asleep it keeps its process, and that may die as ever. What is started again comes up awake, with memory that
is somebody else's meanwhile: so it is put to sleep again before it is of use to anybody.
"""

from __future__ import annotations

import asyncio

from tokenfleet.runtime.errors import FleetError
from tokenfleet.runtime.telemetry import get_logger
from tokenfleet.v1 import common_pb2
from tokenfleet.worker.engines.hosted.engine import HostedEngine

log = get_logger(__name__)


class SleepingHostedEngine(HostedEngine):
    """A `SleepingEngine`; the engine in the child has `sleep` and `wake_up`."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self._asleep = False
        self._again: asyncio.Task[None] | None = None

    async def sleep(self) -> int:
        await self._in_time("sleep")
        self._asleep = True
        kept = self._facts.sleep.asleep_bytes if self._facts.sleep is not None else 0
        return max(0, self._facts.memory_bytes - kept)

    async def wake(self) -> None:
        await self._in_time("wake_up")
        self._asleep = False

    async def unload(self) -> int:
        if self._again is not None:
            self._again.cancel()
        return await super().unload()

    def _returned(self) -> None:
        if self._asleep:
            self._again = asyncio.create_task(self._sleep_again())
        else:
            super()._returned()

    async def _sleep_again(self) -> None:
        try:
            await self._in_time("sleep")
        except FleetError as error:
            log.warning("engine does not fall asleep again", engine=self._hosted.name, detail=error.message)

    async def _in_time(self, method: str) -> None:
        """Raises FleetError; a child that takes longer than its start may is killed."""
        patience_s = self._hosted.start_timeout_s
        try:
            async with asyncio.timeout(patience_s):
                await self.call(method)
        except TimeoutError:
            self.restart("wedged")
            raise FleetError(
                common_pb2.REASON_ENGINE_FAILED,
                f"engine {self._hosted.name}: {method} took longer than {patience_s:g} s",
            ) from None
