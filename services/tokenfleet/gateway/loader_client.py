"""The model-loader as operators use it through the gateway: what is where, and orders to change that."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from typing import TypeVar

import grpc

from tokenfleet.runtime.errors import FleetError, from_rpc_error
from tokenfleet.runtime.grpc_host import PeerChannel
from tokenfleet.runtime.roles import MODEL_LOADER
from tokenfleet.v1 import common_pb2 as pb
from tokenfleet.v1 import model_loader_pb2 as api
from tokenfleet.v1 import model_loader_pb2_grpc

ANSWER_WITHIN_S = 10.0
RETRY_AFTER_S = 2.0

Answer = TypeVar("Answer")


class LoaderClient:
    """Every method raises FleetError. A load or an unload goes on when its caller leaves."""

    def __init__(self, loader: str) -> None:
        self._loader = loader
        self._channel = PeerChannel(loader, MODEL_LOADER)

    async def stop(self) -> None:
        await self._channel.close()

    async def residency(self) -> api.ListResidencyResponse:
        return await self._told(self._stub.ListResidency(api.ListResidencyRequest(), timeout=ANSWER_WITHIN_S))

    async def load(self, model: str, replicas: int) -> AsyncIterator[api.EnsureLoadedResponse]:
        """Progress until it is loaded. Raises FleetError also when it cannot be."""
        request = api.EnsureLoadedRequest(model=model, replicas=replicas)
        try:
            async for response in self._stub.EnsureLoaded(request):
                if response.progress.stage == pb.LoadProgress.STAGE_FAILED:
                    raise FleetError.from_failure(response.progress.failure)
                yield response
        except grpc.aio.AioRpcError as error:
            raise self._translated(error) from error

    async def unload(self, model: str, worker_id: str, *, force: bool) -> list[api.UnloadResponse]:
        """What became of it on each worker that held it."""
        request = api.UnloadRequest(model=model, worker_id=worker_id, force=force)
        try:
            return [response async for response in self._stub.Unload(request)]
        except grpc.aio.AioRpcError as error:
            raise self._translated(error) from error

    async def pin(self, model: str, *, pinned: bool) -> None:
        await self._told(self._stub.Pin(api.PinRequest(model=model, pinned=pinned), timeout=ANSWER_WITHIN_S))

    async def add(self, entry: str, *, replace: bool) -> pb.ModelSpec:
        request = api.AddModelRequest(entry=entry, replace=replace)
        return (await self._told(self._stub.AddModel(request, timeout=ANSWER_WITHIN_S))).spec

    async def remove(self, model: str) -> None:
        await self._told(self._stub.RemoveModel(api.RemoveModelRequest(model=model), timeout=ANSWER_WITHIN_S))

    @property
    def _stub(self) -> model_loader_pb2_grpc.ModelLoaderAsyncStub:
        return model_loader_pb2_grpc.ModelLoaderStub(self._channel.get())

    async def _told(self, asking: Awaitable[Answer]) -> Answer:
        try:
            return await asking
        except grpc.aio.AioRpcError as error:
            raise self._translated(error) from error

    def _translated(self, error: grpc.aio.AioRpcError) -> FleetError:
        if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            translated = from_rpc_error(error)
            if translated.reason in (pb.REASON_WORKER_LOST, pb.REASON_DEADLINE_EXCEEDED):
                return FleetError(
                    pb.REASON_NO_WORKER,
                    f"the model-loader at {self._loader} does not answer: what is loaded goes on serving",
                    retry_after_s=RETRY_AFTER_S,
                )
        return from_rpc_error(error)
