"""The router's eyes on one worker: what it last said, until the moment the watch breaks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import grpc

from tokenfleet.router.translate import device, model_loads, placements, worker_facts
from tokenfleet.runtime.discovery import Peer
from tokenfleet.runtime.errors import FleetError
from tokenfleet.runtime.following import Framed, Resubscribe, StreamFollower
from tokenfleet.runtime.links import ACCEPT
from tokenfleet.runtime.roles import WORKER
from tokenfleet.runtime.telemetry import get_logger
from tokenfleet.v1 import router_pb2, worker_pb2, worker_pb2_grpc

if TYPE_CHECKING:
    from tokenfleet.router.dispatcher import Dispatcher

# Different failures of one worker that are logged until it is connected again.
MOST_TOLD = 8

log = get_logger(__name__)


class WorkerWatch:
    """Follows one worker's `Watch` and tells the scheduler."""

    def __init__(
        self, peer: Peer, watcher_id: str, interval_ms: int, dispatcher: Dispatcher, *, frames: bool = False
    ) -> None:
        self.target = peer.target
        self.interval_ms = interval_ms
        self._peer = peer
        self._watcher_id = watcher_id
        self._left = False
        self.placements: dict[str, router_pb2.Placement] = {}
        self._dispatcher = dispatcher
        self._loop = asyncio.get_running_loop()
        self._info = worker_pb2.WorkerInfo()
        self._load = worker_pb2.LoadSample()
        self._last_error = "not connected yet"
        self._told: set[str] = set()  # failures since it was last connected, each logged once
        self._cache_sequence: int | None = None  # of the last change that is known; none until a snapshot
        self._snapshots: dict[str, list[int]] = {}  # what has come of them, by model
        self._follower = StreamFollower(
            peer.target,
            WORKER,
            lambda channel: aiter(self._watch(channel)),
            self._received,
            self._broken,
            Framed(lambda channel: self._watch(channel, ACCEPT), worker_pb2.WatchResponse.FromString)
            if frames
            else None,
        )

    def _watch(
        self, channel: grpc.aio.Channel, metadata: tuple[tuple[str, str], ...] = ()
    ) -> grpc.aio.UnaryStreamCall[worker_pb2.WatchRequest, worker_pb2.WatchResponse]:
        # Without a sequence number: each stream begins with the whole of the caches.
        request = worker_pb2.WatchRequest(
            min_interval_ms=self.interval_ms, watcher_id=self._watcher_id, cache_events=True
        )
        return worker_pb2_grpc.WorkerStub(channel).Watch(request, metadata=metadata)

    def start(self) -> None:
        self._follower.start()

    async def stop(self) -> None:
        self.leave()
        await self._follower.stop()

    def leave(self) -> None:
        """Nothing that the worker says counts from here on."""
        self._left = True

    async def widen(self, interval_ms: int) -> None:
        """Watches anew with another interval; what is known stays in force meanwhile."""
        self.interval_ms = interval_ms
        self._dispatcher.scheduler.sampled_every(self.target, interval_ms / 1000)
        self._cache_sequence = None
        await self._follower.stop()
        if not self._left:
            self._follower.start()

    def update(self, peer: Peer) -> None:
        """The cluster says something else of it: a worker that is to go gets nothing new."""
        self._peer = peer
        if self._info.worker_id and self._dispatcher.scheduler.fleet.workers[self.target].connected:
            self._introduced(self._info, self._loop.time())
            self._dispatcher.flush()

    def view(self) -> router_pb2.WorkerView:
        """The worker as the router sees it now."""
        worker = self._dispatcher.scheduler.fleet.workers[self.target]
        age_s = self._loop.time() - worker.measured_at if worker.connected else 0.0
        return router_pb2.WorkerView(
            info=self._info,
            load=self._load,
            endpoint=self.target,
            connected=worker.connected,
            sample_age_ms=round(max(0.0, age_s) * 1000),
            reserved=sum(replica.reserved for replica in worker.replicas.values()),
            last_error=self._last_error,
        )

    def _received(self, response: worker_pb2.WatchResponse) -> None:
        if self._left:
            return
        scheduler, now = self._dispatcher.scheduler, self._loop.time()
        if response.HasField("info"):
            self._introduced(response.info, now)
        if response.HasField("load"):
            self._load = load = response.load
            scheduler.sample(
                self.target,
                model_loads(load),
                load.admitted_ids,
                load.age_ms / 1000,
                now,
                device(load.accelerator),
            )
        if response.HasField("cache_snapshot"):
            self._take_snapshot(response.cache_snapshot)
        if response.cache_events:
            self._take_cache_events(response.cache_events)
        self._dispatcher.flush()

    def _take_snapshot(self, chunk: worker_pb2.CacheSnapshot) -> None:
        hashes = self._snapshots.setdefault(chunk.model, [])
        hashes.extend(chunk.hashes)
        if chunk.last:
            del self._snapshots[chunk.model]
            scheduler = self._dispatcher.scheduler
            scheduler.cache_cleared(self.target, chunk.model)
            scheduler.cache_changed(self.target, chunk.model, hashes, ())
            self._cache_sequence = chunk.sequence

    def _take_cache_events(self, events: Iterable[worker_pb2.CacheEvent]) -> None:
        by_model: dict[str, list[worker_pb2.CacheEvent]] = {}
        for event in events:
            if self._cache_sequence is not None and event.sequence != self._cache_sequence + 1:
                raise Resubscribe(f"cache event {event.sequence} came after {self._cache_sequence}")
            self._cache_sequence = event.sequence
            by_model.setdefault(event.model, []).append(event)
        for told in by_model.values():
            stored = list(chain.from_iterable(event.stored[:] for event in told))
            removed = list(chain.from_iterable(event.removed[:] for event in told))
            if len(told) > 1 and (_any_cleared(told) or not set(removed).isdisjoint(stored)):
                for event in told:
                    self._take_cache_event(event, event.stored[:], event.removed[:])
            else:  # in whatever order, it comes to the same
                self._take_cache_event(told[0], stored, removed)

    def _take_cache_event(
        self, event: worker_pb2.CacheEvent, stored: Sequence[int], removed: Sequence[int]
    ) -> None:
        scheduler = self._dispatcher.scheduler
        if event.cleared:
            scheduler.cache_cleared(self.target, event.model)
        scheduler.cache_changed(self.target, event.model, stored, removed)

    def _introduced(self, info: worker_pb2.WorkerInfo, now: float) -> None:
        if info.worker_id != self._info.worker_id or self._last_error:
            log.info("worker connected", worker=info.worker_id, name=info.name, target=self.target)
        self._last_error = ""
        self._told.clear()
        self._info = info
        info.zone = info.zone or self._peer.zone
        if self._peer.terminating:
            info.state = worker_pb2.WORKER_STATE_DRAINING
        self.placements = placements(self.target, info)
        self._dispatcher.scheduler.describe(self.target, worker_facts(info), now)

    def _broken(self, error: FleetError) -> None:
        if self._left:
            return
        self._last_error = error.message
        self._load = worker_pb2.LoadSample()
        self._cache_sequence = None
        self._snapshots.clear()
        if error.message not in self._told and len(self._told) < MOST_TOLD:
            self._told.add(error.message)
            log.warning(
                "worker watch broken", worker=self._info.name, target=self.target, error=error.message
            )
        self._dispatcher.scheduler.lost(self.target, self._loop.time())
        self._dispatcher.flush()


def _any_cleared(events: Iterable[worker_pb2.CacheEvent]) -> bool:
    return any(event.cleared for event in events)
