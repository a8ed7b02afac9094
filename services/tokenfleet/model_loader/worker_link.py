"""The loader's dealings with one worker: its watch, and the loads and unloads ordered of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import grpc

from tokenfleet.core.residency import Failure, HostFacts, Place, PlaceState, SleepCosts
from tokenfleet.runtime.discovery import Peer
from tokenfleet.runtime.errors import FleetError, from_rpc_error, reason_name
from tokenfleet.runtime.following import StreamFollower
from tokenfleet.runtime.grpc_host import open_channel
from tokenfleet.runtime.roles import WORKER
from tokenfleet.runtime.telemetry import get_logger
from tokenfleet.v1 import worker_pb2, worker_pb2_grpc

# Changes of residency are told at once. Who is in use may come a little later: a worker refuses to unload
# what was used since.
SAMPLE_INTERVAL_MS = 500

_ACCEPTING = (worker_pb2.WORKER_STATE_STARTING, worker_pb2.WORKER_STATE_READY)
_STATES = {
    worker_pb2.ResidentModel.STATE_LOADING: PlaceState.LOADING,
    worker_pb2.ResidentModel.STATE_READY: PlaceState.READY,
    worker_pb2.ResidentModel.STATE_UNLOADING: PlaceState.UNLOADING,
    worker_pb2.ResidentModel.STATE_ASLEEP: PlaceState.ASLEEP,
    worker_pb2.ResidentModel.STATE_FAILED: PlaceState.FAILED,
}

log = get_logger(__name__)


class WorkerLink:
    """Tells what the worker says through three callbacks; orders have a connection of their own each."""

    def __init__(
        self,
        peer: Peer,
        *,
        described: Callable[[str, HostFacts], None],
        used: Callable[[str, worker_pb2.LoadSample], None],
        lost: Callable[[str], None],
    ) -> None:
        self.target = peer.target
        self._peer = peer
        self._left = False
        self._info = worker_pb2.WorkerInfo()
        self._described = described
        self._used = used
        self._lost = lost
        self._up = False
        self._told_of_failure = False
        request = worker_pb2.WatchRequest(
            min_interval_ms=SAMPLE_INTERVAL_MS, watcher_id="model-loader", cache_events=False
        )
        self._follower = StreamFollower(
            peer.target,
            WORKER,
            lambda channel: aiter(worker_pb2_grpc.WorkerStub(channel).Watch(request)),
            self._received,
            self._broken,
        )

    def start(self) -> None:
        self._follower.start()

    async def stop(self) -> None:
        self.leave()
        await self._follower.stop()

    def leave(self) -> None:
        """Nothing that the worker says counts from here on."""
        self._left = True

    def update(self, peer: Peer) -> None:
        """The cluster says something else of it: a worker that is to go is ordered nothing new."""
        self._peer = peer
        if self._up:
            self._described(self.target, _facts(self._info, self._peer))

    async def load(self, request: worker_pb2.LoadModelRequest) -> AsyncIterator[worker_pb2.LoadModelResponse]:
        """Orders a load and follows it. Raises FleetError."""
        async with open_channel(self.target, WORKER) as channel:
            try:
                async for response in worker_pb2_grpc.WorkerStub(channel).LoadModel(request):
                    yield response
            except grpc.aio.AioRpcError as error:
                raise from_rpc_error(error) from error

    async def unload(self, request: worker_pb2.UnloadModelRequest) -> worker_pb2.UnloadModelResponse:
        """Orders an unload; answers the worker's last word. Raises FleetError."""
        last = worker_pb2.UnloadModelResponse()
        async with open_channel(self.target, WORKER) as channel:
            try:
                async for response in worker_pb2_grpc.WorkerStub(channel).UnloadModel(request):
                    last = response
            except grpc.aio.AioRpcError as error:
                raise from_rpc_error(error) from error
        return last

    def _received(self, response: worker_pb2.WatchResponse) -> None:
        if self._left:
            return
        if response.HasField("info"):
            if not self._up:
                log.info("worker connected", worker=response.info.worker_id, target=self.target)
            self._up, self._told_of_failure = True, False
            self._info = response.info
            self._described(self.target, _facts(response.info, self._peer))
        if response.HasField("load"):
            self._used(self.target, response.load)

    def _broken(self, error: FleetError) -> None:
        if self._left:
            return
        self._up = False
        if not self._told_of_failure:
            log.warning("worker watch broken", target=self.target, error=error.message)
        self._told_of_failure = True
        self._lost(self.target)


def _facts(info: worker_pb2.WorkerInfo, peer: Peer) -> HostFacts:
    return HostFacts(
        worker_id=info.worker_id,
        name=info.name,
        zone=info.zone or peer.zone,
        accepts=info.state in _ACCEPTING and not peer.terminating,
        engines=frozenset(info.engines),
        memory_budget_bytes=info.memory_budget_bytes,
        places=tuple(map(_place, info.models)),
    )


def _place(held: worker_pb2.ResidentModel) -> Place:
    told = held.failure if held.HasField("failure") else None
    return Place(
        held.model,
        _STATES.get(held.state, PlaceState.LOADING),
        held.residency_epoch,
        held.reserved_bytes or held.memory_bytes,
        Failure(reason_name(told.reason), told.message) if told is not None else None,
        held.fingerprint.engine,
        SleepCosts(held.sleep.asleep_bytes, held.sleep.wake_ms / 1000) if held.HasField("sleep") else None,
    )
