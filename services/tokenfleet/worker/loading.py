"""A model's load as others see it: one job, however many callers wait for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from tokenfleet.runtime.changes import Changes
from tokenfleet.runtime.errors import FleetError
from tokenfleet.v1 import common_pb2

Stage = common_pb2.LoadProgress
_LAST = (Stage.STAGE_READY, Stage.STAGE_FAILED)
# Least time between two reports of the same stage's bytes.
_PACE_S = 0.1


class LoadAbandoned(Exception):
    """Nobody waits for this load any more."""


class LoadJob:
    """The latest progress of a load. `report` may be called from any thread, the rest from the loop's.

    Once the job is over, `report` raises: that is how a fetch in another thread learns to stop.
    """

    def __init__(self, model: str, worker_id: str) -> None:
        self.model = model
        self._progress = common_pb2.LoadProgress(
            model=model, worker_id=worker_id, stage=common_pb2.LoadProgress.STAGE_QUEUED
        )
        self._changed = Changes()
        self._loop = asyncio.get_running_loop()
        self._stage_began = self._told_at = time.monotonic()

    def report(self, stage: common_pb2.LoadProgress.Stage.ValueType, done: int = 0, total: int = 0) -> None:
        if self._progress.stage in _LAST:
            raise LoadAbandoned
        self._loop.call_soon_threadsafe(self._set, stage, done, total)

    def ready(self) -> None:
        self._set(Stage.STAGE_READY, 0, 0)

    def failed(self, error: FleetError) -> None:
        self._progress.failure.CopyFrom(error.to_failure())
        self._set(Stage.STAGE_FAILED, 0, 0)

    async def follow(self) -> AsyncIterator[common_pb2.LoadProgress]:
        """The progress now and whenever it changes, the last one included."""
        while True:
            seen = self._changed.version
            progress = common_pb2.LoadProgress()
            progress.CopyFrom(self._progress)
            yield progress
            if progress.stage in _LAST:
                return
            await self._changed.after(seen)

    def _set(self, stage: common_pb2.LoadProgress.Stage.ValueType, done: int, total: int) -> None:
        progress = self._progress
        if progress.stage in _LAST:
            return
        now = time.monotonic()
        if stage != progress.stage:
            self._stage_began = now
        elif now - self._told_at < _PACE_S and done < total:
            return
        self._told_at = now
        progress.stage, progress.bytes_done, progress.bytes_total = stage, done, total
        progress.eta_ms = _eta_ms(now - self._stage_began, done, total)
        self._changed.notify()


def _eta_ms(elapsed_s: float, done: int, total: int) -> int:
    """By the speed so far; 0 while it is unknown."""
    if not 0 < done < total or elapsed_s < 0.5:
        return 0
    return round(elapsed_s * (total - done) / done * 1000)
