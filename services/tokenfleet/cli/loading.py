"""Follows the models that a fleet loads at its start.

Asking the model-loader to ensure a model that it is loading already joins that load, so following it is the
same call that a cold request makes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from collections.abc import Set as AbstractSet

import grpc

from tokenfleet.v1 import common_pb2, model_loader_pb2, model_loader_pb2_grpc

PATIENCE_S = 3.0

Progress = common_pb2.LoadProgress


async def servable_models(channel: grpc.aio.Channel, engines: AbstractSet[str]) -> list[common_pb2.ModelSpec]:
    """The catalog's models that one of these engines can run, as soon as the model-loader answers."""
    stub = model_loader_pb2_grpc.ModelLoaderStub(channel)
    call = stub.WatchCatalog(model_loader_pb2.WatchCatalogRequest(), wait_for_ready=True)
    try:
        async for response in call:
            return [spec for spec in response.models if engines & {each.engine for each in spec.engines}]
    finally:
        call.cancel()
    return []


async def first_servable_model(loader: str, engines: AbstractSet[str]) -> str:
    """The catalog's first model that one of these engines can run; "" if there is none, or nobody answers."""
    async with grpc.aio.insecure_channel(loader) as channel:
        try:
            async with asyncio.timeout(PATIENCE_S):
                models = await servable_models(channel, engines)
        except (TimeoutError, grpc.aio.AioRpcError):
            return ""
    return models[0].name if models else ""


async def follow_warm_models(
    loader: str, engines: AbstractSet[str], on_progress: Callable[[Progress], None]
) -> dict[str, common_pb2.Failure | None]:
    """Waits until every model that is loaded at start is ready or has failed; answers which failed how."""
    async with grpc.aio.insecure_channel(loader) as channel:
        models = await servable_models(channel, engines)
        warm = [spec for spec in models if spec.policy == common_pb2.ModelSpec.POLICY_WARM]
        ends = await asyncio.gather(*(_follow(channel, spec, on_progress) for spec in warm))
    return {spec.name: end for spec, end in zip(warm, ends, strict=True)}


async def _follow(
    channel: grpc.aio.Channel, spec: common_pb2.ModelSpec, on_progress: Callable[[Progress], None]
) -> common_pb2.Failure | None:
    stub = model_loader_pb2_grpc.ModelLoaderStub(channel)
    request = model_loader_pb2.EnsureLoadedRequest(model=spec.name, replicas=spec.replicas)
    try:
        async for response in stub.EnsureLoaded(request):
            on_progress(response.progress)
            if response.progress.stage == Progress.STAGE_FAILED:
                return response.progress.failure
            if response.progress.stage == Progress.STAGE_READY:
                return None
    except grpc.aio.AioRpcError as error:
        return common_pb2.Failure(reason=common_pb2.REASON_LOAD_FAILED, message=error.details() or str(error))
    return common_pb2.Failure(
        reason=common_pb2.REASON_LOAD_FAILED, message=f"the load of {spec.name} ended without a result"
    )
