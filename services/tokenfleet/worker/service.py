"""The gRPC face of the worker: each method maps a message to a call and an error to a status."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc

from tokenfleet.runtime.errors import FleetError, abort
from tokenfleet.runtime.links import Feed, Link, LinkServer
from tokenfleet.v1 import worker_pb2, worker_pb2_grpc
from tokenfleet.worker.host import WorkerHost
from tokenfleet.worker.sequence import invalid


class WorkerService(worker_pb2_grpc.WorkerServicer):
    def __init__(self, host: WorkerHost, links: LinkServer) -> None:
        self._host = host
        self._links = links

    async def Serve(  # type: ignore[override]
        self,
        request_iterator: AsyncIterator[worker_pb2.ServeRequest],
        context: grpc.aio.ServicerContext[worker_pb2.ServeRequest, worker_pb2.ServeResponse],
    ) -> None:
        await self._links.serve(
            request_iterator, context, worker_pb2.ServeRequest.FromString, self._host.accept
        )

    async def Watch(
        self,
        request: worker_pb2.WatchRequest,
        context: grpc.aio.ServicerContext[worker_pb2.WatchRequest, worker_pb2.WatchResponse],
    ) -> AsyncIterator[worker_pb2.WatchResponse]:
        responses = self._host.watch.watch(request)

        def feed(link: Link[worker_pb2.WatchResponse]) -> Feed[worker_pb2.WatchResponse]:
            return Feed(link, responses)

        if await self._links.offer(context, worker_pb2.WatchRequest.FromString, feed):
            return
        async for response in responses:
            yield response

    async def LoadModel(
        self,
        request: worker_pb2.LoadModelRequest,
        context: grpc.aio.ServicerContext[worker_pb2.LoadModelRequest, worker_pb2.LoadModelResponse],
    ) -> AsyncIterator[worker_pb2.LoadModelResponse]:
        try:
            if not request.spec.name:
                raise invalid("spec.name", "must name the model")
            self._host.refuse_when_draining()
            async for response in self._host.residency.load(request.spec, request.engine):
                yield response
        except FleetError as error:
            await abort(context, error)

    async def UnloadModel(
        self,
        request: worker_pb2.UnloadModelRequest,
        context: grpc.aio.ServicerContext[worker_pb2.UnloadModelRequest, worker_pb2.UnloadModelResponse],
    ) -> AsyncIterator[worker_pb2.UnloadModelResponse]:
        try:
            async for response in self._host.residency.unload(request, self._host.settings.grace_s):
                yield response
        except FleetError as error:
            await abort(context, error)

    async def Drain(
        self,
        request: worker_pb2.DrainRequest,
        context: grpc.aio.ServicerContext[worker_pb2.DrainRequest, worker_pb2.DrainResponse],
    ) -> AsyncIterator[worker_pb2.DrainResponse]:
        del context
        grace_s = request.grace_ms / 1000 or self._host.settings.grace_s
        async for running in self._host.drain(grace_s):
            yield worker_pb2.DrainResponse(running=running)
        yield worker_pb2.DrainResponse(done=True)
