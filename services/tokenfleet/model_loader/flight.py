"""One demand on its way, and everybody who follows it."""

from __future__ import annotations

from collections.abc import AsyncIterator

from tokenfleet.core.residency import Settlement
from tokenfleet.runtime.changes import Changes
from tokenfleet.v1 import common_pb2, model_loader_pb2

Stage = common_pb2.LoadProgress
_LAST = (Stage.STAGE_READY, Stage.STAGE_FAILED)


class Flight:
    """The latest progress; a follower that is slow sees fewer steps, and always the last one."""

    def __init__(self, model: str) -> None:
        self._latest = model_loader_pb2.EnsureLoadedResponse(
            progress=Stage(model=model, stage=Stage.STAGE_QUEUED)
        )
        self._changes = Changes()

    def report(self, progress: common_pb2.LoadProgress) -> None:
        """How one of its loads is getting on."""
        if self._latest.progress.stage not in _LAST and progress.stage not in _LAST:
            self._set(model_loader_pb2.EnsureLoadedResponse(progress=progress))

    def settle(self, settlement: Settlement) -> None:
        """Its end."""
        progress = Stage(model=settlement.demand.model, worker_id=settlement.worker_id)
        if settlement.reason:
            progress.stage = Stage.STAGE_FAILED
            progress.failure.CopyFrom(
                common_pb2.Failure(
                    reason=common_pb2.Reason.Value(f"REASON_{settlement.reason.upper()}"),
                    message=settlement.message,
                    retry_after_ms=round(settlement.retry_after_s * 1000),
                )
            )
        else:
            progress.stage = Stage.STAGE_READY
        self._set(model_loader_pb2.EnsureLoadedResponse(progress=progress, worker_id=settlement.worker_id))

    async def follow(self) -> AsyncIterator[model_loader_pb2.EnsureLoadedResponse]:
        while True:
            seen, latest = self._changes.version, self._latest
            yield latest
            if latest.progress.stage in _LAST:
                return
            await self._changes.after(seen)

    @property
    def progress(self) -> common_pb2.LoadProgress:
        return self._latest.progress

    def _set(self, latest: model_loader_pb2.EnsureLoadedResponse) -> None:
        self._latest = latest
        self._changes.notify()
