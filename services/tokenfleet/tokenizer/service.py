"""The tokenizer's process: its contract on the wire, and the order in which it starts and stops."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc

from tokenfleet.runtime.catalog import CatalogWatch
from tokenfleet.runtime.errors import FleetError, abort
from tokenfleet.runtime.grpc_host import GrpcHost
from tokenfleet.runtime.lifecycle import Lifecycle, freeze_heap
from tokenfleet.runtime.links import LinkServer
from tokenfleet.runtime.metrics import serve_metrics
from tokenfleet.runtime.models import ModelCache
from tokenfleet.runtime.telemetry import get_logger
from tokenfleet.tokenizer.model import LoadedModel, open_model
from tokenfleet.tokenizer.queue import EncodeQueue
from tokenfleet.tokenizer.registry import ModelRegistry
from tokenfleet.tokenizer.session import EncodeSession
from tokenfleet.tokenizer.settings import TokenizerSettings
from tokenfleet.v1 import common_pb2, tokenizer_pb2, tokenizer_pb2_grpc

SERVICE = "tokenfleet.v1.Tokenizer"

# Time for the last results to leave.
CLOSING_S = 5.0

# Ids decoded on the event loop; more go to a thread.
DECODED_INLINE = 2048

log = get_logger(__name__)


class TokenizerService(tokenizer_pb2_grpc.TokenizerServicer):
    """Builds the parts, answers calls, stops in order."""

    def __init__(self, settings: TokenizerSettings) -> None:
        self._settings = settings
        self._stopping = False
        self._cache = ModelCache(settings.cache_dir, settings.cache_bytes)
        self._catalog = CatalogWatch(settings.loader)
        self._registry = ModelRegistry(self._catalog, self._load)
        self._queue = EncodeQueue(
            self._registry, inline_bytes=settings.inline_bytes, limit=settings.queue_limit
        )
        self._links = LinkServer(settings.advertise_host)
        self._sessions: set[EncodeSession] = set()

    async def run(self, lifecycle: Lifecycle) -> None:
        settings = self._settings
        host = GrpcHost(
            SERVICE,
            lambda server: tokenizer_pb2_grpc.add_TokenizerServicer_to_server(self, server),
            listen=settings.listen,
            reflection=settings.reflection,
            reuse_port=settings.processes > 1,
        )
        await host.start()
        if settings.frames:
            await self._links.start_frames(settings.listen, settings.frames_port)
        metrics_port = serve_metrics(settings.metrics_listen, ready=lambda: host.ready)
        await self._catalog.start()
        log.info("serving", grpc=host.port, metrics=metrics_port)
        if await _first(self._registry.first_loaded, lifecycle.stopping):
            freeze_heap()
            await host.set_ready(True)
            log.info("ready")
            await lifecycle.stopping.wait()
        await host.set_ready(False)
        await self._stop(host, lifecycle.grace_s)

    async def Encode(  # type: ignore[override]  # the stubs know only generators
        self,
        request_iterator: AsyncIterator[tokenizer_pb2.EncodeRequest],
        context: grpc.aio.ServicerContext[tokenizer_pb2.EncodeRequest, tokenizer_pb2.EncodeResponse],
    ) -> None:
        await self._links.serve(
            request_iterator,
            context,
            tokenizer_pb2.EncodeRequest.FromString,
            lambda link: EncodeSession(self._queue, link, self._sessions),
        )

    async def Decode(
        self,
        request: tokenizer_pb2.DecodeRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> tokenizer_pb2.DecodeResponse:
        try:
            model = await self._registry.obtain(request.model)
            ids, skip = list(request.token_ids), request.skip_special_tokens
            if len(ids) <= DECODED_INLINE:
                text = model.decode(ids, skip)
            else:
                text = await asyncio.to_thread(model.decode, ids, skip)
        except FleetError as error:
            await abort(context, error)
        return tokenizer_pb2.DecodeResponse(text=text)

    async def DescribeModel(
        self,
        request: tokenizer_pb2.DescribeModelRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> tokenizer_pb2.DescribeModelResponse:
        try:
            return (await self._registry.obtain(request.model)).describe()
        except FleetError as error:
            await abort(context, error)

    def _load(self, spec: common_pb2.ModelSpec) -> LoadedModel:
        """On a thread: fetches and opens one entry's tokenizer."""
        try:
            bundle = self._cache.tokenizer(spec, self._progress)
            return open_model(spec, bundle, self._settings.backend, self._settings.prefix_cache_bytes)
        finally:
            self._cache.release(spec.name)  # all of it is in memory now

    def _progress(self, stage: common_pb2.LoadProgress.Stage.ValueType, done: int, total: int) -> None:
        if self._stopping:
            raise FleetError(common_pb2.REASON_DRAINING, "this tokenizer is stopping")

    async def _stop(self, host: GrpcHost, grace_s: float) -> None:
        self._stopping = True
        try:
            async with asyncio.timeout(grace_s):
                await self._queue.drain()
        except TimeoutError:
            log.warning("stopped with jobs unanswered", jobs=self._queue.depth)
        self._queue.stop()
        for session in tuple(self._sessions):
            session.close()
        await self._links.stop()
        await host.stop(CLOSING_S)
        await self._registry.stop()
        await self._catalog.stop()


async def _first(wanted: asyncio.Event, stopping: asyncio.Event) -> bool:
    """Waits for either; True when it was the wanted one."""
    waiting = [asyncio.create_task(event.wait()) for event in (wanted, stopping)]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    return wanted.is_set() and not stopping.is_set()
