"""The model-loader's process: its contract on the wire, and the order in which it starts and stops."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc

from tokenfleet.model_loader.catalog import Catalog, CatalogError, default_path
from tokenfleet.model_loader.catalog_file import CatalogFile
from tokenfleet.model_loader.entries import Entries
from tokenfleet.model_loader.history import History
from tokenfleet.model_loader.keeper import Keeper
from tokenfleet.model_loader.settings import ModelLoaderSettings
from tokenfleet.model_loader.store import HistoryKeeper, RedisStore
from tokenfleet.runtime.changes import Changes
from tokenfleet.runtime.discovery import Discovery
from tokenfleet.runtime.errors import FleetError, abort
from tokenfleet.runtime.grpc_host import GrpcHost
from tokenfleet.runtime.lifecycle import Lifecycle, StartupError
from tokenfleet.runtime.metrics import serve_metrics
from tokenfleet.runtime.telemetry import get_logger
from tokenfleet.v1 import model_loader_pb2, model_loader_pb2_grpc

SERVICE = "tokenfleet.v1.ModelLoader"
# Callers ask again, and loads go on without us.
STOP_GRACE_S = 0.5

log = get_logger(__name__)

_Context = grpc.aio.ServicerContext[Any, Any]


class ModelLoaderService(model_loader_pb2_grpc.ModelLoaderServicer):
    """Builds the parts, answers calls, stops in order."""

    def __init__(self, settings: ModelLoaderSettings) -> None:
        self._settings = settings
        self._history = History()
        self._keeper = Keeper(settings.limits(), settings.eviction, self._history)
        self._workers = Discovery(settings.workers, self._keeper)
        self._catalog = model_loader_pb2.WatchCatalogResponse()
        self._catalog_changes = Changes()
        self._entries = Entries(self._history, self._catalog_changed)
        self._store: HistoryKeeper | None = None

    async def run(self, lifecycle: Lifecycle) -> None:
        settings = self._settings
        store = self._store = self._open_store()
        if store is not None:
            await store.start()
        file = self._read_catalog()
        self._history.on_recall.append(self._recalled)
        self._recalled()
        host = GrpcHost(
            SERVICE,
            lambda server: model_loader_pb2_grpc.add_ModelLoaderServicer_to_server(self, server),
            listen=settings.listen,
            reflection=settings.reflection,
        )
        await host.start()
        metrics_port = serve_metrics(settings.metrics_listen, ready=lambda: host.ready)
        self._keeper.start()
        self._workers.start()
        log.info("serving", grpc=host.port, metrics=metrics_port, workers=len(self._workers.peers))
        if await self._workers.wait_synced(lifecycle.stopping, self._keeper.residency.await_workers):
            await host.set_ready(True)
            await lifecycle.stopping.wait()
        await host.set_ready(False)
        await host.stop(STOP_GRACE_S)
        await file.stop()
        await self._workers.stop()
        await self._keeper.stop()
        if store is not None:
            await store.stop()

    async def WatchCatalog(
        self, request: model_loader_pb2.WatchCatalogRequest, context: _Context
    ) -> AsyncIterator[model_loader_pb2.WatchCatalogResponse]:
        del request, context
        while True:
            seen = self._catalog_changes.version
            yield self._catalog
            await self._catalog_changes.after(seen)

    async def EnsureLoaded(
        self, request: model_loader_pb2.EnsureLoadedRequest, context: _Context
    ) -> AsyncIterator[model_loader_pb2.EnsureLoadedResponse]:
        try:
            flight = self._keeper.ensure(request.model, request.replicas, frozenset(request.excluded_workers))
        except FleetError as error:
            await abort(context, error)
        deadline_ms = request.context.deadline_ms
        async for response in flight.follow(deadline_ms / 1000 if deadline_ms else None):
            yield response

    async def Unload(
        self, request: model_loader_pb2.UnloadRequest, context: _Context
    ) -> AsyncIterator[model_loader_pb2.UnloadResponse]:
        try:
            async for response in self._keeper.unload(request.model, request.worker_id, request.force):
                yield response
        except FleetError as error:
            await abort(context, error)

    async def ListResidency(
        self, request: model_loader_pb2.ListResidencyRequest, context: _Context
    ) -> model_loader_pb2.ListResidencyResponse:
        del request, context
        return model_loader_pb2.ListResidencyResponse(
            models=self._keeper.residencies(self._entries.is_added), workers=self._keeper.memories()
        )

    async def Pin(
        self, request: model_loader_pb2.PinRequest, context: _Context
    ) -> model_loader_pb2.PinResponse:
        try:
            self._keeper.spec(request.model)
        except FleetError as error:
            await abort(context, error)
        self._history.pin(request.model, request.pinned)
        self._keeper.pin(request.model, request.pinned)
        await self._keep()
        return model_loader_pb2.PinResponse(pinned=request.pinned)

    async def AddModel(
        self, request: model_loader_pb2.AddModelRequest, context: _Context
    ) -> model_loader_pb2.AddModelResponse:
        try:
            entry = self._entries.add(request.entry, replace=request.replace)
        except FleetError as error:
            await abort(context, error)
        log.info("model added", model=entry.name, source=entry.source)
        await self._keep()
        return model_loader_pb2.AddModelResponse(spec=entry.spec(), revision=self._catalog.revision)

    async def RemoveModel(
        self, request: model_loader_pb2.RemoveModelRequest, context: _Context
    ) -> model_loader_pb2.RemoveModelResponse:
        try:
            self._entries.remove(request.model)
        except FleetError as error:
            await abort(context, error)
        log.info("model removed", model=request.model)
        await self._keep()
        return model_loader_pb2.RemoveModelResponse(revision=self._catalog.revision)

    async def _keep(self) -> None:
        """What an operator was told is done is in the store, if it takes it: this process may die next."""
        if self._store is not None:
            await self._store.exchange()

    def _recalled(self) -> None:
        """What a store kept, at the start or whenever it comes."""
        for name, past in self._history.models.items():
            self._keeper.recall(name, past)
        self._entries.refresh()

    def _open_store(self) -> HistoryKeeper | None:
        settings = self._settings
        if not settings.store:
            return None
        return HistoryKeeper(RedisStore(settings.store, settings.store_timeout_s), self._history)

    def _read_catalog(self) -> CatalogFile:
        try:
            path = self._settings.catalog or default_path()
            file = CatalogFile(path, self._settings.catalog_poll_s, self._entries.file_read)
            file.start()
        except CatalogError as error:
            raise StartupError(str(error)) from error
        return file

    def _catalog_changed(self, catalog: Catalog) -> None:
        """The whole of it, the first or a changed one."""
        specs = catalog.specs()
        revision = self._history.catalog(catalog.digest)
        if revision == self._catalog.revision:
            return
        log.info("catalog", models=[spec.name for spec in specs], revision=revision)
        self._keeper.specs = {spec.name: spec for spec in specs}
        self._keeper.residency.catalog(entry.entry() for entry in catalog.entries)
        self._catalog = model_loader_pb2.WatchCatalogResponse(models=specs, revision=revision)
        self._catalog_changes.notify()
