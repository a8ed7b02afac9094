"""One demand on its way, and everybody who follows it."""

from __future__ import annotations

import time
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
        self._followers = 0

    @property
    def forsaken(self) -> bool:
        """Nobody follows it, and it is not at its end."""
        return not self._followers and self._latest.progress.stage not in _LAST

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
                    missing_bytes=settlement.missing_bytes,
                )
            )
        else:
            progress.stage = Stage.STAGE_READY
        self._set(model_loader_pb2.EnsureLoadedResponse(progress=progress, worker_id=settlement.worker_id))

    def wait(self, detail: str, eta_ms: int) -> None:
        """None of its loads has begun: what for it waits."""
        progress = Stage(
            model=self._latest.progress.model, stage=Stage.STAGE_QUEUED, detail=detail, eta_ms=eta_ms
        )
        if detail and detail != self._latest.progress.detail:
            self.report(progress)

    async def follow(
        self, timeout_s: float | None = None
    ) -> AsyncIterator[model_loader_pb2.EnsureLoadedResponse]:
        """Until its end, or for so long; then the last word is that it took too long."""
        until = None if timeout_s is None else time.monotonic() + timeout_s
        self._followers += 1
        try:
            while True:
                seen, latest = self._changes.version, self._latest
                yield latest
                if latest.progress.stage in _LAST:
                    return
                if not await self._changes.after(seen, until and max(0.0, until - time.monotonic())):
                    yield self._too_late()
                    return
        finally:
            self._followers -= 1

    def _too_late(self) -> model_loader_pb2.EnsureLoadedResponse:
        last = self._latest.progress
        failure = common_pb2.Failure(
            reason=common_pb2.REASON_DEADLINE_EXCEEDED,
            message=f"{last.model} could not be had in time: {last.detail or 'its load is not done'}",
        )
        progress = Stage(model=last.model, stage=Stage.STAGE_FAILED, failure=failure)
        return model_loader_pb2.EnsureLoadedResponse(progress=progress)

    def _set(self, latest: model_loader_pb2.EnsureLoadedResponse) -> None:
        self._latest = latest
        self._changes.notify()
