"""Asks the model-loader for models that requests wait for, and relays how the loading goes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc

from tokenfleet.core.scheduling import LoadWish
from tokenfleet.runtime.errors import from_rpc_error, reason_name
from tokenfleet.runtime.grpc_host import PeerChannel
from tokenfleet.runtime.roles import MODEL_LOADER
from tokenfleet.runtime.telemetry import get_logger
from tokenfleet.v1 import common_pb2, model_loader_pb2, model_loader_pb2_grpc

if TYPE_CHECKING:
    from tokenfleet.router.dispatcher import Dispatcher

# Progress within one stage is relayed to everybody who waits, so not more often than this.
RELAY_INTERVAL_S = 0.2

# Reasons for which a load that failed may succeed without anybody's help.
_TRANSIENT = frozenset(
    {
        common_pb2.REASON_NO_WORKER,
        common_pb2.REASON_WORKER_LOST,
        common_pb2.REASON_DRAINING,
        common_pb2.REASON_NOT_RESIDENT,
        common_pb2.REASON_CANCELLED,
        common_pb2.REASON_DEADLINE_EXCEEDED,
    }
)
_ENDED_EARLY = common_pb2.Failure(
    reason=common_pb2.REASON_WORKER_LOST, message="the model-loader ended the load without a result"
)

log = get_logger(__name__)


class LoadCalls:
    """One `EnsureLoaded` call for each wish of the scheduler."""

    def __init__(self, loader_target: str) -> None:
        self._channel = PeerChannel(loader_target, MODEL_LOADER)
        self._loop = asyncio.get_running_loop()
        self._tasks: dict[LoadWish, asyncio.Task[None]] = {}
        self.dispatcher: Dispatcher | None = None

    def start(self, wish: LoadWish) -> None:
        task = asyncio.create_task(self._carry_out(wish), name=f"load {wish.model}")
        self._tasks[wish] = task
        task.add_done_callback(lambda done: self._ended(wish, done))

    def abandon(self, wish: LoadWish) -> None:
        """Nobody waits for it any longer: the loader need not begin what it has not begun."""
        task = self._tasks.pop(wish, None)
        if task is not None:
            log.info("load wanted no longer", model=wish.model)
            task.cancel()

    async def stop(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._channel.close()

    def _ended(self, wish: LoadWish, task: asyncio.Task[None]) -> None:
        if self._tasks.get(wish) is task:
            del self._tasks[wish]

    async def _carry_out(self, wish: LoadWish) -> None:
        assert self.dispatcher is not None
        scheduler = self.dispatcher.scheduler
        log.info("load wanted", model=wish.model, excluded=sorted(wish.excluded), replicas=wish.replicas)
        failure = await self._ensure(wish)
        now = self._loop.time()
        if failure is None:
            scheduler.load_succeeded(wish, now)
        elif failure.reason in _TRANSIENT:
            scheduler.load_failed_for_now(wish, now)
        else:
            reason = reason_name(failure.reason)
            log.warning("load failed", model=wish.model, reason=reason, error=failure.message)
            retry_after_s = failure.retry_after_ms / 1000
            scheduler.load_failed(wish, reason, failure.message, retry_after_s, now, failure.missing_bytes)
        self.dispatcher.flush()

    async def _ensure(self, wish: LoadWish) -> common_pb2.Failure | None:
        """Waits for the loader's last word; None is success."""
        request = model_loader_pb2.EnsureLoadedRequest(
            model=wish.model, excluded_workers=sorted(wish.excluded), replicas=wish.replicas
        )
        stage, relayed_at = common_pb2.LoadProgress.STAGE_UNSPECIFIED, 0.0
        try:
            stub = model_loader_pb2_grpc.ModelLoaderStub(self._channel.get())
            async for response in stub.EnsureLoaded(request):
                progress = response.progress
                if progress.stage == common_pb2.LoadProgress.STAGE_READY:
                    return None
                if progress.stage == common_pb2.LoadProgress.STAGE_FAILED:
                    return progress.failure
                now = self._loop.time()
                if progress.stage != stage or now - relayed_at >= RELAY_INTERVAL_S:
                    stage, relayed_at = progress.stage, now
                    self._relay(wish, progress)
        except grpc.aio.AioRpcError as error:
            return from_rpc_error(error).to_failure()
        return _ENDED_EARLY

    def _relay(self, wish: LoadWish, progress: common_pb2.LoadProgress) -> None:
        assert self.dispatcher is not None
        self.dispatcher.scheduler.load_progressed(wish, progress)
        self.dispatcher.flush()
