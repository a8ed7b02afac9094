"""The router's process: its contract on the wire, and the order in which it starts and stops."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc

from tokenfleet.router.dispatcher import Dispatcher
from tokenfleet.router.loads import LoadCalls
from tokenfleet.router.session import Session
from tokenfleet.router.settings import RouterSettings
from tokenfleet.router.worker_watches import WorkerWatches
from tokenfleet.runtime.catalog import CatalogWatch
from tokenfleet.runtime.discovery import Discovery
from tokenfleet.runtime.grpc_host import GrpcHost
from tokenfleet.runtime.lifecycle import Lifecycle, freeze_heap
from tokenfleet.runtime.links import Link, LinkServer
from tokenfleet.runtime.metrics import serve_metrics
from tokenfleet.runtime.telemetry import get_logger
from tokenfleet.v1 import router_pb2, router_pb2_grpc

SERVICE = "tokenfleet.v1.Router"
FLEET_INTERVAL_MS = 500
# A unary call in flight is short, and gateways take their asks elsewhere as soon as their stream closes.
STOP_GRACE_S = 0.5
# How long a new stream waits for the first catalog, less than a gateway waits for its stream.
CATALOG_PATIENCE_S = 1.0

log = get_logger(__name__)


class RouterService(router_pb2_grpc.RouterServicer):
    """Builds the parts, answers calls, stops in order."""

    def __init__(self, settings: RouterSettings) -> None:
        self._settings = settings
        self._links = LinkServer(settings.advertise_host)
        self._stopping = asyncio.Event()
        self._catalog = CatalogWatch(settings.loader)
        self._loads = LoadCalls(settings.loader)
        self._dispatcher = Dispatcher(settings, self._catalog, self._loads.start, self._loads.abandon)
        self._loads.dispatcher = self._dispatcher
        self._worker_watches = WorkerWatches(self._dispatcher, frames=settings.frames)
        self._workers = Discovery(settings.workers, self._worker_watches)

    async def run(self, lifecycle: Lifecycle) -> None:
        settings = self._settings
        host = GrpcHost(
            SERVICE,
            lambda server: router_pb2_grpc.add_RouterServicer_to_server(self, server),
            listen=settings.listen,
            reflection=settings.reflection,
        )
        await host.start()
        if settings.frames:
            await self._links.start_frames(settings.listen, settings.frames_port)
        metrics_port = serve_metrics(settings.metrics_listen, ready=lambda: host.ready)
        await self._catalog.start()
        if not settings.workers:
            log.warning("no workers are configured: name them with --workers host:port,…")
        self._workers.start()
        self._dispatcher.start()
        log.info("serving", grpc=host.port, metrics=metrics_port, policy=settings.policy)
        if await self._informed(lifecycle):
            freeze_heap()
            await host.set_ready(True)
            log.info("ready")
            await lifecycle.stopping.wait()
        await self._stop(host)

    async def Schedule(  # type: ignore[override]  # the stubs know only generators
        self,
        request_iterator: AsyncIterator[router_pb2.ScheduleRequest],
        context: grpc.aio.ServicerContext[router_pb2.ScheduleRequest, router_pb2.ScheduleResponse],
    ) -> None:
        await self._catalog_awaited()
        await self._links.serve(
            request_iterator, context, router_pb2.ScheduleRequest.FromString, self._gateway_came
        )

    async def Explain(
        self, request: router_pb2.ExplainRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> router_pb2.ExplainResponse:
        del context
        return router_pb2.ExplainResponse(
            records=self._dispatcher.records.find(request.request_id, request.tenant)
        )

    async def ListWorkers(
        self, request: router_pb2.ListWorkersRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> router_pb2.ListWorkersResponse:
        del context
        return router_pb2.ListWorkersResponse(workers=self._views(request.model))

    async def WatchFleet(
        self, request: router_pb2.WatchFleetRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[router_pb2.WatchFleetResponse]:
        del context
        interval_s = (request.min_interval_ms or FLEET_INTERVAL_MS) / 1000
        while not self._stopping.is_set():
            yield router_pb2.WatchFleetResponse(
                workers=self._views(), queue_depth=self._dispatcher.scheduler.waiting
            )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval_s):
                    await self._stopping.wait()

    def _gateway_came(self, link: Link[router_pb2.ScheduleResponse]) -> Session:
        log.info("gateway came", peer=link.peer)
        session = Session(self._dispatcher, link)
        self._dispatcher.sessions.add(session)
        return session

    def _views(self, model: str = "") -> list[router_pb2.WorkerView]:
        views = [watch.view() for watch in self._dispatcher.watches.values()]
        if not model:
            return views
        return [view for view in views if any(held.model == model for held in view.info.models)]

    async def _informed(self, lifecycle: Lifecycle) -> bool:
        """Whether workers and catalog became known before the process was told to stop."""
        if not await self._workers.wait_synced(
            lifecycle.stopping, self._dispatcher.scheduler.fleet.await_workers
        ):
            return False
        waits = [asyncio.create_task(event.wait()) for event in (self._catalog.first, lifecycle.stopping)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        return not lifecycle.stopping.is_set()

    async def _catalog_awaited(self) -> None:
        """An open stream makes this router the home of models, so it should know which there are.

        Not for long: what workers hold can be placed without a catalog, when the model-loader is away.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CATALOG_PATIENCE_S):
                await self._catalog.first.wait()

    async def _stop(self, host: GrpcHost) -> None:
        await host.set_ready(False)
        self._stopping.set()
        self._dispatcher.stop()
        await self._links.stop()
        await host.stop(STOP_GRACE_S)
        await asyncio.gather(self._workers.stop(), self._worker_watches.stop())
        await self._loads.stop()
        await self._catalog.stop()
